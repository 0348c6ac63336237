"""Guards against forgetting, one option each behind one interface, so that they can be compared.

    guard = guard_from("merge", weight=0.5)                                     # or several: "replay_labels+kl"
    tuned = finetune_guarded(lm, rows, guard, {"epochs": 2})                    # rows and an LM
    tune = guard_optimizer(InstructTune(metric=teaches, ...), guard)            # any optimizer of weights
    program = tune.compile(program, trainset, teacher)

The incumbent is the LM that comes in, its adapter included: what was learnt before is what is guarded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import dspy
from dspy.teleprompt import BootstrapFinetune

from optimizers.errors import TrainingError
from optimizers.finetuning import finetuned
from optimizers.guard_kinds import (
    KLPenalty,
    LowRate,
    Merge,
    NoGuard,
    OSFGuard,
    ReplayLabels,
    ReplaySelf,
    Row,
    Together,
    Zoo,
)

Optimizer = TypeVar("Optimizer", bound=BootstrapFinetune)


class Guard(Protocol):
    """The moments at which a guard may act on one LM's training; guard_kinds.py has them."""

    @property
    def name(self) -> str:
        """What a log calls it."""

    def start(self, incumbent: dspy.LM) -> dspy.LM:
        """The LM that training starts from."""

    def rows(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Row]:
        """Rows to mix in with `rows`."""

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """The `train_kwargs` to train with, for those `given`."""

    def after(self, incumbent: dspy.LM, tuned: dspy.LM, rows: Sequence[Row]) -> dspy.LM:
        """The LM to serve, of the two."""


GUARDS: dict[str, type[NoGuard]] = {
    "none": NoGuard,
    "replay_self": ReplaySelf,
    "replay_labels": ReplayLabels,
    "kl": KLPenalty,
    "osf": OSFGuard,
    "low_rate": LowRate,
    "merge": Merge,
    "zoo": Zoo,
}


@dataclass(frozen=True, slots=True)
class Guarded:
    """One guarded training: rows that were its own and mixed in, and model strings before, trained and served."""

    guard: str
    n_rows: int
    n_extra: int
    incumbent: str
    trained: str
    served: str


def guard_from(word: str, **options: Any) -> NoGuard:
    """The guard that `word` names, or those of several joined by "+", which act in the order of GUARDS.

    An option goes to every one of them that has it. Raises TrainingError for a word or option that is not known, one
    that lacks, and for "none" or "zoo" (which starts from elsewhere) beside others.
    """
    words = word.split("+")
    if unknown := [one for one in words if one not in GUARDS]:
        raise TrainingError(
            f"guard={word!r}: {unknown[0]!r} is not known; use one of {list(GUARDS)}, or several joined by '+'"
        )
    if len(words) > 1 and (len(set(words)) < len(words) or {"none", "zoo"} & set(words)):
        raise TrainingError(f"guard={word!r} joins what cannot be: each once, and neither 'none' nor 'zoo'")
    kinds = [kind for name, kind in GUARDS.items() if name in words]
    known = {kind: [entry.name for entry in fields(kind)] for kind in kinds}
    if unknown := sorted(set(options).difference(*known.values())):
        raise TrainingError(f"options {unknown} of guard {word!r} are not known; known are {sum(known.values(), [])}")
    made = []
    for kind in kinds:
        try:
            made.append(kind(**{key: value for key, value in options.items() if key in known[kind]}))
        except TypeError as err:
            raise TrainingError(f"guard {word!r} lacks an option ({err}); known are {known[kind]}") from err
    return made[0] if len(made) == 1 else Together(tuple(made))


def finetune_guarded(
    lm: dspy.LM, rows: Sequence[Row], guard: Guard, train_kwargs: Mapping[str, Any] | None = None
) -> dspy.LM:
    """`lm.finetune(rows, …)` with the guard around it, waited for; the LM to serve. TrainingError, ModelError."""
    return _guarded({"lm": lm}, guard, [], {"lm": _job(lm, rows, train_kwargs)})["lm"]


def guard_optimizer(optimizer: Optimizer, guard: Guard) -> Optimizer:
    """`optimizer`, changed so that each training of its `compile` is guarded; `optimizer.guarded` tells of the last.

    For BootstrapFinetune and what is built on it: SteadyFinetune, InstructTune. A validation score in training
    (InstructTune's rounds) is of weights before `after` has acted on them.
    """
    stock = optimizer.finetune_lms
    optimizer.guarded = []

    def finetune_lms(jobs: dict[Any, dict[str, Any]]) -> dict[Any, dspy.LM]:
        optimizer.guarded = []
        return _guarded({key: job["lm"] for key, job in jobs.items()}, guard, optimizer.guarded, jobs, stock)

    optimizer.finetune_lms = finetune_lms
    return optimizer


def _job(lm: dspy.LM, rows: Sequence[Row], train_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"lm": lm, "train_data": list(rows), "train_data_format": None, "train_kwargs": dict(train_kwargs or {})}


def _guarded(
    incumbents: Mapping[Any, dspy.LM],
    guard: Guard,
    log: list[Guarded],
    jobs: Mapping[Any, Mapping[str, Any]],
    train: Any = finetuned,
) -> dict[Any, dspy.LM]:
    given = {key: list(job["train_data"]) for key, job in jobs.items()}
    extra = {key: guard.rows(incumbents[key], rows) for key, rows in given.items()}
    guarded_jobs = {
        key: {
            **job,
            "lm": guard.start(incumbents[key]),
            "train_data": given[key] + extra[key],
            "train_kwargs": guard.train_kwargs(incumbents[key], given[key], job.get("train_kwargs") or {}),
        }
        for key, job in jobs.items()
    }
    trained = train(guarded_jobs)
    served = {key: guard.after(incumbents[key], lm, given[key]) for key, lm in trained.items()}
    for key, lm in served.items():
        models = (incumbents[key].model, trained[key].model, lm.model)
        log.append(Guarded(guard.name, len(given[key]), len(extra[key]), *models))
    return served
