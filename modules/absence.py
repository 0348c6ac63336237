"""How likely it is that a contract answers a question at all, from how its passages score; fitted on labels.

One real row of what is looked at, for "Governing Law" in a generated contract:

    Evidence(best=0.71, second=0.52, above_mean=0.55, spreads=5.8, words=11.2)

Not handled: questions over a whole index (the model is fitted inside single contracts).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
from sklearn.linear_model import LogisticRegression

# Of the questions that the contract answers, so many may be called absent.
MAX_FALSE_ABSENT = 0.05


@dataclass(frozen=True, slots=True)
class Evidence:
    """How a contract's passages score for one question.

    The best and the second-best cosine, how far the best is above the mean of all (in cosines, and in their standard
    deviations), and the best BM25 score, as log(1 + score).
    """

    best: float
    second: float
    above_mean: float
    spreads: float
    words: float


@dataclass(frozen=True, slots=True)
class AnswerModel:
    """P(answered) = σ(weights · evidence + offset + by_query[query]); below `threshold` a question counts as absent.

    A query that was not fitted has no offset of its own.
    """

    weights: tuple[float, ...]
    offset: float
    by_query: Mapping[str, float]
    threshold: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(fields(Evidence)):
            raise ValueError(
                f"{len(self.weights)} weights were given; there are {len(fields(Evidence))} kinds of evidence"
            )


def evidence(cosines: Sequence[float], word_scores: Sequence[float]) -> Evidence:
    """What the scores of all of a contract's passages say; `word_scores` are of those that share a word."""
    ordered = np.sort(np.asarray(cosines, dtype=float))[::-1]
    above = float(ordered[0] - ordered.mean())
    spread = float(ordered.std())
    return Evidence(
        best=float(ordered[0]),
        second=float(ordered[min(1, len(ordered) - 1)]),
        above_mean=above,
        spreads=above / spread if spread > 1e-9 else 0.0,
        words=math.log1p(max(word_scores, default=0.0)),
    )


def p_answered(model: AnswerModel, query: str, found: Evidence) -> float:
    """The probability that the contract answers `query`."""
    logit = model.offset + model.by_query.get(query, 0.0) + float(np.dot(model.weights, astuple(found)))
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))


def fit_answer_model(
    queries: Sequence[str], found: Sequence[Evidence], answered: Sequence[bool], *, strength: float = 1.0
) -> AnswerModel:
    """Ridge logistic regression on the evidence and on which question it is; the threshold as MAX_FALSE_ABSENT says.

    `strength` is scikit-learn's C. ValueError where all or none are answered: there is nothing to tell apart.
    """
    if len(set(answered)) < 2:
        raise ValueError(
            f"of {len(answered)} questions {sum(answered)} are answered; give some that are, some that are not"
        )
    numbers = np.array([astuple(one) for one in found])
    mean, spread = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-9)
    known = sorted(set(queries))
    which = np.array([[query == one for one in known] for query in queries], dtype=float)
    inputs = np.hstack([(numbers - mean) / spread, which])
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(inputs, np.array(answered))
    weights = fitted.coef_[0, : len(mean)] / spread
    model = AnswerModel(
        weights=tuple(float(w) for w in weights),
        offset=float(fitted.intercept_[0] - weights @ mean),
        by_query={query: float(w) for query, w in zip(known, fitted.coef_[0, len(mean) :], strict=True)},
        threshold=0.0,
    )
    of_answered = sorted(p_answered(model, q, one) for q, one, yes in zip(queries, found, answered, strict=True) if yes)
    return replace(model, threshold=of_answered[math.floor(MAX_FALSE_ABSENT * len(of_answered))])
