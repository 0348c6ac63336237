"""A candidate that passed the gate, asked silently beside the live release until that has shown enough.

    told = asked_beside(home, stages, config, "0002-3fa9c1d2", "0001-9be01f44", now)
    told["verdict"]     # wait, kept, lost, late or gone

Serving sees by itself who is asked (program/serve/following.py). Both answers of each question stand in
home/shadow/<release>.jsonl. It is decided on once, at the first look at which there are enough of them: looking again
until it passes would be many tries. Not handled: a judge's preference, which `compare_shadow` can ask for.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from modules.index_files import read_contracts
from program.config import refuse_unknown
from program.gate.shadow_checks import ShadowRules, compare_shadow
from program.gate.shadow_log import read_pairs
from program.gate.shadow_now import InShadow, end_shadow, put_in_shadow
from program.gate.types import Check
from program.releases.store import ReleaseStore
from program.releases.types import Release
from program.renewal.config import RenewalConfig
from program.renewal.home import Home
from program.renewal.stages import Stages
from program.run_retrieval import read_retrieval


def shadow_rules(config: RenewalConfig) -> ShadowRules:
    """The rules of `[shadow]`, asking for `shadow_answers` pairs. GateError for a value, ConfigError for a key."""
    refuse_unknown(config.shadow, ShadowRules)
    return ShadowRules(**config.shadow | {"min_pairs": config.shadow_answers or 1})


def shadow_checks(
    home: Home, release: Release, rules: ShadowRules, *, beside: str | None = None
) -> tuple[int, tuple[Check, ...]]:
    """How many questions the release was asked silently, and what compares them, by the contracts of its own index.

    With `beside` only those that this release answered then. What it failed on counts wherever it was asked; what it
    answered of a contract that is gone from its index by now is left out. GateError, StoreError.
    """
    texts = {one.contract.id: one.contract.text for one in read_contracts(read_retrieval(release.path).index)}
    pairs = read_pairs(home.shadow / f"{release.id}.jsonl", texts, beside)
    known = [one for one in pairs if one.candidate.error or one.contract_id is None or one.contract_id in texts]
    return len(known), compare_shadow(known, rules, texts)


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
    went back only makes it wait.
    """
    releases, rules = ReleaseStore.open(home.releases), shadow_rules(config)
    live = releases.live()
    if live is not None and live.id == waiting.release:
        return _told("kept", "it was made live by hand")
    if live is None or live.id != waiting.beside:
        now_live = "nothing" if live is None else live.id
        return _told("gone", f"{now_live} is live, and it was asked beside {waiting.beside}: renew again")
    n, checks = shadow_checks(home, releases.get(waiting.release), rules, beside=waiting.beside)
    failed = [check for check in checks if check.passed is False]
    untold = [check for check in checks if check.passed is None]
    enough = f"{n} of {rules.min_pairs} questions answered beside {waiting.beside}"
    if n >= rules.min_pairs and (failed or not untold):
        why = "; ".join(check.why for check in failed) or enough
        return _told("lost" if failed else "kept", why, n, checks)
    if now - datetime.fromisoformat(waiting.since) > timedelta(days=config.shadow_days):
        rest = "; ".join(check.why for check in untold if check.name != "shadow_pairs")
        why = f"after {config.shadow_days:g} days there are {enough}{rest and f', and {rest}'}"
        return _told("late", f"{why}: serve it more questions, or ask for fewer", n, checks)
    return _told("wait", enough, n, checks)


def _told(verdict: str, why: str, n: int = 0, checks: Sequence[Check] = ()) -> dict[str, Any]:
    return {"verdict": verdict, "why": why, "n": n, "checks": [asdict(check) for check in checks]}
