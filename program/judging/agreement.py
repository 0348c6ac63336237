"""From outcomes to numbers: agreement with gold and people, and the faults a judge is known to have.

Intervals are by bootstrap over contracts. What a judge did not say readably is counted, and is in no rate; None
stands for nothing to measure.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from modules.judge_length import length_difference
from program.intervals import Interval, mean_interval, ratio_interval
from program.judging.measure import Outcome
from program.judging.types import JudgedPair

VERDICTS = ("A", "B", "tie")
_SIGN = {"A": 1, "B": -1, "tie": 0}


def agreement(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """n, ties, accuracy (a tie where gold has a winner is wrong), accuracy of what was decided, and Cohen's kappa."""
    read = [one for one in outcomes if one.verdict is not None]
    decided = [one for one in read if one.verdict.winner != "tie"]
    return {
        "n": len(read),
        "n_unreadable": sum(one.verdict is None and not one.failed for one in outcomes),
        "n_failed": sum(one.failed for one in outcomes),
        "n_contracts": len({one.pair.contract_id for one in read}),
        "n_ties": len(read) - len(decided),
        "accuracy": _share([one.right for one in read], read, seed),
        "accuracy_decided": _share([one.right for one in decided], decided, seed),
        "kappa": kappa(
            [one.pair.winner for one in read],
            [one.verdict.winner for one in read],
            [one.pair.contract_id for one in read],
            seed,
        ),
    }


def kappa(first: Sequence[str], second: Sequence[str], clusters: Sequence[str], seed: int) -> dict[str, Any] | None:
    """Cohen's kappa of two lists of verdicts with its interval; None for no pairs, or where chance explains all."""
    if len({*first, *second}) < 2:
        return None
    value = float(cohen_kappa_score(list(first), list(second), labels=VERDICTS))
    counts = np.zeros((len(first), len(VERDICTS) ** 2))
    for row, pair in zip(counts, zip(first, second, strict=True), strict=True):
        row[VERDICTS.index(pair[0]) * len(VERDICTS) + VERDICTS.index(pair[1])] = 1
    return _plain(ratio_interval(counts, clusters, kappa_of, seed=seed)) | {"mean": value}


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusion counts (..., 9), rows first; nan where chance agreement is 1 (Cohen 1960, eq. 1)."""
    table = np.asarray(sums, dtype=float).reshape(*np.shape(sums)[:-1], len(VERDICTS), len(VERDICTS))
    n = table.sum(axis=(-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.trace(table, axis1=-2, axis2=-1) / n
        chance = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / n**2
        return (observed - chance) / np.where(chance == 1, np.nan, 1 - chance)


def by_kind(outcomes: Sequence[Outcome], seed: int) -> list[dict[str, Any]]:
    """`agreement` of each kind of wrong answer."""
    groups = defaultdict(list)
    for one in outcomes:
        groups[one.pair.kind].append(one)
    return [{"kind": kind} | agreement(group, seed) for kind, group in groups.items()]


def position_flips(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """How often exchanging the sides changes who wins; n is the pairs that were read both ways."""
    asked = [one for one in outcomes if one.flipped is not None]
    return {"n": len(asked), "rate": _share([one.flipped for one in asked], asked, seed)}


def retest(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """How often another sample says the same, and the noise of the margin, in its own units.

    `noise` is the standard deviation of one margin about its mean: that of the differences over the square root of 2.
    """
    asked = [one for one in outcomes if one.verdict is not None and one.again is not None]
    margins = [(one.verdict.margin, one.again.margin) for one in asked]
    changes = [first - second for first, second in margins if first is not None and second is not None]
    return {
        "n": len(asked),
        "same": _share([one.verdict.winner == one.again.winner for one in asked], asked, seed),
        "noise": float(np.sqrt(np.mean(np.square(changes)) / 2)) if changes else None,
    }


def length_bias(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How often the longer answer wins among wrong verdicts, and how verdicts go with length (Spearman), gold too."""
    read = [one for one in outcomes if one.verdict is not None]
    differences = [length_difference(one.pair.a, one.pair.b) for one in read]
    signs = [_SIGN[one.verdict.winner] for one in read]
    wrong = [
        d * s for d, s, one in zip(differences, signs, read, strict=True) if s and d and not one.right
    ]  # above 0 where the longer one won
    return {
        "n_wrong": len(wrong),
        "longer_won": sum(d > 0 for d in wrong),
        "correlation": _correlation(differences, signs),
        "gold_correlation": _correlation(differences, [_SIGN[one.pair.winner] for one in read]),
    }


def degenerate_wins(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How often the degenerate answer wins or ties, in all and by kind; `winner` of a pair is the real answer."""
    read = [one for one in outcomes if one.verdict is not None]
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for one in read:
        kinds[one.pair.kind].append(one)
    return {
        **_wins(read),
        "n_unreadable": sum(one.verdict is None and not one.failed for one in outcomes),
        "n_failed": sum(one.failed for one in outcomes),
        "by_kind": [{"kind": kind} | _wins(group) for kind, group in kinds.items()],
    }


def human_agreement(pairs: Sequence[JudgedPair], seed: int) -> dict[str, Any]:
    """Kappa of people with each other, over every two people who judged the same two answers of the same case."""
    same: dict[tuple, dict[str, str]] = defaultdict(dict)
    contracts: dict[tuple, str] = {}
    for pair in pairs:
        sides = frozenset((pair.a, pair.b))
        key = (pair.case.question, pair.contract_id, sides)
        first = min(sides, key=repr)
        winner = pair.winner if pair.winner == "tie" or pair.a == first else {"A": "B", "B": "A"}[pair.winner]
        same[key][pair.by or ""] = winner
        contracts[key] = pair.contract_id
    both = [
        (votes[one], votes[two], contracts[key])
        for key, votes in same.items()
        for one, two in itertools.combinations(sorted(votes), 2)
    ]
    columns = zip(*both, strict=True) if both else ((), (), ())
    return {"n": len(both), "kappa": kappa(*map(list, columns), seed)}


def _wins(outcomes: Sequence[Outcome]) -> dict[str, int]:
    said = [one.verdict.winner for one in outcomes]
    ties = said.count("tie")
    return {"n": len(said), "wins": len(said) - ties - sum(one.right for one in outcomes), "ties": ties}


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def _share(values: Sequence[bool], outcomes: Sequence[Outcome], seed: int) -> dict[str, Any] | None:
    if not values:
        return None
    return _plain(mean_interval([float(v) for v in values], [one.pair.contract_id for one in outcomes], seed=seed))


def _plain(found: Interval) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(found).items()}
