"""Filters between a proposed label and a kept one: each says of every draft that it stays, or why it goes.

Here are the frame, and the filters that need neither a library nor a model. What the words of a draft may be is in
`label_wording`, near-duplicates in `label_novelty`, personal data in `personal_data`, what asks a model in
`label_checks`. A reason is "kind" or "kind: what varies", so that reasons can be counted by what stands before the
colon. Filters keep nothing between two calls.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from corpora.labels.types import Draft
from corpora.types import Label
from modules.reviewer import is_absent

Filter = Callable[[Sequence[Draft]], list[str | None]]
# A number is one word with its points and commas, so that "$3,000" does not stand in "$3,500,000".
_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")


@dataclass(frozen=True, slots=True)
class Filtered:
    """What a chain of filters did: `kept` (draft, trail), `dropped` (draft, filter, reason), `funnel` (filter, in, out)."""  # noqa: E501

    kept: tuple[tuple[Draft, tuple[tuple[str, str], ...]], ...]
    dropped: tuple[tuple[Draft, str, str], ...]
    funnel: tuple[tuple[str, int, int], ...]


def apply_filters(drafts: Sequence[Draft], filters: Mapping[str, Filter]) -> Filtered:
    """Put drafts through filters in the mapping's order; each sees what those before it kept.

    Order is kept. A trail is (filter, "") of each filter passed. A filter is not called where nothing is left. What a
    filter raises is passed on; ValueError where it does not return, for each draft, None or a reason that says
    something: anything else (False, an exception, "") could be mistaken for a pass.
    """
    left, dropped, funnel = list(drafts), [], []
    for name, judge in filters.items():
        outcomes = list(judge(left)) if left else []
        _check_outcomes(name, outcomes, len(left))
        pairs = list(zip(left, outcomes, strict=True))
        left = [draft for draft, why in pairs if why is None]
        dropped.extend((draft, name, why) for draft, why in pairs if why is not None)
        funnel.append((name, len(pairs), len(left)))
    trail = tuple((name, "") for name in filters)
    return Filtered(tuple((draft, trail) for draft in left), tuple(dropped), tuple(funnel))


def count_reasons(filtered: Filtered) -> Counter[tuple[str, str]]:
    """How many drafts each (filter, kind of reason) dropped; a kind is what stands before the first colon."""
    return Counter((name, why.split(":", 1)[0]) for _, name, why in filtered.dropped)


def verbatim(texts: Mapping[str, str], *, extractive: bool = True) -> Filter:
    """Drops what does not stand in the contract: spans outside it, empty, blank or out of order, answers not quoted.

    `texts` is contract id -> text. With `extractive`, each word of the answer has to stand in the quotes (case and
    punctuation aside; a number is one word). With or without, an answer with spans has a word and does not say that
    nothing is found, and one without spans says just that. Spans may overlap, as CUAD's do. Not handled: answers whose
    words stand in the quotes and say something else together. Source: the verbatim rule of this project's reviewer.
    """

    def why(draft: Draft) -> str | None:
        text = texts.get(draft.label.question.contract_id)
        if text is None:
            return f"unknown contract: {draft.label.question.contract_id}"
        return _span_fault(draft.label, text) or _answer_fault(draft.label, text, extractive)

    return lambda drafts: [why(draft) for draft in drafts]


def quota(per_category: int | None = None, per_contract: int | None = None, taken: Iterable[Draft] = ()) -> Filter:
    """At most so many drafts of a category, found and absent counted apart, and at most so many on a contract.

    `taken` is what was kept before and counts; None is no limit. Within a batch the most confident come first, those
    without a confidence last, equals in their order. Put it last: what a later filter drops has used up a place.
    """
    held = tuple(taken)

    def keep(drafts: Sequence[Draft]) -> list[str | None]:
        categories = Counter(map(_cell, held))
        contracts = Counter(draft.label.question.contract_id for draft in held)
        outcomes: list[str | None] = [None] * len(drafts)
        for i in sorted(range(len(drafts)), key=lambda i: -_confidence(drafts[i])):
            cell, contract_id = _cell(drafts[i]), drafts[i].label.question.contract_id
            if per_category is not None and categories[cell] >= per_category:
                outcomes[i] = f"category full: {cell[0]} ({'found' if cell[1] else 'absent'})"
            elif per_contract is not None and contracts[contract_id] >= per_contract:
                outcomes[i] = f"contract full: {contract_id}"
            else:
                categories[cell] += 1
                contracts[contract_id] += 1
        return outcomes

    return keep


def confident(threshold_found: float, threshold_absent: float, *, drop_unknown: bool = False) -> Filter:
    """Drops drafts less confident than the threshold for their kind; without a confidence only with `drop_unknown`.

    The thresholds are `fit_confidence`'s; infinity drops all that have a confidence, and a confidence that is not a
    number is dropped.
    """

    def why(draft: Draft) -> str | None:
        if draft.confidence is None:
            return "no confidence" if drop_unknown else None
        threshold = threshold_found if draft.label.spans else threshold_absent
        # Not `<`: a comparison with nan is false, and nan is no pass.
        return None if draft.confidence >= threshold else f"low confidence: {draft.confidence:.3f} < {threshold:.3f}"

    return lambda drafts: [why(draft) for draft in drafts]


def fit_confidence(
    confidences: Sequence[float], right: Sequence[bool], precision: float = 0.9, *, level: float | None = None
) -> float:
    """The lowest confidence at which the share right among those at or above it is at least `precision`; else infinity.

    With `level` (such as 0.95) it is the share's one-sided lower bound that has to reach it (Clopper & Pearson 1934),
    which a few lucky answers do not. The bound is that of one threshold; as the best of many is taken here, confirm it
    on labels not fitted on. Infinity where no threshold reaches it, or nothing was given: then nothing is confident.
    ValueError for lengths that differ, a confidence that is not a number, `precision` or `level` out of range.
    """
    scores, marks = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    if scores.shape != marks.shape or np.isnan(scores).any():
        raise ValueError(
            f"{scores.size} confidences ({int(np.isnan(scores).sum())} nan) and {marks.size} marks; give a number and "
            "a mark for each label"
        )
    if not 0 < precision <= 1 or not (level is None or 0 < level < 1):
        raise ValueError(f"precision {precision} and level {level}: give 0 < precision <= 1 and None or 0 < level < 1")
    order = np.argsort(-scores, kind="stable")
    scores, n_right, n = scores[order], np.cumsum(marks[order]), np.arange(1, scores.size + 1)
    share = n_right / n
    if level is not None:
        share = np.where(n_right > 0, beta.ppf(1 - level, np.maximum(n_right, 1), n - n_right + 1), 0.0)
    # Equal confidences go together: only the last of them is a threshold.
    last = np.append(scores[1:] != scores[:-1], True)[: scores.size]
    reached = scores[last & (share >= precision)]
    return float(reached.min()) if reached.size else math.inf


def difficulty_weights(p_right: Sequence[float], *, floor: float = 0.05) -> np.ndarray:
    """Sampling weights, float64 [n], sum 1, proportional to sqrt(p (1 - p)) of the chance p to be answered right.

    That is the standard deviation of a right or wrong answer, by which Neyman (1934) allots a sample: what is always
    or never right teaches least. `floor` (of at most 0.5) stands in where it is less, so that nothing has weight 0.
    ValueError for a p outside [0, 1] or a floor outside (0, 0.5].
    """
    p = np.asarray(p_right, dtype=float)
    wrong = p[~((p >= 0) & (p <= 1))]
    if wrong.size or not 0 < floor <= 0.5:
        raise ValueError(f"p_right {wrong[:3].tolist()} and floor {floor}: give 0 <= p <= 1 and 0 < floor <= 0.5")
    weights = np.maximum(np.sqrt(p * (1 - p)), floor)
    return weights / weights.sum() if weights.size else weights


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation; a number with its points and commas is one."""
    return _WORD.findall(text.casefold())


