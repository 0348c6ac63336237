"""The decision: may a candidate take the incumbent's place? A pure function of evidence and rules.

    decision = decide(Evidence(Side("0003", live_rows, rss), Side("0004", rows, rss), texts, skills=...), GateRules())

It promotes only what is shown to be better on the frozen test set and no worse on any old skill, and stays in bounds.
Both of two tests have to show the gain: a bootstrap over contracts, since questions of a contract stand or fall
together, which McNemar's test does not know; and McNemar's exact test, since a bootstrap of a handful of changed
answers is too sure of itself. That all of several checks must pass needs no correction (an intersection-union test,
Berger 1982).

Every decision on one test set is a chance to be lucky on it, and what was promoted there before was chosen by it. Each
of `max_decisions` therefore gets (1 - level) / max_decisions of the error (Bonferroni): the chance of ever promoting,
on this test set, a candidate that is no better stays below (1 - level) / 2. After that many it is used up, and nothing
is decided until another is frozen. This holds for candidates made without sight of the test set. It cannot hold for
people who read the changed answers on the page and mend what they see there (adaptive overfitting; Dwork et al. 2015,
Blum & Hardt 2015): freeze new questions then. While there are too few questions the gain is not looked at at all, so
that asking more of them later is no second try.
"""

import hashlib
import json
import math
from dataclasses import asdict
from typing import Any

from program.forgetting.skills import Mark
from program.gate.bounds import bounded, ungrounded_quotes
from program.gate.pairs import Pairs, paired_marks, paired_rows
from program.gate.power import design_effect, questions_for_margin, questions_needed
from program.gate.types import Check, Decision, Evidence, GateRules
from program.intervals import mcnemar, paired_interval

_SEED = 0


def decide(evidence: Evidence, rules: GateRules) -> Decision:
    """The verdict with all checks: "refuse" if one fails, else "undecided" if one cannot be told, else "promote".

    Failed calls are left out of both sides and counted, never scored; too many of them leave all else untold, except
    that a quote that stands nowhere refuses always. Neither the order of rows nor the clock matters. GateError (a
    ValueError) where the sides were asked different questions, or rows lack a score.
    """
    pairs = paired_rows(evidence, rules.score)
    identity = _identity(evidence, rules)
    contracts = sorted({row["contract_id"] for row in evidence.incumbent.rows})
    used = _used(evidence, identity, set(contracts))
    level = 1 - (1 - rules.level) / rules.max_decisions
    before, after = ([float(pair[side][rules.score]) for pair in pairs.kept] for side in (0, 1))
    differences = [new - old for old, new in zip(before, after, strict=True)]
    effect = design_effect(differences, pairs.contracts) if differences else 1.0
    expected = max([rules.detectable, *(one.discordance for one in used)]) if used else rules.discordance
    needed = questions_needed(expected, rules.detectable, level, rules.min_power, effect)

    failed = _failed_calls(pairs, rules)
    checks = [failed, ungrounded_quotes(evidence.candidate.rows, evidence.texts)]
    looked = False
    if failed.passed:
        may_look = [_questions(len(pairs.kept), needed, effect, rules), _decisions(len(used), rules)]
        looked = all(check.passed for check in may_look)
        gain = [_gain(before, after, pairs.contracts, level, rules), _mcnemar(before, after, level)] if looked else []
        skills = [_skill(name, *both, rules) for name, both in sorted(evidence.skills.items())]
        checks = [*may_look, *gain, *skills, *checks, *bounded(evidence, pairs, rules), *evidence.shadow]
    return Decision(
        verdict=_verdict(checks),
        checks=tuple(checks),
        n=len(pairs.kept),
        n_needed=needed,
        reasons=_reasons(checks),
        id=identity,
        incumbent=evidence.incumbent.name,
        candidate=evidence.candidate.name,
        rules=rules,
        contracts=tuple(contracts),
        looked=looked,
        level=level,
        discordance=sum(value != 0 for value in differences) / max(len(differences), 1),
        design_effect=effect,
        n_decisions=len(used),
    )


def _verdict(checks: list[Check]) -> str:
    if any(check.passed is False for check in checks):
        return "refuse"
    return "undecided" if any(check.passed is None for check in checks) else "promote"


def _reasons(checks: list[Check]) -> tuple[str, ...]:
    """What failed, then what cannot be told; of a promotion, what was shown."""
    open_checks = [check for passed in (False, None) for check in checks if check.passed is passed]
    shown = open_checks or [check for check in checks if check.name in ("gain", "mcnemar", "skill")]
    return tuple(f"{check.about}: {check.why}" if check.about else check.why for check in shown)


def _used(evidence: Evidence, identity: str, contracts: set[str]) -> list[Decision]:
    """Earlier decisions, each once, that looked at the gain on any of these contracts."""
    others = {one.id: one for one in evidence.earlier if one.id != identity and one.looked}
    return [one for one in others.values() if contracts & set(one.contracts)]


