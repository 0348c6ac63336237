"""On-policy preferences: several samples of the program for each question, judged; the best before a typical bad one.

The judge is one with a report that speaks for it (`TrustedJudge`). Not handled: rollouts that were shown different
passages; there is no prompt that both were said to.
"""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.degenerate import degenerate
from modules.judge import Candidate, Case, Judge, JudgeError
from optimizers.errors import TrainingError
from optimizers.parallel import in_parallel
from optimizers.preference_rollouts import LMCall, Rollout, rollouts
from optimizers.preference_types import Preference
from program.judging.trust import TrustedJudge

logger = logging.getLogger(__name__)
SIGMAS = 2.0
MAX_UNJUDGED_SHARE = 0.3
NO_VERDICT = "no verdict"


@dataclass
class JudgedRollouts:
    """`Preferences` of `n` samples at `temperature` for each of `questions` training questions a round, drawn anew.

    Chosen is the best score; rejected the one nearest to mean - 2 standard deviations of the question's scores (arXiv
    2502.16825), not the worst, which teaches little. Between them has to lie more than `noise`, the deviation of two
    grades of the same (`retest_noise`), and `judge.compare` has to say the same, stably, by more than its own noise.
    What is unreadable or degenerate has score 0 and is never chosen. `counts` has one Counter a round: what became of
    each question. JudgeError for a judge that is not trusted.
    """

    judge: TrustedJudge
    n: int = 4
    questions: int = 64
    temperature: float = 1.0
    noise: float = 0.05
    threads: int = 16
    seed: int = 0
    counts: list[Counter[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.judge, TrustedJudge):
            raise JudgeError(
                f"{type(self.judge).__name__} has no report that speaks for it, so nothing may be trained on what it "
                "says; measure it (`evergreen judge`) and give TrustedJudge(judge, report)"
            )

    def make(
        self, program: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example], round: int
    ) -> list[Preference]:
        """As `Preferences.make`. TrainingError where too many runs or verdicts fail."""
        drawn = Random(f"{self.seed}/{round}").sample(list(trainset), min(self.questions, len(trainset)))
        runs = rollouts(
            program, drawn, self.n, temperature=self.temperature, threads=self.threads, first_id=1 + round * self.n
        )
        outcomes = in_parallel(self._judged, runs, threads=self.threads, progress=False)
        counts = Counter(why for _, why, _ in outcomes)
        self.counts.append(counts)
        logger.info("round %d: %d questions, %s", round, len(drawn), dict(counts))
        errors = [error for *_, error in outcomes if error is not None]
        if len(errors) > max(3, MAX_UNJUDGED_SHARE * len(drawn)):
            raise TrainingError(
                f"no verdict on {len(errors)} of {len(drawn)} questions (limit {MAX_UNJUDGED_SHARE:.0%}); mend the "
                f"judge, or ask another; the first: {type(errors[0]).__name__}: {errors[0]}"
            ) from errors[0]
        return [made for made, *_ in outcomes if made is not None]

    def _judged(self, runs: Sequence[Rollout]) -> tuple[Preference | None, str, Exception | None]:
        try:
            return *self._pair(runs), None
        except Exception as err:  # an unreadable verdict, or a failed call: no verdict either way, and counted
            return None, NO_VERDICT, err

    def _pair(self, runs: Sequence[Rollout]) -> tuple[Preference | None, str]:
        said = [(run, told) for run in runs if (told := judgeable(run))]
        cases = {case for _, (case, _) in said}
        if len(cases) != 1:
            return None, "different passages, or nothing readable"
        case = cases.pop()
        why_not = {candidate: degenerate(case, candidate) for _, (_, candidate) in said}
        score = {each: 0.0 if why else self.judge.grade(case, each).score for each, why in why_not.items()}
        options = [(score[each], each, run) for run, (_, each) in said]
        options += [(0.0, None, run) for run in runs if is_unreadable(run) and run.calls]
        # A quote that stands nowhere was dropped from the review, and would be taught with the text. What is degenerate
        # has nothing below it.
        may_win = [each is not None and not run.prediction.get("n_dropped_quotes") for _, each, run in options]
        picked = pick_pair([value for value, *_ in options], may_win, self.noise)
        if picked is None:
            return None, "no difference above the judge's noise"
        (high, better, best), (low, worse, worst) = (options[i] for i in picked)
        # What is no answer needs no comparing; a judge might even be won over by it.
        if worse is not None and not why_not[worse] and not self._agrees(case, better, worse):
            return None, "comparison does not agree"
        if (calls := differing(best, worst)) is None:
            return None, "no prompt in common"
        (chosen, rejected), example = calls, best.example
        return Preference(
            chosen.predictor, chosen.inputs, chosen.text, rejected.text, example.contract_id, example.question, "judge",
            None, high - low,
        ), "pair"  # fmt: skip

    def _agrees(self, case: Case, best: Candidate, worst: Candidate) -> bool:
        verdict = self.judge.compare(case, best, worst)
        clear = verdict.margin is None or self.judge.noise is None or abs(verdict.margin) > self.judge.noise
        return verdict.stable and verdict.winner == "A" and clear


