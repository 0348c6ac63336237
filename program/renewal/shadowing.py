"""A candidate that passed the gate, asked silently beside the live release until that has shown enough.

    told = asked_beside(home, stages, config, "0002-3fa9c1d2", "0001-9be01f44", now)
    told["verdict"]     # wait, kept, lost, late or gone

Serving sees by itself who is asked (program/serve/following.py). Both answers of each question stand in
home/shadow/<release>.jsonl. It is decided on once, at the first look at which there are enough of them: looking again
until it passes would be many tries. Then the config's judge, if it has one, is asked which of two answers is better,
where they differ: the live release's own judge, within its budget, if its report speaks for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from modules.index_files import read_contracts
from modules.judge import Judge, JudgeError
from program.config import refuse_unknown
from program.evaluate import EvaluationError
from program.gate.shadow_checks import ShadowRules, compare_shadow
from program.gate.shadow_log import read_pairs
from program.gate.shadow_now import InShadow, end_shadow, put_in_shadow
from program.gate.types import Check
from program.releases.store import ReleaseStore
from program.releases.types import Release
from program.renewal.config import RenewalConfig
from program.renewal.home import Home
from program.renewal.judging import open_trusted
from program.renewal.stages import Stages
from program.run_retrieval import read_retrieval


def shadow_rules(config: RenewalConfig) -> ShadowRules:
    """The rules of `[shadow]`, asking for `shadow_answers` pairs. GateError for a value, ConfigError for a key."""
    refuse_unknown(config.shadow, ShadowRules)
    return ShadowRules(**config.shadow | {"min_pairs": config.shadow_answers or 1})


def shadow_checks(
    home: Home,
    release: Release,
    rules: ShadowRules,
    *,
    beside: str | None = None,
    judged_by: Callable[[], AbstractContextManager[Judge | None]] = nullcontext,
) -> tuple[int, tuple[Check, ...]]:
    """How many questions the release was asked silently, and what compares them, by the contracts of its own index.

    With `beside` only those that this release answered then. What it failed on counts wherever it was asked; what it
    answered of a contract that is gone from its index by now is left out. A judge is opened, by `judged_by`, only where
    there are as many as the rules ask for. GateError, StoreError, and what `judged_by` raises.
    """
    texts = {one.contract.id: one.contract.text for one in read_contracts(read_retrieval(release.path).index)}
    pairs = read_pairs(home.shadow / f"{release.id}.jsonl", texts, beside)
    known = [one for one in pairs if one.candidate.error or one.contract_id is None or one.contract_id in texts]
    enough = sum(one.candidate.error is None for one in known) >= rules.min_pairs
    with judged_by() if enough else nullcontext() as judge:
        return len(known), compare_shadow(known, rules, texts, judge=judge)


def asked_beside(
    home: Home, stages: Stages, config: RenewalConfig, release: str, live: str, now: datetime
) -> dict[str, Any]:
    """Put the release beside the live one, in the stage "shadow", or look what it has said, in the stage "compared".

    The same words as `looked_at`; killed anywhere, the next call goes on. While it waits, "compared" is not begun.
    """
    since = now.isoformat(timespec="seconds")
    told = stages.run("shadow", lambda: asdict(InShadow(release, live, since, config.shadow_share)))
    waiting = InShadow(**told)
    if not stages.done("compared"):
        put_in_shadow(home.shadow, waiting)
        found = looked_at(home, waiting, config, now)
        if found["verdict"] == "wait":
            return found
        stages.run("compared", lambda: found)
    compared = stages.run("compared", dict)
    end_shadow(home.shadow, release)
    return compared


def looked_at(home: Home, waiting: InShadow, config: RenewalConfig, now: datetime) -> dict[str, Any]:
    """What the shadow says at this look: {"verdict", "why", "n", "checks"}, the verdict "wait" while nothing is said.

    "kept": it may go live. "lost": a check failed. "late": `shadow_days` are over and there is too little to tell.
    "gone": another release went live meanwhile, and what was answered beside the one before says nothing. A clock that
    went back only makes it wait, and so do calls of the judge that fail or are above `judge_calls`: what it said is
    remembered. A judge that its report does not speak for is not asked, and that is said.
    """
    releases, rules = ReleaseStore.open(home.releases), shadow_rules(config)
    live = releases.live()
    if live is not None and live.id == waiting.release:
        return _told("kept", "it was made live by hand")
    if live is None or live.id != waiting.beside:
        now_live = "nothing" if live is None else live.id
        return _told("gone", f"{now_live} is live, and it was asked beside {waiting.beside}: renew again")
    judged_by, about = partial(_judge_of, home, config, live), ""
    told = {"home": home, "release": releases.get(waiting.release), "rules": rules, "beside": waiting.beside}
    try:
        n, checks = shadow_checks(**told, judged_by=judged_by)
    except (JudgeError, EvaluationError) as error:
        n, checks = shadow_checks(**told)
        about = f"; not judged: {error}"
        if isinstance(error, EvaluationError):  # nothing is known of it yet
            checks = (*checks, Check("shadow_judge", None, None, None, None, (-rules.margin, None), str(error)))
    failed = [check for check in checks if check.passed is False]
    untold = [check for check in checks if check.passed is None]
    enough = f"{n} of {rules.min_pairs} questions answered beside {waiting.beside}{about}"
    if n >= rules.min_pairs and (failed or not untold):
        why = "; ".join(check.why for check in failed) or enough
        return _told("lost" if failed else "kept", why, n, checks)
    if now - datetime.fromisoformat(waiting.since) > timedelta(days=config.shadow_days):
        rest = "; ".join(check.why for check in untold if check.name != "shadow_pairs")
        why = f"after {config.shadow_days:g} days there are {enough}{rest and f', and {rest}'}"
        return _told("late", f"{why}: serve it more questions, or ask for fewer", n, checks)
    return _told("wait", enough, n, checks)


@contextmanager
def _judge_of(home: Home, config: RenewalConfig, live: Release) -> Iterator[Judge | None]:
    """The judge of the config, on the live program; None where it has none."""
    if config.judge is None:
        yield None
        return
    with open_trusted(home, config, live) as (judge, _):
        yield judge


def _told(verdict: str, why: str, n: int = 0, checks: Sequence[Check] = ()) -> dict[str, Any]:
    return {"verdict": verdict, "why": why, "n": n, "checks": [asdict(check) for check in checks]}
