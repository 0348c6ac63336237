"""Bets on bounded means: has the mean of ratings fallen below what the reference bounds it by?

Against "the mean is m or more", values x in [0, 1] and bets λ in [0, 1/(1 − m)], the capital Π (1 + λ (m − x)) is on
the average never above 1, so that it passes 1/α with a chance of at most α, however often one looks (Waudby-Smith &
Ramdas 2023, theorem 1 and section 4). The bet is spread over a grid of λ ("diversified Kelly", ibid., appendix B).
Values must be independent units: one per contract.

`step` makes a change detector of it: before each check one unit is added to the capital (the Shiryaev–Roberts
e-detector of Shin, Ramdas & Rinaldo 2024, arXiv 2203.03532). Emptied whenever it passes c, capital + c·alarms − checks
is a supermartingale, so that the number of false alarms in T checks is at most T/c on the average.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

# Shares of the largest bet that cannot lose all: small ones for slow falls, large ones for steep ones.
FRACTIONS = (0.05, 0.12, 0.3, 0.7)
_MOST = 600.0  # e**600 is far above every threshold, and finite


def log_capital(values: Sequence[float] | np.ndarray, mean: float) -> np.ndarray:
    """The logarithm of what 1 has grown to after each of `values` (N,) in betting that they fall below `mean`: (N,)."""
    return logsumexp(np.cumsum(_logs(values, mean), axis=0), axis=1) - np.log(len(FRACTIONS))


def step(wealth: Sequence[float], values: Sequence[float] | np.ndarray, mean: float) -> tuple[float, ...]:
    """The e-detector after a check that brought `values`: one number per bet, their mean its value; () is a start."""
    before = np.asarray(wealth if len(wealth) else np.zeros(len(FRACTIONS)), dtype=float)
    grown = _logs(values, mean).sum(axis=0)
    return tuple(((before + 1) * np.exp(np.minimum(grown, _MOST))).tolist())


def lower_limit(values: Sequence[float] | np.ndarray, alpha: float) -> float:
    """A value that the mean of what `values` in [0, 1] were drawn from is below with a chance of at most `alpha`.

    The smallest m such that betting that the mean is above m has not made 1/alpha of 1 (Waudby-Smith & Ramdas 2023,
    section 4.2); valid for any number of values.
    """
    mirrored = 1 - _checked(values)

    def lead(mean: float) -> float:
        return float(log_capital(mirrored, 1 - mean)[-1] + np.log(alpha))

    low, high = 1e-9, 1 - 1e-9
    return float(brentq(lead, low, high, xtol=1e-6)) if len(mirrored) and lead(low) > 0 else 0.0


def _logs(values: Sequence[float] | np.ndarray, mean: float) -> np.ndarray:
    """(N, bets): the logarithm by which each value changes each bet's capital."""
    if not 0 < mean < 1:
        raise ValueError(f"the mean to bet against is {mean}; it is above 0 and below 1, or nothing can be won")
    bets = np.array(FRACTIONS) / (1 - mean)
    return np.log1p(bets * (mean - _checked(values)[:, None]))


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # nan is neither
        raise ValueError(f"values to bet on run from {values.min()} to {values.max()}; they are in [0, 1]")
    return values