def pick_pair(scores: Sequence[float], may_win: Sequence[bool], noise: float) -> tuple[int, int] | None:
    """Places of the chosen and the rejected score; None where none lies more than `noise` below the best.

    The first of the best that `may_win`; of those below it by more than `noise`, the one nearest to mean - 2 sigma of
    all scores (sigma of the population).
    """
    able = [i for i, may in enumerate(may_win) if may]
    if len(scores) < 2 or not able:
        return None
    best = max(able, key=lambda i: scores[i])
    below = [i for i, score in enumerate(scores) if scores[best] - score > noise]
    if not below:
        return None
    aim = statistics.fmean(scores) - SIGMAS * statistics.pstdev(scores)
    return best, min(below, key=lambda i: abs(scores[i] - aim))


def judgeable(run: Rollout) -> tuple[Case, Candidate] | None:
    """The case and the candidate of a readable run; None for one that failed or cannot be read."""
    said = run.prediction
    if said is None or not said.get("readable", True):
        return None
    passages = tuple(sorted(said.passages, key=lambda p: (p.contract_id, p.start)))
    return Case(run.example.question, passages), Candidate(said.answer, tuple(quote.text for quote in said.quotes))


def differing(best: Rollout, worst: Rollout) -> tuple[LMCall, LMCall] | None:
    """The first calls of the two in which an LM was asked the same and wrote something else."""
    for one in best.calls:
        for other in worst.calls:
            if one.messages == other.messages and one.predictor == other.predictor and one.text != other.text:
                if one.inputs is not None:
                    return one, other
    return None


def retest_noise(judge: Judge, again: Judge, items: Sequence[tuple[Case, Candidate]], *, threads: int = 8) -> float:
    """Standard deviation of the difference of two grades of the same, asked of `judge` and of another sample, `again`.

    What cannot be read is left out; TrainingError where fewer than 10 are left.
    """

    def both(item: tuple[Case, Candidate]) -> tuple[float | None]:
        try:
            return (judge.grade(*item).score - again.grade(*item).score,)
        except JudgeError:
            return (None,)

    gaps = [gap for (gap,) in in_parallel(both, list(items), threads=threads, progress=False) if gap is not None]
    if len(gaps) < 10:
        raise TrainingError(f"{len(gaps)} of {len(items)} grades could be read twice; 10 are needed for a noise")
    return math.sqrt(statistics.fmean(gap * gap for gap in gaps))


def is_unreadable(run: Rollout) -> bool:
    """Whether something was written that cannot be read; a run that failed is not."""
    if run.prediction is None:
        return isinstance(run.error, AdapterParseError)
    return not run.prediction.get("readable", True)
