"""Several judges as one."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import dspy

from modules.judge import Candidate, Case, Grade, Judge, JudgeError, Verdict
from modules.judge_scoring import as_prediction

Said = TypeVar("Said")


class Panel(dspy.Module):
    """The majority of the judges' stable verdicts, and the mean of their grades.

    A judge that raises JudgeError is left out and counted in `left_out` (its messages, newest last, at most 10,000);
    where all raise, so does the panel. Any other exception is the caller's.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        super().__init__()
        if not judges:
            raise ValueError("a panel of no judges; give at least one")
        self.judges = list(judges)
        self.left_out: deque[str] = deque(maxlen=10_000)

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """The mean score; reason, quote and points are those of the grade nearest to it."""
        grades = self._each(lambda judge: judge.grade(case, candidate))
        score = sum(grade.score for grade in grades) / len(grades)
        nearest = min(grades, key=lambda grade: abs(grade.score - score))
        return Grade(
            score, f"{len(grades)} of {len(self.judges)} graded: {nearest.reason}", nearest.quote, nearest.points
        )

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """What most stable verdicts say, ties among them; as many for one as for another is a tie.

        `margin` is the share of votes for A less that for B. Not stable, and a tie, where no verdict is stable.
        """
        verdicts = self._each(lambda judge: judge.compare(case, a, b))
        stable = [verdict for verdict in verdicts if verdict.stable]
        told = f"{len(stable)} stable of {len(self.judges)} judges"
        if not stable:
            return Verdict("tie", None, False, f"{told}: {verdicts[0].reason}", verdicts[0].quote)
        votes = Counter(verdict.winner for verdict in stable)
        (winner, most), *others = votes.most_common()
        if others and others[0][1] == most:
            winner = "tie"
        spoken = next((verdict for verdict in stable if verdict.winner == winner), stable[0])
        margin = (votes["A"] - votes["B"]) / len(stable)
        return Verdict(winner, margin, True, f"{told}: {spoken.reason}", spoken.quote)

    def _each(self, ask: Callable[[Judge], Said]) -> list[Said]:
        said, failed = [], []
        for judge in self.judges:
            try:
                said.append(ask(judge))
            except JudgeError as error:
                failed.append(error)
        self.left_out.extend(map(str, failed))
        if not said:
            raise JudgeError(f"none of {len(self.judges)} judges can be read; the first: {failed[0]}") from failed[0]
        return said
