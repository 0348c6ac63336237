"""A candidate that waits in shadow: what it must show before it goes live, kills in between, and who is asked."""

import json
import os
import shutil
import signal
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from corpora.types import Quote
from modules.judge import JudgeError, Verdict
from program.config import ConfigError
from program.evaluate import EvaluationError
from program.failpoints import VARIABLE
from program.gate.shadow import ShadowAnswer, ShadowPair
from program.gate.shadow_log import recorder
from program.gate.shadow_now import FILE_NAME, InShadow, put_in_shadow, read_shadow
from program.gate.types import GateError
from program.releases.store import ReleaseStore
from program.renewal import renew as renewing_module
from program.renewal import shadowing
from program.renewal.home import Home, renewals
from tests.program.releases_fakes import write_run
from tests.program.test_renewal import Scripted, files, live, made_home, same, told, took  # noqa: F401

BEGIN = datetime(2031, 1, 1, tzinfo=UTC)
AGREEMENT = Quote("agreement", "c1", 3, 12)


@pytest.fixture(scope="module")
def waiting(files, tmp_path_factory):  # noqa: F811
    """A home folder in which 0002 has passed the gate and is asked beside 0001; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renewing_module, "side_by_side", took)
        place = made_home(tmp_path_factory.mktemp("waiting"), files)
        toml = place / "evergreen.toml"
        toml.write_text(f"shadow_answers = 20\nshadow_days = 10\nevery_days = 1e6\n{toml.read_text()}")
        first = told(place, Scripted(0.9), now=lambda: BEGIN)
        assert first["outcome"] == "promoted" and "shadow" not in first, "nothing is live that it could stand beside"
        outcome = told(place, Scripted(0.9, 2), by_hand="to see", now=lambda: BEGIN)
        assert outcome["outcome"] == "shadow" and outcome["shadow"]["verdict"] == "wait"
        yield place


@pytest.fixture
def home(waiting, tmp_path):
    return shutil.copytree(waiting, tmp_path / "home", symlinks=True)


def answered(home, n, *, says="An agreement", quote=AGREEMENT, error=None, beside=None, release=None):
    """`n` more questions of the live traffic, answered by both."""
    ids = ReleaseStore.open(home / "releases").names()
    record = recorder(home / "shadow" / f"{release or ids[1]}.jsonl", beside or ids[0])
    for i in range(n):
        ours = ShadowAnswer("An agreement", True, (AGREEMENT,), (), 0.5)
        theirs = ShadowAnswer(says, True, (quote,), (), 0.5)
        if error:
            theirs = ShadowAnswer("", False, (), (), 0.5, error)
        record(ShadowPair(f"Question {i}?", "c1", ours, theirs))


def look(home, days=1, script=None):
    return told(home, script or Scripted(0.0, 9), now=lambda: BEGIN + timedelta(days=days))


def test_it_waits_and_goes_live_once_enough_was_answered_alike(home):
    one, two = ReleaseStore.open(home / "releases").names()
    assert live(home) == one and read_shadow(home / "shadow") == InShadow(two, one, BEGIN.isoformat())
    assert renewals(Home(home))[1:] == [{"id": "0002"}], "it has not ended"
    script = Scripted(0.0, 9)
    answered(home, 19)
    assert look(home, script=script)["why"] == f"19 of 20 questions answered beside {one}"
    answered(home, 30, beside="another release", release=two)
    assert look(home)["outcome"] == "shadow" and live(home) == one, "what was answered beside another says nothing"
    answered(home, 1)
    outcome = look(home, script=script)
    assert outcome["outcome"] == "promoted" and outcome["shadow"]["n"] == 20 and live(home) == two
    assert script.configs == [] and read_shadow(home / "shadow") is None
    assert look(home) is None, "it is over, and there is no other reason"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"quote": Quote("agreements", "c1", 3, 12)}, "quotes do not stand"),
        ({"says": "A lease"}, "the same answer to 0.0%"),
        ({"error": "TimeoutError: too long"}, "calls failed where the live program answered"),
    ],
)
def test_a_candidate_that_loses_beside_the_live_one_is_refused(home, given, why):
    answered(home, 20, **given)
    outcome = look(home)
    assert outcome["outcome"] == "refused" and why in outcome["why"] and outcome["shadow"]["verdict"] == "lost"
    assert live(home).startswith("0001") and read_shadow(home / "shadow") is None
    assert json.loads((home / "renewals/0002/outcome.json").read_text())["outcome"] == "refused"


def test_it_waits_no_longer_than_it_may_and_a_clock_that_went_back_ends_nothing(home):
    answered(home, 5)
    assert look(home, days=-400)["outcome"] == "shadow" and look(home, days=10)["outcome"] == "shadow"
    outcome = look(home, days=10.1)
    assert outcome["outcome"] == "refused" and "after 10 days there are 5 of 20" in outcome["why"]
    assert live(home).startswith("0001")


def test_a_release_that_goes_live_meanwhile_ends_it_and_the_candidate_itself_by_hand_too(home, tmp_path):
    by_hand = shutil.copytree(home, tmp_path / "by-hand", symlinks=True)
    store = ReleaseStore.open(home / "releases")
    other = store.promote(store.add(write_run(tmp_path / "run", 7)).id, "by hand").id
    answered(home, 20)
    assert look(home)["shadow"]["verdict"] == "gone" and live(home) == other
    store = ReleaseStore.open(by_hand / "releases")
    store.promote(store.names()[1], "by hand")
    assert look(by_hand)["outcome"] == "promoted" and live(by_hand) == store.names()[1]


class Prefers:
    """A judge that prefers the answer that holds a word."""

    def __init__(self, word):
        self.word, self.asked = word, 0

    def compare(self, case, a, b):
        self.asked += 1
        return Verdict("A" if self.word in a.answer else "B", None, True, "", "")


@pytest.fixture
def judged(home, monkeypatch):
    """`judged(judge)` sets the judge of the home's config; an exception is raised in its place."""
    toml = home / "evergreen.toml"

    def use(judge):
        @contextmanager
        def opened(home, config, live):
            assert config.judge == "likelihood" and live.id.startswith("0001")
            if isinstance(judge, Exception):
                raise judge
            yield judge, "identity"

        if "judge =" not in toml.read_text():
            toml.write_text(f'judge = "likelihood"\n{toml.read_text()}')
        monkeypatch.setattr(shadowing, "open_trusted", opened)
        return judge

    toml.write_text(f"{toml.read_text()}\n[shadow]\nmin_agreement = 0.0\n")
    return use


