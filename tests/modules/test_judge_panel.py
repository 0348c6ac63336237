from random import Random

import pytest

from corpora.types import Passage
from modules.judge import Candidate, Case, Grade, JudgeError, Verdict
from modules.judge_length import LengthControl, LengthControlled, fit_length_control, length_difference
from modules.judge_panel import Panel

CASE = Case("Which law governs?", (Passage("c:0", "c", 0, 4, "Ohio"),))
OHIO, TEXAS = Candidate("Ohio"), Candidate("Texas")


class Says:
    def __init__(self, winner, *, stable=True, margin=None, score=0.5):
        self.verdict, self.score = Verdict(winner, margin, stable, f"says {winner}", ""), score

    def compare(self, case, a, b):
        return self.verdict

    def grade(self, case, candidate):
        return Grade(self.score, str(self.score), "")


class Mute:
    def compare(self, case, a, b):
        raise JudgeError("mute")

    def grade(self, case, candidate):
        raise JudgeError("mute")


class Broken(Mute):
    def compare(self, case, a, b):
        raise ConnectionError("away")


@pytest.mark.parametrize(
    "judges, winner, stable",
    [
        ([Says("A"), Says("A"), Says("B")], "A", True),
        ([Says("A"), Says("B")], "tie", True),
        ([Says("A"), Says("tie")], "tie", True),
        ([Says("B"), Says("tie", stable=False), Says("tie", stable=False)], "B", True),
        ([Says("tie", stable=False)], "tie", False),
        ([Mute(), Says("A")], "A", True),
    ],
)
def test_the_majority_of_stable_verdicts_decides(judges, winner, stable):
    verdict = Panel(judges).compare(CASE, OHIO, TEXAS)
    assert (verdict.winner, verdict.stable) == (winner, stable)


def test_who_cannot_be_read_is_left_out_and_counted():
    panel = Panel([Mute(), Says("A", score=1.0), Says("A", score=0.5)])
    assert panel.grade(CASE, OHIO).score == pytest.approx(0.75)
    assert panel.compare(CASE, OHIO, TEXAS).margin == 1.0
    assert list(panel.left_out) == ["mute", "mute"]


def test_a_panel_of_whom_none_can_be_read_is_unreadable():
    with pytest.raises(JudgeError, match="none of 2"):
        Panel([Mute(), Mute()]).compare(CASE, OHIO, TEXAS)
    with pytest.raises(ConnectionError):
        Panel([Broken(), Says("A")]).compare(CASE, OHIO, TEXAS)
    with pytest.raises(ValueError, match="no judges"):
        Panel([])


def test_what_wins_only_by_being_longer_is_a_tie():
    long, short = Candidate("x" * 100), Candidate("x" * 20)
    control = LengthControl(slope=2.0, scale=40.0)
    tied = LengthControlled(Says("A", margin=1.5), control).compare(CASE, long, short)
    assert tied.winner == "tie" and tied.margin < 0
    kept = LengthControlled(Says("A", margin=3.0), control).compare(CASE, long, short)
    assert kept.winner == "A" and kept.margin == pytest.approx(3.0 - 2.0 * 0.9640, abs=1e-3)
    assert LengthControlled(Says("A", margin=1.5), control).compare(CASE, short, long).winner == "A"
    assert LengthControlled(Says("tie"), control).compare(CASE, long, short).winner == "tie"


def test_without_a_margin_length_cannot_be_taken_out():
    with pytest.raises(ValueError, match="no margin"):
        LengthControlled(Says("A"), LengthControl(1.0, 10.0)).compare(CASE, OHIO, TEXAS)


def test_length_is_told_apart_from_truth():
    rng = Random(0)
    truth = [rng.choice((-1, 1)) for _ in range(300)]
    # The right answer is longer more often than not: a plain correlation would blame length for it.
    differences = [rng.gauss(15 * t, 40) for t in truth]
    import math

    scale = fit_length_control([1.0] * 300, differences, truth).scale
    margins = [5 * t + 1.5 * math.tanh(d / scale) + rng.gauss(0, 0.3) for t, d in zip(truth, differences, strict=True)]
    assert fit_length_control(margins, differences, truth).slope == pytest.approx(1.5, abs=0.15)
    assert abs(fit_length_control([5.0 * t for t in truth], differences, truth).slope) < 0.05
    with pytest.raises(ValueError, match="at least 20"):
        fit_length_control(margins[:10], differences[:10], truth[:10])


def test_length_is_that_of_the_folded_answer():
    assert length_difference(Candidate("a  b\n c"), Candidate("a")) == 4
