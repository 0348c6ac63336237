"""Self-distillation fine-tuning (SDFT) as a DSPy optimizer: the model with the demonstration teaches itself without it.

    tune = SelfDistill(score=mean_score(32), metric=teaches, train_kwargs={**SDFT_PAPER, "rank": 16})
    program = tune.compile(program, trainset=labelled, valset=val, teacher=LabelTeacher(index, labelled + val))
    tune.log.paid, tune.log.teacher_score, tune.log.generation_share

Labels are demonstrations. The student, under the prompt it is served with, answers; the same model whose prompt also
holds the demonstration says, token by token, what it would have said; the student moves towards that (Shenfeld et al.
2026, arXiv:2601.19897). It can pay only where the demonstration makes the model better, so that is measured first.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from optimizers.distill_demonstrations import (
    Demonstrated,
    Demonstration,
    Demonstrations,
    Metric,
    Template,
    answer_text,
    as_turns,
    demonstrate,
)
from optimizers.errors import TrainingError
from optimizers.finetuning import Score, serving_prompt, tuned_copy, validating
from optimizers.local_lm.prompts import encode_prompt
from optimizers.local_lm.provider import LocalProvider
from optimizers.local_lm.training.settings import SelfDistillSettings, settings_from
from optimizers.preference_policy import kl_from_incumbent, mean_length

logger = logging.getLogger(__name__)
# What the authors' code trains with (forward KL on full logits; one answer a prompt, fresh at every step). Rate and
# batch size are left to the tuner: theirs are of full fine-tuning at 7 billion parameters.
SDFT_PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "divergence": "forward_kl", "top_k": None, "teacher": "ema", "ema_rate": 0.01, "skip_tokens": 3,
        "refresh": 1, "rollout_temperature": 1.0, "temperature": 1.0,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Round:
    """The steps up to `step` on one set of the student's answers: means of the loss (in the divergence's own units), of
    `kl` (nats per token; see SelfDistillTrainer), of the answers' tokens, and the share of them cut off."""

    step: int
    divergence: float
    kl: float
    answer_tokens: float
    truncated: float


@dataclass(frozen=True, slots=True)
class DistillLog:
    """What a compile found. Scores are `score`'s, on validation examples.

    `plain_score` and `teacher_score`: the incoming program without and with the demonstration, on those examples that
    have one; `paid` says that the second is above the first by the margin, without which nothing is trained and what
    follows is None or empty. `student_score`, `tuned_score`: all of `valset`, before and after; `kept` says that the
    second is not below the first, else the student came back. `kl`: KL(tuned || incumbent), nats per token, on own
    samples; `lengths`: mean characters of answers, before and after. `generation_share`: of the training's seconds,
    those that the rollouts took.
    """

    demonstrations: int
    failed: int
    refused: int
    plain_score: float
    teacher_score: float
    paid: bool
    student_score: float | None = None
    tuned_score: float | None = None
    kept: bool = False
    kl: float | None = None
    lengths: tuple[float, float] | None = None
    rounds: tuple[Round, ...] = ()
    generation_share: float | None = None
    seconds: float = 0.0


