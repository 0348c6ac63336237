"""How a trace is made: of what the feedback store keeps, or, by DSPy's callbacks, of any program that is called.

dspy.configure(callbacks=[Tracing(traces, "runs/mine")], track_usage=True)
program(question="Which law governs?", contract_id="acme-2019")   # leaves a trace
"""

import inspect
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from dspy.utils.usage_tracker import track_usage

from corpora.cuad import category_asked
from corpora.types import Contract, Quote
from modules.grounding import stands
from modules.retrieve import Retrieve
from program.feedback.types import Answered, Asked, Said, Shown
from program.traces.store import TraceStore
from program.traces.types import Trace

_SHAPE = {"question", "contract_id"}


class Watch(BaseCallback):
    """What was seen of one call beside its answer: `scores` by passage id, `tokens` (prompt, completion), seconds."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self.tokens: tuple[int | None, int | None] = None, None
        self.latency_s: float | None = None

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Keeps the scores of what a retriever found; other modules are passed over."""
        self.scores |= scores_of(outputs)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Watches the one call of a program that stands in the block; its tokens and seconds are there behind it."""
    began = time.perf_counter()
    with track_usage() as usage, dspy.context(callbacks=[*dspy.settings.callbacks, watch]):
        try:
            yield
        finally:
            watch.latency_s = time.perf_counter() - began
            watch.tokens = tokens_of(usage.get_total_tokens())


def trace_of(
    asked: Asked | Answered,
    said: Said | None = None,
    *,
    release: str = "",
    texts: Mapping[str, str] | None = None,
    watch: Watch | None = None,
    error: BaseException | None = None,
    shadow: bool = False,
    answer_id: str | None = None,
) -> Trace:
    """The trace of a question and what was said to it; of an `Answered` alone, where it carries both.

    `said` None: nothing was, and `error` says why. `texts` are contracts' by id, to find quotes that do not stand
    there. `watch` is what `watched` saw; `release` is needed where nothing was said.
    """
    if said is None and isinstance(asked, Answered):
        said, answer_id = asked, answer_id or asked.id
    watch = watch or Watch()
    trace = {
        "id": uuid4().hex, "at": asked.at, "release": release, "question": asked.question,
        "contract_id": asked.contract_id, "category": asked.category, "shadow": shadow, "answer_id": answer_id,
        "error": None if error is None else f"{type(error).__name__}: {error}", "latency_s": _number(watch.latency_s),
        "prompt_tokens": watch.tokens[0], "completion_tokens": watch.tokens[1],
    }  # fmt: skip
    if said is None:
        return Trace(**trace)
    shown = [passage.id for passage in said.passages]
    known = all(key in watch.scores for key in shown)
    return Trace(
        **trace
        | {
            "release": release or said.release, "answer": said.answer, "found": bool(said.found),
            "n_quotes": len(said.quotes), "n_ungrounded": None if texts is None else n_ungrounded(said.quotes, texts),
            "spans": tuple((int(quote.start), int(quote.end)) for quote in said.quotes),
            "confidence": _number(said.confidence), "p_answered": _number(said.p_answered), "passages": tuple(shown),
            "scores": tuple(watch.scores[key] for key in shown) if known else (),
            "latency_s": _number(watch.latency_s if said.latency_s is None else said.latency_s),
        }
    )  # fmt: skip


def n_ungrounded(quotes: tuple[Quote, ...], texts: Mapping[str, str]) -> int:
    """How many quotes are not, word for word, what stands at their offsets; those of a contract not in `texts`, too."""
    return sum(not stands(texts.get(quote.contract_id, ""), quote.text, quote.start, quote.end) for quote in quotes)


def scores_of(outputs: Any) -> dict[str, float]:
    """Retrieval scores by passage id, of a prediction that has both; else none."""
    if not isinstance(outputs, dspy.Prediction) or not {"passages", "scores"} <= set(outputs.keys()):
        return {}
    pairs = zip(outputs.passages, outputs.scores, strict=False)
    return {passage.id: float(score) for passage, score in pairs if math.isfinite(score)}


def tokens_of(usage: Mapping[str, Mapping[str, Any]] | None) -> tuple[int | None, int | None]:
    """(prompt, completion) tokens of DSPy's usage by LM, summed; None where none tells."""

    def total(*names: str) -> int | None:
        told = [entry[name] for entry in (usage or {}).values() for name in names if entry.get(name) is not None]
        return sum(map(int, told)) if told else None

    return total("prompt_tokens", "input_tokens"), total("completion_tokens", "output_tokens")


