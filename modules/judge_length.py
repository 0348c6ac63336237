"""Takes out of a margin what length alone adds to it (after length-controlled AlpacaEval, arXiv 2404.04475)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dspy
import numpy as np
from sklearn.linear_model import HuberRegressor

from modules.judge import Candidate, Case, Grade, Judge, Verdict
from modules.judge_scoring import as_prediction


@dataclass(frozen=True, slots=True)
class LengthControl:
    """`slope`: the margin, in the judge's units, that much greater length brings; `scale`: a typical difference.

    Length is in characters of the answer.
    """

    slope: float
    scale: float


class LengthControlled(dspy.Module):
    """A judge whose winner must also win at equal length; otherwise it is a tie.

    margin' = margin - slope * tanh((length A - length B) / scale). Grades are the judge's own. ValueError for a judge
    that gives a winner without a margin: there is nothing to take length out of.
    """

    def __init__(self, judge: Judge, control: LengthControl, tie: float = 0.0) -> None:
        super().__init__()
        self.judge, self.control, self.tie = judge, control, tie

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """The judge's own grade."""
        return self.judge.grade(case, candidate)

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """The judge's verdict with the margin at equal length; a tie where that no longer speaks for the winner."""
        verdict = self.judge.compare(case, a, b)
        if verdict.margin is None:
            if verdict.winner == "tie":
                return verdict
            raise ValueError(
                "the judge gives no margin, so length cannot be taken out of it; use a judge on a local LM, or grades"
            )
        margin = verdict.margin - self.control.slope * math.tanh(length_difference(a, b) / self.control.scale)
        toward = {"A": margin, "B": -margin, "tie": 0.0}[verdict.winner]
        if verdict.winner == "tie" or toward > self.tie:
            return replace(verdict, margin=margin)
        return replace(verdict, winner="tie", margin=margin, reason=f"a tie at equal length: {verdict.reason}")


def length_difference(a: Candidate, b: Candidate) -> int:
    """Characters by which answer A is longer than B, white space folded."""
    return len(" ".join(a.answer.split())) - len(" ".join(b.answer.split()))


def fit_length_control(margins: Sequence[float], differences: Sequence[float], truth: Sequence[int]) -> LengthControl:
    """What length adds to a judge's margins, told apart from what truth adds.

    margin = b * truth + slope * tanh(difference / scale), fitted by Huber's loss since margins in nats have long tails;
    `truth` is +1 where A is right, -1 for B, 0 for neither; `scale` is the differences' standard deviation. The model
    of arXiv 2404.04475, section 3, with margins in place of votes. ValueError below 20 margins or without spread.
    """
    y, d, t = (np.asarray(values, dtype=float) for values in (margins, differences, truth))
    if not len(y) == len(d) == len(t) or len(y) < 20 or not d.std():
        raise ValueError(
            f"{len(y)} margins, {len(d)} differences in length and {len(t)} truths; give at least 20 of each, with "
            "answers of different lengths"
        )
    scale = float(d.std())
    fitted = HuberRegressor(fit_intercept=False, alpha=0.0, max_iter=1000).fit(
        np.column_stack([t, np.tanh(d / scale)]), y
    )
    return LengthControl(float(fitted.coef_[1]), scale)
