"""Shadow mode: a candidate answers silently beside the live program, on real traffic.

    pairs: list[ShadowPair] = []
    with Shadow(live, candidate, pairs.append, share=0.2) as program:
        program(question="Which law governs?", contract_id="acme-2019")  # the live answer, at once
        program.drain(60)
    checks = compare_shadow(pairs, ShadowRules(), texts)

The candidate costs the live program nothing but the machine that they share: give it few threads, and a share of the
questions. Not handled: streaming the candidate, and processes (each has its own queue and counts).
"""

import contextvars
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import dspy

from corpora.types import Passage, Quote

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """What one side said and how long it took; `error` (the rest is empty) where it failed."""

    answer: str
    found: bool
    quotes: tuple[Quote, ...]
    passages: tuple[Passage, ...]
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """A question of real traffic with both answers; the live one never failed, or nobody was answered."""

    question: str
    contract_id: str | None
    live: ShadowAnswer
    candidate: ShadowAnswer


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """What became of the live answers: not sampled, dropped (too many were waiting, or it was closed), recorded;
    `failed` are those that the candidate failed on, `unrecorded` those that `record` raised on."""

    answered: int = 0
    not_sampled: int = 0
    dropped: int = 0
    recorded: int = 0
    failed: int = 0
    unrecorded: int = 0


class Shadow(dspy.Module):
    """Answers as `live` does; the candidate is asked the same afterwards, in the background, and never shown.

    As a module it is the live program alone: its predictors, saved state and copies (`deepcopy` gives a copy of
    `live`, unwatched) hold nothing of the candidate, and the candidate's calls reach none of the callbacks, traces or
    streams of the call that they follow.
    """

    def __init__(
        self,
        live: dspy.Module,
        candidate: dspy.Module,
        record: Callable[[ShadowPair], Any],
        *,
        share: float = 1.0,
        threads: int = 1,
        max_waiting: int = 64,
        seed: int = 0,
    ) -> None:
        """`record` is called in a thread of the background, one pair at a time; what it raises is logged and counted.

        `share` of the live answers are sampled; what comes while `max_waiting` wait is dropped and counted. ValueError
        for a share outside (0, 1], or fewer than one thread or place to wait.
        """
        super().__init__()
        if not 0 < share <= 1 or threads < 1 or max_waiting < 1:
            raise ValueError(
                f"share={share}, threads={threads}, max_waiting={max_waiting}; give a share above 0 to 1, and 1 or "
                "more of the others"
            )
        self.live = live
        self._beside = _Background(candidate, record, share, threads, max_waiting, seed)

    def forward(self, question: str, contract_id: str | None = None) -> dspy.Prediction:
        """The live program's prediction, and whatever it raises: then the candidate is not asked."""
        began = time.perf_counter()
        prediction = self.live(question=question, contract_id=contract_id)
        self._beside.offer(question, contract_id, prediction, time.perf_counter() - began)
        return prediction

    @property
    def counts(self) -> ShadowCounts:
        """What became of the live answers so far."""
        return self._beside.counts

    def drain(self, timeout_s: float) -> bool:
        """Waits until nothing is waiting or running any more; False where that takes longer."""
        return self._beside.drain(timeout_s)

    def close(self) -> None:
        """Asks the candidate nothing more; what waits is dropped, and so is what it is saying now, which may fail for
        being closed. The live program goes on answering.
        """
        self._beside.close()

    def deepcopy(self) -> dspy.Module:
        """A copy of the live program: samples and compilations of it are nobody's traffic."""
        return self.live.deepcopy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dspy.Module:
        return self.deepcopy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Background:
    """What waits, bounded, and the threads that work it off; no DSPy module, so that none finds the candidate."""

    def __init__(self, candidate, record, share, threads, max_waiting, seed) -> None:
        self._candidate, self._record, self._share, self._max_waiting = candidate, record, share, max_waiting
        self._random, self._changed, self._recording = random.Random(seed), threading.Condition(), threading.Lock()
        self._waiting: deque[tuple[contextvars.Context, str, str | None, ShadowAnswer]] = deque()
        self._open, self._running, self.counts = True, 0, ShadowCounts()
        for number in range(threads):  # daemons: a candidate that hangs must not keep the process from ending
            threading.Thread(target=self._work, name=f"shadow-{number}", daemon=True).start()

    def offer(self, question: str, contract_id: str | None, prediction: dspy.Prediction, seconds: float) -> None:
        """Lets the candidate answer as well, if there is room; never waits and never raises."""
        try:
            live = _answer(prediction, seconds)  # now: the caller may change its prediction
            with self._changed:
                self._count("answered")
                if not self._open or self._random.random() >= self._share:
                    self._count("not_sampled")
                elif len(self._waiting) >= self._max_waiting:
                    self._count("dropped")
                else:
                    self._waiting.append((contextvars.copy_context(), question, contract_id, live))
                    self._changed.notify_all()  # a waiting drain() could be the one that notify() wakes
        except Exception:
            logger.exception("a live answer could not be shadowed")
            self._count("unrecorded")

    def drain(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._count("dropped", len(self._waiting))
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._open:
                    return
                context, question, contract_id, live = self._waiting.popleft()
                self._running += 1
            try:
                self._write(ShadowPair(question, contract_id, live, context.run(self._ask, question, contract_id)))
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _ask(self, question: str, contract_id: str | None) -> ShadowAnswer:
        """The candidate's answer, in the live call's settings without what would tell others of it."""
        began = time.perf_counter()
        silent = {"trace": [], "callbacks": [], "usage_tracker": None, "caller_predict": None, "caller_modules": []}
        try:
            with dspy.context(**silent, send_stream=None, stream_listeners=[]):
                prediction = self._candidate(question=question, contract_id=contract_id)
            return _answer(prediction, time.perf_counter() - began)
        except Exception as error:  # whatever it was: the pair says so
            self._count("failed")
            return ShadowAnswer("", False, (), (), time.perf_counter() - began, f"{type(error).__name__}: {error}")

    def _write(self, pair: ShadowPair) -> None:
        try:
            with self._recording:
                if not self._open:  # its index or its weights may have been gone by then: that is no answer of its own
                    self._count("dropped")
                    return
                self._record(pair)
            self._count("recorded")
        except Exception:
            logger.exception("a pair of answers could not be recorded")
            self._count("unrecorded")

    def _count(self, name: str, n: int = 1) -> None:
        with self._changed:
            self.counts = replace(self.counts, **{name: getattr(self.counts, name) + n})


def _answer(prediction: dspy.Prediction, seconds: float) -> ShadowAnswer:
    return ShadowAnswer(
        str(prediction.answer or ""), bool(prediction.found), tuple(prediction.quotes),
        tuple(prediction.get("passages") or ()), seconds,
    )  # fmt: skip
