"""Spans without a language model: the sentences of retrieved passages that are nearest to the question.

One real row, for the question about "Governing Law":

    ScoredSpan(Quote("This Agreement shall be governed by ...", contract_id="ashgrove-2019-0007", start=9120, end=9214),
               score=0.66, confidence=0.71)

Not handled: spans shorter than a sentence (names, dates), and sentences of which only together one answers.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from corpora.sentences import sentences
from corpora.types import Passage, Quote
from modules.embedding import Embedder, embed, unit_vectors
from modules.grounding import stretches

_MAX_SENTENCES = 3
_CACHED_SENTENCES = 100_000


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """Words of a contract with their cosine to the question, -1 to 1, and the confidence made of it, 0 to 1."""

    quote: Quote
    score: float
    confidence: float


class SpanFinder:
    """Finds spans by an embedder, keeping the vectors of sentences it has seen; for one thread at a time."""

    def __init__(self, embedder: Embedder, *, slope: float = 1.0, offset: float = 0.0) -> None:
        """`slope` and `offset` make a cosine a confidence: 1 / (1 + exp(-(slope · cosine + offset)))."""
        self._embedder, self._slope, self._offset = embedder, slope, offset
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def find(self, query: str, passages: Sequence[Passage], n_best: int = 20) -> tuple[ScoredSpan, ...]:
        """At most `n_best` spans of `passages`, best first, none overlapping another.

        Candidates are sentences, and runs of up to three neighbouring ones; neighbouring passages are read on. A run's
        vector is the mean of its sentences', weighted by their lengths.
        """
        runs = [run for stretch in stretches(passages) for run in _runs(*stretch)]
        if not runs:
            return ()
        vectors = self._embedded([query, *(text for _, texts in runs for text in texts)])
        means = np.array([sum(len(text) * vectors[text] for text in texts) for _, texts in runs])
        scores = unit_vectors(means) @ vectors[query]
        chosen: list[tuple[Quote, float]] = []
        for i in np.argsort(-scores, kind="stable"):
            quote = runs[i][0]
            if not any(_overlap(quote, other) for other, _ in chosen):
                chosen.append((quote, float(scores[i])))
            if len(chosen) == n_best:
                break
        return tuple(ScoredSpan(quote, score, confidence(score, self._slope, self._offset)) for quote, score in chosen)

    def _embedded(self, texts: list[str]) -> dict[str, np.ndarray]:
        texts = list(dict.fromkeys(texts))
        new = [text for text in texts if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, embed(self._embedder, new), strict=True))
        found = {text: self._vectors[text] for text in texts}
        while len(self._vectors) > _CACHED_SENTENCES:
            self._vectors.popitem(last=False)
        return found


def confidence(score: float, slope: float, offset: float) -> float:
    """The logistic function of `slope * score + offset`."""
    return 1 / (1 + math.exp(-max(-700.0, slope * score + offset)))


def fit_confidence(scores: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """(slope, offset) by logistic regression of whether a span was right on its score (Platt 1999).

    ValueError where none or all were right: there is nothing to tell apart.
    """
    if len(set(right)) < 2:
        raise ValueError(f"of {len(right)} spans {sum(right)} are right; give some that are and some that are not")
    fitted = LogisticRegression(C=1e6).fit(np.array(scores)[:, None], np.array(right))
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _runs(contract_id: str, offset: int, text: str) -> Iterator[tuple[Quote, list[str]]]:
    """Every sentence of a stretch and every run of a few: its words, and its sentences' own."""
    found = sentences(text)
    for n in range(1, _MAX_SENTENCES + 1):
        for run in (found[i : i + n] for i in range(len(found) - n + 1)):
            start, end = run[0].start, run[-1].end
            quote = Quote(text[start:end], contract_id, offset + start, offset + end)
            yield quote, [text[sentence.start : sentence.end] for sentence in run]


def _overlap(a: Quote, b: Quote) -> bool:
    return a.contract_id == b.contract_id and a.start < b.end and b.start < a.end
