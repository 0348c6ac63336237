"""One loop for every objective: train to the next validation, keep a candidate, score it, go on or stop.

The trainers are TRL's; what is here is what they share: a fixed order of rows, whole checkpoints, going on after a kill
to the very same weights, validation between two legs (the model serves meanwhile), early stopping, cancelling.
"""

import logging
import math
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from optimizers.errors import TrainingError
from optimizers.local_lm.training.checkpoints import (
    JobState,
    SealCheckpoints,
    job_id,
    last_whole,
    open_job,
    read_state,
    write_state,
)
from optimizers.local_lm.training.objectives import build_trainer, row_losses
from optimizers.local_lm.training.order import count_steps, rows_a_step, schedule, split_rows
from optimizers.local_lm.training.rows import Rows, context_limit, digest
from optimizers.local_lm.training.settings import TrainSettings
from optimizers.local_lm.training.watch import Progress, Watch, explained
from optimizers.local_lm.tuning.adapters import count_trainable, drop_adapter, keep_adapter, training
from optimizers.local_lm.tuning.tuners import options_of, word_of
from optimizers.local_lm.weights import Weights, spares_memory
from optimizers.machine import cpu_has_bf16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """All that a training run needs; `tuner` is a config of tuning/tuners.py, `parent` the adapter it goes on from."""

    weights: Weights
    rows: Rows
    settings: TrainSettings
    tuner: Any
    root: Path
    parent: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    report: Callable[[Progress], None] = lambda progress: None
    model_string: Callable[[str], str] = str


def fit(task: Task, on_score: Callable[[int, float], None] = lambda step, score: None) -> tuple[str, float | None]:
    """Train and return the new adapter's name under `task.root`, and its validation score (None without validation).

    Holds the weights' lock while it trains, not while it validates. Raises TrainingError for a loss that is not finite
    (the last whole checkpoint stays), exhausted memory, and at the first step after `task.stop` is set.
    """
    settings, jobs = task.settings, task.root.parent / "jobs"
    train, val = split_rows(task.rows, settings.val_share, settings.seed)
    if task.rows.too_long:
        logger.warning(
            "%d of %d training rows exceed %d tokens and are left out",
            len(task.rows.too_long), task.rows.given, context_limit(task.weights, settings),
        )  # fmt: skip
    with open_job(jobs, _id(task), resume=settings.resume) as folder, torch.random.fork_rng():
        plan = schedule(train, settings, _losses(task, train))
        run = _Run(task, train, val, plan, folder)
        state = read_state(folder)
        foreign = _names(task.root) - _candidates(state)  # of earlier jobs: not this one's to delete
        for target in run.targets:
            if any(row["step"] == target for row in state.scores):
                continue
            name, score = run.leg(target)
            if settings.validate is not None:
                score = float(settings.validate(task.model_string(name)))
            state.scores.append({"step": target, "score": score, "adapter": name})
            write_state(folder, state)
            if score is not None:
                try:
                    on_score(target, score)
                except Exception:  # whoever hears it may end the run by raising, and then nothing is left of it
                    drop_adapter(task.weights, task.root, *(_candidates(state) - foreign))
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            if _patience_spent(state.scores, settings.patience):
                break
        kept = _choose(state.scores, settings.keep)
        drop_adapter(task.weights, task.root, *(_candidates(state) - foreign - {kept["adapter"]}))
    return kept["adapter"], kept["score"]


def _candidates(state: JobState) -> set[str]:
    return {row["adapter"] for row in state.scores}


def _names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} if root.is_dir() else set()


