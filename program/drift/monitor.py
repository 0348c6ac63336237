"""Whether served traffic has changed, at a false-alarm rate that holds over all signals and all checks.

How the rate is kept. In a check, Holm's procedure bounds the chance that any permuted signal moves wrongly by
α = (1 − ratings_share) · rate · cadence / 30. Every check spends the same α, so that the expected number of false
alarms grows by rate a month, and no more: expectations add up however much windows overlap and whatever they share with
each other through the reference. Ratings have the rest of the rate, kept by an e-detector (`betting.py`). A check that
is too early, has too little to test, or brings the window that was tested last, is no test: it spends nothing and
changes nothing.

Not handled: batches of contracts of one origin (give the batch as `contract_id`), a season that the reference has not
seen (it is a change), and traces that were sampled by what was answered.
"""

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np

from program.drift.permutation import holm
from program.drift.ratings import NAME as RATINGS
from program.drift.ratings import Bets, by_contract, rated_limit, ratings
from program.drift.settings import DAY_S, DriftSettings, limits, permutation_alpha, ratings_threshold
from program.drift.signals import SIGNALS
from program.drift.state import Alarm, MonitorState, state_from_json, state_to_json
from program.drift.types import DriftError, DriftReport, SignalResult, Status, TooFewError
from program.drift.windows import Window, digest, window_id


