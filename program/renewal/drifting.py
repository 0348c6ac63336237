"""The drift watch over a live release's traces: a reference of its first weeks, and a window of the last days.

home/drift/<release>/  reference.npz  state.json  reports.jsonl  (a line a check)
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from corpora.types import Contract
from program.drift.attribution import Cause, attribute
from program.drift.monitor import DriftMonitor
from program.drift.settings import DriftSettings
from program.drift.types import DriftReport, report_to_json
from program.drift.windows import Window, between, load_window, save_window, window_of
from program.releases.store import ReleaseStore
from program.renewal.home import Home
from program.renewal.observing import observations, ratings_of
from program.runs import write_json
from program.traces.judged import read_judged
from program.traces.store import TraceStore

# A reference several times a window, so that its own noise is not what is found.
REFERENCE_WINDOWS = 3
WINDOW_DAYS = 7.0


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """What one look found: `report` None while the reference is still collected (`about` says what is missing)."""

    about: str
    report: DriftReport | None = None
    cause: Cause | None = None

    @property
    def drifted(self) -> tuple[str, str] | None:
        """Kind of cause and its reasons in words, where there is an alarm."""
        if self.cause is None or self.cause.kind == "none":
            return None
        return self.cause.kind, "; ".join(self.cause.reasons)


def check_drift(
    home: Home,
    contracts: Mapping[str, Contract],
    *,
    settings: DriftSettings | None = None,
    window_days: float = WINDOW_DAYS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> DriftCheck:
    """Look once at what the live release answered; what is remembered is on the disk when this returns.

    The reference are the first answers of the release, REFERENCE_WINDOWS times what a window needs; a window is what
    was answered in the last `window_days` behind it. DriftError where the clock went back.
    """
    settings = settings or DriftSettings()
    live = ReleaseStore.open(home.releases).live()
    if live is None or not home.traces.is_file():
        return DriftCheck("nothing is live yet" if live is None else "nothing was answered yet")
    folder, seen = home.drift / live.id, _seen(home, live.id, contracts)
    if seen is None:
        return DriftCheck("nothing was answered by the live release yet")
    reference = reference_of(home, live.id) or _collected(folder, seen, settings)
    if reference is None:
        return DriftCheck(f"the reference is collected: {seen.n} answers about {seen.n_contracts} contracts so far")
    start = max(reference.stop, (now() - timedelta(days=window_days)).timestamp())
    later = [at for at in seen.at if at > start]
    if not later:
        return DriftCheck("nothing was answered since the reference was collected")
    monitor = _monitor(folder, reference, settings)
    report = monitor.check(between(seen, min(later), seen.stop + 1e-6), now().timestamp())
    write_json(folder / "state.json", monitor.to_state())
    cause = attribute(report)
    if report.status == "tested" and not report.repeated:
        _append(folder / "reports.jsonl", report_to_json(report) | {"cause": cause.kind, "plan": list(cause.plan)})
    return DriftCheck(report.about, report, cause)


def reference_of(home: Home, release: str) -> Window | None:
    """What the release's windows are compared with; None while it is collected. DriftError for a damaged file."""
    path = home.drift / release / "reference.npz"
    return load_window(path) if path.is_file() else None


def scores_of(home: Home, release: str) -> dict[str, float]:
    """The scores of the release's answers by trace, of the first judge that it had."""
    judged = [one for one in read_judged(home.judged) if one.release == release]
    return {one.trace: one.score for one in judged if one.score is not None and one.judge == judged[0].judge}


def reports(home: Home) -> list[dict[str, Any]]:
    """Every check that tested something, of all releases, the oldest first."""
    told = []
    for path in sorted(home.drift.glob("*/reports.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        told += [{"release": path.parent.name, **json.loads(line)} for line in lines]
    return sorted(told, key=lambda one: one["at"])


def _seen(home: Home, release: str, contracts: Mapping[str, Contract]) -> Window | None:
    with TraceStore.open(home.traces) as store:
        traces = store.between(release=release, shadow=False)
        made = observations(traces, contracts, ratings_of(home.feedback), scores_of(home, release))
    return window_of(made) if made else None


def _collected(folder: Path, seen: Window, settings: DriftSettings) -> Window | None:
    """The reference, kept from now on, if enough has been seen."""
    n = REFERENCE_WINDOWS * settings.min_observations
    if seen.n < n:
        return None
    first = between(seen, seen.start, float(seen.at[n - 1]) + 1e-6)
    if first.n_contracts < REFERENCE_WINDOWS * settings.min_contracts:
        if seen.n_contracts < REFERENCE_WINDOWS * settings.min_contracts:
            return None
        first = seen
    folder.mkdir(parents=True, exist_ok=True)
    save_window(first, folder / "reference.npz")
    return first


def _monitor(folder: Path, reference: Window, settings: DriftSettings) -> DriftMonitor:
    state = folder / "state.json"
    if not state.is_file():
        return DriftMonitor(reference, settings)
    return DriftMonitor.from_state(reference, settings, json.loads(state.read_text(encoding="utf-8")))


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
