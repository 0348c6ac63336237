"""What the gate reads and says: rules, evidence and a decision, frozen data that is checked when it is made.

One real check of a decision.json:

    {"name": "skill", "about": "house juniper", "passed": true, "value": 0.004, "low": -0.011, "high": 0.018,
     "bound": [-0.02, null], "unit": "share", "n": 240, "why": "kept: +0.4 points [-1.1, +1.8] against its score ..."}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from program.forgetting.skills import Mark

Row = Mapping[str, Any]
Bound = tuple[float | None, float | None]
VERDICTS = ("promote", "refuse", "undecided")


class GateError(ValueError):
    """Rules that contradict themselves, or evidence that is none; the message says what to mend."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """What a candidate has to show. Shares are 0-1; a limit of None is not asked for.

    `score`: the row's key that has to rise. `level`: confidence of intervals and of the whole life of a test set:
    every one of `max_decisions` on it gets an equal part of 1 - level (decide.py says why). `margin`: how much an old
    skill may lose. `detectable`: the smallest gain worth missing with no more than 1 - `min_power`; `discordance`: on
    how many questions the two sides may be expected to differ, until earlier decisions tell. `max_failed_share`: pairs
    lost to failed calls before nothing is decided. `max_kl`: nats per token from the incumbent, which needs the logits
    of both. `max_length_ratio`: of the answers' words. `max_abstention_change`: how much farther from gold's share of
    absent questions. Ungrounded quotes have no limit to set: it is 0.
    """

    score: str = "exact_match"
    level: float = 0.95
    margin: float = 0.02
    min_power: float = 0.8
    detectable: float = 0.05
    discordance: float = 0.2
    max_decisions: int = 12
    max_failed_share: float = 0.05
    max_kl: float | None = None
    max_length_ratio: tuple[float, float] | None = (0.5, 2.0)
    max_abstention_change: float | None = 0.1
    max_latency_ratio: float | None = 1.5
    max_memory_ratio: float | None = 1.5
    resamples: int = 10_000

    def __post_init__(self) -> None:
        for name in ("level", "min_power", "margin", "detectable", "discordance"):
            _within(name, getattr(self, name), 0, 1)
        _within("max_failed_share", self.max_failed_share, 0, 1, or_equal=True)
        for name in ("max_kl", "max_abstention_change", "max_latency_ratio", "max_memory_ratio"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0, math.inf)
        for name, least in (("max_decisions", 1), ("resamples", 100)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise GateError(f"{name} is {getattr(self, name)!r}; it must be a whole number of at least {least}")
        if self.discordance < self.detectable:
            raise GateError(
                f"discordance is {self.discordance} and detectable {self.detectable}; two sides that differ by "
                "a gain differ on at least as many questions: raise discordance"
            )
        if self.max_length_ratio is not None:
            low, high = self.max_length_ratio
            if not 0 <= low < 1 < high < math.inf:
                raise GateError(f"max_length_ratio is {self.max_length_ratio}; give a bound below and one above 1")
            object.__setattr__(self, "max_length_ratio", (float(low), float(high)))


@dataclass(frozen=True, slots=True)
class Side:
    """A program as it was measured: score rows of the frozen test set (program/runs.py), and its memory if known."""

    name: str
    rows: Sequence[Row]
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing asked of a candidate: `passed` None is "cannot be told", which holds a promotion up as well.

    `value` with its interval, the `bound` (lowest, highest) that it must keep, each None where there is none; `about`
    names the skill; `unit` is share, ratio, nats, count or p; `n` what it rests on; `why` is one sentence for the page.
    """

    name: str
    passed: bool | None
    value: float | None
    low: float | None
    high: float | None
    bound: Bound
    why: str
    unit: str = "share"
    n: int | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says, and of what; data only: whoever keeps releases acts on it.

    `id` is a hash of evidence and rules, so that the same evidence decided again is the same decision. `contracts` are
    those of the test set, by which later decisions count how often it was used; `looked` says whether the gain was
    looked at, which is what uses it up. `level` is that of the gain's interval, after the widening for repeated use.
    `n` counts pairs of questions scored on both sides.
    """

    verdict: str
    checks: tuple[Check, ...]
    n: int
    n_needed: int
    reasons: tuple[str, ...]
    id: str
    incumbent: str
    candidate: str
    rules: GateRules
    contracts: tuple[str, ...]
    looked: bool
    level: float
    discordance: float
    design_effect: float
    n_decisions: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a decision rests on.

    `incumbent` and `candidate` on the same frozen questions, labelled by people; where nothing is live yet, the
    incumbent is the uncompiled base. `texts`: the test contracts by id, which quotes are looked up in. `skills`: every
    skill's (score at the time, candidate), as score rows or marks (a mark that is missing is a failed call). Held
    against the score *at the time*, many small losses cannot add up unseen. `kl`: nats per token with their contracts
    (`kl_from_base`). `earlier`: every decision made before on any of these contracts. `shadow`: the checks of
    `compare_shadow`, where the candidate ran beside the live program.
    """

    incumbent: Side
    candidate: Side
    texts: Mapping[str, str]
    skills: Mapping[str, tuple[Sequence[Row | Mark], Sequence[Row | Mark]]] = field(default_factory=dict)
    kl: Sequence[tuple[float, str]] = ()
    earlier: Sequence[Decision] = ()
    shadow: Sequence[Check] = ()


def to_json(decision: Decision) -> str:
    """The decision as JSON; `from_json` gives an equal one. Raises ValueError for nan, which checks never hold."""
    return json.dumps(asdict(decision), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Decision:
    """A decision read back. Raises GateError for anything that `to_json` does not write."""
    try:
        told = json.loads(text)
        told["rules"] = GateRules(**told["rules"])
        told["checks"] = tuple(Check(**one | {"bound": tuple(one["bound"])}) for one in told["checks"])
        read = Decision(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GateError(f"this is no decision of the gate ({error!r}); decide again from the evidence") from error
    if read.verdict not in VERDICTS:
        raise GateError(f"the verdict is {read.verdict!r}, not one of {VERDICTS}; decide again from the evidence")
    return read


def _within(name: str, value: Any, low: float, high: float, or_equal: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value < high or (or_equal and low <= value <= high)):
        raise GateError(f"{name} is {value!r}; it must be a number {'from' if or_equal else 'above'} {low} to {high}")
