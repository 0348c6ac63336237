"""One small pure function per signal: `(reference, current, rng, limits) -> SignalResult`.

Each compares two windows and permutes contracts (`permutation.py`), so that its p-value holds however alike the
questions of a contract are. Observations where a signal was not measured are left out of it; TooFewError where it is
measured for fewer than `limits.min_contracts` contracts on a side. Ratings are bet on instead (`ratings.py`).
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import jensenshannon

from program.drift.mmd import mmd2_of, rbf_kernel
from program.drift.permutation import Permuted, Statistic, cluster_permutation
from program.drift.pooling import DEFAULT_LIMITS, Limits, Pooled, pool, sampled
from program.drift.types import DriftError, SignalResult
from program.drift.windows import Window

_KS_POINTS = 128  # where two distribution functions are compared; a function of the pooled values, so p stays exact

Signal = Callable[[Window, Window, np.random.Generator, Limits], SignalResult]


def question_embedding(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Maximum mean discrepancy of the questions' embeddings; see `_mmd`."""
    return _mmd("question_embedding", reference, current, rng, limits)


def passage_embedding(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Maximum mean discrepancy of the shown passages' mean embeddings; see `_mmd`."""
    return _mmd("passage_embedding", reference, current, rng, limits)


def retrieval_score(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Kolmogorov and Smirnov's distance of the retrieval scores; `effect` is the change of the mean."""
    return _ks("retrieval_score", reference, current, rng, limits)


def confidence(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Kolmogorov and Smirnov's distance of the confidences; `effect` is the change of the mean."""
    return _ks("confidence", reference, current, rng, limits)


def p_answered(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Kolmogorov and Smirnov's distance of retrieval's own probabilities that there is an answer."""
    return _ks("p_answered", reference, current, rng, limits)


def abstention(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """The difference in the share of answers that said "not in this contract"."""
    return _mean("abstention", reference.abstained.astype(float), current.abstained.astype(float),
                 reference, current, rng, limits)  # fmt: skip


def judge_score(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """The difference in the mean of the judge's scores, where it was asked."""
    return _mean("judge_score", reference.judge_score, current.judge_score, reference, current, rng, limits)


def category_mix(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """Jensen and Shannon's divergence, in bits, of how often each category is asked; free questions are one of them."""
    names = sorted({*reference.categories, *current.categories})
    number = {name: i for i, name in enumerate(names)}
    # The last place stands for -1: no category.
    codes = [np.array([*[number[name] for name in side.categories], len(names)])[side.category]
             for side in (reference, current)]  # fmt: skip
    pooled = pool("category_mix", (reference, np.ones(reference.n, bool)), (current, np.ones(current.n, bool)), limits)
    counts = pooled.counts(pooled.take(*codes), len(names) + 1).astype(float)

    def statistic(marks: np.ndarray) -> np.ndarray:
        asked = marks @ counts
        return jensenshannon(asked, counts.sum(axis=0) - asked, base=2, axis=1) ** 2

    found = _permuted(statistic, pooled, rng, limits)
    asked = pooled.is_current @ counts
    shares = asked / asked.sum() - (counts.sum(axis=0) - asked) / (counts.sum() - asked.sum())
    most = int(np.argmax(np.abs(shares)))
    about = f"{([*names, 'free questions'])[most]!r} changed most, by {100 * shares[most]:+.1f} points of the questions"
    return _result("category_mix", found, found.statistic, pooled, about)


def oov_share(
    reference: Window, current: Window, rng: np.random.Generator, limits: Limits = DEFAULT_LIMITS
) -> SignalResult:
    """The difference in the share of question words that are not in the reference's vocabulary.

    The vocabulary is of half of the reference's contracts (drawn by `rng`), and the other half is compared: words of
    the contracts that made the vocabulary are in it by construction, and could not be exchanged for anything.
    """
    units = np.unique(reference.contract)
    known = np.isin(reference.contract, rng.permutation(units)[: len(units) // 2])
    vocabulary = {word for row, own in zip(reference.words, known, strict=True) if own for word in row}
    n_words = [np.array([len(row) for row in side.words]) for side in (reference, current)]
    n_new = [np.array([len(row) - sum(map(vocabulary.__contains__, row)) for row in side.words])
             for side in (reference, current)]  # fmt: skip
    pooled = pool("oov_share", (reference, ~known & (n_words[0] > 0)), (current, n_words[1] > 0), limits)
    return _ratio("oov_share", pooled.take(*n_new), pooled.take(*n_words), pooled, rng, limits)


SIGNALS: dict[str, Signal] = {
    "question_embedding": question_embedding,
    "passage_embedding": passage_embedding,
    "retrieval_score": retrieval_score,
    "confidence": confidence,
    "p_answered": p_answered,
    "abstention": abstention,
    "judge_score": judge_score,
    "category_mix": category_mix,
    "oov_share": oov_share,
}


def _mmd(name: str, reference: Window, current: Window, rng: np.random.Generator, limits: Limits) -> SignalResult:
    """Biased squared MMD with an RBF kernel as wide as the median distance of the pooled rows, contracts permuted.

    The kernel is summed over pairs of contracts first, so that a permutation is a product of small matrices. `effect`
    is the root of what stands above the permutations' mean, which is 0 on the average where nothing changed.
    """
    sides = getattr(reference, name), getattr(current, name)
    present = [~np.isnan(matrix).all(axis=1) & (matrix.shape[1] > 0) for matrix in sides]
    pooled = pool(name, (reference, present[0]), (current, present[1]), limits)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise DriftError(
            f"{name} has {sides[0].shape[1]} numbers in the reference and {sides[1].shape[1]} now; embed both windows "
            "by one model, or begin with a new reference"
        )
    pooled = sampled(pooled, rng, limits.max_points)
    rows = pooled.take(*sides)
    _refuse_faults(name, rows)
    order = np.argsort(pooled.unit, kind="stable")
    first = np.flatnonzero(np.diff(pooled.unit[order], prepend=-1))
    kernel = rbf_kernel(rows[order])
    by_unit = np.add.reduceat(np.add.reduceat(kernel, first, axis=0), first, axis=1)
    statistic = mmd2_of(by_unit, np.bincount(pooled.unit).astype(float))
    found = _permuted(statistic, pooled, rng, limits)
    effect = max(0.0, found.statistic - found.null_mean) ** 0.5
    return _result(name, found, effect, pooled, f"MMD² {found.statistic:.4f}, by chance {found.null_mean:.4f}")


def _ks(name: str, reference: Window, current: Window, rng: np.random.Generator, limits: Limits) -> SignalResult:
    sides = getattr(reference, name), getattr(current, name)
    pooled = pool(name, (reference, ~np.isnan(sides[0])), (current, ~np.isnan(sides[1])), limits)
    values = pooled.take(*sides)
    _refuse_faults(name, values)
    points = np.unique(values)
    if len(points) > _KS_POINTS:
        points = np.unique(np.quantile(values, np.linspace(0, 1, _KS_POINTS)))
    below = pooled.counts(np.searchsorted(points, values), len(points)).cumsum(axis=1).astype(float)
    whole = below.sum(axis=0)

    def statistic(marks: np.ndarray) -> np.ndarray:
        own = marks @ below
        rest = whole - own
        return np.abs(own / own[:, -1:] - rest / rest[:, -1:]).max(axis=1)

    found = _permuted(statistic, pooled, rng, limits)
    n_reference = pooled.sizes[0]
    before, after = values[:n_reference].mean(), values[n_reference:].mean()
    about = f"mean {before:.3f}, now {after:.3f}; the distributions are {found.statistic:.3f} apart"
    return _result(name, found, float(after - before), pooled, about)


def _mean(
    name: str, before: np.ndarray, after: np.ndarray, reference: Window, current: Window,
    rng: np.random.Generator, limits: Limits,
) -> SignalResult:  # fmt: skip
    pooled = pool(name, (reference, ~np.isnan(before)), (current, ~np.isnan(after)), limits)
    values = pooled.take(before, after)
    _refuse_faults(name, values)
    return _ratio(name, values, np.ones(len(values)), pooled, rng, limits)


def _ratio(
    name: str, above: np.ndarray, below: np.ndarray, pooled: Pooled, rng: np.random.Generator, limits: Limits
) -> SignalResult:
    """The difference of Σ above / Σ below between the sides."""
    tops, bottoms = pooled.totals(above), pooled.totals(below)

    def shares(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        top, bottom = marks @ tops, marks @ bottoms
        return (tops.sum() - top) / (bottoms.sum() - bottom), top / bottom

    def statistic(marks: np.ndarray) -> np.ndarray:
        before, after = shares(marks)
        return np.abs(after - before)

    found = _permuted(statistic, pooled, rng, limits)
    before, after = (float(side[0]) for side in shares(pooled.is_current[None].astype(float)))
    return _result(name, found, after - before, pooled, f"mean {before:.3f}, now {after:.3f}")


def _permuted(statistic: Statistic, pooled: Pooled, rng: np.random.Generator, limits: Limits) -> Permuted:
    return cluster_permutation(statistic, pooled.is_current, rng, permutations=limits.permutations)


def _result(name: str, found: Permuted, effect: float, pooled: Pooled, about: str) -> SignalResult:
    return SignalResult(name, found.statistic, found.p_value, None, effect, *pooled.sizes, about)


def _refuse_faults(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise DriftError(f"{name} holds nan or infinity; give None where nothing was measured")
