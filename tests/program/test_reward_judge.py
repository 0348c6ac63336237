"""A reward model as a judge, on rewards that are dealt by hand; and the report on pairs whose answer is known."""

import math
from types import SimpleNamespace

import dspy
import numpy as np
import pytest

from corpora.types import Passage
from modules.judge import Candidate, Case, JudgeError, Verdict
from modules.signatures import NOT_FOUND, ReviewPassages
from optimizers.errors import ModelError
from optimizers.reward import RankedPair
from optimizers.reward_calibration import Calibration
from program.judging.reward_judge import RewardJudge, agreement, length_bias, reward_report

TEXT = "This Agreement is governed by the laws of the State of Ohio."
CASE = Case(
    "Which law governs?", (Passage("p1", "c1", 100, 100 + len(TEXT), TEXT), Passage("p0", "c1", 0, 6, "Openin"))
)
OHIO, UTAH = Candidate("Ohio", ("laws of the  State of Ohio",)), Candidate("Utah", ("the State of Utah",))
ADAPTER, FITTED = dspy.ChatAdapter(), Calibration(temperature=2.0, center=0.5, n_pairs=40)


class Rewards:
    """Gives the reward of the first word of `by_word` that stands in a text."""

    def __init__(self, by_word, calibration=FITTED, groups=()):
        self.by_word, self.calibration, self.name = by_word, calibration, "reward-0"
        self.record, self.asked = {"groups": list(groups)}, []

    def scores(self, messages_list, texts):
        self.asked += list(zip(messages_list, texts, strict=True))
        return [next(value for word, value in self.by_word.items() if word in text) for text in texts]


def judge(**by_word):
    words = {word.replace("_", " "): value for word, value in by_word.items()}
    return RewardJudge(Rewards({"not in this": 0.0, **words}), ADAPTER)


def test_a_grade_is_the_probability_of_being_better_than_absence():
    grade = judge(Ohio=3.0).grade(CASE, OHIO)
    assert grade.score == pytest.approx(1 / (1 + math.exp(-3 / 2)))
    assert grade.quote == "laws of the State of Ohio"
    assert "3.00" in grade.reason
    worse = judge(Utah=-1.0).grade(CASE, UTAH)
    assert worse.score == pytest.approx(1 / (1 + math.exp(1 / 2)))
    assert worse.quote == ""  # its quote stands nowhere


def test_absence_is_graded_against_the_mean_answer():
    for said in (NOT_FOUND, "Not in this contract."):  # one answer, however it is spelt
        grade = judge().grade(CASE, Candidate(said, ("Ohio",)))
        assert grade.score == pytest.approx(1 / (1 + math.exp(0.5 / 2)))
    assert judge(Ohio=3.0).compare(CASE, Candidate("Not in this Contract"), Candidate(NOT_FOUND)).winner == "tie"


def test_a_comparison_does_not_depend_on_the_order():
    by_reward = judge(Ohio=3.0, Utah=-1.0)
    first, second = by_reward.compare(CASE, OHIO, UTAH), by_reward.compare(CASE, UTAH, OHIO)
    assert (first.winner, second.winner) == ("A", "B")
    assert first.margin == -second.margin == pytest.approx(2.0)  # nats: a difference of 4 at temperature 2
    assert first.stable and second.stable
    assert first.quote == second.quote == "laws of the State of Ohio"
    assert by_reward.compare(CASE, OHIO, OHIO).winner == "tie"
    banded = RewardJudge(by_reward.model, ADAPTER, tie_margin=2.5)
    assert banded.compare(CASE, OHIO, UTAH).winner == "tie"
    assert banded.compare(CASE, OHIO, UTAH).margin == pytest.approx(2.0)


def test_answers_are_put_as_the_reviewer_says_them_under_its_own_prompt():
    predictor = dspy.Predict(ReviewPassages.with_instructions("Read with care."))
    predictor.demos = [dspy.Example(passages="[1] x", question="Who?", quotes="x", answer="Somebody")]
    model = Rewards({"": 0.0})
    RewardJudge(model, ADAPTER, predictor).compare(CASE, OHIO, Candidate(NOT_FOUND))
    inputs = {"passages": f"[1] Openin\n[2] {TEXT}", "question": CASE.question}  # in the contract's order
    expected = ADAPTER.format(predictor.signature, predictor.demos, inputs)
    assert [messages for messages, _ in model.asked] == [expected] * 2
    said = [{"quotes": "laws of the State of Ohio", "answer": "Ohio"}, {"quotes": "none", "answer": NOT_FOUND}]
    assert [text for _, text in model.asked] == [
        ADAPTER.format_assistant_message_content(ReviewPassages, s) for s in said
    ]


