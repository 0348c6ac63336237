"""Filters that ask a model about a draft; what they ask through is an argument.

A call that failed, and an answer that cannot be read, is never a pass and never a verdict: it has a reason of its own
("call failed", "unreadable answer", "unreadable verdict"), so that `count_reasons` tells the failures from the rest
and whoever runs the filters can stop above a limit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from corpora.labels.types import Draft
from corpora.types import Passage, Quote, Span
from modules.judge import JudgeError
from modules.label_filters import Filter

Asked = tuple[str, str]  # a question's text, and the id of the contract it is put to
Ask = Callable[[Sequence[Asked]], Sequence[Any]]
Sample = Callable[[Sequence[Asked], int], Sequence[Sequence[Any]]]


def round_trip(ask: Ask, *, overlap: float = 0.5, span: bool = True) -> Filter:
    """Drops a draft whose question, asked alone, does not lead back: to the passage, and to the same span.

    `ask` answers a batch: for each (question, contract id) what `Reviewer` predicts and the `passages` it read, or the
    exception that came instead. The passages have to cover more than half of a gold span, and a quote to have a
    Jaccard overlap of characters of at least `overlap` with one; `span=False` asks for the passages alone. A draft
    without spans is kept where nothing is found, whatever `span`. ValueError unless there is one for each
    draft. Source: Alberti et al. 2019 (roundtrip consistency), with the retrieval in the loop.
    """

    def why(draft: Draft, prediction: Any) -> str | None:
        label, contract_id = draft.label, draft.label.question.contract_id
        if failure := _failure(prediction):
            return failure
        if label.spans:
            covered = max(_covered(s, _on(contract_id, prediction.passages)) for s in label.spans)
            if covered <= 0.5:
                return f"passage not retrieved: {covered:.2f} of a quote"
            if not span:
                return None
        if unreadable := _unreadable(prediction):
            return unreadable
        if not label.spans:
            return f"found where absent: {str(prediction.answer)[:60]!r}" if prediction.found else None
        if not prediction.found:
            return "absent where found"
        best = _best_overlap(label.spans, _on(contract_id, prediction.quotes))
        return None if best > 0 and best >= overlap else f"another span: overlap {best:.2f}"

    return lambda drafts: [why(*pair) for pair in _paired(drafts, ask(_asked(drafts)) if drafts else [])]


def agreement(
    sample: Sample, same: Callable[[str, str], bool], *, k: int = 5, share: float = 0.6, overlap: float = 0.5
) -> Filter:
    """Drops a draft with which fewer than `share` of `k` sampled answers agree.

    `sample` gives k predictions (or exceptions) for each (question, contract id); `same` says whether two answers are
    one, such as SQuAD's exact match. An answer agrees where both find nothing, or both find something and the answers
    are the same or the quotes overlap (Jaccard of characters, `overlap`). Where calls failed, the rest decides if it
    can: "call failed" is what more answers could have turned. ValueError unless there are k for each draft. Source:
    Wang et al. 2023 (self-consistency).
    """
    if k < 1 or not 0 < share <= 1:
        raise ValueError(f"{k} samples and a share of {share}; give at least 1 sample and 0 < share <= 1")

    def why(draft: Draft, predictions: Sequence[Any]) -> str | None:
        if len(predictions) != k:
            raise ValueError(f"{len(predictions)} answers were sampled to {draft.label.question.id!r}; it must be {k}")
        failures = [failure for failure in map(_failure, predictions) if failure]
        n = sum(_agrees(draft, one, same, overlap) for one in predictions if not _failure(one))
        # 0.28 * 25 is 7.000000000000001 in floats, and 7 of 25 are enough.
        needed = share * k - 1e-9
        if n >= needed:
            return None
        return failures[0] if n + len(failures) >= needed else f"disagreement: {n} of {k} agree"

    return lambda drafts: [why(*pair) for pair in _paired(drafts, sample(_asked(drafts), k) if drafts else [])]


def judged(judge: Callable[[Sequence[Draft]], Sequence[Any]]) -> Filter:
    """Drops drafts that a judge holds unfaithful to the contract, or not answerable from it.

    `judge` gives True, False or an exception for each draft. A `JudgeError`, or what is neither true nor false, is an
    "unreadable verdict"; any other exception a "call failed". ValueError unless there is one for each draft.
    """

    def why(verdict: Any) -> str | None:
        if isinstance(verdict, JudgeError):
            return f"unreadable verdict: {verdict}"
        if isinstance(verdict, BaseException):
            return _failure(verdict)
        if not isinstance(verdict, bool | np.bool_):
            return f"unreadable verdict: {verdict!r}"
        return None if verdict else "judged against"

    return lambda drafts: [why(verdict) for _, verdict in _paired(drafts, judge(drafts) if drafts else [])]


def _asked(drafts: Sequence[Draft]) -> list[Asked]:
    return [(draft.label.question.text, draft.label.question.contract_id) for draft in drafts]


def _paired(drafts: Sequence[Draft], results: Sequence[Any]) -> list[tuple[Draft, Any]]:
    if len(results) != len(drafts):
        raise ValueError(f"{len(results)} results came for {len(drafts)} drafts; give one for each, in their order")
    return list(zip(drafts, results, strict=True))


def _failure(result: Any) -> str | None:
    """Why there is no result; `dspy.Parallel` leaves None where a call failed."""
    if result is None:
        return "call failed: no result"
    return f"call failed: {type(result).__name__}: {result}" if isinstance(result, BaseException) else None


def _unreadable(prediction: Any) -> str | None:
    """An answer that was not read, or does not say whether anything was found: `not None` must not mean absent."""
    readable = getattr(prediction, "readable", True) and isinstance(getattr(prediction, "found", None), bool | np.bool_)
    return None if readable else "unreadable answer"


def _agrees(draft: Draft, prediction: Any, same: Callable[[str, str], bool], overlap: float) -> bool:
    label = draft.label
    if _unreadable(prediction) or bool(prediction.found) != bool(label.spans):
        return False
    if not label.spans:
        return True
    best = _best_overlap(label.spans, _on(label.question.contract_id, prediction.quotes))
    return (best > 0 and best >= overlap) or bool(label.answer and same(prediction.answer, label.answer))


def _on(contract_id: str, places: Iterable[Passage | Quote]) -> list[Passage | Quote]:
    return [place for place in places if place.contract_id == contract_id]


def _covered(span: Span, passages: Iterable[Passage | Quote]) -> float:
    """The share of the span's characters that stand in a passage, overlapping passages counted once."""
    reached, n_covered = span.start, 0
    for passage in sorted(passages, key=lambda p: p.start):
        start, end = max(passage.start, reached), min(passage.end, span.end)
        if end > start:
            n_covered, reached = n_covered + end - start, end
    return n_covered / max(1, span.end - span.start)


def _best_overlap(spans: Iterable[Span], quotes: Iterable[Passage | Quote]) -> float:
    """The largest Jaccard overlap, in characters, of a quote with a span; 0 where none meet."""
    overlaps = [0.0]
    for quote in quotes:
        for span in spans:
            shared = min(quote.end, span.end) - max(quote.start, span.start)
            if shared > 0:
                overlaps.append(shared / (quote.end - quote.start + span.end - span.start - shared))
    return max(overlaps)
