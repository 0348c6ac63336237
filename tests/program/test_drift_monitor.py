import json
from dataclasses import replace

import numpy as np
import pytest

from program.drift import monitor as monitor_module
from program.drift.monitor import DriftMonitor
from program.drift.ratings import Bets, by_contract, ratings
from program.drift.settings import DAY_S, DriftSettings, alpha_per_check, permutation_alpha, ratings_threshold
from program.drift.signals import SIGNALS
from program.drift.types import DriftError, Observation, SignalResult, report_from_json, report_to_json
from program.drift.windows import between, window_of

START = 20_000
QUICK = DriftSettings(
    signals=("confidence", "abstention"), permutations=1999, min_observations=30, false_alarms_per_month=1.0
)


def _day(day, *, fall=0.0, rated=0.9, n_contracts=20, seed=0):
    """A day of traffic: contracts of four questions, the last of which is rated (a rating is 1 or 0)."""
    rng, rows = np.random.default_rng([day, seed]), []
    for number in range(n_contracts):
        own = 0.05 * rng.normal()
        for place in range(4):
            rows.append(
                Observation(
                    at=(START + day + rng.random()) * DAY_S,
                    contract_id=f"{day}-{number}",
                    confidence=float(np.clip(0.7 - fall + own + 0.1 * rng.normal(), 0, 1)),
                    abstained=bool(rng.random() < 0.3),
                    rating=float(rng.random() < rated) if place == 3 else None,
                )
            )
    return rows


def _days(first, last, **like):
    return window_of([row for day in range(first, last) for row in _day(day, **like)])


def _at(day):
    return (START + day + 1) * DAY_S - 1.0


@pytest.fixture(scope="module")
def reference():
    return _days(0, 5)


def test_quiet_days_raise_no_alarm_and_a_fall_does(reference):
    monitor = DriftMonitor(reference, QUICK)
    for day in range(5, 10):
        report = monitor.check(_days(day, day + 1), _at(day))
        assert report.status == "tested" and not report.alarm and report.since is None
    report = monitor.check(_days(10, 11, fall=0.2), _at(10))
    assert report.alarm and report.moved == ("confidence",) and "confidence: mean 0.695, now 0.454" in report.about
    assert {one.name for one in report.signals} == {"confidence", "abstention", "ratings"}
    assert next(one for one in report.signals if one.name == "confidence").effect == pytest.approx(-0.2, abs=0.06)
    # An alarm that goes on is one alarm.
    since = report.since
    assert since == report.start
    assert monitor.check(_days(11, 12, fall=0.2), _at(11)).since == since
    assert [(alarm.at, alarm.signals, alarm.since) for alarm in monitor.alarms] == [(_at(10), ("confidence",), since)]


def test_state_survives_a_restart(reference):
    days = [(_days(day, day + 1, fall=0.1 * (day == 8), rated=0.6), _at(day)) for day in range(5, 10)]
    whole, restarted = DriftMonitor(reference, QUICK), DriftMonitor(reference, QUICK)
    for window, at in days:
        told = whole.check(window, at)
        state = json.loads(json.dumps(restarted.to_state(), allow_nan=False))
        restarted = DriftMonitor.from_state(reference, QUICK, state)
        assert restarted.check(window, at) == told
        assert restarted.to_state() == whole.to_state()
    assert report_from_json(json.loads(json.dumps(report_to_json(told)))) == told


def test_the_same_window_is_no_second_test(reference):
    monitor = DriftMonitor(reference, QUICK)
    first = monitor.check(_days(5, 6, fall=0.2, rated=0.2), _at(5))
    state = monitor.to_state()
    for later in (_at(5), _at(6), _at(9)):
        assert monitor.check(_days(5, 6, fall=0.2, rated=0.2), later) == replace(first, repeated=True)
    assert monitor.to_state() == state and not first.repeated


def test_one_test_in_a_slot_of_the_cadence(reference):
    """Every second day: days 20,006 and 20,007 are one slot."""
    monitor, traffic = DriftMonitor(reference, replace(QUICK, cadence_days=2.0)), _days(5, 9)
    told = [monitor.check(between(traffic, 0, _at(day)), _at(day)).status for day in (5, 6, 7, 8)]
    assert told == ["tested", "tested", "not due", "tested"]
    assert monitor.to_state()["checks"] == 3