def test_what_does_not_fit_is_no_verdict_and_no_calibration_no_judge():
    class TooLong(Rewards):
        def scores(self, messages_list, texts):
            raise dspy.lm15.ContextLengthError("9 tokens", provider="local")

    with pytest.raises(JudgeError, match="9 tokens"):
        RewardJudge(TooLong({}), ADAPTER).compare(CASE, OHIO, UTAH)
    with pytest.raises(ModelError, match="no temperature; give val_pairs"):
        RewardJudge(Rewards({}, calibration=None), ADAPTER)


def ranked(i, reward_word="good", other="bad", **kwargs):
    return RankedPair(({"role": "user", "content": f"{i}"},), reward_word, other, f"c{i % 5}", **kwargs)


def test_the_report_on_known_verdicts():
    model = Rewards({"good": 2.0, "bad": 0.0})
    pairs = [ranked(i, source="choice") for i in range(15)] + [
        ranked(i, "bad", "good", source="judge") for i in range(5)
    ]
    report = reward_report(model, pairs, n_bins=5)
    assert report.accuracy.mean == pytest.approx(0.75)
    assert report.accuracy.n_clusters == 5
    assert (report.people.mean, report.people.n) == (1.0, 15)
    assert (report.judge.mean, report.judge.n) == (0.0, 5)
    assert report.gold is None
    stated = 1 / (1 + math.exp(-2 / 2))
    assert report.ece.mean == pytest.approx(abs(stated - 0.75))
    assert report.ece_raw.mean == pytest.approx(1 / (1 + math.exp(-2)) - 0.75)
    assert [(b.n, round(b.accuracy, 2)) for b in report.bins] == [(20, 0.75)]
    assert (report.temperature, report.n_calibration) == (2.0, 40)


def test_a_tie_is_half_right():
    report = reward_report(Rewards({"good": 1.0, "bad": 1.0}), [ranked(i) for i in range(10)])
    assert report.accuracy.mean == 0.5


def test_no_report_on_what_was_learnt_from():
    with pytest.raises(ModelError, match=r"1 contracts .*the first: 'c3'"):
        reward_report(Rewards({"good": 1.0, "bad": 0.0}, groups=["c3", "x"]), [ranked(i) for i in range(5)])
    with pytest.raises(ModelError, match="no held-out pairs"):
        reward_report(Rewards({}), [])


def test_a_reward_that_is_nothing_but_length_is_found_out():
    rng = np.random.default_rng(0)
    longer_by = rng.integers(-50, 50, 400)
    told = length_bias(longer_by * 0.1, longer_by)
    assert told.correlation == pytest.approx(1)
    assert (told.accuracy_longer_better, told.accuracy_shorter_better, told.longer_among_wrong) == (1, 0, 1)
    blind = length_bias(rng.normal(1, 1, 400), longer_by)
    assert abs(blind.correlation) < 0.1
    assert blind.accuracy_longer_better == pytest.approx(blind.accuracy_shorter_better, abs=0.1)
    assert math.isnan(length_bias([1.0, 1.0], [3, 4]).correlation)
    assert math.isnan(length_bias([1.0, 2.0], [3, 4]).longer_among_wrong)


def test_agreement_leaves_out_what_was_not_read():
    def saying(*winners):
        said = iter(winners)

        def compare(case, a, b):
            winner = next(said)
            if winner is None:
                raise JudgeError("unread")
            return Verdict(winner, None, True, "", "")

        return SimpleNamespace(compare=compare)

    duels = [(CASE, OHIO, UTAH, f"c{i}") for i in range(5)]
    told = agreement(saying("A", "B", "A", "tie", None), saying("A", "B", "B", "tie", "A"), duels)
    assert (told.same.mean, told.same.n, told.n_unread) == (0.75, 4, 1)
    assert told.kappa == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
    with pytest.raises(JudgeError, match="of 5 duels none"):
        agreement(saying(*[None] * 5), saying(*"AAAAA"), duels)
