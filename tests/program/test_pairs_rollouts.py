"""On-policy preferences: which of several samples is chosen and rejected, and when none is."""

import statistics
from types import SimpleNamespace

import dspy
import pytest

from corpora.types import Passage, Quote
from modules.judge import Candidate, Case, Grade, JudgeError, Verdict
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND
from optimizers.errors import TrainingError
from optimizers.preference_rollouts import LMCall, Rollout
from program.judging.trust import TrustedJudge
from program.pairs import rollouts as module
from program.pairs.rollouts import JudgedRollouts, differing, pick_pair, retest_noise

PASSAGE = Passage("p", "c0", 0, 40, "governed by the laws of the State of Ohio")
EXAMPLE = dspy.Example(question="Law?", contract_id="c0").with_inputs("question", "contract_id")


class Judge:
    """Grades by a table, and prefers what it grades higher; notes what it was asked."""

    def __init__(self, scores, *, winner=None, stable=True, margin=None):
        self.scores, self.winner, self.stable, self.margin, self.asked = scores, winner, stable, margin, []

    def grade(self, case, candidate):
        self.asked.append(candidate.answer)
        score = self.scores[candidate.answer]
        if isinstance(score, Exception):
            raise score
        return Grade(score, "", "")

    def compare(self, case, a, b):
        better = "A" if self.scores[a.answer] > self.scores[b.answer] else "B"
        return Verdict(self.winner or better, self.margin, self.stable, "", "")


def trusted(judge, noise=None):
    """As TrustedJudge, of which the report is not what is tested here."""
    one = object.__new__(TrustedJudge)
    one.judge, one.report, one.noise = judge, {}, noise
    return one


def run(answer, sample=1, *, quotes=("Ohio",), dropped=0, readable=True, asked="Law?", passages=(PASSAGE,)):
    """A rollout that said this, whatever it is."""
    said = dspy.Prediction(
        answer=answer, readable=readable, n_dropped_quotes=dropped, passages=passages, found=answer != NOT_FOUND,
        quotes=() if answer == NOT_FOUND else tuple(Quote(q, "c0", 0, len(q)) for q in quotes),
    )  # fmt: skip
    inputs = {"passages": "[1] …", "question": asked} if readable else None
    return Rollout(EXAMPLE, sample, said, (LMCall(0, ({"role": "user", "content": asked},), f"raw {answer}", inputs),))


def made(judge, *runs, noise=None, **options):
    source = JudgedRollouts(trusted(judge, noise), **options)
    return source._pair(runs)


@pytest.mark.parametrize(
    ("scores", "may_win", "noise", "expected"),
    [
        ([0.9, 0.1], [True, True], 0.1, (0, 1)),
        ([0.9, 0.85], [True, True], 0.1, None),
        ([0.75, 0.5], [True, True], 0.25, None),  # no more than the noise is not above it
        ([0.9, 0.1], [False, True], 0.1, None),
        ([0.5, 0.9, 0.1], [True, False, True], 0.1, (0, 2)),
        ([0.9], [True], 0.1, None),
        ([], [], 0.1, None),
        ([0.9, 0.1], [False, False], 0.1, None),
    ],
)
def test_picking_a_pair(scores, may_win, noise, expected):
    assert pick_pair(scores, may_win, noise) == expected


def test_the_rejected_is_near_two_sigma_below_the_mean_and_not_the_worst():
    scores = [0.9] * 10 + [0.8, 0.55, 0.0]
    aim = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    assert 0.2 < aim < 0.4 and pick_pair(scores, [True] * 13, 0.15) == (0, 11)


def test_the_pair_is_what_the_model_wrote_under_the_prompt_it_was_given():
    one, why = made(Judge({"Ohio": 0.9, NOT_FOUND: 0.2}), run(NOT_FOUND), run("Ohio", 2), run("Ohio", 3))
    assert why == "pair" and (one.chosen, one.rejected) == ("raw Ohio", f"raw {NOT_FOUND}")
    assert (one.group, one.question, one.source, one.by) == ("c0", "Law?", "judge", None)
    assert one.margin == pytest.approx(0.7) and one.inputs["question"] == "Law?" and one.predictor == 0


def test_each_answer_is_graded_once():
    judge = Judge({"Ohio": 0.9, NOT_FOUND: 0.2})
    made(judge, *(run("Ohio", i) for i in range(5)), run(NOT_FOUND, 6))
    assert sorted(judge.asked) == ["Ohio", NOT_FOUND]