def answered_about(home, n, says):
    """`n` questions about `n` contracts: what is judged is told by contract."""
    ids = ReleaseStore.open(home / "releases").names()
    record = recorder(home / "shadow" / f"{ids[1]}.jsonl", ids[0])
    for i in range(n):
        ours, theirs = (ShadowAnswer(text, True, (), (), 0.5) for text in ("An agreement", says))
        record(ShadowPair(f"Question {i}?", None, ours, theirs))


def test_a_judge_says_once_which_answer_is_better_and_one_who_loses_is_refused(home, judged, tmp_path):
    better = shutil.copytree(home, tmp_path / "better", symlinks=True)
    judge = judged(Prefers("agreement"))
    answered_about(home, 19, "A lease")
    assert look(home)["outcome"] == "shadow" and judge.asked == 0, "not before there is enough to decide on"
    answered_about(home, 1, "A lease")
    outcome = look(home)
    assert outcome["outcome"] == "refused" and "the live one 20 times" in outcome["why"] and judge.asked == 20
    other = judged(Prefers("lease"))
    (better / "evergreen.toml").write_text((home / "evergreen.toml").read_text())
    answered_about(better, 20, "A lease")
    assert look(better)["outcome"] == "promoted" and other.asked == 20


def test_a_judge_without_a_report_that_speaks_for_it_is_not_asked_and_that_is_said(home, judged):
    judged(JudgeError("kappa 0.3 is below 0.7"))
    answered_about(home, 20, "A lease")
    outcome = look(home)
    assert outcome["outcome"] == "promoted" and "not judged: kappa 0.3" in outcome["shadow"]["why"]


