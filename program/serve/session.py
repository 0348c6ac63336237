"""An open program put to use by several people at once: it is asked, every answer is recorded, and only then shown."""

import contextvars
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import dspy

from corpora.cuad import CATEGORIES, category_asked, question_text
from corpora.labels.rows import folded, sha256
from corpora.types import Contract, Quote, Span
from modules.retriever import PassageIndex
from modules.reviewer import is_absent
from program.asking import resampled
from program.feedback.queue import Queue, Waiting
from program.feedback.rows import FeedbackError, UnknownError
from program.feedback.store import FeedbackStore
from program.feedback.types import Answered, Asked, Candidates, Correction, Review, Said
from program.serve.errors import AgreementError, ChangedError, ServeError
from program.serve.recorder import said_by
from program.traces.store import TraceStore
from program.traces.tracing import Watch, trace_of, watched

SAMPLE_TEMPERATURE = 1.0
T = TypeVar("T")
Told = tuple[Said, Watch]
_BY_NAME = {category.name.casefold(): category.name for category in CATEGORIES}


@dataclass(frozen=True, slots=True)
class Offer:
    """Two answers to choose between, already recorded."""

    candidates: Candidates
    left: Answered
    right: Answered


@dataclass(frozen=True, slots=True)
class Live:
    """What answers now: one program of one release, on its contracts."""

    program: dspy.Module
    release: str
    contracts: Mapping[str, Contract]


class IndexContracts(Mapping[str, Contract]):
    """The contracts of an index by id, as it holds them now."""

    def __init__(self, index: PassageIndex) -> None:
        self._index = index

    def __getitem__(self, contract_id: str) -> Contract:
        return self._index.contents[contract_id].contract

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.contents)

    def __len__(self) -> int:
        return len(self._index.contents)


def sample_of(program: dspy.Module, number: int) -> dspy.Module:
    """A copy of the program that says another sample, at a temperature of 1: people choose where answers differ."""
    return resampled(program, number, SAMPLE_TEMPERATURE)