def test_the_comparison_has_to_agree_stably_and_above_its_noise():
    runs, scores = (run("Ohio"), run(NOT_FOUND)), {"Ohio": 0.9, NOT_FOUND: 0.2}
    for judge in (Judge(scores, winner="B"), Judge(scores, winner="tie"), Judge(scores, stable=False)):
        assert made(judge, *runs) == (None, "comparison does not agree")
    assert made(Judge(scores, margin=0.3), *runs, noise=0.4)[0] is None
    assert made(Judge(scores, margin=0.5), *runs, noise=0.4)[1] == "pair"


def test_degenerate_and_unreadable_answers_are_rejected_at_most():
    judge = Judge({"Ohio": 0.4, ":": 1.0, "": 1.0})
    one, _ = made(judge, run(":", quotes=()), run("Ohio", 2))
    assert one.chosen == "raw Ohio" and one.rejected == "raw :" and ":" not in judge.asked, "its judge is not asked"
    one, _ = made(judge, run("Ohio"), run("", 2, readable=False))
    assert one.chosen == "raw Ohio" and one.rejected == "raw "
    assert made(judge, run(":", quotes=()), run("", 2, readable=False))[0] is None
    # A quote that stands nowhere is no longer in the review, and would be taught with the text.
    invented = Judge({"Ohio": 0.9, NOT_FOUND: 0.2})
    assert made(invented, run("Ohio", dropped=1), run(NOT_FOUND, 2))[0] is None


def test_without_a_prompt_in_common_there_is_no_pair():
    judge = Judge({"Ohio": 0.9, NOT_FOUND: 0.2})
    assert made(judge, run("Ohio"), run(NOT_FOUND, 2, asked="Other?")) == (None, "no prompt in common")
    other = Passage("q", "c0", 50, 60, "elsewhere.")
    assert made(judge, run("Ohio"), run(NOT_FOUND, 2, passages=(other,)))[1].startswith("different passages")
    first, second = run("Ohio"), run("Ohio", 2)
    assert differing(first, second) is None, "they wrote the same"


def test_rounds_count_what_became_of_each_question_and_draw_anew(monkeypatch):
    seen = []

    def drawn(program, examples, n, **told):
        seen.append((len(examples), n, told["temperature"], told["first_id"]))
        return [[run("Ohio"), run(NOT_FOUND, 2)] for _ in examples]

    monkeypatch.setattr(module, "rollouts", drawn)
    source = JudgedRollouts(trusted(Judge({"Ohio": 0.9, NOT_FOUND: 0.2})), n=2, questions=3, threads=2)
    train = [EXAMPLE] * 5
    assert len(source.make(Reviewer(), train, [], 1)) == 3 and len(source.make(Reviewer(), train, [], 2)) == 3
    assert source.counts == [{"pair": 3}, {"pair": 3}]
    assert seen == [(3, 2, 1.0, 3), (3, 2, 1.0, 5)], "other samples in each round"


@pytest.mark.parametrize("error", [JudgeError("neither"), OSError("no route")])
def test_a_verdict_that_fails_is_no_verdict_and_too_many_end_it(monkeypatch, error):
    monkeypatch.setattr(
        module, "rollouts", lambda program, examples, n, **_: [[run("Ohio"), run(NOT_FOUND, 2)]] * n_of[0]
    )
    source = JudgedRollouts(trusted(Judge({"Ohio": error, NOT_FOUND: 0.2})), questions=9, threads=2)
    n_of = [3]
    assert source.make(Reviewer(), [EXAMPLE] * 9, [], 1) == [] and source.counts[0] == {"no verdict": 3}
    n_of = [9]
    with pytest.raises(TrainingError, match=f"no verdict on 9 of 9.*{error}"):
        source.make(Reviewer(), [EXAMPLE] * 9, [], 2)


def test_a_judge_without_a_report_trains_nothing():
    with pytest.raises(JudgeError, match="no report"):
        JudgedRollouts(Judge({}))


def test_the_noise_of_a_judge_is_that_of_two_grades_of_the_same():
    case = Case("Law?", (PASSAGE,))
    items = [(case, Candidate(str(i))) for i in range(12)]
    judge = Judge({str(i): 0.5 for i in range(12)})
    again = Judge({str(i): 0.5 + (0.1 if i % 2 else -0.1) for i in range(12)})
    assert retest_noise(judge, again, items, threads=2) == pytest.approx(0.1)
    assert retest_noise(judge, judge, items, threads=2) == 0.0
    broken = SimpleNamespace(grade=Judge({str(i): JudgeError("?") for i in range(12)}).grade)
    with pytest.raises(TrainingError, match="0 of 12"):
        retest_noise(judge, broken, items, threads=2)
