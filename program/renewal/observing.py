"""From traces and feedback to what the drift watch compares.

Questions and passages are embedded by the packaged embedder, whatever the release retrieves with: a reference in the
space of another embedder could not be compared. Where the policy keeps no text, these signals are left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from corpora.types import Contract
from modules.embedder import load_embedder
from modules.embedding import embed
from program.drift.types import Observation
from program.feedback.store import FeedbackStore
from program.feedback.types import Correction, Rating
from program.traces.types import Trace

_WORD = re.compile(r"[^\W\d_]+")


def observations(
    traces: Iterable[Trace], contracts: Mapping[str, Contract], ratings: Mapping[str, float] | None = None
) -> list[Observation]:
    """One for each answer that people saw; failed calls and shadows are none. `ratings` by answer id (`ratings_of`)."""
    shown = [trace for trace in traces if trace.error is None and not trace.shadow and trace.found is not None]
    asked = _vectors([trace.question or "" for trace in shown])
    texts = [[_passage(contracts, name) for name in trace.passages] for trace in shown]
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


def _vectors(texts: Sequence[str]) -> dict[str, np.ndarray]:
    known = sorted(set(texts) - {""})
    return dict(zip(known, embed(load_embedder(), known), strict=True)) if known else {}


def _passage(contracts: Mapping[str, Contract], name: str) -> str:
    """The text of a passage by its id, "contract:start-end"; "" where the contract is not here, or is shorter now."""
    contract_id, _, place = name.rpartition(":")
    start, _, end = place.partition("-")
    if contract_id not in contracts or not (start.isdigit() and end.isdigit()):
        return ""
    return contracts[contract_id].text[int(start) : int(end)]


def _mean(vectors: Sequence[np.ndarray]) -> np.ndarray | None:
    return np.mean(vectors, axis=0) if vectors else None