def _failed_calls(pairs: Pairs, rules: GateRules) -> Check:
    share = pairs.failed_share
    told = (
        f"{pairs.n_failed_incumbent} of the incumbent's and {pairs.n_failed_candidate} of the candidate's calls failed"
    )
    why = f"{told}, of {pairs.n_asked} each; such questions are left out of both"
    passed = True if pairs.kept and share <= rules.max_failed_share else None
    if passed is None:
        why = f"{told}, of {pairs.n_asked} each: nothing is compared above {rules.max_failed_share:.0%}; mend the calls"
    return Check("failed_calls", passed, share, None, None, (None, rules.max_failed_share), why, n=pairs.n_asked)


def _questions(n: int, needed: int, effect: float, rules: GateRules) -> Check:
    enough = n >= needed
    told = f"to find a gain of {100 * rules.detectable:.3g} points with probability {rules.min_power:.0%}"
    why = f"{n} questions; {needed} are needed {told} (design effect {effect:.2f})"
    if not enough:
        why = f"{why}: label {needed - n} more; the gain was not looked at"
    return Check("questions", enough or None, float(n), None, None, (float(needed), None), why, "count", n)


def _decisions(n_used: int, rules: GateRules) -> Check:
    left = n_used < rules.max_decisions
    why = f"decision {n_used + 1} of {rules.max_decisions} on these contracts"
    if not left:
        why = (
            f"these contracts have decided {n_used} times, as often as they may ({rules.max_decisions}): freeze others"
        )
    return Check("decisions", left or None, n_used + 1.0, None, None, (None, float(rules.max_decisions)), why, "count")


def _gain(before: list[float], after: list[float], contracts: list[str], level: float, rules: GateRules) -> Check:
    found = paired_interval(before, after, contracts, level=level, resamples=rules.resamples, seed=_SEED)
    low, high = _bounds(found.low, found.high)
    shown = None if low is None else low > 0
    told = f"{100 * found.difference:+.1f} points over the incumbent"
    words = {
        True: "better: {}, whole interval above 0",
        False: "not shown to be better: {}, interval not above 0",
        None: "{}, of one contract only: nothing tells how others would fare",
    }
    return Check("gain", shown, found.difference, low, high, (0.0, None), words[shown].format(told), n=found.n)


def _mcnemar(before: list[float], after: list[float], level: float) -> Check:
    """For 0/1 scores McNemar's exact test, for others the exact sign test, which is the same on those that differ."""
    pairs = list(zip(before, after, strict=True))
    found = mcnemar([old > new for old, new in pairs], [new > old for old, new in pairs])
    passed = found.gains > found.losses and found.p_value < 1 - level
    why = f"{found.gains} answers turned better, {found.losses} worse: exact p = {found.p_value:.2g}"
    return Check("mcnemar", passed, found.p_value, None, None, (None, 1 - level), why, "p", found.gains + found.losses)


def _skill(name: str, then: Any, now: Any, rules: GateRules) -> Check:
    """At the rules' own level: what is compared with is fixed, so no earlier choice has made it look better."""
    bound = (-rules.margin, None)
    old, new, n_failed = paired_marks(name, then, now)
    if not old or n_failed > rules.max_failed_share * (len(old) + n_failed):
        why = f"{n_failed} of {len(old) + n_failed} calls failed: nothing is compared; mend the calls"
        return Check("skill", None, None, None, None, bound, why, n=len(old), about=name)
    before, after, contracts = _right(old), _right(new), [mark.contract_id for mark in old]
    found = paired_interval(before, after, contracts, level=rules.level, resamples=rules.resamples, seed=_SEED)
    low, high = _bounds(found.low, found.high)
    kept = None if low is None else low > -rules.margin
    why = f"{100 * found.difference:+.1f} points against its score at the time"
    if kept:
        why = f"kept, {why}"
    elif kept is None:
        why = f"{why}, of one contract only: nothing tells how others would fare"
    elif high < 0:
        why = f"lost, {why}"
    else:
        differences = [b - a for a, b in zip(before, after, strict=True)]
        effect = design_effect(differences, contracts)
        n = questions_for_margin(differences, rules.margin, rules.level, rules.min_power, effect)
        why = f"not shown to be kept, {why}; if it is, about {max(n, found.n)} questions would show it"
    return Check("skill", kept, found.difference, low, high, bound, why, n=found.n, about=name)


def _right(marks: list[Mark]) -> list[float]:
    return [float(mark.right) for mark in marks]


def _bounds(low: float, high: float) -> tuple[float | None, float | None]:
    return (None, None) if math.isnan(low) else (low, high)


def _identity(evidence: Evidence, rules: GateRules) -> str:
    """The same evidence and rules give the same id; earlier decisions are no part of it."""

    def rows(found: Any) -> list[str]:
        plain = [asdict(one) if isinstance(one, Mark) else dict(one) for one in found]
        return sorted(json.dumps(one, sort_keys=True) for one in plain)

    told = {
        "rules": asdict(rules),
        "sides": [[one.name, rows(one.rows), one.memory_bytes] for one in (evidence.incumbent, evidence.candidate)],
        "skills": {name: [rows(side) for side in both] for name, both in evidence.skills.items()},
        "kl": sorted(map(list, evidence.kl)),
        "texts": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in evidence.texts.items()},
        "shadow": [asdict(check) for check in evidence.shadow],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
