"""What shadow mode tells without gold: that the candidate does not lose beside the live program."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from corpora.types import Quote
from modules.degenerate import Guarded
from modules.grounding import stands
from modules.judge import Candidate, Case, Judge
from modules.signatures import NOT_FOUND
from program.evaluate import EvaluationError
from program.gate.bounds import latency_checks
from program.gate.shadow import ShadowAnswer, ShadowPair
from program.gate.types import Bound, Check, GateError
from program.intervals import mean_interval
from program.judging.measure import ask_judge
from program.judging.types import JudgedPair
from program.metrics import exact_match

_FLIPS = 10_000


@dataclass(frozen=True, slots=True)
class ShadowRules:
    """What shadow mode asks for; shares are 0-1, a limit of None is not asked for.

    `margin`: how many more of the questions the judge may prefer the live answer on, as a share, at the lower end of
    the interval. `min_agreement`: least share of the same answers; a better candidate differs too, so it is low.
    """

    level: float = 0.95
    min_pairs: int = 100
    margin: float = 0.05
    min_agreement: float | None = 0.5
    max_abstention_change: float | None = 0.1
    max_latency_ratio: float | None = 2.0
    max_error_share: float = 0.02
    max_unread_share: float = 0.2

    def __post_init__(self) -> None:
        for name in (
            "level",
            "margin",
            "min_agreement",
            "max_abstention_change",
            "max_error_share",
            "max_unread_share",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise GateError(f"{name} is {value!r}; it must be a share from 0 to below 1")
        if self.level == 0 or self.min_pairs < 1:
            raise GateError(f"level is {self.level}, min_pairs {self.min_pairs}; give a level such as 0.95, and pairs")
        if self.max_latency_ratio is not None and not 0 < self.max_latency_ratio < math.inf:
            raise GateError(f"max_latency_ratio is {self.max_latency_ratio}; it must be a finite number above 0")


def compare_shadow(
    pairs: Sequence[ShadowPair],
    rules: ShadowRules,
    texts: Mapping[str, str],
    *,
    judge: Judge | None = None,
    threads: int = 8,
) -> tuple[Check, ...]:
    """Checks for `Evidence(shadow=...)`, clustered by contract; questions of the whole library are one each.

    Without gold nothing here says who is right: only the judge, if one is given, says who is better. A candidate's
    failed call counts against it, since the live program answered the same question at the same time. `texts` holds
    the contracts that are asked of, else GateError; a quote of any other stands nowhere.
    """
    answered = sorted((pair for pair in pairs if pair.candidate.error is None), key=_key)
    checks = [_enough(len(answered), rules), _errors(pairs, rules)]
    if not answered:
        return tuple(checks)
    groups = [pair.contract_id or f"question {pair.question}" for pair in answered]
    same = [_same(pair) for pair in answered]
    if rules.min_agreement is not None:
        why = "the same answer to {:.1f}% of the questions"
        checks.append(_share("shadow_agreement", same, groups, (rules.min_agreement, None), why, rules.level))
    if rules.max_abstention_change is not None:
        change = [float(pair.live.found) - float(pair.candidate.found) for pair in answered]
        bound = (-rules.max_abstention_change, rules.max_abstention_change)
        why = "“not in this contract” to {:+.1f} points more of the questions"
        checks.append(_share("shadow_abstention", change, groups, bound, why, rules.level))
    checks.append(_ungrounded(answered, texts))
    if rules.max_latency_ratio is not None:
        seconds = [pair.live.seconds for pair in answered], [pair.candidate.seconds for pair in answered]
        told = latency_checks(*seconds, rules.max_latency_ratio)
        checks += [replace(check, name=f"shadow_{check.name}") for check in told]
    if judge is not None:
        checks.append(_judged(answered, groups, same, judge, rules, threads))
    return tuple(checks)


def sign_flip_p(values: ArrayLike, groups: Sequence[str], *, flips: int = _FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of a sum of signs being as far from 0, when each whole group's sign is a fair coin's.

    The sign test for answers that come in contracts: a randomization test over groups (Fisher 1935; Good 2005), drawn
    `flips` times, the observed one counted among them, so never 0. It is 1 where all values are 0.
    """
    totals = np.bincount(np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1], np.asarray(values, float))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(totals)))
    as_far = np.abs(signs @ totals) >= abs(totals.sum()) - 1e-9
    return float((as_far.sum() + 1) / (flips + 1))


