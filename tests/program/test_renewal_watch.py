"""From traces to alarms, and the unattended look: observations, the reference, what survives a restart."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from corpora.types import Contract
from program.drift.settings import DriftSettings
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.releases.store import ReleaseStore
from program.renewal import observing, watch
from program.renewal.drifting import check_drift, reports
from program.renewal.home import Home, RenewalError
from program.renewal.observing import observations, ratings_of
from program.traces.policy import TracePolicy
from program.traces.store import TraceStore
from program.traces.types import Trace
from tests.program.releases_fakes import write_run

BEGIN = datetime(2031, 1, 1, tzinfo=UTC)
TEXT = "The law of Ohio governs. The term is five years. " * 20
SETTINGS = DriftSettings(min_observations=30, min_contracts=5)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    """Counts of letters for an embedder."""
    monkeypatch.setattr(observing, "load_embedder", lambda: None)
    counts = lambda text: [text.lower().count(chr(97 + i)) for i in range(26)]  # noqa: E731
    monkeypatch.setattr(observing, "embed", lambda _, texts: np.array([counts(text) for text in texts], dtype=float))


def trace(i, at, **changes):
    told = {
        "id": str(i), "at": at.isoformat(), "release": "r", "question": f"Which law governs number {i % 7}?",
        "contract_id": f"c{i // 3}", "found": i % 3 == 0, "confidence": 0.5 + (i % 11) / 30, "scores": (0.7, 0.9),
        "passages": (f"c{i // 3}:0-24",), "answer_id": f"a{i}",
    }  # fmt: skip
    return Trace(**told | changes)


def test_what_people_saw_is_observed_and_nothing_else():
    contracts = {"c0": Contract("c0", TEXT)}
    told = [
        trace(0, BEGIN), trace(1, BEGIN, error="TimeoutError", found=None), trace(2, BEGIN, shadow=True),
        trace(1, BEGIN + timedelta(hours=1), question=None, passages=("gone:0-5", "c0:x-y")),
    ]  # fmt: skip
    first, second = observations(told, contracts, {"a0": 0.25})
    assert first.at == BEGIN.timestamp() and first.words == ("which", "law", "governs", "number")
    assert first.rating == 0.25 and first.retrieval_score == 0.9 and not first.abstained
    assert first.passage_embedding[0] == TEXT[:24].count("a") and first.question_embedding is not None
    assert second.question_embedding is None and second.passage_embedding is None and second.words == ()
    assert second.abstained and second.rating is None
    assert observations([], contracts) == []


def test_the_last_word_on_an_answer_counts(tmp_path):
    assert ratings_of(tmp_path / "none.db") == {}
    with FeedbackStore.open(tmp_path / "feedback.db") as store:
        asked = store.ask("Which law?", Contract("c", "The law of Ohio."))
        ids = [store.answer(asked, Said("Ohio", True, release="r")).id for _ in range(3)]
        store.rate(ids[0], stars=4, by="ada")
        store.rate(ids[1], thumbs="up", by="ada")
        store.correct(ids[1], found=False, by="ada")
        store.rate(ids[2], thumbs="down", by="ada")
    assert ratings_of(tmp_path / "feedback.db") == {ids[0]: 0.75, ids[1]: 0.0, ids[2]: 0.0}


@pytest.fixture
def live(tmp_path):
    """`live(days, **changes)` records ten answers of the live release on each of these days; `.look(day)` looks."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    releases = ReleaseStore.open(home.releases)
    release = releases.add(write_run(tmp_path / "run", 1))
    releases.promote(release.id, "first")

    class Live:
        place = home

        def __call__(self, days, **changes):
            with TraceStore.open(home.traces, TracePolicy(), now=lambda: BEGIN.isoformat()) as store:
                for day in days:
                    for i in range(10):
                        at = BEGIN + timedelta(days=day, minutes=i)
                        store.record(trace(10 * day + i, at, release=release.id, **changes))

        def look(self, day):
            return check_drift(home, {}, settings=SETTINGS, now=lambda: BEGIN + timedelta(days=day))

    return Live()


def test_a_reference_is_collected_then_quiet_days_stay_quiet_and_a_change_alarms(live):
    assert live.look(0).about == "nothing was answered yet"
    live(range(5))
    assert "the reference is collected: 50 answers" in live.look(5).about
    live(range(5, 16))
    quiet = live.look(16)
    assert quiet.report.status == "tested" and quiet.drifted is None
    assert live.look(16).report.repeated and len(reports(live.place)) == 1, "the same window is one test"
    live(range(16, 24), question="How long must insurance be kept after termination?", found=False)
    found = live.look(24)
    assert found.report.alarm and found.drifted[0] == "questions" and "question_embedding" in found.drifted[1]
    told = reports(live.place)
    assert [one["alarm"] for one in told] == [False, True] and told[1]["cause"] == "questions"
    state = next(live.place.drift.glob("*/state.json"))
    assert json.loads(state.read_text())["alarms"], "remembered for the next process"


def test_another_release_has_another_reference(live, tmp_path):
    live(range(16))
    live.look(16)
    releases = ReleaseStore.open(live.place.releases)
    releases.promote(releases.add(write_run(tmp_path / "other", 2)).id, "second")
    assert live.look(17).about == "nothing was answered by the live release yet"


@pytest.fixture
def looked(live, monkeypatch):
    """A home folder whose renewals are scripted: what `renew` was called with."""
    live.place.path.joinpath("evergreen.toml").write_text('corpus = "c.json"\nfrozen = "f.json"\ncheck_hours = 2\n')
    called = []

    def scripted(home, *, cause, say, now):
        called.append(cause)
        if isinstance(called.answer, Exception):
            raise called.answer
        return called.answer

    class Called(list):
        answer = None
        home = live.place.path

    called = Called()
    monkeypatch.setattr(watch, "renew", scripted)
    monkeypatch.setattr(watch, "_served", lambda home, unlabelled: {})
    return called


def test_a_look_checks_drift_renews_and_leaves_word(looked):
    looked.answer = {"id": "0001", "outcome": "promoted"}
    said = []
    assert watch.look_once(looked.home, say=said.append)["outcome"] == "promoted"
    told = json.loads((looked.home / "watch.json").read_text())
    assert told["renewal"]["id"] == "0001" and told["error"] == "" and looked == [None] and "drift:" in said[0]
    looked.answer = RenewalError("being renewed by another process")
    assert watch.look_once(looked.home, say=said.append) is None
    assert "another process" in json.loads((looked.home / "watch.json").read_text())["error"]


def test_watch_goes_on_after_a_look_that_failed_and_sleeps_between(looked):
    said, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        looked.answer = {"id": "0002", "outcome": "kept"}

    looked.answer = ValueError("labels that are none")
    watch.watch(looked.home, say=said.append, sleep=sleep, looks=2)
    assert slept == [7200.0] and len(looked) == 2
    assert any("this look failed, the next is in 2 h: ValueError: labels that are none" in line for line in said)