class SelfDistill(Teleprompter):
    """Fine-tunes a program's LMs on its own answers towards itself with demonstrations.

    `score(program, examples)`, higher is better, decides. `metric(example, prediction)` leaves out demonstrations of
    the teacher for which it is false. `train_kwargs`: fields of SelfDistillSettings (SDFT_PAPER is the published set)
    and of the tuner; `adapter`: that of serving, None for DSPy's configured one. `template` makes the teacher's prompt
    of the student's and the demonstrated answer. `margin`: by how much the demonstration must raise the score on
    validation examples; below it `compile` warns, says `log.paid=False` and gives the student back as it came, so that
    a recipe goes on with its next step. Training ends after `patience` epochs without a better validation score. The
    simple gate: a tuned program that scores below the student is not given back. `log` tells of the last compile.

    Needs local LMs: the teacher's distributions and the student's weights are not to be had of a remote one.
    """

    def __init__(
        self,
        *,
        score: Score,
        metric: Metric | None = None,
        train_kwargs: Mapping[str, Any] | None = None,
        adapter: dspy.Adapter | None = None,
        template: Template = as_turns,
        margin: float = 0.05,
        patience: int = 1,
        max_failed: float = 0.1,
        num_threads: int = 8,
    ) -> None:
        super().__init__()
        self.score, self.metric, self.adapter, self.template = score, metric, adapter, template
        self.margin, self.patience, self.max_failed, self.num_threads = margin, patience, max_failed, num_threads
        self.train_kwargs = {**(train_kwargs or {}), "method": "sdft"}
        settings_from(self.train_kwargs)
        self.log: DistillLog | None = None

    def compile(
        self,
        student: dspy.Module,
        trainset: list[dspy.Example],
        *,
        valset: list[dspy.Example] | None = None,
        teacher: dspy.Module | None = None,
    ) -> dspy.Module:
        """The tuned program, or `student` itself (see the class); `student` is not changed.

        `teacher` answers the examples of both sets with their labels (as InstructTune's does; its prompts become the
        student's); None: the examples' own fields are the predictors' outputs. Raises TrainingError for nothing to
        learn from, demonstrations longer than the context, or a teacher that is asked what the student is asked.
        """
        began, self.log = time.perf_counter(), None
        if not trainset or not valset:
            raise TrainingError(
                f"SelfDistill got {len(trainset)} training and {len(valset or ())} validation examples; it needs both, "
                "of different contracts"
            )
        _check_local(student)
        adapter = self.adapter or dspy.settings.adapter or dspy.ChatAdapter()
        with dspy.context(adapter=adapter):
            shown, held = (self._demonstrate(student, each, teacher, adapter) for each in (trainset, valset))
            rows = self._rows(student, shown.shown, adapter)
            self._rows(student, held.shown, adapter)  # that these, too, fit and differ
            self.log = self._condition(student, shown, held, adapter)
            if not self.log.paid:
                logger.warning(
                    "self-distillation would not pay: the demonstration moves the score from %.3f to %.3f, less than "
                    "%.3f more; nothing was trained", self.log.plain_score, self.log.teacher_score, self.margin,
                )  # fmt: skip
                return student
            tuned = self._train(student, rows, valset, adapter)
            return self._gate(student, tuned, valset, began)

    def _demonstrate(
        self, student: dspy.Module, examples: Sequence[dspy.Example], teacher: dspy.Module | None, adapter: dspy.Adapter
    ) -> Demonstrations:
        found = demonstrate(
            student, examples, teacher, adapter,
            metric=self.metric, max_failed=self.max_failed, threads=self.num_threads,
        )  # fmt: skip
        if not found.shown:
            raise TrainingError(
                f"none of {found.given} examples gave a demonstration: {found.failed} failed, the metric refused "
                f"{found.refused}"
            )
        return found

    def _rows(
        self, student: dspy.Module, shown: Sequence[Demonstration], adapter: dspy.Adapter
    ) -> dict[int, list[dict[str, Any]]]:
        """{"prompt", "teacher_prompt", "group"} rows by the identity of the LM that is asked."""
        rows: dict[int, list[dict[str, Any]]] = {}
        lengths = []
        for one in shown:
            lm, prompt = student.predictors()[one.predictor].lm, serving_prompt(student, one, adapter)
            taught = self.template(prompt, answer_text(student, one, adapter))
            if taught == prompt:
                raise TrainingError(
                    "teacher and student have one prompt, so there is nothing to distil: the template has to put the "
                    f"demonstration into it; it starts {str(prompt[-1]['content'])[:80]!r}"
                )
            group = one.example.get("contract_id") or one.example.get("group")
            row = {"prompt": prompt, "teacher_prompt": taught} | ({} if group is None else {"group": group})
            rows.setdefault(id(lm), []).append(row)
            lengths.append(len(encode_prompt(lm.engine.weights, taught)) + self._max_tokens(lm))
        limit = min(p.lm.engine.weights.context_tokens for p in student.predictors())
        if too_long := [n for n in lengths if n > limit]:
            raise TrainingError(
                f"{len(too_long)} of {len(lengths)} demonstrations do not fit: the teacher's prompt and an answer take "
                f"up to {max(too_long)} tokens, the context is {limit}; show fewer or shorter passages, lower "
                "max_tokens, or give a template that repeats less (in_question)"
            )
        return rows

    def _max_tokens(self, lm: dspy.LM) -> int:
        return self.train_kwargs.get("max_tokens") or lm.kwargs.get("max_tokens") or lm.engine.max_tokens

    def _condition(
        self, student: dspy.Module, shown: Demonstrations, held: Demonstrations, adapter: dspy.Adapter
    ) -> DistillLog:
        """The model's own score without and with the demonstration, where there is one."""
        examples = list({id(one.example): one.example for one in held.shown}.values())
        plain = self.score(student, examples)
        taught = self.score(Demonstrated(student, held.shown, adapter, self.template), examples)
        paid = taught - plain >= self.margin
        return DistillLog(len(shown.shown), shown.failed, shown.refused, plain, taught, paid)

    def _train(
        self,
        student: dspy.Module,
        rows: Mapping[int, list[dict[str, Any]]],
        valset: list[dspy.Example],
        adapter: dspy.Adapter,
    ) -> dspy.Module:
        lms = {id(predictor.lm): predictor.lm for predictor in student.predictors() if id(predictor.lm) in rows}
        jobs = {
            key: {
                "lm": lm,
                "train_data": rows[key],
                "train_data_format": None,
                "train_kwargs": {
                    "patience": self.patience, "max_tokens": self._max_tokens(lm),
                    "validate": validating(student, lm, self.score, valset, adapter), **self.train_kwargs,
                },
            }
            for key, lm in lms.items()
        }  # fmt: skip
        return tuned_copy(student, jobs)

    def _gate(self, student: dspy.Module, tuned: dspy.Module, valset: list[dspy.Example], began: float) -> dspy.Module:
        before, after = self.score(student, valset), self.score(tuned, valset)
        kept = after >= before
        told = _told(student, tuned, settings_from(self.train_kwargs)[0])
        lengths = tuple(mean_length(each, valset, threads=self.num_threads) for each in (student, tuned))
        self.log = DistillLog(
            self.log.demonstrations, self.log.failed, self.log.refused, self.log.plain_score, self.log.teacher_score,
            paid=True, student_score=before, tuned_score=after, kept=kept,
            kl=kl_from_incumbent(tuned, student, valset, threads=self.num_threads), lengths=lengths,
            seconds=round(time.perf_counter() - began, 3), **told,
        )  # fmt: skip
        logger.info("self-distillation: %.3f -> %.3f, %s", before, after, "kept" if kept else "not kept")
        if not kept:
            logger.warning("the tuned program scores %.3f, below the student's %.3f: it is not kept", after, before)
        return tuned if kept else student


