"""Spans without a language model: the sentences of retrieved passages that are nearest to the question.

One real row, for the question about "Governing Law":

    ScoredSpan(Quote("This Agreement shall be governed by ...", contract_id="ashgrove-2019-0007", start=9120, end=9214),
               score=0.66)

Questions that less than a sentence answers (names, dates) get phrases instead: `SpanModel.in_phrases` says which.

Not handled: sentences of which only together one answers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from corpora.sentences import phrases, sentences
from corpora.types import Passage, Quote, Span
from modules.embedding import Embedder, embed, embed_in_context, pieces_in, unit_vectors
from modules.grounding import stretches

_MAX_SENTENCES, _MAX_PHRASES = 3, 4
_CACHED_TEXTS = 100_000
Cut = Callable[[str], Sequence[Span]]


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """Words of a contract with their cosine to the question, -1 to 1."""

    quote: Quote
    score: float


@dataclass(frozen=True, slots=True)
class SpanModel:
    """P(a span is right) is the logistic function of what these fields weigh, `offset`, and the query's own offset.

    `score` weighs the cosine, `below_best` how far it is above the question's best (0 or less), `length` the log of the
    span's characters, `answered` the logit of the probability that the contract answers the question at all. A query
    that was not fitted has no offset of its own: some questions are answered by a sentence, others by words of one.
    The spans of the queries `in_phrases` are runs of phrases, all others' are runs of sentences.
    """

    score: float
    below_best: float
    length: float
    answered: float
    offset: float
    by_query: Mapping[str, float] = field(default_factory=dict)
    in_phrases: tuple[str, ...] = ()


class SpanFinder:
    """Finds spans by an embedder, keeping the vectors of sentences it has seen; for one thread at a time.

    With `embedded_text`, what the index embeds of a passage, each sentence is read in its passage (late chunking, by
    `embed_in_context`), without it alone. The first suits an embedder trained so (loss "lists" of `EmbedderSettings`).
    """

    def __init__(self, embedder: Embedder, embedded_text: Callable[[Passage], str] | None = None) -> None:
        self._embedder, self._embedded_text = embedder, embedded_text
        # Of a text by itself, or of its pieces by how it was cut.
        self._vectors: OrderedDict[str | tuple[str, Cut], np.ndarray] = OrderedDict()

    def find(
        self, query: str, passages: Sequence[Passage], n_best: int = 20, *, in_phrases: bool = False
    ) -> tuple[ScoredSpan, ...]:
        """At most `n_best` spans of `passages`, best first, none overlapping another.

        Candidates are sentences, and runs of up to three neighbouring ones; neighbouring passages are read on. With
        `in_phrases` they are runs of up to four phrases (`corpora.sentences`). A run's vector is the mean of those of
        its parts, weighted by their lengths.
        """
        # Kept are the last ones; what this question needs stays while it is asked.
        while len(self._vectors) > _CACHED_TEXTS:
            self._vectors.popitem(last=False)
        cut = phrases if in_phrases else sentences
        said = self._alone(passages, cut) if self._embedded_text is None else self._in_context(passages, cut)
        if not said:
            return ()
        runs = list(_runs(said, _MAX_PHRASES if in_phrases else _MAX_SENTENCES))
        means = np.array([sum(len(one.text) * one.vector_D for one in run) for run in runs])
        scores = unit_vectors(means) @ self._embedded([query])[0]
        texts = {(contract_id, start): text for contract_id, start, text in stretches(passages)}
        chosen: list[tuple[Quote, float]] = []
        for i in np.argsort(-scores, kind="stable"):
            first, last = runs[i][0], runs[i][-1]
            if not any(
                first.contract_id == quote.contract_id and first.start < quote.end and quote.start < last.end
                for quote, _ in chosen
            ):
                text = texts[first.contract_id, first.stretch][first.start - first.stretch : last.end - first.stretch]
                chosen.append((Quote(text, first.contract_id, first.start, last.end), float(scores[i])))
            if len(chosen) == n_best:
                break
        return tuple(ScoredSpan(quote, score) for quote, score in chosen)

    def _alone(self, passages: Sequence[Passage], cut: Cut) -> list["_Piece"]:
        found = [
            (contract_id, offset, Span(offset + span.start, offset + span.end), text[span.start : span.end])
            for contract_id, offset, text in stretches(passages)
            for span in cut(text)
        ]
        vectors = self._embedded([text for *_, text in found])
        return [
            _Piece(contract_id, offset, span.start, span.end, text, vector_D)
            for (contract_id, offset, span, text), vector_D in zip(found, vectors, strict=True)
        ]

    def _in_context(self, passages: Sequence[Passage], cut: Cut) -> list["_Piece"]:
        passages = sorted(passages, key=lambda p: (p.contract_id, p.start, p.end))
        places = [cut(passage.text) for passage in passages]
        pieces = [[passage.text[a.start : a.end] for a in own] for passage, own in zip(passages, places, strict=True)]
        texts = [self._embedded_text(passage) for passage in passages]
        keys = [(text, cut) for text in texts]
        new = {key: pieces_in(key[0], own) for key, own in zip(keys, pieces, strict=True) if key not in self._vectors}
        if new:
            vectors = embed_in_context(self._embedder, [text for text, _ in new], list(new.values()))
            self._vectors.update(zip(new, vectors, strict=True))
        offsets = [(key, start, start + len(text)) for key, start, text in stretches(passages)]
        found: list[_Piece] = []
        for passage, key, spans, own in zip(passages, keys, places, pieces, strict=True):
            offset = next(a for name, a, b in offsets if name == passage.contract_id and a <= passage.start < b)
            for span, said, vector_D in zip(spans, own, self._vectors[key], strict=True):
                start = passage.start + span.start
                # What passages share is read once, and what the embedder did not read is not there.
                read_on = not found or found[-1].contract_id != passage.contract_id or start >= found[-1].end
                if read_on and vector_D.any():
                    found.append(_Piece(passage.contract_id, offset, start, start + len(said), said, vector_D))
        return found

    def _embedded(self, texts: Sequence[str]) -> list[np.ndarray]:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, embed(self._embedder, new)[:, None], strict=True))
        return [self._vectors[text][0] for text in texts]


def confidences(model: SpanModel, query: str, spans: Sequence[ScoredSpan], p_answered: float) -> list[float]:
    """The probability of each of one query's spans that it is right; `p_answered` as `modules.absence` tells it."""
    weights = model.score, model.below_best, model.length, model.answered
    logits = _features(spans, p_answered) @ np.array(weights) + model.offset + model.by_query.get(query, 0.0)
    return expit(logits).tolist()


