"""What the optimizers of weights share: serving prompts, jobs that Ctrl-C ends, a score of weights in training."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import dspy
from dspy.teleprompt import BootstrapFinetune

from optimizers.local_lm.provider import LocalProvider

Score = Callable[[dspy.Module, list[dspy.Example]], float]


class Asked(Protocol):
    """What a predictor, by its place in `program.predictors()`, was or will be asked with."""

    @property
    def predictor(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, Any]: ...


def serving_prompt(program: dspy.Module, asked: Asked, adapter: dspy.Adapter) -> list[dict[str, Any]]:
    """The very prompt that the program is served with, its own demonstrations included."""
    predictor = program.predictors()[asked.predictor]
    return adapter.format(predictor.signature, predictor.demos, dict(asked.inputs))


def tuned_copy(program: dspy.Module, jobs: dict[Any, dict[str, Any]]) -> dspy.Module:
    """A copy of the program, each LM that has a job, under its `id`, replaced by what the job makes of it."""
    lms, tuned = finetuned(jobs), program.deepcopy()
    for old, new in zip(program.predictors(), tuned.predictors(), strict=True):
        new.lm = lms.get(id(old.lm), old.lm)
    return tuned


def finetuned(jobs: dict[Any, dict[str, Any]]) -> dict[Any, dspy.LM]:
    """The tuned LM of each job, as BootstrapFinetune.finetune_lms; Ctrl-C ends a training, too, in its thread."""
    providers = [job["lm"].provider for job in jobs.values()]
    try:
        return BootstrapFinetune.finetune_lms(jobs)
    except KeyboardInterrupt:
        for provider in providers:
            if isinstance(provider, LocalProvider):
                provider.stop()
        raise


def validating(
    student: dspy.Module, lm: dspy.LM, score: Score, valset: list[dspy.Example], adapter: dspy.Adapter | None = None
) -> Callable[[str], float]:
    """A function of a model string to `score` of the student on `valset` with that model in the place of `lm`.

    The caller's adapter (or `adapter`) and LM go with it: validation runs on the training's own thread, to which the
    caller's context does not reach.
    """
    settings = {"adapter": adapter or dspy.settings.adapter, "lm": dspy.settings.lm}

    def validate(model: str) -> float:
        trial = student.deepcopy()
        for old, new in zip(student.predictors(), trial.predictors(), strict=True):
            if old.lm is lm:  # another predictor's LM has weights of its own
                new.lm = lm.copy(model=model)
        with dspy.context(**settings):
            return score(trial, valset)

    return validate
