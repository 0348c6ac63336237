"""Reviewers' ratings, bet on: one number per contract, each contract once, against what the reference bounds.

Ratings come late and few, and people look at them every day: so they are not tested window by window but bet on
(`betting.py`), which may be looked at whenever one likes. What is bet on is the mean of a contract's ratings, since
ratings of one contract are no independent votes; a contract is heard at the first check that has a rating of it, and
never again. Not handled: people who are quicker to rate what displeases them (their ratings are heard first).
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from program.drift.betting import lower_limit, step
from program.drift.types import SignalResult
from program.drift.windows import Window

NAME = "ratings"


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets so far: the capital of each, and the contracts that were heard (12 hex characters of a hash each)."""

    wealth: tuple[float, ...] = ()
    heard: tuple[str, ...] = ()


def by_contract(window: Window) -> dict[str, float]:
    """The mean rating of each contract that has one, by the hash of its name, in the order of their first rating."""
    found: dict[tuple[int, str], list[float]] = {}
    for row in np.flatnonzero(~np.isnan(window.rating)):
        number = int(window.contract[row])
        # A question to no contract is known again by its moment.
        name = window.contracts[number] or f"\0{window.at[row]!r}"
        found.setdefault((number, name), []).append(float(window.rating[row]))
    return {hashlib.sha256(name.encode()).hexdigest()[:12]: float(np.mean(rows)) for (_, name), rows in found.items()}


def rated_limit(rated: dict[str, float], alpha: float, at_least: int) -> float | None:
    """What the mean rating of a reference's contracts is not below, but with chance `alpha`; None where unknown.

    Unknown: fewer than `at_least` contracts were rated, or so badly that no fall could be told.
    """
    limit = lower_limit(list(rated.values()), alpha) if len(rated) >= at_least else 0.0
    return limit if limit > 0.01 else None


def ratings(rated: dict[str, float], current: Window, limit: float, bets: Bets) -> tuple[SignalResult, Bets]:
    """The e-detector after this window, as a signal, and the bets to keep; `rated` is `by_contract` of the reference.

    `e_value` passes c in T checks with a chance of at most T/c while the mean is `limit` or more.
    """
    known = {*bets.heard, *rated}
    values = by_contract(current)
    new = {name: value for name, value in values.items() if name not in known}
    bets = Bets(step(bets.wealth, list(new.values()), limit), (*bets.heard, *new))
    mean = _mean(rated.values())
    effect = _mean(values.values()) - mean if values else 0.0
    value = float(np.mean(bets.wealth))
    about = (
        f"mean by contract {mean:.3f} (above {limit:.3f}), now {_told(values.values())}; {len(new)} contracts heard, "
        f"{len(values) - len(new)} known from earlier checks or the reference"
    )
    return SignalResult(NAME, value, None, value, effect, len(rated), len(values), about), bets


def _mean(values: Collection[float]) -> float:
    return float(np.mean(list(values)))


def _told(values: Collection[float]) -> str:
    return f"{_mean(values):.3f}" if values else "none"