class Session:
    """Asks `program`, any module of (question, contract_id) -> prediction(answer, quotes, found, confidence).

    DSPy's settings (LM, adapter) are those of where it is made. Its methods may be called from any thread.
    """

    def __init__(
        self,
        program: dspy.Module,
        contracts: Mapping[str, Contract],
        store: FeedbackStore,
        *,
        release: str,
        rival: dspy.Module | None = None,
        rival_release: str = "",
        sampled: Callable[[dspy.Module, int], dspy.Module] = sample_of,
        samples: int = 3,
        threads: int = 8,
        seed: int = 0,
        traces: TraceStore | None = None,
    ) -> None:
        """`rival` is another release to lay beside; without one the other candidate is one of `samples` more answers,
        each of `sampled(program, number)`. `seed` is that of the coin that says which candidate stands on the left.
        Each answer of the program and of the rival, and each failure of theirs, is recorded in `traces`; samples, which
        are not what the program serves, are not.
        """
        if samples < 1 or threads < 1:
            raise ValueError(f"{samples} samples on {threads} threads were asked for; ask for 1 or more of each")
        self._live = Live(program, release, contracts)
        self.store, self.traces = store, traces
        self._rival, self._rival_release = rival, rival_release
        self._sampled, self._samples = sampled, samples
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._queue = Queue(store)
        self._hashes: dict[str, tuple[str, str]] = {}
        self._context = contextvars.copy_context()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="asking")

    @property
    def live(self) -> Live:
        """What answers now."""
        return self._live

    @property
    def release(self) -> str:
        """The release that answers now."""
        return self._live.release

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """The contracts that can be asked now."""
        return self._live.contracts

    def swap(self, live: Live) -> None:
        """Answer by another release from the next question on; what is being asked is answered by the one before."""
        self._live = live

    def close(self) -> None:
        """Ask nothing more; returns when what runs has ended. The store stays open."""
        self._pool.shutdown(cancel_futures=True)

    def contract(self, contract_id: str) -> Contract:
        """The contract of that id; UnknownError."""
        try:
            return self.contracts[contract_id]
        except KeyError as error:
            raise UnknownError(f"there is no contract {contract_id[:200]!r}. Choose one of the list.") from error

    def ask(self, question: str, contract_id: str) -> Answered:
        """The program's answer, recorded; a category's name stands for CUAD's question.

        UnknownError, FeedbackError for a question that is empty or too long, and whatever the program raises.
        """
        asked = self._ask(question, contract_id)
        live = self._live
        return self._record(asked, *self._start(lambda: live.program, asked, live.release).result())

    def candidates(self, question: str, contract_id: str) -> Offer:
        """Two different answers, laid left and right by a coin: the program's, and a sample's or the rival's.

        AgreementError where all say the same, as `ask` else. Answers that cannot be read are not laid before anybody.
        """
        asked = self._ask(question, contract_id)
        live = self._live
        first = self._start(lambda: live.program, asked, live.release)
        others = [future.result() for future in self._others(asked, live)]
        said, watch = first.result()
        if self._rival is None:
            said = replace(said, samples_agree=sum(_same(said, other) for other, _ in others) / len(others))
        answered = self._record(asked, said, watch)
        other = next((told for told in others if told[0].readable and not _same(said, told[0])), None)
        if other is None or not said.readable:
            for told in others:  # of the rival, too, all answers count, not those alone that differ
                self._trace(asked, *told)
            among = "both releases say" if self._rival is not None else f"{len(others)} more samples all say"
            why = f"{among} the same" if said.readable else "the answer could not be read"
            raise AgreementError(f"There is nothing to choose between: {why}. Rate the answer instead.")
        sides = [answered, self._record(asked, *other)]
        with self._lock:
            self._random.shuffle(sides)
        return Offer(self.store.offer(sides[0].id, sides[1].id), *sides)

    def review(
        self,
        contract_id: str,
        on_answer: Callable[[int, Answered], object] = lambda number, answered: None,
        *,
        categories: Sequence[str] = tuple(category.name for category in CATEGORIES),
    ) -> Review:
        """All categories asked of a contract; `on_answer` is told of each, by its number, as it comes, in any thread.

        The first failure is raised, the rest is not asked; what was answered stays recorded.
        """
        self.contract(contract_id)
        live = self._live

        def one(number: int, name: str) -> Answered:
            asked = self._ask(name, contract_id)
            answered = self._record(asked, *self._say(lambda: live.program, asked, live.release))
            on_answer(number, answered)
            return answered

        futures = [self._submit(one, number, name) for number, name in enumerate(categories)]
        try:
            return Review(contract_id, live.release, tuple(future.result() for future in futures))
        finally:
            for future in futures:
                future.cancel()

    def correct(
        self,
        answer_id: str,
        *,
        found: bool,
        answer: str | None = None,
        spans: Sequence[Span | Quote] = (),
        comment: str = "",
        by: str = "",
    ) -> Correction:
        """`FeedbackStore.correct`, for spans in the contract as it is now: ChangedError where it was another then."""
        answered = self.store.answered(answer_id)
        if spans and self._hash(self.contract(answered.contract_id)) != answered.contract_sha256:
            raise ChangedError(f"{answered.contract_id!r} has changed since it was asked. Ask again, and correct that.")
        if found and answer is not None and is_absent(answer):
            raise FeedbackError(f"the answer is {answer!r}, and found is true. Say found=false instead.")
        return self.store.correct(answer_id, found=found, answer=answer, spans=spans, comment=comment, by=by)

    def contract_of(self, review: Review) -> Contract:
        """The contract as it was reviewed: what the offsets of its quotes count in."""
        now = self.contracts.get(review.contract_id)
        if now is not None and all(self._hash(now) == each.contract_sha256 for each in review.answers):
            return now
        texts = {self.store.contract_text(answered) for answered in review.answers}
        if len(texts) != 1:
            raise ChangedError(f"{review.contract_id!r} changed while it was reviewed. Start the review again.")
        return Contract(review.contract_id, *texts)

    def queue(self, limit: int | None = None) -> list[Waiting]:
        """What to show a reviewer next, the least sure first: of the contracts that are here as they were asked."""
        return [each for each in self._queue.waiting() if self._is_here(each.answered)][:limit]

    def _is_here(self, answered: Answered) -> bool:
        contract = self.contracts.get(answered.contract_id)
        return contract is not None and self._hash(contract) == answered.contract_sha256

    def _hash(self, contract: Contract) -> str:
        # Kept: the queue looks at every contract, and texts are long.
        text, sha = self._hashes.get(contract.id, (None, ""))
        if text is not contract.text:
            sha = sha256(contract.text)
            self._hashes[contract.id] = contract.text, sha
        return sha

    def _ask(self, question: str, contract_id: str) -> Asked:
        name = _BY_NAME.get(folded(question).casefold()) or category_asked(question)
        return self.store.ask(question_text(name) if name else question, self.contract(contract_id), name)

    def _others(self, asked: Asked, live: Live) -> list[Future[Told]]:
        if self._rival is not None:
            return [self._start(lambda: self._rival, asked, self._rival_release)]
        with self._lock:
            numbers = [self._random.randrange(1, 2**31) for _ in range(self._samples)]
        return [
            self._start(lambda n=n: self._sampled(live.program, n), asked, live.release, f"rollout {n}")
            for n in numbers
        ]

    def _start(self, program: Callable[[], dspy.Module], asked: Asked, release: str, sample: str = "") -> Future[Told]:
        return self._submit(lambda: self._say(program, asked, release, sample))

    def _say(self, program: Callable[[], dspy.Module], asked: Asked, release: str, sample: str = "") -> Told:
        watch = Watch()
        try:
            with watched(watch):
                said = said_by(program(), **_of(asked), release=release, sample=sample)
        except Exception as error:
            if not sample:
                self._trace(asked, None, watch, release=release, error=error)
            raise
        return said, watch

    def _submit(self, call: Callable[..., T], *given: object) -> Future[T]:
        # A copy of its own: a context can be entered by one thread at a time.
        return self._pool.submit(self._context.copy().run, call, *given)

    def _record(self, asked: Asked, said: Said, watch: Watch) -> Answered:
        try:
            answered = self.store.answer(asked, said)
        except Exception as error:
            self._trace(asked, said, watch, error=error)
            if not isinstance(error, FeedbackError):
                raise
            raise ServeError(
                f"what {said.release} said of {asked.contract_id!r} cannot be recorded, and is not shown: {error}"
            ) from error
        self._trace(asked, said, watch, answer_id=answered.id)
        return answered

    def _trace(self, asked: Asked, said: Said | None, watch: Watch, **about: Any) -> None:
        """Record a trace; whatever goes wrong in it, the answer is there."""
        if self.traces is None or (said is not None and said.sample):
            return
        try:
            texts = {asked.contract_id: self._text(asked)}
            self.traces.record(trace_of(asked, said, texts=texts, watch=watch, **about))
        except Exception as error:
            self.traces.lose(error)

    def _text(self, asked: Asked) -> str:
        """The contract's text as it was asked."""
        now = self.contracts.get(asked.contract_id)
        if now is not None and self._hash(now) == asked.contract_sha256:
            return now.text
        return self.store.contract_text(asked)


def _of(asked: Asked) -> dict[str, str]:
    return {"question": asked.question, "contract_id": asked.contract_id}


def _same(one: Said, other: Said) -> bool:
    """Whether two answers say the same: absence, or the same words; what cannot be read says nothing."""
    if not (one.readable and other.readable):
        return False
    if one.found != other.found:
        return False
    return not one.found or folded(one.answer).casefold() == folded(other.answer).casefold()
