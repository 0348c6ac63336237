"""What is known of a home folder, gathered from its parts: frozen data, JSON-able by `dataclasses.asdict`.

Times are ISO 8601 in UTC, shares and scores 0-1, durations seconds. One real row of each list:

    ReleaseFact(id="0007-3fa9c1d2", created="2031-05-04T09:12:55+00:00", recipe="s -> a", before=Score(0.811, ...),
                score=Score(0.824, 0.801, 0.848, 336), went_live=("2031-05-04T09:13:02+00:00",), ...)
    RenewalFact(id="0007", outcome="promoted", why="+1.3 points ...", recipe="s -> a", release="0007-3fa9c1d2", ...)
    DriftCheck(at="2031-04-28T03:00:00+00:00", release="0006-9be01f44", alarm=True, began=True, cause="questions", ...)
    FeedbackMonth(month="2031-05", n_ratings=41, n_up=30, n_down=6, n_stars=5, stars=4.2, n_corrections=7, ...)
    TrafficDay(day="2031-05-04", n=212, n_abstained=131, n_errors=0, latency_s=0.8, n_quotes=90, n_ungrounded=0, ...)
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Score:
    """A mean with its 95% interval, None where one contract tells of no spread; `n` is what it rests on."""

    mean: float
    low: float | None
    high: float | None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """What is served: since when (None: the history does not say), by which event, why, and by whom."""

    id: str
    since: str | None = None
    event: str = ""
    why: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseFact:
    """A release on the frozen test set of its time: `score` is its own, `before` of the program that it started from.

    `test_sha256` tells test sets apart: scores on two of them cannot be compared. `went_live` is every time it did;
    `outcome` is that of the renewal that made it, "" where none did.
    """

    id: str
    created: str
    parents: tuple[str, ...] = ()
    recipe: str = ""
    score: Score | None = None
    before: Score | None = None
    test_sha256: str | None = None
    went_live: tuple[str, ...] = ()
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class SkillFact:
    """A frozen skill with its score at the time; `release` is the one that learnt it."""

    name: str
    kind: str
    release: str
    score: float
    n: int


@dataclass(frozen=True, slots=True)
class SkillCheck:
    """What the gate found of one skill: the candidate less the score at the time; `passed` None cannot be told."""

    name: str
    passed: bool | None
    difference: Score | None


@dataclass(frozen=True, slots=True)
class RenewalFact:
    """A renewal: `outcome` "" while it has not ended, `page` its gate's page, by path below the home folder.

    `shadow` is the release that it has put beside the live one to be asked silently, and that has not ended; else None.
    """

    id: str
    outcome: str = ""
    why: str = ""
    recipe: str = ""
    reasons: tuple[str, ...] = ()
    release: str | None = None
    gain: Score | None = None
    skills: tuple[SkillCheck, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    paid_calls: int = 0
    ended: str | None = None
    page: str | None = None
    shadow: str | None = None


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """A check that tested something; `began` where its alarm is none that the release's last check had already."""

    at: str
    release: str
    n: int
    n_contracts: int
    about: str
    alarm: bool = False
    began: bool = False
    cause: str = "none"
    plan: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    suspect: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedbackMonth:
    """What people said in a calendar month; `stars` is their mean, 1-5, of `n_stars` ratings that have them."""

    month: str
    n_ratings: int = 0
    n_up: int = 0
    n_down: int = 0
    n_stars: int = 0
    stars: float | None = None
    n_corrections: int = 0
    n_choices: int = 0
    n_skips: int = 0


@dataclass(frozen=True, slots=True)
class TrafficDay:
    """Questions of a day. `n` were asked, `n_errors` of them failed; of the others `n_abstained` had no answer.

    `latency_s` is the median, None where it is not known; `n_ungrounded` of `n_quotes` stand nowhere (only answers
    whose contract was at hand are counted in the two). Shadow answers, which nobody saw, are `n_shadow` beside.
    """

    day: str
    n: int = 0
    n_errors: int = 0
    n_abstained: int = 0
    latency_s: float | None = None
    n_quotes: int = 0
    n_ungrounded: int = 0
    n_shadow: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """When `evergreen watch` last looked, what it said of drift, and what kept it from renewing."""

    looked: str
    drift: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the home folder that could not be read, by name, and why."""

    part: str
    why: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it. `seconds` and `paid_calls` are summed over renewals; `newest` is the latest time in any part."""

    home: str
    now: str
    live: Live | None = None
    releases: tuple[ReleaseFact, ...] = ()
    skills: tuple[SkillFact, ...] = ()
    renewals: tuple[RenewalFact, ...] = ()
    drift: tuple[DriftCheck, ...] = ()
    feedback: tuple[FeedbackMonth, ...] = ()
    traffic: tuple[TrafficDay, ...] = ()
    seconds: float = 0.0
    paid_calls: int = 0
    watch: Watch | None = None
    check_hours: float | None = None
    newest: str | None = None
    damaged: tuple[Damage, ...] = ()