class _Run:
    """The legs of one job: each a trainer of its own that starts where the last one's checkpoint ends."""

    def __init__(self, task: Task, train: Rows, val: Rows, plan: list[int], folder: Path) -> None:
        self.task, self.train, self.val, self.plan, self.folder = task, train, val, plan, folder
        self.steps = count_steps(len(train.columns), task.settings)
        self.targets = _targets(self.steps, len(train.columns), task.settings)
        self.dataset, self.eval_dataset = Dataset.from_list(list(train.columns)), None
        if val.columns and task.settings.validate is None:
            self.eval_dataset = Dataset.from_list(list(val.columns))

    def leg(self, target: int) -> tuple[str, float | None]:
        """Train up to step `target`; the candidate's name and, where validation rows decide, minus their loss."""
        task, settings = self.task, self.task.settings
        parent = None if task.parent is None else task.root / task.parent
        watch = Watch(
            self.train, self.plan, settings, steps=self.steps, target=target, stop=task.stop, report=task.report
        )
        start = last_whole(self.folder, target)
        torch.manual_seed(settings.seed)  # every leg starts from the same fresh weights before it reads its checkpoint
        with (
            warnings.catch_warnings(action="ignore", category=FutureWarning),  # of transformers, about TRL
            training(task.weights, tuner=task.tuner, parent=parent) as model,
        ):
            arguments = trainer_arguments(task, self.steps, self.folder)
            try:
                trainer = build_trainer(
                    task.weights, model, self.dataset, self.plan, self.eval_dataset, settings, arguments
                )
            except ValueError as err:
                refused = f"method {settings.method!r} with tuner {word_of(task.tuner)!r} is refused by its trainer"
                raise TrainingError(f"{refused}: {err}") from err
            for callback in (watch, SealCheckpoints()):
                trainer.add_callback(callback)
            trainer.remove_callback(PrinterCallback)  # it would print every loss to stdout
            with explained(settings, lambda: _kept(task)):
                trainer.train(resume_from_checkpoint=None if start is None else str(start))
            score = -trainer.evaluate()["eval_loss"] if self.eval_dataset is not None else None
            trainer.accelerator.free_memory()
            record = self._record(model, trainer)
            name = keep_adapter(model, task.weights, task.root, kind=settings.name, record=record, parent=task.parent)
        return name, score

    def _record(self, model: Any, trainer: Trainer) -> dict[str, Any]:
        rows, settings = self.task.rows, self.task.settings
        kept = ("step", "loss", "tokens", "seconds", *getattr(trainer, "told", ()))
        history = [{key: entry[key] for key in kept} for entry in trainer.state.log_history if "loss" in entry]
        return {
            "base": self.task.weights.base,
            "settings": {**asdict(replace(settings, validate=None)), "validate": settings.validate is not None},
            "tuner": {"word": word_of(self.task.tuner), "options": options_of(self.task.tuner)},
            "rows": len(self.train.columns),
            "validation_rows": len(self.val.columns),
            "rows_too_long": list(rows.too_long),
            "conversations_split": rows.split,
            "max_length_tokens": context_limit(self.task.weights, settings),
            "trainable_parameters": count_trainable(model),
            "seconds": history[-1]["seconds"] if history else 0.0,
            "history": history,
        }


def trainer_arguments(task: Task, steps: int, folder: Path) -> dict[str, Any]:
    """What TRL's configs share. Rows come in the order given; padding to few shapes keeps a CPU's kernels warm."""
    settings, on_cpu = task.settings, task.weights.device.type == "cpu"
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": "linear",
        "optim": "paged_adamw_8bit" if spares_memory(task.weights) else "adamw_torch",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "use_cpu": on_cpu,
        "bf16": (not on_cpu or cpu_has_bf16()) if settings.bf16 is None else settings.bf16,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": not settings.progress,
    }


def _kept(task: Task) -> str:
    whole = last_whole(task.root.parent / "jobs" / _id(task))
    return "No checkpoint had been written" if whole is None else f"The last whole checkpoint is {whole}"


def _id(task: Task) -> str:
    # What changes how a run is watched, not what it computes, stays out.
    quiet = {"validate": None, "progress": True, "resume": True, "search": 0, "name": "", "tuner": None}
    settings = replace(task.settings, **quiet)
    return job_id(
        base=task.weights.base,
        parent=task.parent,
        settings=asdict(settings),
        tuner=[word_of(task.tuner), options_of(task.tuner)],
        rows=digest(task.rows),
    )


def _losses(task: Task, train: Rows) -> list[float] | None:
    if task.settings.order != "easy_to_hard" or all(value is not None for value in train.difficulty):
        return None
    return row_losses(task.weights, train, task.root, task.parent)


def _targets(steps: int, n_rows: int, settings: TrainSettings) -> list[int]:
    """The steps at which a candidate is made: every validation, and the end."""
    if not settings.val_share and settings.validate is None:
        return [steps]
    every = settings.validate_steps or max(1, math.ceil(n_rows / rows_a_step(settings)))
    return sorted({*range(every, steps, every), steps})


def _patience_spent(scores: list[dict[str, Any]], patience: int) -> bool:
    if not patience or scores[-1]["score"] is None:
        return False
    best = max(range(len(scores)), key=lambda i: scores[i]["score"])
    return len(scores) - 1 - best >= patience


def _choose(scores: list[dict[str, Any]], keep: str) -> dict[str, Any]:
    if keep == "last" or scores[-1]["score"] is None:
        return scores[-1]
    return max(scores, key=lambda row: row["score"])  # the first of equals: fewer steps, less forgotten
