"""Everything that a home folder tells, read once; a part that is damaged is told by name and hides no other.

    facts = gather(Home(Path("home")))
    facts.live.id, facts.releases[-1].score, facts.damaged

Nothing is made or mended: a folder without releases, traces or feedback gives empty parts. Not handled: test sets that
are damaged (`doctor` reads them), and shares of traffic where the trace policy samples answers (errors are all kept).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from program.forgetting.skills import SuiteStore
from program.gate.types import Check, Decision, from_json
from program.history.types import (
    Damage,
    DriftCheck,
    Facts,
    Live,
    ReleaseFact,
    RenewalFact,
    Score,
    SkillCheck,
    SkillFact,
    Watch,
)
from program.history.usage import read_feedback, read_traffic
from program.releases.history import carried_out, read_history
from program.releases.manifest import read_release
from program.releases.pointer import read_pointer
from program.releases.reader import ReleaseReader
from program.releases.types import Event
from program.renewal.calls import paid_calls
from program.renewal.config import FILE_NAME, load_renewal
from program.renewal.home import Home

_SCORE = "exact_match"


def gather(home: Home, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Facts:
    """What the home folder tells now. Raises nothing for what is damaged: `Facts.damaged` says it."""
    reading = _Reading(home.path)
    renewals = _renewals(reading, home)
    live, moves = _moves(reading, home)
    skills, drift = _skills(reading, home), _drift(reading, home)
    traffic, feedback, newest = (), (), []
    with reading.part(home.traces):
        traffic, at = read_traffic(home.traces)
        newest.append(at)
    with reading.part(home.feedback):
        feedback, at = read_feedback(home.feedback)
        newest.append(at)
    releases = _releases(reading, home, moves, {one.release: one.outcome for one in renewals if one.release})
    watch, check_hours = _watch(reading, home)
    newest += [move.at for move in moves] + [one.at for one in drift] + [one.ended for one in renewals]
    newest += [release.created for release in releases]
    return Facts(
        home=home.path.name,
        now=_utc(now().isoformat()),
        live=live,
        releases=releases,
        skills=skills,
        renewals=renewals,
        drift=drift,
        feedback=feedback,
        traffic=traffic,
        seconds=sum((sum(one.seconds.values()) for one in renewals), 0.0),
        paid_calls=sum(one.paid_calls for one in renewals),
        watch=watch,
        check_hours=check_hours,
        newest=max((_utc(at) for at in newest if at), default=None),
        damaged=tuple(reading.damaged),
    )


class _Reading:
    """Reads part by part; what goes wrong in one is kept under its name."""

    def __init__(self, root: Path) -> None:
        self.root, self.damaged = root, []

    @contextmanager
    def part(self, path: Path) -> Iterator[None]:
        """Whatever the block raises is damage of the file or folder at `path`."""
        try:
            yield
        except Exception as error:  # of any type: what is wrong with one part must not hide the others
            why = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, KeyError | TypeError | AttributeError):
                why = f"it does not hold what it should ({type(error).__name__}: {error})"
            self.damaged.append(Damage(path.relative_to(self.root).as_posix(), why))


def _moves(reading: _Reading, home: Home) -> tuple[Live | None, list[Event]]:
    """What is live, and every promotion and rollback that was carried out."""
    name, moves = None, []
    with reading.part(home.releases / "LIVE"):
        name = read_pointer(home.releases)
    with reading.part(home.releases / "history.jsonl"):
        moves = carried_out(read_history(home.releases), name)
    if name is None:
        return None, moves
    last = next((move for move in reversed(moves) if move.id == name), None)
    if last is None:
        return Live(name), moves
    return Live(name, _utc(last.at), last.event, last.reason, last.by), moves


def _releases(
    reading: _Reading, home: Home, moves: list[Event], outcomes: Mapping[str, str]
) -> tuple[ReleaseFact, ...]:
    found = []
    for name in ReleaseReader.open(home.releases).names():
        with reading.part(home.releases / name):
            release = read_release(home.releases / name)
            told, lineage = release.manifest, release.manifest.get("lineage", {})
            fact = ReleaseFact(
                id=release.id,
                created=_utc(release.created),
                parents=release.parents,
                recipe=str(told["scores"].get("stage") or ""),
                score=_score(told["scores"]["scores"].get(_SCORE)),
                test_sha256=(lineage.get("files", {}).get("test_corpus") or {}).get("sha256"),
                went_live=tuple(_utc(move.at) for move in moves if move.id == release.id),
                outcome=outcomes.get(release.id, ""),
            )
            found.append(fact)  # with what its run says of the score before, if that can be read
            summary = _json(release.path / "summary.json")
            base = next((one for one in summary["stages"] if one["stage"] == "base"), None)
            found[-1] = replace(fact, before=None if base is None else _score(base["scores"][_SCORE]))
    return tuple(found)


def _skills(reading: _Reading, home: Home) -> tuple[SkillFact, ...]:
    store, found = SuiteStore(home.skills), []
    for path in sorted(home.skills.glob("*/skill.json")):
        with reading.part(path):
            skill = store._read(path)  # one by one: a damaged skill must not hide the others
            found.append(SkillFact(skill.name, skill.kind, skill.release, skill.score, len(skill.question_ids)))
    return tuple(sorted(found, key=lambda skill: skill.name))


def _renewals(reading: _Reading, home: Home) -> tuple[RenewalFact, ...]:
    found = []
    for folder in sorted(home.renewals.glob("[0-9]*")):
        found.append(RenewalFact(folder.name))
        with reading.part(folder / "stages"):
            found[-1] = replace(found[-1], seconds=_seconds(folder))
        with reading.part(folder / "calls"):
            found[-1] = replace(found[-1], paid_calls=paid_calls(folder / "calls"))
        with reading.part(folder / "decision.json"):
            found[-1] = replace(found[-1], **_decided(folder, home))
        with reading.part(folder / "outcome.json"):
            found[-1] = replace(found[-1], **_outcome(folder))
        with reading.part(folder / "stages" / "shadow.json"):
            found[-1] = replace(found[-1], shadow=None if found[-1].outcome else _waits_in_shadow(folder))
    return tuple(found)


def _waits_in_shadow(folder: Path) -> str | None:
    """The release that a renewal has put beside the live one, while nothing is decided on what it answers."""
    path = folder / "stages" / "shadow.json"
    if not path.is_file() or path.with_name("compared.json").is_file():
        return None
    return str(_json(path)["made"]["release"])


def _seconds(folder: Path) -> dict[str, float]:
    stages = sorted((folder / "stages").glob("*.json"))
    return {path.stem: float(_json(path)["seconds"]) for path in stages}


def _outcome(folder: Path) -> dict[str, Any]:
    path = folder / "outcome.json"
    if not path.is_file():
        return {}
    told = _json(path)
    return {
        "outcome": str(told["outcome"]),
        "why": str(told["why"]),
        "recipe": str(told.get("recipe", "")),
        "reasons": tuple(map(str, told.get("reasons", ()))),
        "release": told.get("release"),
        "ended": _utc(told["ended"]),
    }


def _decided(folder: Path, home: Home) -> dict[str, Any]:
    path = folder / "decision.json"
    if not path.is_file():
        return {}
    decision: Decision = from_json(path.read_text(encoding="utf-8"))
    page, gain = folder / "gate.html", next((one for one in decision.checks if one.name == "gain"), None)
    return {
        "gain": None if gain is None else _difference(gain),
        "skills": tuple(
            SkillCheck(one.about, one.passed, _difference(one)) for one in decision.checks if one.name == "skill"
        ),
        "page": page.relative_to(home.path).as_posix() if page.is_file() else None,
    }


def _drift(reading: _Reading, home: Home) -> tuple[DriftCheck, ...]:
    found = []
    for path in sorted(home.drift.glob("*/reports.jsonl")):
        with reading.part(path):
            alarmed = False
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                check = DriftCheck(
                    at=datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="seconds"), release=path.parent.name,
                    n=int(row["n"]), n_contracts=int(row["n_contracts"]), about=str(row["about"]),
                    alarm=bool(row["alarm"]), began=bool(row["alarm"]) and not alarmed, cause=str(row["cause"]),
                    plan=tuple(row["plan"]), signals=tuple(one["name"] for one in row["signals"]),
                    suspect=tuple(row["suspect"]), moved=tuple(row["moved"]),
                )  # fmt: skip
                alarmed = check.alarm
                found.append(check)
    return tuple(sorted(found, key=lambda check: check.at))


def _watch(reading: _Reading, home: Home) -> tuple[Watch | None, float | None]:
    watch, hours, path = None, None, home.path / "watch.json"
    with reading.part(path):
        if path.is_file():
            told = _json(path)
            watch = Watch(_utc(told["looked"]), str(told.get("drift", "")), str(told.get("error", "")))
    with reading.part(home.path / FILE_NAME):
        if (home.path / FILE_NAME).is_file():
            hours = load_renewal(home.path).check_hours
    return watch, hours


def _score(told: Mapping[str, Any] | None) -> Score | None:
    return None if told is None else Score(float(told["mean"]), told["low"], told["high"], told.get("n"))


def _difference(check: Check) -> Score | None:
    return None if check.value is None else Score(check.value, check.low, check.high, check.n)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error


def _utc(at: str) -> str:
    time = datetime.fromisoformat(at)
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).isoformat(timespec="seconds")
