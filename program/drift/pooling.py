"""Two windows' rows of one signal, and the units that are exchanged between them: each contract of each side."""

from dataclasses import dataclass

import numpy as np

from program.drift.types import TooFewError
from program.drift.windows import Window

_ROWS_A_CONTRACT = 4  # under MMD, unless contracts are so few that there is room for more


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a signal may cost and what it needs; `max_points` bounds each side's observations under MMD."""

    permutations: int = 4999
    max_points: int = 400
    min_contracts: int = 10


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Pooled:
    """Rows of both windows: `rows` of each, the `unit` (N,) of each row, and which units `is_current` (G,)."""

    rows: tuple[np.ndarray, np.ndarray]
    unit: np.ndarray
    is_current: np.ndarray

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.rows[0]), len(self.rows[1])

    def take(self, reference: np.ndarray, current: np.ndarray) -> np.ndarray:
        """The rows of two columns, the reference's first."""
        return np.concatenate([reference[self.rows[0]], current[self.rows[1]]])

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums of `values` (N,) by unit: (G,)."""
        return np.bincount(self.unit, weights=values, minlength=len(self.is_current))

    def counts(self, code: np.ndarray, n_codes: int) -> np.ndarray:
        """How often each unit has each code: (G, n_codes)."""
        n_units = len(self.is_current)
        return np.bincount(self.unit * n_codes + code, minlength=n_units * n_codes).reshape(n_units, n_codes)


def pool(name: str, reference: tuple[Window, np.ndarray], current: tuple[Window, np.ndarray], limits: Limits) -> Pooled:
    """The rows of both windows where `name` is present, and their units: each contract of each side."""
    rows, units, n_units = [], [], []
    for side, (window, present) in zip(("the reference", "the window"), (reference, current), strict=True):
        own = np.flatnonzero(present)
        names, unit = np.unique(window.contract[own], return_inverse=True)
        if len(names) < limits.min_contracts:
            raise TooFewError(
                f"{name} is measured for {len(names)} contracts of {side}; "
                f"{limits.min_contracts - len(names)} more are needed"
            )
        rows.append(own)
        units.append(unit)
        n_units.append(len(names))
    is_current = np.repeat([False, True], n_units)
    return Pooled((rows[0], rows[1]), np.concatenate([units[0], units[1] + n_units[0]]), is_current)


def sampled(pooled: Pooled, rng: np.random.Generator, max_points: int) -> Pooled:
    """At most about `max_points` rows of a side: a few of each contract, the same number on both sides, then contracts.

    Rows drawn at random from each side would thin contracts more on the larger side than on the other, and they could
    no longer be exchanged. Contracts come first: a fifth row of a contract says less than a first of another.
    """
    n_units = np.bincount(pooled.is_current.astype(int), minlength=2)
    order = np.lexsort((rng.random(len(pooled.unit)), pooled.unit))
    first = np.searchsorted(pooled.unit[order], np.arange(len(pooled.is_current)))
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order)) - first[pooled.unit[order]]
    kept = rank < max(_ROWS_A_CONTRACT, max_points // int(n_units.max()))
    most = max(2, round(max_points * len(pooled.is_current) / kept.sum()))
    sides = [np.flatnonzero(pooled.is_current == side) for side in (False, True)]
    chosen = np.sort(np.concatenate([rng.permutation(units)[:most] for units in sides]))
    kept &= np.isin(pooled.unit, chosen)
    n_reference = pooled.sizes[0]
    return Pooled(
        (pooled.rows[0][kept[:n_reference]], pooled.rows[1][kept[n_reference:]]),
        np.searchsorted(chosen, pooled.unit[kept]),
        pooled.is_current[chosen],
    )
