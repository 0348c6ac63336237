"""Supervised fine-tuning as a DSPy optimizer: on labels, and on labels that the program writes itself.

    tune = InstructTune(metric=teaches, labels=SelfInstruct(...), score=exact_match, rounds=2)
    program = tune.compile(program, trainset=labelled, teacher=teacher, unlabelled=contracts, valset=val)

What writes and checks labels is told by `labels`, so any program's can be; `program.self_instruct` has this project's.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import dspy

from optimizers.errors import TrainingError
from optimizers.finetuning import Score, finetuned, validating
from optimizers.row_shapes import RowShapes, drawn, shaped
from optimizers.stock import SteadyFinetune

logger = logging.getLogger(__name__)
MAX_COPIES = 8


class SelfLabels(Protocol):
    """What InstructTune asks of a program that can label for itself; no method changes the program that it is given."""

    def make(
        self,
        labeller: dspy.Module,
        trainset: Sequence[dspy.Example],
        unlabelled: Sequence[Any],
        valset: Sequence[dspy.Example],
        round: int,
    ) -> list[dspy.Example]:
        """Examples that `labeller` made of `unlabelled`, checked; all that are kept so far, `round` counted from 1."""

    def teacher(self, student: dspy.Module, examples: Sequence[dspy.Example]) -> dspy.Module:
        """A program that answers each of these examples with its label, asked as `student` is."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: how many labels of people and of the program it was trained on, and the validation score after it.

    Round 0 is trained on people's labels alone. `copies` is how often each of those stood among the rows.
    """

    number: int
    n_human: int
    n_made: int
    copies: int
    score: float


class InstructTune(SteadyFinetune):
    """BootstrapFinetune whose teacher answers under the student's own instructions and demonstrations.

    Stock BootstrapFinetune renders its training rows with the teacher's prompts, so a student compiled by a prompt
    optimizer before it would be trained under one prompt and served under another. Everything else is as in
    SteadyFinetune: examples that fail are left out and counted.

    With `unlabelled` it is self-training (self-instruct, Wang et al. 2022, arXiv 2212.10560): people's labels are
    learnt, what they taught labels the rest, the checked labels are learnt beside people's by the untouched student,
    which labels again, until the score on `valset`, of people's labels only, stops to rise or `rounds` are done. The
    best program is kept, the student itself among them. `human_share` of the rows are people's labels as far as each
    stands there at most MAX_COPIES times. Within a training the weights of the epoch with the best score are kept, and
    it ends after `patience` epochs without a better one. `log` tells the rounds of the last compile.

    With `shapes` (RowShapes) some rows are put in other words, behind demonstrations, or as conversations.
    """

    def __init__(
        self,
        *args: Any,
        labels: SelfLabels | None = None,
        score: Score | None = None,
        rounds: int = 2,
        human_share: float = 0.3,
        patience: int = 1,
        seed: int = 0,
        shapes: RowShapes | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if rounds < 1 or not 0 <= human_share < 1 or patience < 0:
            raise TrainingError(
                f"rounds={rounds!r} must be 1 or more, human_share={human_share!r} 0 or more and below 1, "
                f"patience={patience!r} 0 or more"
            )
        self.labels, self.score, self.rounds = labels, score, rounds
        self.human_share, self.patience, self.seed = human_share, patience, seed
        self.shapes, self._follow_ups = shapes, None
        self.log: list[Round] = []

    def compile(
        self,
        student: dspy.Module,
        trainset: list[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None = None,
        *,
        unlabelled: Sequence[Any] | None = None,
        valset: list[dspy.Example] | None = None,
    ) -> dspy.Module:
        """As SteadyFinetune.compile; the teacher's signatures and demonstrations become the student's.

        A teacher with a method `follow` is given the student first, to take over what else of it shows in prompts.
        With `unlabelled` the teacher is that of `labels`, and `valset` has to be of other contracts than both. Raises
        TrainingError.
        """
        if unlabelled is None:
            return self._fit(student, trainset, teacher)
        if self.labels is None or self.score is None or not valset:
            raise TrainingError("with `unlabelled`, InstructTune needs `labels`, `score` and a valset; give all three")
        self.log = []
        best, best_score = student, self.score(student, valset)
        current = self._round(0, student, trainset, [], valset)
        for number in range(1, self.rounds + 1):
            if self.log[-1].score > best_score:
                best, best_score = current, self.log[-1].score
            elif number > 1:
                break
            made = self.labels.make(current, trainset, unlabelled, valset, number)
            if not made:
                logger.warning("round %d: no label was kept; the filters' counts say why", number)
                break
            current = self._round(number, student, trainset, made, valset)
        return current if self.log[-1].score > best_score else best

    def _round(
        self,
        number: int,
        student: dspy.Module,
        human: list[dspy.Example],
        made: list[dspy.Example],
        valset: list[dspy.Example],
    ) -> dspy.Module:
        """The student trained on both, from its own weights; what a round got wrong does not go on to the next."""
        copies = copies_for(len(human), len(made), self.human_share)
        rows = human * copies + made
        Random(f"{self.seed}/{number}").shuffle(rows)
        kwargs, adapter = self.train_kwargs, self.adapter
        copy = student.deepcopy()
        # What is told by LM is told by the copy's LMs, which are others.
        pairs = [(old.lm, new.lm) for old, new in zip(student.predictors(), copy.predictors(), strict=True)]
        self.adapter = {new: adapter[old] for old, new in pairs}
        self.train_kwargs = {
            new: {
                **kwargs[old],
                "validate": validating(student, old, self.score, valset),
                "patience": self.patience,
            }
            for old, new in pairs
        }
        try:
            tuned = self._fit(copy, rows, self.labels.teacher(student, human + made))
        finally:
            self.train_kwargs, self.adapter = kwargs, adapter
        self.log.append(Round(number, len(human), len(made), copies, self.score(tuned, valset)))
        logger.info("round %d: %.3f after %d + %d labels", number, self.log[-1].score, len(human), len(made))
        return tuned

    def _fit(
        self, student: dspy.Module, trainset: list[dspy.Example], teacher: dspy.Module | list[dspy.Module] | None
    ) -> dspy.Module:
        teachers = teacher if isinstance(teacher, list) else [teacher]
        for each in teachers:
            if hasattr(each, "follow"):
                each.follow(student)
            for theirs, own in zip(each.predictors() if each else [], student.predictors(), strict=False):
                theirs.signature = own.signature
                theirs.demos = [] if self.exclude_demos else own.demos
        self._follow_ups = next((each.follow_ups for each in teachers if hasattr(each, "follow_ups")), None)
        return super().compile(student, trainset=trainset, teacher=teacher)

    def _prepare_finetune_data(self, trace_data: list[dict], lm: dspy.LM, pred_ind: int | None = None) -> Any:
        if self.shapes is None:
            return super()._prepare_finetune_data(trace_data, lm, pred_ind)
        items = [item for item in trace_data if not self.metric or item["score"]]
        chosen = drawn(self.shapes, len(items))
        served = [item for i, item in enumerate(items) if i not in chosen]
        data, told = super()._prepare_finetune_data(served, lm, pred_ind)
        adapter = self.adapter[lm] or dspy.settings.adapter or dspy.ChatAdapter()
        items = self.of_predictor(items, pred_ind)
        data += shaped(self.shapes, chosen, items, adapter, self._follow_ups, exclude_demos=self.exclude_demos)
        Random(f"{self.seed}/shapes").shuffle(data)
        return data, told

    @staticmethod
    def finetune_lms(finetune_dict: dict[Any, dict[str, Any]]) -> dict[Any, dspy.LM]:
        """As BootstrapFinetune.finetune_lms; Ctrl-C ends the training too, which would run on in its thread."""
        return finetuned(finetune_dict)


def copies_for(n_human: int, n_made: int, human_share: float) -> int:
    """How often each of people's labels is among the rows, to be `human_share` of all of them; at most MAX_COPIES."""
    if not n_human or not n_made:
        return 1
    return min(MAX_COPIES, max(1, math.ceil(human_share / (1 - human_share) * n_made / n_human)))
