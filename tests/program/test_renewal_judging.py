"""A sample of served answers is judged: which, how many, never twice, and what it tells the drift watch."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from corpora.types import Contract
from modules.judge import Candidate, Case, Grade, JudgeError
from program.drift.settings import DriftSettings
from program.evaluate import EvaluationError
from program.judging.trust import judge_identity
from program.renewal import judging, watch
from program.renewal.calls import paid_calls
from program.renewal.config import RenewalConfig
from program.renewal.drifting import check_drift, reference_of, scores_of
from program.renewal.judging import judge_sample
from program.renewal.observing import case_of
from program.runs import BudgetError
from program.traces.judged import Judged, add_judged, read_judged
from tests.program.test_renewal_watch import BEGIN, TEXT, letters, live, looked, timedelta, trace  # noqa: F401

CONTRACTS = {f"c{i}": Contract(f"c{i}", TEXT) for i in range(200)}
CONFIG = RenewalConfig(corpus="c.json", frozen="f.json", judge="likelihood", judge_calls=30)
SETTINGS = DriftSettings(min_observations=30, min_contracts=5, permutations=8000)
WORDS = {"answer": "Ohio", "spans": ((11, 15),)}


class Fake:
    """A judge that finds everything as good as `score`, which may be an error; `asked` are the cases."""

    def __init__(self, score=0.9):
        self.score, self.asked, self.identity = score, [], "judge-1"

    def grade(self, case, said):
        self.asked.append((case, said))
        score = self.score(len(self.asked)) if callable(self.score) else self.score
        if isinstance(score, Exception):
            raise score
        return Grade(score, "so it says", "")

    @contextmanager
    def opened(self, home, config, release):
        yield self, self.identity


def judge(live, fake, day=30, config=CONFIG):  # noqa: F811
    return judge_sample(
        live.place, config, CONTRACTS, open_judge=fake.opened, now=lambda: BEGIN + timedelta(days=day)
    )  # fmt: skip


def test_a_bounded_sample_is_judged_each_once_and_another_seed_draws_another(live):  # noqa: F811
    live(range(8), **WORDS)
    fake = Fake()
    assert judge(live, fake) == "30 answers judged, mean 0.90"
    first = {one.trace for one in read_judged(live.place.judged)}
    assert len(first) == len(fake.asked) == 30 and live.place.judged.stat().st_mode & 0o077 == 0
    assert judge(live, fake).startswith("30 ") and judge(live, fake).startswith("20 ")
    assert judge(live, fake) == "no answer waits to be judged" and len(fake.asked) == 80
    assert len({one.trace for one in read_judged(live.place.judged)}) == 80
    live.place.judged.unlink()
    judge(live, Fake())
    assert {one.trace for one in read_judged(live.place.judged)} == first, "the same seed draws the same"
    live.place.judged.unlink()
    judge(
        live, Fake(), config=RenewalConfig(corpus="c.json", frozen="f.json", judge="likelihood", judge_calls=30, seed=1)
    )
    assert {one.trace for one in read_judged(live.place.judged)} != first


def test_without_a_judge_or_words_nobody_is_asked(live):  # noqa: F811
    fake = Fake()
    assert judge(live, fake) == "", "nothing was answered yet"
    live(range(2), **WORDS, question=None)
    live([2], **WORDS, error="TimeoutError")
    live([3], **WORDS, shadow=True)
    live([4], **WORDS, passages=("gone:0-24",))
    assert judge(live, fake) == "no answer waits to be judged" and fake.asked == []
    assert judge(live, fake, config=RenewalConfig(corpus="c.json", frozen="f.json")) == ""


def test_what_was_shown_and_said_is_what_is_judged():
    told = trace(0, BEGIN, **WORDS)
    case, said = case_of(told, CONTRACTS)
    assert (case.question, [p.text for p in case.passages]) == (told.question, [TEXT[:24]])
    assert said == Candidate("Ohio", (TEXT[11:15],)) and isinstance(case, Case)
    assert case_of(trace(1, BEGIN, **WORDS), CONTRACTS)[1] == Candidate("not in this contract")
    assert case_of(trace(0, BEGIN, **WORDS | {"passages": ("c0:0-99999",)}), CONTRACTS) is None


def test_a_worse_judged_answer_alarms_and_is_attributed_to_the_model(live):  # noqa: F811
    settings = {"settings": SETTINGS, "now": lambda: BEGIN + timedelta(days=16)}
    all_of_them = RenewalConfig(corpus="c.json", frozen="f.json", judge="likelihood", judge_calls=500)
    live(range(9), **WORDS)
    judge(live, Fake(lambda n: 0.8 + (n % 10) / 100), day=9, config=all_of_them)
    check_drift(live.place, CONTRACTS, settings=SETTINGS, now=lambda: BEGIN + timedelta(days=9))
    (release,) = [one.name for one in live.place.drift.iterdir()]
    assert len(scores_of(live.place, release)) == 90 and reference_of(live.place, release).judge_score.min() >= 0.8
    live(range(9, 16), **WORDS)
    before = len(read_judged(live.place.judged))
    judge(live, Fake(lambda n: 0.4 + (n % 10) / 100), day=15.9, config=all_of_them)
    assert len(read_judged(live.place.judged)) == before + 70
    found = check_drift(live.place, CONTRACTS, **settings)
    told = {one.name: one for one in found.report.signals}["judge_score"]
    assert found.report.alarm and told.n_current >= 69 and told.effect < -0.3
    assert found.drifted[0] == "model" and "judge_score" in found.drifted[1]


def test_a_failed_call_is_no_score_and_is_made_again_and_an_unreadable_verdict_is_neither(live):  # noqa: F811
    live(range(3), **WORDS)
    errors = {3: TimeoutError("too long"), 5: JudgeError("no verdict"), 7: BudgetError("30 calls are made")}
    fake = Fake(lambda n: errors.get(n, 0.9))
    assert judge(live, fake) == (
        "27 answers judged, mean 0.90; 1 verdicts cannot be read; 1 calls failed; 1 wait for the next look's calls"
    )
    told = read_judged(live.place.judged)
    assert len(told) == 28 and [one.why for one in told if one.score is None] == ["no verdict"]
    assert len(scores_of(live.place, told[0].release)) == 27
    assert judge(live, Fake()) == "2 answers judged, mean 0.90", "the one that failed, and the one that waited"


def test_above_a_fifth_of_failures_it_stops_and_keeps_what_was_read(live, looked, monkeypatch):  # noqa: F811
    live(range(3), **WORDS)
    fake = Fake(lambda n: ConnectionError("down") if n % 3 == 0 else float("nan") if n == 1 else 0.9)
    with pytest.raises(EvaluationError, match="11 of 30 calls of the judge failed .limit 20%.; the first: "):
        judge(live, fake)
    assert len(read_judged(live.place.judged)) == 19
    monkeypatch.setattr(watch, "judge_sample", lambda *_, **__: judge(live, Fake(ConnectionError("down"))))
    said = []
    watch.look_once(live.place.path, say=said.append)
    assert "calls of the judge failed" in said[0] and "drift:" in said[1], "the watch goes on without"


def test_scores_of_two_judges_are_never_compared_and_a_reference_without_any_stays_so(live):  # noqa: F811
    live(range(3), **WORDS)
    judge(live, Fake(), config=RenewalConfig(corpus="c.json", frozen="f.json", judge="likelihood", judge_calls=20))
    other = Fake()
    other.identity = "judge-2"
    assert "was judged by judge-1" in judge(live, other) and other.asked == []
    (release,) = {one.release for one in read_judged(live.place.judged)}
    add_judged(live.place.judged, [Judged("x", release, "judge-2", 0.1, "2031-01-01T00:00:00+00:00")])
    assert 0.1 not in scores_of(live.place, release).values()
    live.place.judged.unlink()
    live(range(3, 9), **WORDS)
    check_drift(live.place, CONTRACTS, settings=SETTINGS, now=lambda: BEGIN + timedelta(days=9))
    assert "without a judge" in judge(live, other) and other.asked == []


def test_a_torn_line_is_judged_again_and_costs_no_other(tmp_path):
    path = tmp_path / "judged.jsonl"
    one, two = (Judged(name, "r", "j", 0.5, "2031-01-01T00:00:00+00:00") for name in ("a", "b"))
    add_judged(path, [one])
    with path.open("a") as file:
        file.write('{"trace": "torn')
    add_judged(path, [two])
    add_judged(path, [Judged("a", "r", "j", 0.1, "2031-02-01T00:00:00+00:00")])
    assert read_judged(path) == [one, two], "what was said first stands"
    assert read_judged(tmp_path / "none") == []


@pytest.fixture
def asked(live, monkeypatch, speaking):  # noqa: F811
    """The judge "points" on a scripted LM, in the place of the live program; `report` is what it has shown."""
    verdict = "[[ ## points ## ]]\n- Correct: Ohio\n\n[[ ## quote ## ]]\nThe law of Ohio\n\n"
    verdict += "[[ ## reason ## ]]\nIt says so.\n\n[[ ## completed ## ]]"
    lm = speaking(lambda prompt: verdict, cache=True, temperature=0.0)
    program = SimpleNamespace(reviewer=SimpleNamespace(predict=SimpleNamespace(lm=lm)))
    made = SimpleNamespace(engine=lm.engine, measured=0, wins=0)

    @contextmanager
    def opened(place):
        yield program

    def report(judge, *_, **__):
        made.measured += 1
        gold = {"n": 100, "n_unreadable": 0, "kappa": {"mean": 0.9, "low": 0.8, "high": 1.0}}
        return {
            "judge": {"name": "points", "identity": judge_identity(judge)}, "gold": gold, "retest": {"noise": None},
            "degenerate": {"guarded": {"wins": made.wins, "n": 200}},
        }  # fmt: skip

    monkeypatch.setattr(judging, "open_run", opened)
    monkeypatch.setattr(judging, "read_cuad", lambda path: None)
    monkeypatch.setattr(judging, "cases_for", lambda *_: ([], []))
    monkeypatch.setattr(judging, "judge_report", report)
    monkeypatch.setattr(judging, "write_judge_report", lambda folder, told: _written(folder, told))
    live(range(3), **WORDS | {"found": True})
    return made


def _written(folder, told):
    folder.mkdir(parents=True)
    judging.Path(folder / "judge_report.json").write_text(judging.json.dumps(told))


def test_only_a_trusted_judge_is_asked_within_its_calls_and_measured_once(asked, live):  # noqa: F811
    config = RenewalConfig(corpus="c.json", frozen="f.json", judge="points", judge_calls=4)
    told = judge_sample(live.place, config, CONTRACTS, now=lambda: BEGIN + timedelta(days=3))
    assert told.startswith("4 answers judged, mean 1.00") and asked.measured == 1
    calls = live.place.path / "judge" / "calls"
    assert 1 <= paid_calls(calls) <= 4 and len(asked.engine.prompts) == paid_calls(calls)
    judge_sample(live.place, config, CONTRACTS, now=lambda: BEGIN + timedelta(days=3))
    assert asked.measured == 1 and len(read_judged(live.place.judged)) == 8
    before = len(asked.engine.prompts)
    live.place.judged.unlink()  # as if a kill had lost it
    judge_sample(live.place, config, CONTRACTS, now=lambda: BEGIN + timedelta(days=3))
    assert len(asked.engine.prompts) == before, "what was answered is remembered"


def test_a_judge_that_its_report_does_not_speak_for_judges_nothing(asked, live):  # noqa: F811
    asked.wins = 3
    config = RenewalConfig(corpus="c.json", frozen="f.json", judge="points", judge_calls=4)
    for _ in range(2):
        with pytest.raises(JudgeError, match="3 of 200 degenerate answers won"):
            judge_sample(live.place, config, CONTRACTS, now=lambda: BEGIN + timedelta(days=3))
    assert asked.measured == 1 and asked.engine.prompts == [] and read_judged(live.place.judged) == []