def test_a_judge_whose_calls_fail_is_waited_for(home, judged):
    judged(EvaluationError("30 of 100 calls failed"))
    answered_about(home, 20, "A lease")
    outcome = look(home)
    assert outcome["outcome"] == "shadow" and "30 of 100 calls failed" in outcome["why"]
    judged(Prefers("lease"))
    assert look(home, days=2)["outcome"] == "promoted"


POINTS = [f"renew.{stage}.{point}" for stage in ("compared", "promote") for point in ("begin", "made", "kept")]
POINTS += ["release.promote.noted", "release.promote.beside", "release.promote.moved"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_goes_on_as_if_it_had_not_been(home, tmp_path, point):
    answered(home, 20)
    whole = shutil.copytree(home, tmp_path / "whole", symlinks=True)
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = point
        try:
            look(home)
        finally:
            os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert live(home)[:4] in ("0001", "0002"), "whole, whichever it is"
    answered(home, 20, says="A lease")  # later answers change nothing that was decided before the kill
    if not (home / "renewals/0002/stages/compared.json").is_file():
        (home / "shadow" / f"{ReleaseStore.open(home / 'releases').names()[1]}.jsonl").unlink()
        answered(home, 20)
    outcome, expected = look(home, days=2), look(whole, days=2)
    assert same(outcome) == same(expected) and outcome["outcome"] == "promoted"
    assert live(home) == live(whole) and read_shadow(home / "shadow") is None


@pytest.mark.parametrize("point", ["begin", "made", "kept"])
def test_killed_as_it_begins_it_is_put_beside_the_live_one_the_next_time(files, tmp_path, monkeypatch, point):  # noqa: F811
    monkeypatch.setattr(renewing_module, "side_by_side", took)
    place = made_home(tmp_path, files)
    told(place, Scripted(0.9))
    place.joinpath("evergreen.toml").write_text("shadow_answers = 20\n" + place.joinpath("evergreen.toml").read_text())
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = f"renew.shadow.{point}"
        try:
            told(place, Scripted(0.9, 2), by_hand="to see")
        finally:
            os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert read_shadow(place / "shadow") is None and live(place).startswith("0001")
    script = Scripted(0.0, 9)
    assert told(place, script)["outcome"] == "shadow" and script.configs == []
    assert read_shadow(place / "shadow").release.startswith("0002")


def test_rules_are_told_before_anything_is_made(home):
    toml = home / "evergreen.toml"
    text = toml.read_text()
    for rules, error, words in (
        ("[shadow]\nmargn = 0.1\n", ConfigError, "did you mean 'margin'"),
        ("[shadow]\nmin_pairs = 3\n", ConfigError, "shadow_answers"),
        ("[shadow]\nmargin = 2\n", GateError, "margin is 2"),
        ("shadow_share = 0\n", ConfigError, "shadow_share is 0"),
    ):
        toml.write_text(text + rules if rules[0] == "[" else rules + text)
        with pytest.raises(error, match=words):
            look(home)
    toml.write_text(f"{text}[shadow]\nmin_agreement = 0.0\nmax_error_share = 0.5\n")
    answered(home, 20, says="A lease")
    assert look(home)["outcome"] == "promoted", "what it is asked for is what the file says"


def test_the_note_is_whole_or_nobody_is_asked(tmp_path):
    assert read_shadow(tmp_path / "none") is None
    told_ = InShadow("0002-ab", "0001-cd", "2031-01-01T00:00:00+00:00")
    put_in_shadow(tmp_path, told_)
    assert read_shadow(tmp_path) == told_
    for text in ("", '{"release": "0002-ab"', '{"release": "0002-ab"}', "[]"):
        (tmp_path / FILE_NAME).write_text(text)
        assert read_shadow(tmp_path) is None
