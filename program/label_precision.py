"""How many labels are right by gold that labelling did not see.

Not handled: gold with two answers to one question, which is refused.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from corpora.errors import CorpusError
from corpora.labels.rows import folded
from corpora.labels.types import Record
from corpora.types import Contract, Corpus, Label, Span
from program.intervals import mean_interval
from program.metrics import exact_match

SPAN_JACCARD = 0.5
KINDS = ("found", "absent")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gold says of a label: by its answer, by its spans (both None of "not in this contract"), and in all."""

    right: bool
    answer: bool | None = None
    span: bool | None = None


def judge_label(label: Label, gold: Label, text: str) -> Verdict:
    """What `gold` says of `label`, two labels of one question on the contract `text`.

    "Not in this contract" is right where the gold has no spans. An answer is right where the gold has spans and the
    answers are the same after SQuAD's normalization, or each span has a Jaccard overlap of characters of at least 0.5
    with one of the gold's.
    """
    if not label.spans:
        return Verdict(right=not gold.spans)
    answer = bool(gold.spans) and exact_match(_answer(label, text), _answer(gold, text))
    span = all(any(_overlap(own, one) >= SPAN_JACCARD for one in gold.spans) for own in label.spans)
    return Verdict(answer or span, answer, span)


def gold_precision(
    made: Sequence[Record], contracts: Mapping[str, Contract], gold: Corpus, seed: int
) -> dict[str, Any]:
    """The share of kept labels that `gold` calls right: of all, and by kind, method and category; None for 0 of 0.

    A label whose (contract id, question text) the gold does not have is in `n_no_gold` and nowhere else. CorpusError as
    in `program.label_figures.label_figures`.
    """
    known = gold_labels(gold, contracts)
    judged = []
    for record in made:
        label = record.draft.label
        key = _asked(label)
        if key in known:
            judged.append((record, judge_label(label, known[key], contracts[key[0]].text)))

    def cells(name: str, of: Callable[[Record], str]) -> list[dict[str, Any]]:
        groups = defaultdict(list)
        for pair in judged:
            groups[of(pair[0])].append(pair)
        ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        return [{name: key} | _cell(pairs, seed) for key, pairs in ordered]

    return {
        "n_gold": len(judged),
        "n_no_gold": len(made) - len(judged),
        "overall": _cell(judged, seed),
        **{kind: _cell([pair for pair in judged if kind_of(pair[0].draft.label) == kind], seed) for kind in KINDS},
        "by_method": cells("method", lambda record: record.draft.method),
        "by_category": cells("category", lambda record: record.draft.label.question.category),
    }


def gold_labels(gold: Corpus, contracts: Mapping[str, Contract]) -> dict[tuple[str, str], Label]:
    """The gold by (contract id, question text), of contracts that are known; CorpusError for gold that cannot judge."""
    for contract in gold.contracts:
        if contract.id in contracts and contracts[contract.id].text != contract.text:
            raise CorpusError(
                f"{contract.id!r} has another text in the gold {gold.name!r}: its spans do not count in the same "
                "characters. Give the corpus that the contracts were taken from."
            )
    known: dict[tuple[str, str], Label] = {}
    for label in gold.labels:
        key = _asked(label)
        if key[0] not in contracts:
            continue
        other = known.setdefault(key, label)
        if (other.spans, other.answer) != (label.spans, label.answer):
            raise CorpusError(f"the gold {gold.name!r} has two labels for {key[1]!r} on {key[0]!r}; keep one of them")
    return known


def _cell(judged: Sequence[tuple[Record, Verdict]], seed: int) -> dict[str, Any]:
    """n, and the shares right: of all, and of the found ones by answer and by spans."""
    cell: dict[str, Any] = {"n": len(judged)}
    for name in ("right", "answer", "span"):
        pairs = [(record, getattr(verdict, name)) for record, verdict in judged if getattr(verdict, name) is not None]
        contract_ids = [record.draft.label.question.contract_id for record, _ in pairs]
        found = mean_interval([value for _, value in pairs], contract_ids, seed=seed) if pairs else None
        cell[name] = found and {k: None if math.isnan(v) else v for k, v in asdict(found).items()}
    return cell


def kind_of(label: Label) -> str:
    """One of KINDS."""
    return "found" if label.spans else "absent"


def _asked(label: Label) -> tuple[str, str]:
    return label.question.contract_id, folded(label.question.text)


def _answer(label: Label, text: str) -> str:
    return label.answer or ", ".join(text[span.start : span.end] for span in label.spans)


def _overlap(first: Span, second: Span) -> float:
    """Jaccard overlap of two stretches, in characters."""
    shared = max(0, min(first.end, second.end) - max(first.start, second.start))
    return shared / max(1, first.end - first.start + second.end - second.start - shared)
