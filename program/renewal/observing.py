"""From traces and feedback to what the drift watch compares, and to what a judge is asked.

Questions and passages are embedded by the packaged embedder, whatever the release retrieves with: a reference in the
space of another embedder could not be compared. Where the policy keeps no text, these signals are left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from corpora.types import Contract, Passage
from modules.embedder import load_embedder
from modules.embedding import embed
from modules.judge import Candidate, Case
from modules.signatures import NOT_FOUND
from program.drift.types import Observation
from program.feedback.store import FeedbackStore
from program.feedback.types import Correction, Rating
from program.traces.types import Trace

_WORD = re.compile(r"[^\W\d_]+")


def observations(
    traces: Iterable[Trace],
    contracts: Mapping[str, Contract],
    ratings: Mapping[str, float] | None = None,
    judged: Mapping[str, float] | None = None,
) -> list[Observation]:
    """One for each answer that people saw; failed calls and shadows are none.

    `ratings` are by answer id (`ratings_of`), scores of one judge, `judged`, by trace id.
    """
    shown = [trace for trace in traces if trace.error is None and not trace.shadow and trace.found is not None]
    asked = _vectors([trace.question or "" for trace in shown])
    found = [[passage_of(contracts, name) for name in trace.passages] for trace in shown]
    texts = [[passage.text for passage in each if passage is not None] for each in found]
    read = _vectors(sorted({text for each in texts for text in each}))
    return [
        Observation(
            at=datetime.fromisoformat(trace.at).timestamp(),
            contract_id=trace.contract_id,
            question_embedding=asked.get(trace.question or ""),
            passage_embedding=_mean([read[text] for text in each if text]),
            retrieval_score=max(trace.scores, default=None),
            confidence=trace.confidence,
            p_answered=trace.p_answered,
            abstained=not trace.found,
            category=trace.category,
            words=tuple(_WORD.findall((trace.question or "").lower())),
            rating=(ratings or {}).get(trace.answer_id or ""),
            judge_score=(judged or {}).get(trace.id),
        )
        for trace, each in zip(shown, texts, strict=True)
    ]


def ratings_of(store: Path) -> dict[str, float]:
    """What people thought of each answer, 0 to 1: stars, thumbs, 0 for one that was corrected; the last word counts."""
    said: dict[str, float] = {}
    if not store.is_file():
        return said
    with FeedbackStore.open(store) as opened:
        for event in opened.events():
            if isinstance(event, Correction):
                said[event.answer_id] = 0.0
            elif isinstance(event, Rating) and event.stars is not None:
                said[event.answer_id] = (event.stars - 1) / 4
            elif isinstance(event, Rating) and event.thumbs is not None:
                said[event.answer_id] = float(event.thumbs == "up")
    return said


def case_of(trace: Trace, contracts: Mapping[str, Contract]) -> tuple[Case, Candidate] | None:
    """What was asked, shown and said, for a judge; None for a failed call, or where words or contracts are gone."""
    if trace.error is not None or trace.found is None or trace.question is None or trace.answer is None:
        return None
    passages = [passage_of(contracts, name) for name in trace.passages]
    shown = tuple(passage for passage in passages if passage is not None)
    if not shown or len(shown) < len(passages):
        return None
    own = contracts.get(trace.contract_id)
    quotes = () if own is None else tuple(own.text[start:end] for start, end in trace.spans)
    return Case(trace.question, shown), Candidate(trace.answer, quotes) if trace.found else Candidate(NOT_FOUND)


def passage_of(contracts: Mapping[str, Contract], name: str) -> Passage | None:
    """A passage by its id, "contract:start-end"; None where the contract is not here, or is shorter now."""
    contract_id, _, place = name.rpartition(":")
    first, _, last = place.partition("-")
    if contract_id not in contracts or not (first.isdigit() and last.isdigit()):
        return None
    start, end = int(first), int(last)
    text = contracts[contract_id].text[start:end]
    return Passage(name, contract_id, start, end, text) if text and len(text) == end - start else None


def _vectors(texts: Sequence[str]) -> dict[str, np.ndarray]:
    known = sorted(set(texts) - {""})
    return dict(zip(known, embed(load_embedder(), known), strict=True)) if known else {}


def _mean(vectors: Sequence[np.ndarray]) -> np.ndarray | None:
    return np.mean(vectors, axis=0) if vectors else None