def test_too_early_costs_nothing(reference):
    monitor = DriftMonitor(reference, QUICK)
    traffic = _days(5, 7)
    monitor.check(between(traffic, 0, _at(5) - 3600), _at(5) - 3600)
    state = monitor.to_state()
    report = monitor.check(between(traffic, 0, _at(5)), _at(5))
    assert (report.status, report.alarm, report.signals) == ("not due", False, ()) and "0.0 hours" in report.about
    assert monitor.to_state() == state
    assert monitor.check(traffic, _at(6)).status == "tested"


def test_too_few_say_how_many_more_and_cost_nothing(reference):
    monitor = DriftMonitor(reference, QUICK)
    state = monitor.to_state()
    report = monitor.check(_days(5, 6, n_contracts=6), _at(5))
    assert report.status == "too few" and not report.alarm and monitor.to_state() == state
    assert "24 observations of 6 contracts, 6 more observations and 4 more contracts needed" in report.about
    with pytest.raises(DriftError, match="the reference has too little.*4 more contracts"):
        DriftMonitor(_days(5, 6, n_contracts=6), QUICK)


def test_a_signal_that_is_hardly_measured_is_left_out_and_said_so(reference):
    monitor = DriftMonitor(reference, replace(QUICK, signals=("confidence", "judge_score")))
    report = monitor.check(_days(5, 6), _at(5))
    assert [one.name for one in report.signals] == ["confidence", "ratings"]
    assert report.skipped[0][0] == "judge_score" and "10 more" in report.skipped[0][1]


def test_a_clock_that_went_back_is_refused(reference):
    monitor = DriftMonitor(reference, QUICK)
    monitor.check(_days(6, 7), _at(6))
    state = monitor.to_state()
    with pytest.raises(DriftError, match="clock went back"):
        monitor.check(_days(5, 6), _at(5))
    with pytest.raises(DriftError, match="after this check"):
        monitor.check(_days(7, 9), _at(7))
    with pytest.raises(DriftError, match="before the one tested last"):
        monitor.check(_days(5, 6), _at(8))
    assert monitor.to_state() == state


def test_a_window_that_overlaps_the_reference_is_refused(reference):
    with pytest.raises(DriftError, match="no evidence of a change"):
        DriftMonitor(reference, QUICK).check(_days(4, 6), _at(5))


def test_a_state_of_another_reference_or_none_at_all_is_refused(reference):
    state = DriftMonitor(reference, QUICK).to_state()
    with pytest.raises(DriftError, match="another reference"):
        DriftMonitor.from_state(_days(0, 4), QUICK, state)
    for wrong in ({}, {**state, "format": 2}, {**state, "more": 1}, {**state, "bets": None}, {**state, "last": {}}):
        with pytest.raises(DriftError, match="no monitor's state"):
            DriftMonitor.from_state(reference, QUICK, wrong)


def test_persistence_waits_for_a_second_check(reference):
    monitor = DriftMonitor(reference, replace(QUICK, persistence=2))
    first = monitor.check(_days(5, 6, fall=0.2), _at(5))
    assert first.moved == ("confidence",) and not first.alarm and "waits" in first.about
    assert not monitor.check(_days(6, 7), _at(6)).moved  # a quiet day between begins anew
    assert not monitor.check(_days(7, 8, fall=0.2), _at(7)).alarm
    second = monitor.check(_days(8, 9, fall=0.2), _at(8))
    assert second.alarm and second.since == pytest.approx(_days(7, 8, fall=0.2).start)


def test_ratings_that_fall_alarm_however_often_one_looks(reference):
    monitor, alarmed = DriftMonitor(reference, QUICK), []
    for day in range(5, 25):
        report = monitor.check(_days(day, day + 1, rated=0.9 if day < 12 else 0.6), _at(day))
        if "ratings" in report.moved:
            alarmed.append(day)
            # What raised an alarm has been spent: the next one has to be earned anew.
            assert monitor.to_state()["bets"]["wealth"] == ()
    assert alarmed and 12 <= alarmed[0] <= 18


