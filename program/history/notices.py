"""What an owner should know first: alarms, and what waits for a person. Pure functions of the facts."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from program.history.types import Facts, TrafficDay
from program.history.words import count, day, share

# A clock may differ a little from that of another machine that wrote into the folder.
CLOCK_SLACK_S = 120.0
_MAX_ERRORS = 0.05
_MISSED_LOOKS = 3


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence; `alarm` is something wrong, otherwise something waits for a person."""

    alarm: bool
    text: str


def notices(facts: Facts) -> list[Notice]:
    """Alarms first, then what waits; [] where all is well."""
    found = [*_wrong(facts), *_drifting(facts), *_answering(facts), *_renewing(facts)]
    return sorted(found, key=lambda notice: not notice.alarm)


def recent(facts: Facts, days: int) -> list[TrafficDay]:
    """The traffic of the last so many days, today included; a day in the future is one of them."""
    first = (datetime.fromisoformat(facts.now) - timedelta(days=days - 1)).date().isoformat()
    return [one for one in facts.traffic if one.day >= first]


def is_behind(facts: Facts) -> bool:
    """Whether something in the folder is dated after now: then the clock, or its date, is wrong."""
    if facts.newest is None:
        return False
    ahead = datetime.fromisoformat(facts.newest) - datetime.fromisoformat(facts.now)
    return ahead > timedelta(seconds=CLOCK_SLACK_S)


def _wrong(facts: Facts) -> list[Notice]:
    found = [Notice(True, f"{one.part} cannot be read: {one.why}") for one in facts.damaged]
    if is_behind(facts):
        found.append(
            Notice(True, f"the newest event is of {day(facts.newest)}, the clock says {day(facts.now)}: one is wrong")
        )
    if facts.live is None and facts.releases:
        found.append(Notice(True, "no release is live; promote one: evergreen releases promote"))
    if facts.live is not None and facts.live.id not in {release.id for release in facts.releases}:
        found.append(Notice(True, f"the live release {facts.live.id} is gone or broken; roll back"))
    if facts.watch is not None and facts.check_hours is not None:
        since = datetime.fromisoformat(facts.now) - datetime.fromisoformat(facts.watch.looked)
        if since > timedelta(hours=_MISSED_LOOKS * facts.check_hours):
            found.append(Notice(True, f"nobody watches: the last look was on {day(facts.watch.looked)}"))
    return found


def _drifting(facts: Facts) -> list[Notice]:
    of_live = [one for one in facts.drift if facts.live is None or one.release == facts.live.id]
    if not of_live or not of_live[-1].alarm:
        return []
    last, began = of_live[-1], next(one.at for one in reversed(of_live) if one.began)
    return [Notice(True, f"drift since {day(began)}, cause: {last.cause}; plan: {', then '.join(last.plan) or 'none'}")]


def _answering(facts: Facts) -> list[Notice]:
    found, week = [], recent(facts, 7)
    n, n_errors = sum(one.n for one in week), sum(one.n_errors for one in week)
    if n and n_errors / n > _MAX_ERRORS:
        found.append(Notice(True, f"{share(n_errors / n)} of the questions of the last 7 days failed"))
    if n_ungrounded := sum(one.n_ungrounded for one in recent(facts, 30)):
        found.append(Notice(True, f"{count(n_ungrounded, 'quote')} of the last 30 days stand nowhere in the contract"))
    return found


def _renewing(facts: Facts) -> list[Notice]:
    if not facts.renewals:
        return []
    last = facts.renewals[-1]
    if last.outcome == "failed":
        return [Notice(True, f"renewal {last.id} failed: {last.why}")]
    if last.outcome == "undecided":
        return [Notice(False, f"renewal {last.id} could not be decided: {last.why}")]
    if last.shadow:
        return [Notice(False, f"{last.shadow} is asked silently beside the live release; serve, and keep watching")]
    if not last.outcome:
        return [Notice(False, f"renewal {last.id} has not ended; if none is running, evergreen renew goes on with it")]
    return []
