"""Grades one answer point by point, with or without a reference (LeMAJ, Enguehard et al. 2025, arXiv 2510.07243)."""

import re
from collections import Counter
from collections.abc import Sequence

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.judge import Candidate, Case, Grade, JudgeError, Verdict
from modules.judge_scoring import as_prediction, read_quote, show_answer, show_candidate, show_passages
from modules.reviewer import is_absent
from modules.signatures import NO_REFERENCE, JudgePoints

POINT_VERDICTS = ("Correct", "Incorrect", "Irrelevant", "Missing")
_POINT = re.compile(
    r"[\s\-*•\d.)\[]*(correct|incorrect|irrelevant|missing)\s*\]?\**\s*[:|\-–—]\s*(\S.*)", re.IGNORECASE
)
_NOTHING = re.compile(r"[\s\-*•\d.)]*(?:none|n/a|no points?)\W*", re.IGNORECASE)


class PointJudge(dspy.Module):
    """Takes an answer apart and judges each point; one predictor, `predict`.

    The score is F1 over points, `point_score`. Two answers are compared by their scores, each graded alone, so that no
    position can matter; a difference of at most `tie` is a tie.
    """

    def __init__(self, tie: float = 0.05) -> None:
        super().__init__()
        self.predict = dspy.Predict(JudgePoints)
        self.tie = tie

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """Score, points, reason and a verbatim quote.

        JudgeError where the points, the quote or the reason cannot be read, or where a point of an answer other than
        "not in this contract" is called correct without words of the passages.
        """
        try:
            said = self.predict(
                passages=show_passages(case),
                question=case.question,
                reference=NO_REFERENCE if case.reference is None else show_answer(case.reference),
                candidate=show_candidate(candidate),
            )
        except AdapterParseError as error:
            raise JudgeError(f"the verdict cannot be read: {str(error)[:200]}") from error
        points, quote, reason = read_points(said.points), read_quote(said.quote, case), read_reason(said.reason)
        correct = any(verdict == "Correct" for _, verdict in points)
        if correct and not quote and not is_absent(candidate.answer):
            raise JudgeError(f"{candidate.answer[:80]!r} is called correct without a quote; ask again or leave it out")
        return Grade(point_score([verdict for _, verdict in points]), reason, quote, points)

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """By the difference of the two scores, which is the margin."""
        return by_grades(self.grade(case, a), self.grade(case, b), self.tie)


def point_score(verdicts: Sequence[str]) -> float:
    """2C / (2C + I + R + M) of C correct, I incorrect, R irrelevant and M missing points, in [0, 1].

    The harmonic mean of precision C / (C + I + R) and recall C / (C + M): LeMAJ's four verdicts as one number, an
    incorrect point counted against precision as an irrelevant one is. ValueError for no points.
    """
    counts = Counter(verdicts)
    if not verdicts or not set(counts) <= set(POINT_VERDICTS):
        raise ValueError(f"verdicts are {list(verdicts)}; give at least one, each of {POINT_VERDICTS}")
    return 2 * counts["Correct"] / (len(verdicts) + counts["Correct"])


def read_points(said: str) -> tuple[tuple[str, str], ...]:
    """(point, verdict) of each line; JudgeError where a line has no verdict, or there is none."""
    lines = [line.strip() for line in (said or "").splitlines() if line.strip() and not _NOTHING.fullmatch(line)]
    matches = [_POINT.fullmatch(line) for line in lines]
    if not matches or not all(matches):
        bad = next((line for line, match in zip(lines, matches, strict=True) if not match), "")
        raise JudgeError(f"the point {bad[:80]!r} has none of the verdicts {POINT_VERDICTS}; ask again or leave it out")
    return tuple((match[2].strip(), match[1].capitalize()) for match in matches)


def read_reason(said: str) -> str:
    """A reason as one line; JudgeError where there is none."""
    reason = " ".join((said or "").split())
    if not reason:
        raise JudgeError("the verdict gives no reason; ask again or leave it out")
    return reason


def by_grades(a: Grade, b: Grade, tie: float) -> Verdict:
    """The higher score wins, a difference of at most `tie` is a tie; reason and quote are the winner's."""
    margin = a.score - b.score
    winner = "tie" if abs(margin) <= tie else "A" if margin > 0 else "B"
    better = b if winner == "B" else a
    return Verdict(winner, margin, True, f"{a.score:.2f} against {b.score:.2f}: {better.reason}", better.quote)
