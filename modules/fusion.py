"""Several rankings of the same things made one: by reciprocal rank, or by weighted scores.

A ranking is (key, score) pairs, best first, each key once. Equal results keep the order of the first ranking that has
them.
"""

from collections.abc import Sequence

Ranking = Sequence[tuple[str, float]]


def reciprocal_rank(rankings: Sequence[Ranking], weights: Sequence[float], constant: float = 60.0) -> Ranking:
    """Each key with Σ weight / (constant + its rank from 1) over the rankings that have it, best first.

    Source: Cormack, Clarke and Büttcher, SIGIR 2009, whose constant is 60; weights are an addition.
    """
    return _fuse([[(key, 1 / (constant + rank)) for rank, (key, _) in enumerate(r, 1)] for r in rankings], weights)


def weighted_sum(rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    """Each key with Σ weight · score over the rankings that have it, best first, scores of a ranking put on 0 to 1.

    A ranking's worst score becomes 0 and its best 1 (Fox and Shaw's CombSUM, TREC 1993); equal scores are all 1.
    """
    return _fuse([_normalized(ranking) for ranking in rankings], weights)


def _normalized(ranking: Ranking) -> Ranking:
    if not ranking:
        return ranking
    low, high = min(score for _, score in ranking), max(score for _, score in ranking)
    return [(key, (score - low) / (high - low) if high > low else 1.0) for key, score in ranking]


def _fuse(rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    fused: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for key, score in ranking if weight else ():
            fused[key] = fused.get(key, 0.0) + weight * score
    return sorted(fused.items(), key=lambda item: -item[1])
