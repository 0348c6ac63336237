"""Intervals for scores whose questions come in clusters (contracts), and paired tests of two program states.

Questions of one contract stand or fall together, so contracts are what is drawn again, not questions. Every
score is a statistic of counts summed over contracts (a mean is Σ value / Σ 1, pooled precision Σ tp / Σ (tp + fp)),
so one bootstrap serves all. Not handled: unequal sampling weights; clusters within clusters (two amendments of
one contract count as two contracts).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval; `low` and `high` are nan where there is only one cluster or nothing to measure."""

    mean: float
    low: float
    high: float
    n: int
    n_clusters: int


@dataclass(frozen=True, slots=True)
class PairedInterval:
    """The difference after − before; `p_value` is the bootstrap's two-sided one, nan where `low` and `high` are."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    n_clusters: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """Questions that turned right (`gains`) and wrong (`losses`), and the exact two-sided p-value."""

    gains: int
    losses: int
    p_value: float


def mean_interval(
    values: ArrayLike, clusters: Sequence[str], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `values` (N,) with an interval from drawing whole clusters again; see `ratio_interval`."""
    return ratio_interval(_with_ones(values), clusters, _mean, level=level, resamples=resamples, seed=seed)


def ratio_interval(
    counts: ArrayLike,
    clusters: Sequence[str],
    statistic: Statistic,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`statistic` of the summed `counts` (N, K) with a cluster-bootstrap interval.

    `statistic` maps sums (..., K) to (...), with nan for 0/0; resamples that give nan are left out. The percentiles are
    widened to what Student's t needs at this number of clusters (Hesterberg 2015, arXiv 1411.5279), since
    the plain ones are too narrow for few contracts. One cluster shows no spread between contracts: low and high
    are nan. No rows, nan or infinite counts, unequal lengths and a level outside (0, 1) raise ValueError.
    """
    totals, n = _cluster_totals(np.asarray(counts, dtype=float), clusters)
    mean = float(statistic(totals.sum(axis=0)))
    drawn = statistic(_draw(totals, resamples, seed))
    low, high = _percentiles(drawn, len(totals), level, known=np.isfinite(mean))
    return Interval(mean, low, high, n, len(totals))


def paired_interval(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedInterval:
    """mean(after) − mean(before) of the same N questions, both from the same resamples; see `ratio_interval`."""
    pair = _with_ones(before), _with_ones(after)
    return paired_ratio_interval(*pair, clusters, _mean, level=level, resamples=resamples, seed=seed)


def paired_ratio_interval(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str],
    statistic: Statistic,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedInterval:
    """statistic(after) − statistic(before) of summed counts (N, K) of the same questions, from the same resamples.

    The p-value is twice the smaller share of resamples on either side of 0, counted with one more on each side, so that
    it is never 0. Raises as `ratio_interval`, and for unequal shapes.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if before.shape != after.shape:
        raise ValueError(
            f"before has shape {before.shape}, after {after.shape}; a pair needs the same questions in both"
        )
    both, n = _cluster_totals(np.concatenate([before, after], axis=1), clusters)
    k = before.shape[1]

    def change(sums: np.ndarray) -> np.ndarray:
        return statistic(sums[..., k:]) - statistic(sums[..., :k])

    difference, drawn = float(change(both.sum(axis=0))), change(_draw(both, resamples, seed))
    low, high = _percentiles(drawn, len(both), level, known=np.isfinite(difference))
    finite = drawn[np.isfinite(drawn)]
    side = min((finite <= 0).sum(), (finite >= 0).sum()) + 1
    p_value = min(1.0, 2 * float(side) / (len(finite) + 1)) if np.isfinite(low) else float("nan")
    return PairedInterval(difference, low, high, p_value, n, len(both))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """McNemar's exact test on paired right/wrong marks (binomial on the discordant pairs); no discordant pair is p = 1.

    It takes questions as independent, which questions of one contract are not: read it beside `paired_interval`.
    """
    pairs = list(zip(before, after, strict=True))
    gains = sum(1 for old, new in pairs if new and not old)
    losses = sum(1 for old, new in pairs if old and not new)
    p_value = float(stats.binomtest(gains, gains + losses, 0.5).pvalue) if gains + losses else 1.0
    return McNemar(gains, losses, p_value)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]  # every row adds 1 below, so this is never 0/0


def _with_ones(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values have shape {values.shape}; give one number per question, shape (N,)")
    return np.stack([values, np.ones_like(values)], axis=1)


def _cluster_totals(counts: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, int]:
    """Counts summed by cluster, (G, K), clusters in sorted order so that row order does not matter; and N."""
    if counts.ndim != 2 or len(counts) != len(clusters):
        raise ValueError(f"counts have shape {counts.shape} for {len(clusters)} cluster names; give (N, K) and N names")
    if not len(counts):
        raise ValueError("no rows to estimate from; check that the stage has questions that did not fail")
    if not np.isfinite(counts).all():
        raise ValueError("counts hold nan or infinity; leave failed questions out before scoring")
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    totals = np.stack([np.bincount(index, weights=column, minlength=len(names)) for column in counts.T], axis=1)
    return totals, len(counts)


def _draw(totals: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of `resamples` draws of G clusters with replacement, (resamples, K)."""
    n_clusters = len(totals)
    times_drawn = np.random.default_rng(seed).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), resamples)
    return times_drawn @ totals


def _percentiles(drawn: np.ndarray, n_clusters: int, level: float, known: bool) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is the share of intervals that hold the truth, between 0 and 1 (0.95)")
    finite = drawn[np.isfinite(drawn)]
    if n_clusters < 2 or not known or not len(finite):
        return float("nan"), float("nan")
    t = stats.t.ppf((1 - level) / 2, n_clusters - 1) * np.sqrt(n_clusters / (n_clusters - 1))
    tail = float(stats.norm.cdf(t))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)
