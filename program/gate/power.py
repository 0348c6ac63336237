"""How many questions a decision needs, told without looking at which side is better.

Nothing here depends on the sign or the mean of the differences: discordance comes of the rules or of earlier decisions,
and the design effect is the same whatever constant is added to all differences. Deciding how many questions to ask from
the gain seen so far would be stopping at a lucky moment.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def questions_needed(
    discordance: float, detectable: float, level: float, power: float, design_effect: float = 1.0
) -> int:
    """Paired questions for McNemar's test to find a gain of `detectable` with probability `power` or more.

    n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 (Miettinen 1968; Connor 1987, Biometrics 43:207), with psi the
    share of questions on which the sides differ, d the gain, a = 1 - `level` two-sided; then the continuity correction
    n (1 + sqrt(1 + 4 / (n d)))^2 / 4 (Fleiss, Tytun & Ury 1980), since the exact test is the stricter one; times the
    design effect for questions that come in contracts. ValueError unless 0 < detectable <= discordance <= 1.
    """
    if not 0 < detectable <= discordance <= 1:
        raise ValueError(
            f"a gain of {detectable} with the sides differing on {discordance} of the questions cannot be; give "
            "0 < detectable <= discordance <= 1"
        )
    z_level, z_power = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power)
    spread = z_level * math.sqrt(discordance) + z_power * math.sqrt(max(discordance - detectable**2, 0.0))
    n = (spread / detectable) ** 2
    corrected = n / 4 * (1 + math.sqrt(1 + 4 / (n * detectable))) ** 2
    return math.ceil(corrected * max(design_effect, 1.0))


def questions_for_margin(
    differences: ArrayLike, margin: float, level: float, power: float, design_effect: float = 1.0
) -> int:
    """Questions that show non-inferiority within `margin` with probability `power`, where nothing is lost in truth.

    n = (z_a + z_b)^2 var / margin^2 (Chow, Shao & Wang 2008, one-sided at (1 - level) / 2), times the design effect.
    """
    z = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)
    return math.ceil(z**2 * float(np.var(np.asarray(differences, dtype=float))) / margin**2 * max(design_effect, 1.0))


def design_effect(differences: ArrayLike, contracts: Sequence[str]) -> float:
    """By how much clustering by contract inflates the variance of the mean difference, at least 1 (Kish 1965).

    1 + (m - 1) rho with m = sum n_c^2 / sum n_c over contracts of n_c questions, and rho the intra-contract correlation
    of the differences by analysis of variance (Donner 1986), 0 where it comes out below. One contract tells nothing of
    others: rho is then 1. ValueError for no differences or unequal lengths.
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values) or len(values) != len(contracts):
        raise ValueError(f"{values.shape} differences for {len(contracts)} contract names; give one name a difference")
    _, index, sizes = np.unique(np.asarray(contracts, dtype=str), return_inverse=True, return_counts=True)
    n, k = len(values), len(sizes)
    weighted = float((sizes**2).sum() / n)
    if k == 1:
        return weighted
    if k == n:
        return 1.0
    means = np.bincount(index, weights=values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum() / (k - 1))
    within = float(((values - means[index]) ** 2).sum() / (n - k))
    typical = (n - weighted) / (k - 1)
    total = between + (typical - 1) * within
    rho = (between - within) / total if total > 0 else 0.0
    return 1 + (weighted - 1) * min(max(rho, 0.0), 1.0)