def fit_span_model(
    questions: Sequence[tuple[str, Sequence[ScoredSpan], float, Sequence[bool]]],
    *,
    in_phrases: Iterable[str] = (),
    strength: float = 1.0,
) -> SpanModel:
    """Ridge logistic regression on (query, spans, p_answered, which of them are right) of each question (Platt 1999).

    `in_phrases` are the queries whose spans are phrases here, `strength` is scikit-learn's C. ValueError where no span
    was right, or all were: there is nothing to tell apart.
    """
    right = [bool(one) for *_, marks in questions for one in marks]
    if len(set(right)) < 2:
        raise ValueError(f"of {len(right)} spans {sum(right)} are right; give some that are and some that are not")
    numbers = np.vstack([_features(spans, p_answered) for _, spans, p_answered, _ in questions])
    known = sorted({query for query, *_ in questions})
    which = np.array([[query == one for one in known] for query, spans, *_ in questions for _ in spans], dtype=float)
    # In units of their spread, so that the ridge keeps the queries' offsets small and hardly touches these.
    mean, spread = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-9)
    inputs = np.hstack([(numbers - mean) / spread, which])
    fitted = LogisticRegression(C=strength, max_iter=5000).fit(inputs, np.array(right))
    weights = fitted.coef_[0, : len(mean)] / spread
    return SpanModel(
        *map(float, weights),
        offset=float(fitted.intercept_[0] - weights @ mean),
        by_query={query: float(w) for query, w in zip(known, fitted.coef_[0, len(mean) :], strict=True)},
        in_phrases=tuple(in_phrases),
    )


def _features(spans: Sequence[ScoredSpan], p_answered: float) -> np.ndarray:
    """Float64 [len(spans), 4], in the order of SpanModel's first fields."""
    best = max((span.score for span in spans), default=0.0)
    likely = float(logit(np.clip(p_answered, 1e-6, 1 - 1e-6)))
    rows = [(span.score, span.score - best, np.log(len(span.quote.text)), likely) for span in spans]
    return np.array(rows, dtype=float).reshape(len(spans), 4)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A sentence or phrase and its vector; `stretch` is where the uncut text begins that it stands in."""

    contract_id: str
    stretch: int
    start: int
    end: int
    text: str
    vector_D: np.ndarray


def _runs(said: Sequence[_Piece], most: int) -> Iterator[Sequence[_Piece]]:
    """Every piece, and every run of up to `most` of one stretch."""
    for n in range(1, most + 1):
        for i in range(len(said) - n + 1):
            first, last = said[i], said[i + n - 1]
            if (first.contract_id, first.stretch) == (last.contract_id, last.stretch):
                yield said[i : i + n]
