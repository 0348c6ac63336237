"""A reward model as a judge, and what is known of it: held-out accuracy, calibration, agreement, length bias.

    judge = RewardJudge(reward, adapter, program.reviewer.predict)
    judge.compare(case, Candidate("Ohio", ("the laws of the State of Ohio",)), Candidate("Utah"))

It reads no reasons and gives none beyond its numbers. Its rewards mean something between answers to one prompt alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy
import numpy as np
from dspy import lm15
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from corpora.types import Passage
from modules.grounding import locate
from modules.judge import Candidate, Case, Grade, Judge, JudgeError, Verdict
from modules.judge_scoring import show_passages
from modules.reviewer import is_absent
from modules.signatures import NOT_FOUND, ReviewPassages, join_quotes
from optimizers.errors import ModelError
from optimizers.reward import RankedPair, RewardModel
from optimizers.reward_calibration import Calibration, ReliabilityBin, confidences, ece, reliability
from program.intervals import Interval, mean_interval, ratio_interval

PEOPLE = ("edit", "choice", "rating", "thumb")
ABSENCE = Candidate(NOT_FOUND)
Duel = tuple[Case, Candidate, Candidate, str]  # the last is the contract's id


class RewardJudge:
    """A `Judge` by a calibrated reward model: each answer is scored alone, so no position can sway it.

    Answers are put as the reviewer would say them, under its own prompt: `predictor` is the program's (None: a fresh
    one of `ReviewPassages`, without demonstrations). Probabilities are sigmoid(difference / temperature). Differences
    (in nats, over the temperature) no larger than `tie_margin` are ties. Raises ModelError for a model without
    calibration.
    """

    def __init__(
        self,
        model: RewardModel,
        adapter: dspy.Adapter,
        predictor: dspy.Predict | None = None,
        *,
        tie_margin: float = 0.0,
    ) -> None:
        self.calibration = calibrated(model)
        self.model, self.adapter, self.tie_margin = model, adapter, tie_margin
        self.signature = ReviewPassages if predictor is None else predictor.signature
        self.demos = [] if predictor is None else predictor.demos

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """The probability that the answer is better than "not in this contract" under the same prompt.

        That answer itself is graded against the mean reward of the validation pairs: the rougher of the two, since
        rewards of different prompts are less comparable. Raises JudgeError where the prompt does not fit.
        """
        if is_absent(candidate.answer):
            (reward,), against, named = self._rewards(case, candidate), self.calibration.center, "the mean answer"
        else:
            (reward, against), named = self._rewards(case, candidate, ABSENCE), f'"{NOT_FOUND}"'
        score = float(expit((reward - against) / self.calibration.temperature))
        reason = f"Reward {reward:.2f} against {against:.2f} for {named}: better with probability {score:.2f}."
        return Grade(score, reason, _standing(candidate, case.passages))

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """The answer of the higher reward; `margin` is the log odds (nats) that A is better. Always stable."""
        first, second = self._rewards(case, a, b)
        margin = (first - second) / self.calibration.temperature
        winner = "tie" if abs(margin) <= self.tie_margin else "A" if margin > 0 else "B"
        reason = f"Rewards {first:.2f} and {second:.2f}: A is better with probability {float(expit(margin)):.2f}."
        quote = "" if winner == "tie" else _standing(a if winner == "A" else b, case.passages)
        return Verdict(winner, margin, True, reason, quote)

    def _rewards(self, case: Case, *candidates: Candidate) -> list[float]:
        inputs = {"passages": show_passages(case), "question": case.question}
        messages = self.adapter.format(self.signature, self.demos, inputs)
        texts = [
            self.adapter.format_assistant_message_content(
                self.signature, {"quotes": join_quotes(list(one.quotes)), "answer": one.answer}
            )
            for one in (ABSENCE if is_absent(candidate.answer) else candidate for candidate in candidates)
        ]
        try:
            return self.model.scores([messages] * len(texts), texts)
        except lm15.ContextLengthError as err:
            raise JudgeError(f"no reward for {case.question[:60]!r}: {err}") from err


def calibrated(model: RewardModel) -> Calibration:
    """The model's calibration. Raises ModelError where none was fitted."""
    if model.calibration is None:
        raise ModelError(f"{model.name!r} was trained without validation pairs and has no temperature; give val_pairs")
    return model.calibration


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Whether the longer text wins for being longer; lengths in characters.

    `correlation` is Spearman's, of the difference in reward with that in length, both better minus worse: 0 where the
    reward does not look at length, 1 where it is nothing else. Accuracies are of the pairs whose better text is the
    longer, and the shorter. `longer_among_wrong`: of the wrong verdicts, the share that the longer text won. All are
    nan where there is nothing to measure.
    """

    correlation: float
    accuracy_longer_better: float
    accuracy_shorter_better: float
    longer_among_wrong: float
    n_longer_better: int
    n_shorter_better: int


@dataclass(frozen=True, slots=True)
class RewardReport:
    """What held-out pairs say of a reward model; all intervals by bootstrap over contracts.

    `accuracy` counts a tie as half. `people`, `judge` and `gold` are the same over the pairs ranked by them, None where
    there are none. `ece` is the expected calibration error of P(chosen better) over `bins`, at the temperature fitted
    on `n_calibration` other pairs; `ece_raw` at temperature 1. Resampling makes an ECE larger on the average, so the
    interval stands a little high.
    """

    model: str
    n: int
    accuracy: Interval
    people: Interval | None
    judge: Interval | None
    gold: Interval | None
    temperature: float
    n_calibration: int
    ece: Interval
    ece_raw: Interval
    bins: tuple[ReliabilityBin, ...]
    length: LengthBias
    seed: int


def reward_report(model: RewardModel, pairs: Sequence[RankedPair], *, n_bins: int = 10, seed: int = 0) -> RewardReport:
    """Score held-out pairs and say how far the model is to be trusted.

    Raises ModelError for no pairs, a model without calibration, or pairs of contracts that it learnt from or was
    calibrated on.
    """
    calibration = calibrated(model)
    if not pairs:
        raise ModelError("no held-out pairs to report on; keep some contracts' pairs back")
    if seen := set(model.record["groups"]) & {pair.group for pair in pairs}:
        raise ModelError(
            f"{len(seen)} contracts of these pairs are among those {model.name!r} was made with (the first: "
            f"{min(seen)!r}); report on others"
        )
    both = model.scores(
        [pair.messages for pair in pairs for _ in range(2)], [text for p in pairs for text in (p.chosen, p.rejected)]
    )
    difference = np.array(both[0::2]) - np.array(both[1::2])
    clusters = [pair.group or f"pair {index}" for index, pair in enumerate(pairs)]
    _, right = confidences(difference, calibration.temperature)

    def among(belongs: Callable[[str], bool]) -> Interval | None:
        places = [i for i, pair in enumerate(pairs) if belongs(pair.source)]
        return mean_interval(right[places], [clusters[i] for i in places], seed=seed) if places else None

    def calibration_error(temperature: float) -> Interval:
        return ratio_interval(reliability(difference, temperature, n_bins)[1], clusters, ece, seed=seed)

    return RewardReport(
        model=model.name,
        n=len(pairs),
        accuracy=mean_interval(right, clusters, seed=seed),
        people=among(PEOPLE.__contains__),
        judge=among("judge".__eq__),
        gold=among("gold".__eq__),
        temperature=calibration.temperature,
        n_calibration=calibration.n_pairs,
        ece=calibration_error(calibration.temperature),
        ece_raw=calibration_error(1.0),
        bins=tuple(reliability(difference, calibration.temperature, n_bins)[0]),
        length=length_bias(difference, [len(p.chosen) - len(p.rejected) for p in pairs]),
        seed=seed,
    )


def length_bias(difference: Sequence[float], longer_by: Sequence[int]) -> LengthBias:
    """Length bias from differences in reward and in length, both better minus worse."""
    difference, longer_by = np.asarray(difference, dtype=float), np.asarray(longer_by)
    right = (np.sign(difference) + 1) / 2
    longer, shorter, wrong = longer_by > 0, longer_by < 0, (right == 0) & (longer_by != 0)
    varies = len(set(difference)) > 1 and len(set(longer_by)) > 1

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return LengthBias(
        correlation=float(spearmanr(difference, longer_by).statistic) if varies else float("nan"),
        accuracy_longer_better=mean(right[longer]),
        accuracy_shorter_better=mean(right[shorter]),
        longer_among_wrong=mean(shorter[wrong].astype(float)),
        n_longer_better=int(longer.sum()),
        n_shorter_better=int(shorter.sum()),
    )


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two judges name the same winner (ties are a winner too), and Cohen's kappa.

    `n_unread` duels are left out: one of the judges could not be read.
    """

    same: Interval
    kappa: float
    n_unread: int


def agreement(first: Judge, second: Judge, duels: Sequence[Duel], *, seed: int = 0) -> Agreement:
    """Ask two judges the same. Raises JudgeError if neither could be read together even once."""
    winners, clusters = [], []
    for case, a, b, contract_id in duels:
        try:
            winners.append((first.compare(case, a, b).winner, second.compare(case, a, b).winner))
        except JudgeError:
            continue
        clusters.append(contract_id)
    if not winners:
        raise JudgeError(f"of {len(duels)} duels none was read by both judges; look at their errors")
    same = mean_interval([float(one == other) for one, other in winners], clusters, seed=seed)
    return Agreement(same, float(cohen_kappa_score(*zip(*winners, strict=True))), len(duels) - len(winners))


def _standing(candidate: Candidate, passages: Sequence[Passage]) -> str:
    """The first of the candidate's quotes that stands in the passages, in their words; "" where none does."""
    places = (locate(quote, list(passages)) for quote in candidate.quotes)
    return next((place.text for place in places if place), "")
