"""Skills learnt one after another under one guard, every skill scored after each: live, without runs on disk.

    done = learn_in_turn(program, known, lessons, "replay_labels", adapter, {"epochs": 4}, share=0.3)
    figures = forgetting_figures(done.rounds, done.learnt)

Each lesson starts from what the last one gave. What a guard replays is of all lessons before, `known` among them.
Not handled: the zoo, which is no one program.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from optimizers.guards import finetune_guarded
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.forgetting.costs import TrainingCost, cost_of
from program.forgetting.skills import Mark, marks_of
from program.guarding import label_rows, review_guard


@dataclass(frozen=True, slots=True)
class Lesson:
    """A skill: labels to learn it from (or, if it was known before, to replay) and others to score it on."""

    name: str
    train: list[dspy.Example]
    test: list[dspy.Example]


@dataclass(frozen=True, slots=True)
class Learnt:
    """`rounds`: marks on every skill before the first lesson and after each; `programs` likewise.

    `learnt`: the round that learnt each skill. By lesson, `seconds` is all that learning took, what the guard did
    included and scores not, and `costs` the training alone.
    """

    learnt: dict[str, int]
    programs: list[ContractReview]
    rounds: list[list[Mark]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    costs: list[TrainingCost] = field(default_factory=list)


def learn_in_turn(
    program: ContractReview,
    known: Lesson,
    lessons: Sequence[Lesson],
    guard: str,
    adapter: dspy.Adapter,
    train_kwargs: Mapping[str, Any],
    *,
    threads: int = 32,
    **options: Any,
) -> Learnt:
    """Fine-tune a program with one local LM on each lesson in turn, under the guard that the word names.

    `options` are the guard's (optimizers/guard_kinds.py), but for what it replays. Raises TrainingError, and
    EvaluationError where a fifth of the calls of a score fail.
    """
    every = (known, *lessons)
    told = Learnt({one.name: i for i, one in enumerate(every)}, [program])
    told.rounds.append(_marks(program, every, threads))
    for i, lesson in enumerate(lessons, start=1):
        lm = told.programs[-1].reviewer.predict.lm
        folder = lm.engine.adapters_dir
        before, began = set(folder.glob("*/training.json")), time.perf_counter()
        earlier = [example for one in every[:i] for example in one.train]
        guarding = review_guard(guard, told.programs[-1], earlier, adapter, threads=threads, **options)
        rows = label_rows(told.programs[-1], lesson.train, adapter, threads=threads)
        tuned = told.programs[-1].deepcopy()
        tuned.set_lm(finetune_guarded(lm, rows, guarding, train_kwargs))
        told.seconds.append(time.perf_counter() - began)
        told.costs.append(cost_of(set(folder.glob("*/training.json")) - before))
        told.programs.append(tuned)
        told.rounds.append(_marks(tuned, every, threads))
    return told


def _marks(program: ContractReview, lessons: Sequence[Lesson], threads: int) -> list[Mark]:
    return [
        mark
        for one in lessons
        for mark in marks_of(one.name, score_program(program, one.test, one.name, threads=threads, progress=False))
    ]
