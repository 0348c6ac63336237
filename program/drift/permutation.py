"""A permutation test whose units are clusters (contracts), not rows.

Under "nothing changed" contracts could have come in any order, so that every choice of which of them are the current
ones is as likely as the one that came: the p-value is exact whatever the questions of a contract share. A contract
with questions on both sides is two units, which makes the test conservative: what its halves share cancels in what was
observed and not in the permutations. Not handled: units that come in batches of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# (B, G) marks of the current units, 1.0 or 0.0, to B values; larger is further from "no change".
Statistic = Callable[[np.ndarray], np.ndarray]
_FIRST, _LARGEST = 100, 1000


@dataclass(frozen=True, slots=True)
class Permuted:
    """The statistic as observed, its p-value, and the mean of the permutations that were drawn."""

    statistic: float
    p_value: float
    null_mean: float
    n_permutations: int


def cluster_permutation(
    statistic: Statistic,
    is_current: np.ndarray,
    rng: np.random.Generator,
    *,
    permutations: int = 4999,
    exceedances: int = 10,
) -> Permuted:
    """Test `statistic` of which units are current, `is_current` (G,), against permutations of it.

    Drawing ends at the `exceedances`-th h permutation that is as extreme, after l draws: p = h / l; otherwise
    p = (g + 1) / (`permutations` + 1) with g as extreme. Both are valid at any level (Besag & Clifford 1991), and the
    first spares the draws where nothing has changed.
    """
    marks = is_current.astype(float)
    observed = float(statistic(marks[None])[0])
    # Equal values may differ in the last digits, and count as equal: that errs towards no change.
    bound = observed - 1e-6 * abs(observed) - 1e-12
    drawn, extreme, total, size = 0, 0, 0.0, _FIRST
    while drawn < permutations:
        size = min(size, permutations - drawn)
        values = statistic(_drawn(size, len(marks), int(marks.sum()), rng))
        counts = extreme + np.cumsum(values >= bound)
        total += float(values.sum())
        if counts[-1] >= exceedances:
            last = int(np.argmax(counts >= exceedances)) + 1
            return Permuted(observed, exceedances / (drawn + last), total / (drawn + size), drawn + last)
        drawn, extreme, size = drawn + size, int(counts[-1]), min(2 * size, _LARGEST)
    return Permuted(observed, (extreme + 1) / (permutations + 1), total / drawn, drawn)


def _drawn(size: int, n_units: int, n_current: int, rng: np.random.Generator) -> np.ndarray:
    """`size` choices of which `n_current` of the units are current, (size, n_units): those with the smallest keys."""
    keys = rng.random((size, n_units))
    last = np.partition(keys, n_current - 1, axis=1)[:, n_current - 1 : n_current]
    return (keys <= last).astype(float)


def holm(p_values: dict[str, float], alpha: float) -> tuple[str, ...]:
    """The names that are rejected with a chance of at most `alpha` that any is so wrongly (Holm 1979)."""
    rejected: list[str] = []
    for name, p_value in sorted(p_values.items(), key=lambda item: item[1]):
        if p_value > alpha / (len(p_values) - len(rejected)):
            break
        rejected.append(name)
    return tuple(rejected)