class DriftMonitor:
    """Compares windows with one reference, a check at a time; what it remembers is `to_state`'s plain JSON.

    A reference that is too small is refused: the report of every check would wait for it. Not thread-safe.
    """

    def __init__(self, reference: Window, settings: DriftSettings | None = None) -> None:
        self.reference, self.settings = reference, settings or DriftSettings()
        if short := _short_by(reference, self.settings):
            raise DriftError(f"the reference has too little to compare with: {short}. Collect more before watching.")
        self._rated = by_contract(reference)
        self._limit = rated_limit(self._rated, self.settings.reference_alpha, self.settings.min_contracts)
        self._state = MonitorState(reference=digest(reference))

    @classmethod
    def from_state(cls, reference: Window, settings: DriftSettings | None, state: dict[str, Any]) -> Self:
        """The monitor as it was when `to_state` was called; DriftError if that was of another reference.

        Settings may be others: they count from the next check on.
        """
        monitor, read = cls(reference, settings), state_from_json(state)
        if read.reference != monitor._state.reference:
            raise DriftError("the state belongs to another reference; load that one, or begin with a new monitor")
        monitor._state = read
        return monitor

    def to_state(self) -> dict[str, Any]:
        """All that must survive a restart, as plain JSON values."""
        return state_to_json(self._state)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Alarms so far, each where it began."""
        return self._state.alarms

    def check(self, current: Window, at: float) -> DriftReport:
        """Compare a window with the reference, at `at` (seconds since 1970, UTC).

        One test at most is made in each slot of the cadence (slots are counted from 1970, so that a check that comes a
        little early does not lose its day). The window tested last is answered by the same report again. DriftError
        where the clock went back, where the window ends after `at` or before the last one, and where it
        overlaps the reference.
        """
        self._refuse(current, at)
        state, settings = self._state, self.settings
        if state.last is not None and window_id(current) == state.window:
            return replace(state.last, repeated=True)
        slot = math.floor(at / (settings.cadence_days * DAY_S))
        if state.slot is not None and slot <= state.slot:
            wait_s = (state.slot + 1) * settings.cadence_days * DAY_S - at
            return _untested("not due", f"the next test is due in {wait_s / 3600:.1f} hours", current, at)
        if short := _short_by(current, settings):
            return _untested("too few", short, current, at)
        report, self._state = self._tested(current, at, replace(state, slot=slot, at=at))
        return report

    def _refuse(self, current: Window, at: float) -> None:
        state = self._state
        if state.at is not None and at < state.at:
            raise DriftError(f"the clock went back: this check is at {at}, the last was at {state.at}. Mend the clock.")
        if current.stop > at:
            raise DriftError(f"the window ends at {current.stop}, after this check at {at}; mend the clock, or cut it")
        if current.start <= self.reference.stop:
            raise DriftError(
                f"the window begins at {current.start} and the reference ends at {self.reference.stop}: what is in "
                "both is no evidence of a change. Take what was served after the reference."
            )
        if state.last is not None and current.stop < state.last.stop:
            raise DriftError(f"the window ends at {current.stop}, before the one tested last ({state.last.stop})")

    def _tested(self, current: Window, at: float, state: MonitorState) -> tuple[DriftReport, MonitorState]:
        settings = self.settings
        results, skipped = self._signals(current, state.checks)
        p_values = {one.name: one.p_value for one in results}
        moved = list(holm(p_values, permutation_alpha(settings)))
        suspect = [*moved, *(name for name in holm(p_values, settings.suspect_alpha) if name not in moved)]
        unusual = [one.name for one in results if one.p_value <= settings.suspect_alpha]
        bets = state.bets
        if self._limit is None:
            skipped.append((RATINGS, "the reference's ratings are too few or too bad for a fall to be told"))
        else:
            rated, bets = ratings(self._rated, current, self._limit, bets)
            results.append(rated)
            suspect += [RATINGS] * (rated.e_value >= 1 / settings.suspect_alpha)
            unusual += [RATINGS] * (rated.e_value >= 1 / settings.suspect_alpha)
            if rated.e_value >= ratings_threshold(settings):
                moved.append(RATINGS)
                bets = Bets((), bets.heard)  # emptied, so that false alarms stay rare on the average
        runs = {name: state.runs.get(name, 0) + 1 for name in moved}
        since = {name: state.unusual_since.get(name, current.start) for name in (*unusual, *moved)}
        alarmed = [name for name in moved if name == RATINGS or runs[name] >= settings.persistence]
        began = min((since[name] for name in alarmed), default=None)
        report = DriftReport(
            at=at, status="tested", about=_told(results, moved, alarmed), start=current.start, stop=current.stop,
            n=current.n, n_contracts=current.n_contracts, signals=tuple(results), skipped=tuple(skipped),
            moved=tuple(moved), suspect=tuple(suspect), alarm=bool(alarmed), since=began,
        )  # fmt: skip
        ongoing = state.last is not None and state.last.alarm
        alarms = (*state.alarms, Alarm(at, tuple(alarmed), began)) if alarmed and not ongoing else state.alarms
        return report, replace(
            state, checks=state.checks + 1, bets=bets, runs=runs, unusual_since=since, alarms=alarms,
            window=window_id(current), last=report,
        )  # fmt: skip

    def _signals(self, current: Window, check: int) -> tuple[list[SignalResult], list[tuple[str, str]]]:
        results, skipped = [], []
        for name in self.settings.signals:
            # By signal and check, so that a signal more or less changes no other's p-value, nor does a restart.
            rng = np.random.default_rng([self.settings.seed, check, *name.encode()])
            try:
                results.append(SIGNALS[name](self.reference, current, rng, limits(self.settings)))
            except TooFewError as error:
                skipped.append((name, str(error)))
        return results, skipped


def _short_by(window: Window, settings: DriftSettings) -> str:
    """What a window lacks, in words; "" if nothing."""
    rows, contracts = settings.min_observations - window.n, settings.min_contracts - window.n_contracts
    lacks = [f"{n} more {name}" for n, name in ((rows, "observations"), (contracts, "contracts")) if n > 0]
    return f"{window.n} observations of {window.n_contracts} contracts, {' and '.join(lacks)} needed" if lacks else ""


def _untested(status: Status, about: str, current: Window, at: float) -> DriftReport:
    return DriftReport(at, status, about, current.start, current.stop, current.n, current.n_contracts)


def _told(results: list[SignalResult], moved: list[str], alarmed: list[str]) -> str:
    told = "; ".join(f"{one.name}: {one.about}" for one in results if one.name in moved)
    if not moved:
        return f"nothing moved in {len(results)} signals"
    return f"{'alarm' if alarmed else 'moved, and waits for the next check'}. {told}"
