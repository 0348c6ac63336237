"""What the drift monitor remembers between checks, as frozen data and as plain JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from program.drift.ratings import Bets
from program.drift.types import DriftError, DriftReport, report_from_json, report_to_json

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm as it began: when, by which signals, and since when they had looked unusual."""

    at: float
    signals: tuple[str, ...]
    since: float


@dataclass(frozen=True, slots=True)
class MonitorState:
    """`reference` is its digest; `checks` counts tests alone; `slot` is the last test's number at the cadence.

    `runs`: checks in a row in which a signal moved. `unusual_since`: the start of the first window of an unbroken row
    in which it looked unusual. `window` and `last` are the last test's.
    """

    reference: str
    checks: int = 0
    slot: int | None = None
    at: float | None = None
    bets: Bets = Bets()
    runs: dict[str, int] = field(default_factory=dict)
    unusual_since: dict[str, float] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    window: str = ""
    last: DriftReport | None = None


def state_to_json(state: MonitorState) -> dict[str, Any]:
    """The state as plain JSON values."""
    return {"format": _FORMAT, **asdict(state), "last": None if state.last is None else report_to_json(state.last)}


def state_from_json(row: dict[str, Any]) -> MonitorState:
    """What `state_to_json` gave, as a state; DriftError for anything else."""
    try:
        rest = dict(row)
        if rest.pop("format") != _FORMAT:
            raise ValueError(f"its format is {row['format']}, and {_FORMAT} is read here")
        bets, last = rest.pop("bets"), rest.pop("last")
        alarms = tuple(Alarm(one["at"], tuple(one["signals"]), one["since"]) for one in rest.pop("alarms"))
        return MonitorState(
            **rest,
            bets=Bets(tuple(bets["wealth"]), tuple(bets["heard"])),
            alarms=alarms,
            last=None if last is None else report_from_json(last),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DriftError(f"this is no monitor's state ({error}); give what to_state made, or begin anew") from error