def _judged(
    pairs: Sequence[ShadowPair], groups: list[str], same: list[float], judge: Judge, rules: ShadowRules, threads: int
) -> Check:
    """Where answers differ the judge says which is better, the candidate on either side alike; the rest are ties."""
    bound = (-rules.margin, None)
    asked = [i for i, one in enumerate(same) if not one]
    guarded = judge if isinstance(judge, Guarded) else Guarded(judge)
    try:
        outcomes = ask_judge(guarded, [_judged_pair(pairs[i], groups[i]) for i in asked], threads=threads)
    except EvaluationError as error:
        return Check("shadow_judge", None, None, None, None, bound, f"the judge fails: {error}")
    signs, unread = dict.fromkeys(range(len(pairs)), 0.0), 0
    for i, outcome in zip(asked, outcomes, strict=True):
        if outcome.verdict is None:
            del signs[i]
            unread += 1
        elif outcome.verdict.winner != "tie":
            signs[i] = 1.0 if outcome.verdict.winner == ("A" if _candidate_first(pairs[i]) else "B") else -1.0
    if unread > rules.max_unread_share * max(len(asked), 1) or not signs:
        why = f"the judge has no verdict on {unread} of {len(asked)} answers that differ; mend it, or ask another"
        return Check("shadow_judge", None, None, None, None, bound, why, n=len(signs))
    kept, values = [groups[i] for i in signs], list(signs.values())
    found, p = mean_interval(values, kept, level=rules.level), sign_flip_p(values, kept)
    wins, losses = values.count(1.0), values.count(-1.0)
    why = f"of {len(signs)} answers the candidate's is preferred {wins} times, the live one {losses} times; p = {p:.2g}"
    if math.isnan(found.low):
        return Check("shadow_judge", None, found.mean, None, None, bound, f"{why}; all of one contract", n=len(signs))
    lost = losses > wins and p < 1 - rules.level
    passed = not lost and found.low > -rules.margin
    return Check("shadow_judge", passed, found.mean, found.low, found.high, bound, why, n=len(signs))


def _judged_pair(pair: ShadowPair, group: str) -> JudgedPair:
    shown = {(p.contract_id, p.start, p.end): p for p in (*pair.live.passages, *pair.candidate.passages)}
    case = Case(pair.question, tuple(shown.values()))
    a, b = _candidate(pair.live), _candidate(pair.candidate)
    if _candidate_first(pair):
        a, b = b, a
    return JudgedPair(f"{group}/{pair.question}", group, case, a, b, winner="tie", kind="shadow")


def _candidate(said: ShadowAnswer) -> Candidate:
    return Candidate(said.answer, tuple(quote.text for quote in said.quotes)) if said.found else Candidate(NOT_FOUND)


def _candidate_first(pair: ShadowPair) -> bool:
    return hashlib.sha256(f"{pair.contract_id}/{pair.question}".encode()).digest()[0] % 2 == 0


def _same(pair: ShadowPair) -> float:
    live, candidate = (said.answer if said.found else NOT_FOUND for said in (pair.live, pair.candidate))
    return float(exact_match(candidate, live))


def _enough(n: int, rules: ShadowRules) -> Check:
    enough = n >= rules.min_pairs
    why = f"{n} questions answered by both" + ("" if enough else f"; {rules.min_pairs} are asked for: shadow longer")
    return Check("shadow_pairs", enough or None, float(n), None, None, (rules.min_pairs, None), why, "count", n)


def _errors(pairs: Sequence[ShadowPair], rules: ShadowRules) -> Check:
    failed = [pair.candidate.error for pair in pairs if pair.candidate.error is not None]
    share, bound = len(failed) / max(len(pairs), 1), (None, rules.max_error_share)
    why = f"{len(failed)} of {len(pairs)} of the candidate's calls failed where the live program answered"
    why += f"; the first: {failed[0][:200]}" if failed else ""
    return Check("shadow_errors", share <= rules.max_error_share, share, None, None, bound, why, n=len(pairs))


def _ungrounded(pairs: Sequence[ShadowPair], texts: Mapping[str, str]) -> Check:
    told = [(pair, quote) for pair in pairs for quote in pair.candidate.quotes]
    if lacking := sorted({pair.contract_id for pair, _ in told if pair.contract_id} - texts.keys()):
        raise GateError(f"there is no text of contract {lacking[0]!r} to look quotes up in; give all that are asked of")
    bad = [quote for pair, quote in told if not _grounded(pair, quote, texts)]
    why = f"{len(bad)} of {len(told)} quotes do not stand in their contracts"
    why += f"; the first, of {bad[0].contract_id}: “{bad[0].text[:120]}”" if bad else ""
    return Check("shadow_ungrounded_quotes", not bad, float(len(bad)), None, None, (None, 0.0), why, "count", len(told))


def _grounded(pair: ShadowPair, quote: Quote, texts: Mapping[str, str]) -> bool:
    """Words of the contract that was asked of, or of any there is where none was named."""
    if quote.contract_id not in texts or (pair.contract_id and quote.contract_id != pair.contract_id):
        return False
    return stands(texts[quote.contract_id], quote.text, quote.start, quote.end)


def _share(name: str, values: list[float], groups: list[str], bound: Bound, why: str, level: float) -> Check:
    found = mean_interval(values, groups, level=level)
    low, high = (None, None) if math.isnan(found.low) else (found.low, found.high)
    least, most = bound
    passed = (least is None or found.mean >= least) and (most is None or found.mean <= most)
    return Check(name, passed, found.mean, low, high, bound, why.format(100 * found.mean), n=found.n)


def _key(pair: ShadowPair) -> tuple[Any, ...]:
    return pair.contract_id or "", pair.question, pair.live.answer, pair.candidate.answer