def _check_outcomes(name: str, outcomes: list[object], n: int) -> None:
    wrong = [outcome for outcome in outcomes if not (outcome is None or (isinstance(outcome, str) and outcome.strip()))]
    if len(outcomes) != n or wrong:
        raise ValueError(
            f"the filter {name!r} returned {len(outcomes)} outcomes for {n} drafts, wrong {wrong[:1]}; it must return "
            "None or a reason (text that is not empty) for each"
        )


def _span_fault(label: Label, text: str) -> str | None:
    places = [(span.start, span.end) for span in label.spans]
    for start, end in places:
        if start >= end:
            return f"empty span: {start}-{end}"
        if start < 0 or end > len(text):
            return f"span outside the text: {start}-{end} of {len(text)}"
        if not text[start:end].strip():
            return f"blank span: {start}-{end}"
    return f"spans out of order: {places[:3]}" if places != sorted(set(places)) else None


def _answer_fault(label: Label, text: str, extractive: bool) -> str | None:
    if label.answer is None:
        return None
    if not label.spans:
        return None if is_absent(label.answer) else f"no quote: {label.answer[:60]!r}"
    words = words_of(label.answer)
    if not words:
        return f"empty answer: {label.answer!r}"
    if is_absent(label.answer):
        return "absent answer with quotes"
    quoted = {word for span in label.spans for word in words_of(text[span.start : span.end])}
    unquoted = [word for word in words if word not in quoted]
    return f"words not quoted: {' '.join(unquoted[:5])}" if extractive and unquoted else None


def _cell(draft: Draft) -> tuple[str, bool]:
    return draft.label.question.category, bool(draft.label.spans)


def _confidence(draft: Draft) -> float:
    """For ordering only: what has none, or nan, comes last."""
    return -math.inf if draft.confidence is None or math.isnan(draft.confidence) else draft.confidence