@dataclass(slots=True)
class _Call:
    """A program's call that is under way."""

    asked: Asked
    began: float
    watch: Watch = field(default_factory=Watch)


class Tracing(BaseCallback):
    """Leaves a trace of each call of a program of (question, contract_id), of the outermost where they are nested.

    In `dspy.context(callbacks=[...])` or `dspy.configure(callbacks=[...])`; for any number of threads. Tokens are known
    under `dspy.configure(track_usage=True)`, and whether quotes stand in the contract where `contracts` are given.
    `shadow` marks the answers as those of a candidate that nobody sees. A retriever by itself leaves no trace.
    """

    def __init__(
        self, store: TraceStore, release: str, *, contracts: Mapping[str, Contract] | None = None, shadow: bool = False
    ) -> None:
        self.store, self.release, self.contracts, self.shadow = store, release, contracts, shadow
        self._lock = threading.Lock()
        # By call id; a module within a program's call has the program's entry.
        self._calls: dict[str, _Call] = {}
        self._own: set[str] = set()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A module begins: one of a program under way, a program, or none of both."""
        with self._lock:
            call = self._calls.get(ACTIVE_CALL_ID.get())
        own = call is None
        if own:
            given = _given(instance, inputs)
            if given is None:
                return
            question, contract_id = str(given.get("question") or ""), str(given.get("contract_id") or "")
            category = category_asked(question)
            call = _Call(Asked("", question, contract_id, category, "", self.store.now()), time.perf_counter())
        with self._lock:
            self._calls[call_id] = call
            if own:
                self._own.add(call_id)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """A module ends: what it found is noted, and if it is the program the trace recorded."""
        with self._lock:
            call = self._calls.pop(call_id, None)
            own = call_id in self._own
            self._own.discard(call_id)
        if call is None:
            return
        call.watch.scores |= scores_of(outputs)
        if own:
            call.watch.latency_s = time.perf_counter() - call.began
            self._record(call, outputs, exception)

    def _record(self, call: _Call, outputs: Any, error: BaseException | None) -> None:
        if error is None and not (isinstance(outputs, dspy.Prediction) and {"answer", "found"} <= set(outputs.keys())):
            return
        about = {"release": self.release, "watch": call.watch, "error": error, "shadow": self.shadow}
        try:
            said = texts = None
            if error is None:
                call.watch.tokens = tokens_of(outputs.get_lm_usage())
                said = _said(outputs)
            if said is not None and self.contracts is not None:
                ids = {quote.contract_id for quote in said.quotes}
                texts = {key: self.contracts[key].text for key in ids if key in self.contracts}
            self.store.record(trace_of(call.asked, said, texts=texts, **about))
        except Exception as wrong:  # the answer is there, whatever it is made of
            self.store.lose(wrong)


def _given(instance: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments by name, where the module is of the shape that is traced."""
    forward = getattr(instance, "forward", None)
    if forward is None or isinstance(instance, Retrieve):
        return None
    signature = inspect.signature(forward)
    if not set(signature.parameters) >= _SHAPE:
        return None
    try:
        return signature.bind_partial(*inputs.get("args", ()), **inputs.get("kwargs", {})).arguments
    except TypeError:  # the call itself will say so
        return None


def _said(prediction: dspy.Prediction) -> Said:
    return Said(
        answer=str(prediction.answer),
        found=bool(prediction.found),
        quotes=tuple(prediction.get("quotes") or ()),
        confidence=prediction.get("confidence"),
        p_answered=prediction.get("p_answered"),
        passages=tuple(Shown(p.id, p.contract_id, p.start, p.end) for p in prediction.get("passages") or ()),
    )


def _number(value: Any) -> float | None:
    """As a plain number (of numpy's, say), None where it is none that is finite."""
    return float(value) if value is not None and math.isfinite(value) else None