def _check_local(student: dspy.Module) -> None:
    for predictor in student.predictors():
        if not isinstance(getattr(predictor.lm, "provider", None), LocalProvider):
            raise TrainingError(
                f"SelfDistill trains local LMs, and a predictor has {getattr(predictor.lm, 'model', predictor.lm)!r}; "
                "set one with program.set_lm(local_lm(...))"
            )


def _told(student: dspy.Module, tuned: dspy.Module, settings: SelfDistillSettings) -> dict[str, Any]:
    """Rounds, and the share of time in generation, of the trainings' records."""
    rounds: list[Round] = []
    seconds = generating = 0.0
    models = {new.lm.model: new.lm for old, new in zip(student.predictors(), tuned.predictors(), strict=True)
              if new.lm is not old.lm}  # fmt: skip
    for model, lm in models.items():
        folder = lm.engine.adapters_dir / lm.engine.adapter_of(model)
        record = json.loads((folder / "training.json").read_text())
        history = record["history"]
        for start in range(0, len(history), settings.refresh):
            steps = history[start : start + settings.refresh]
            means = [
                sum(one[key] for one in steps) / len(steps) for key in ("loss", "kl", "answer_tokens", "truncated")
            ]
            rounds.append(Round(steps[-1]["step"], *means))
        seconds += record["seconds"]
        generating += sum(one["generation_s"] for one in history)
    return {"rounds": tuple(rounds), "generation_share": generating / seconds if seconds else None}
