"""Spans without a language model: the sentences of retrieved passages that are nearest to the question.

One real row, for the question about "Governing Law":

    ScoredSpan(Quote("This Agreement shall be governed by ...", contract_id="ashgrove-2019-0007", start=9120, end=9214),
               score=0.66)

Not handled: spans shorter than a sentence (names, dates), and sentences of which only together one answers.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from corpora.sentences import sentences
from corpora.types import Passage, Quote
from modules.embedding import Embedder, embed, unit_vectors
from modules.grounding import stretches

_MAX_SENTENCES = 3
_CACHED_SENTENCES = 100_000


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """Words of a contract with their cosine to the question, -1 to 1."""

    quote: Quote
    score: float


@dataclass(frozen=True, slots=True)
class SpanModel:
    """P(a span is right) is the logistic function of what these fields weigh, and `offset`.

    `score` weighs the cosine, `below_best` how far it is above the question's best (0 or less), `length` the log of the
    span's characters, `answered` the logit of the probability that the contract answers the question at all.
    """

    score: float
    below_best: float
    length: float
    answered: float
    offset: float


class SpanFinder:
    """Finds spans by an embedder, keeping the vectors of sentences it has seen; for one thread at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
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
        return tuple(ScoredSpan(quote, score) for quote, score in chosen)

    def _embedded(self, texts: list[str]) -> dict[str, np.ndarray]:
        texts = list(dict.fromkeys(texts))
        new = [text for text in texts if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, embed(self._embedder, new), strict=True))
        found = {text: self._vectors[text] for text in texts}
        while len(self._vectors) > _CACHED_SENTENCES:
            self._vectors.popitem(last=False)
        return found


def confidences(model: SpanModel, spans: Sequence[ScoredSpan], p_answered: float) -> list[float]:
    """The probability of each of one question's spans that it is right; `p_answered` as `modules.absence` tells it."""
    weights = model.score, model.below_best, model.length, model.answered
    return expit(_features(spans, p_answered) @ np.array(weights) + model.offset).tolist()


def fit_span_model(questions: Sequence[tuple[Sequence[ScoredSpan], float, Sequence[bool]]]) -> SpanModel:
    """Logistic regression on (spans, p_answered, which of them are right) of each question (Platt 1999).

    ValueError where no span was right, or all were: there is nothing to tell apart.
    """
    right = [bool(one) for _, _, marks in questions for one in marks]
    if len(set(right)) < 2:
        raise ValueError(f"of {len(right)} spans {sum(right)} are right; give some that are and some that are not")
    inputs = np.vstack([_features(spans, p_answered) for spans, p_answered, _ in questions])
    fitted = LogisticRegression(C=1e3, max_iter=5000).fit(inputs, np.array(right))
    return SpanModel(*map(float, fitted.coef_[0]), offset=float(fitted.intercept_[0]))


def _features(spans: Sequence[ScoredSpan], p_answered: float) -> np.ndarray:
    """Float64 [len(spans), 4], in the order of SpanModel's fields."""
    best = max((span.score for span in spans), default=0.0)
    likely = float(logit(np.clip(p_answered, 1e-6, 1 - 1e-6)))
    rows = [(span.score, span.score - best, np.log(len(span.quote.text)), likely) for span in spans]
    return np.array(rows, dtype=float).reshape(len(spans), 4)


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