def test_a_contract_is_heard_once(reference):
    monitor = DriftMonitor(reference, QUICK)
    monitor.check(_days(5, 6), _at(5))
    before = monitor.to_state()["bets"]
    assert len(before["heard"]) == 20
    monitor.check(_days(5, 7), _at(6))  # overlaps
    after = monitor.to_state()["bets"]
    assert len(after["heard"]) == 40 and len(set(after["heard"])) == 40
    # The state holds no contract's name.
    assert "5-1" not in json.dumps(after["heard"])
    rated = by_contract(reference)
    signal, same = ratings(rated, _days(5, 7), 0.7, Bets((1.0,) * 4, tuple(after["heard"])))
    assert same.wealth == (2.0,) * 4 and "0 contracts heard, 40 known" in signal.about
    # Nor do contracts of the reference count again.
    assert ratings(rated, reference, 0.7, Bets())[1] == Bets((1.0,) * 4, ())


def test_ratings_of_a_contract_are_one_value():
    rows = [Observation(at=float(i), contract_id="a" if i < 4 else "b", rating=float(i % 2)) for i in range(5)]
    rows += [Observation(at=float(i), rating=1.0) for i in (7, 8)]
    assert list(by_contract(window_of(rows)).values()) == [0.5, 0.0, 1.0, 1.0]
    later = by_contract(window_of([*rows[1:], Observation(at=9.0, contract_id="c", rating=1.0)]))
    assert set(by_contract(window_of(rows))) < set(later)  # known again in another window, without a contract, too


@pytest.mark.parametrize("n_rated", [0, 9])
def test_a_reference_with_few_ratings_says_so(n_rated):
    quiet = window_of([replace(row, rating=1.0 if i < n_rated else None) for i, row in enumerate(_day(0)[3::4] * 2)])
    report = DriftMonitor(quiet, QUICK).check(_days(5, 6), _at(5))
    assert [name for name, _ in report.skipped] == ["ratings"]


def test_false_alarms_of_all_signals_together_are_as_rare_as_said(monkeypatch):
    """Eight signals whose p-values are uniform, and 600 checks at 3 alarms a month: 0.07 a check are theirs."""
    settings = DriftSettings(
        signals=tuple(name for name in SIGNALS if name != "p_answered"),
        false_alarms_per_month=3.0, min_observations=2, min_contracts=3,
    )  # fmt: skip

    def fake(name):
        def signal(reference, current, rng, limits):
            return SignalResult(name, 0.0, float(rng.random()), None, 0.0, 2, 2, "")

        return signal

    monkeypatch.setattr(monitor_module, "SIGNALS", {name: fake(name) for name in settings.signals})
    rows = [Observation(at=float(i), contract_id=f"{i}") for i in range(3)]
    monitor = DriftMonitor(window_of(rows), settings)
    later = [window_of([replace(row, at=row.at + day * DAY_S) for row in rows]) for day in range(1, 601)]
    alarms = sum(monitor.check(window, window.stop).alarm for window in later)
    assert alpha_per_check(settings) == pytest.approx(0.1) and permutation_alpha(settings) == pytest.approx(0.07)
    assert 25 <= alarms <= 58  # 42 expected; uncorrected it were 264


def test_what_the_rate_is_spent_on():
    settings = DriftSettings()
    assert permutation_alpha(settings) + 1 / ratings_threshold(settings) == pytest.approx(alpha_per_check(settings))
    assert alpha_per_check(settings) * 30 == pytest.approx(settings.false_alarms_per_month)
    weekly = DriftSettings(cadence_days=7.0)
    assert alpha_per_check(weekly) == pytest.approx(7 * alpha_per_check(settings))


@pytest.mark.parametrize(
    "wrong",
    [
        {"permutations": 500},
        {"false_alarms_per_month": 0.0},
        {"false_alarms_per_month": 40.0},
        {"cadence_days": 0.0},
        {"ratings_share": 1.0},
        {"reference_alpha": 0.0},
        {"suspect_alpha": 1.5},
        {"signals": ()},
        {"signals": ("moods",)},
        {"min_contracts": 2},
        {"persistence": 0},
    ],
)
def test_settings_that_cannot_be_kept_are_refused(wrong):
    with pytest.raises(DriftError):
        DriftSettings(**wrong)


def test_permutations_that_could_never_alarm_say_how_many_would_do():
    with pytest.raises(DriftError, match="Set permutations to") as refused:
        DriftSettings(permutations=500)
    DriftSettings(permutations=int(str(refused.value).rsplit(" ", 1)[1]))
