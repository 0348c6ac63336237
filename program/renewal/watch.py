"""`evergreen watch`: look, renew if there is a reason, sleep; unattended, and safe to kill at any moment."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corpora.types import Contract
from modules.index_files import read_contracts
from program.drift.types import DriftError
from program.releases.store import ReleaseStore
from program.renewal.config import RenewalConfig, load_renewal
from program.renewal.drifting import check_drift
from program.renewal.home import Home, RenewalError, looking
from program.renewal.inputs import contracts_of
from program.renewal.judging import judge_sample
from program.renewal.renew import renew
from program.run_retrieval import read_retrieval
from program.runs import write_json

Say = Callable[[str], None]


def look_once(
    home: str | Path, *, say: Say = print, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> dict[str, Any] | None:
    """Check for drift, and renew if there is a reason; the outcome of the renewal, None where there was none.

    Another process that renews or looks is no error here, and neither is a clock that went back: it is said, and the
    next look comes.
    """
    place = Home(Path(home).absolute())
    config = load_renewal(place.path)
    told, cause = _looked(place, config, say, now)
    outcome, error = None, ""
    try:
        outcome = renew(place.path, cause=cause, say=say, now=now)
    except RenewalError as busy:
        error = str(busy)
        say(error)
    with looking(place):
        looked = {"looked": now().isoformat(timespec="seconds")}
        write_json(place.path / "watch.json", looked | told | {"renewal": outcome, "error": error})
    return outcome


def _looked(
    home: Home, config: RenewalConfig, say: Say, now: Callable[[], datetime]
) -> tuple[dict[str, str], tuple[str, str] | None]:
    """What the judge and the drift watch say, in words, and the cause of drift where there is an alarm."""
    judged, cause = "", None
    try:
        with looking(home):
            contracts = _served(home, contracts_of(config))
            judged = _judged(home, config, contracts, now)
            if judged:
                say(f"judge: {judged}")
            found = check_drift(home, contracts, now=now)
            about, cause = found.about, found.drifted
    except (RenewalError, DriftError) as error:
        about = str(error)
    say(f"drift: {about}")
    return {"drift": about, "judge": judged}, cause


def watch(
    home: str | Path,
    *,
    say: Say = print,
    sleep: Callable[[float], None] = time.sleep,
    looks: int | None = None,
) -> None:
    """Look every `check_hours`, until Ctrl-C (or `looks` times). A renewal that fails is told, and looked at next time.

    ConfigError and what is wrong with the home folder itself end it: waiting would not mend that.
    """
    done = 0
    while looks is None or done < looks:
        config = load_renewal(home)
        try:
            look_once(home, say=say)
        except (RuntimeError, OSError, ValueError) as error:
            say(f"this look failed, the next is in {config.check_hours:g} h: {type(error).__name__}: {error}")
        done += 1
        if looks is None or done < looks:
            sleep(config.check_hours * 3600)


def _judged(home: Home, config: RenewalConfig, contracts: Mapping[str, Contract], now: Callable[[], datetime]) -> str:
    """What the judge did, or why it did nothing: without it the watch has a signal less, and goes on."""
    try:
        return judge_sample(home, config, contracts, now=now)
    except (RuntimeError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _served(home: Home, unlabelled: tuple[Contract, ...]) -> dict[str, Contract]:
    """The contracts that passages shown are of: those of the live release's index, and the unlabelled ones."""
    live = ReleaseStore.open(home.releases).live()
    told = {contract.id: contract for contract in unlabelled}
    if live is not None:
        told |= {one.contract.id: one.contract for one in read_contracts(read_retrieval(live.path).index)}
    return told
