"""Training of a reward model: TRL's RewardTrainer on the model in memory, and the folder that comes of it.

    <work_dir>/rewards/reward-3f2a91c0de/   adapter_config.json  adapter_model.safetensors  score.safetensors
                                            reward.json  COMPLETE

The first two are an adapter in PEFT's layout, the third the head; the name is a hash of all three and of the base.
Does not handle: going on after a kill (a run is minutes; a killed one leaves nothing behind).
"""

import hashlib
import json
import logging
import math
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from optimizers.errors import TrainingError
from optimizers.local_lm.sealed import MARKER, draft_beside, move_into_place, seal
from optimizers.local_lm.training import fit as fitting
from optimizers.local_lm.training.labelled import learns_prompt
from optimizers.local_lm.training.order import count_steps, rows_a_step, schedule
from optimizers.local_lm.training.own import PAD_MULTIPLE
from optimizers.local_lm.training.rows import Rows
from optimizers.local_lm.training.settings import TrainSettings
from optimizers.local_lm.training.watch import Progress, Watch, explained
from optimizers.local_lm.tuning.adapters import count_trainable, serving_trained, training
from optimizers.local_lm.tuning.injection import CONFIG_FILE, WEIGHTS_FILE, write
from optimizers.local_lm.tuning.tuner_kinds import LoRA
from optimizers.local_lm.tuning.tuners import default_rate, options_of, word_of
from optimizers.local_lm.weights import Weights, file_sha256, spares_memory
from optimizers.reward_calibration import Calibration, fit_calibration
from optimizers.reward_network import RewardNetwork, new_head, score_ids

logger = logging.getLogger(__name__)
HEAD_FILE, TOLD_FILE, KIND = "score.safetensors", "reward.json", "reward"


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """How to train a reward model; the defaults suit a few hundred pairs.

    `rank` and `alpha` are LoRA's, on all linear layers (of no effect when training starts from an adapter).
    `learning_rate` None: LoRA's own. `margin_scale` times a pair's margin is what its rewards shall differ by (Touvron
    et al. 2023, Llama 2, eq. 2); None: by anything. `center_rewards_coefficient` pulls the mean reward to 0 (Eisenstein
    et al. 2023, arXiv:2312.09244, eq. 2); None: not. Pairs above `max_length_tokens` (None: the context) are refused
    beyond the share `max_dropped`. Validation pairs are looked at `validations` times an epoch, the weights of
    the least validation loss are kept, and after `patience` looks without a better one training ends (0: never early).
    """

    rank: int = 16
    alpha: float = 32
    epochs: float = 2.0
    learning_rate: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    warmup_steps: int = 0
    margin_scale: float | None = None
    center_rewards_coefficient: float | None = 0.01
    max_length_tokens: int | None = None
    max_dropped: float = 0.0
    validations: int = 2
    patience: int = 0
    seed: int = 0
    bf16: bool | None = None
    progress: bool = True


@dataclass(frozen=True)
class RewardTask:
    """All that a run needs; `parent` is the adapter's folder that training starts from, None for the bare base.

    `groups` are those of all pairs, kept with the model so that no report is made on them.
    """

    weights: Weights
    rows: Rows
    val: Rows | None
    settings: RewardSettings
    root: Path
    groups: tuple[str, ...] = ()
    parent: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    report: Callable[[Progress], None] = lambda progress: None


class TurnsTrainer(RewardTrainer):
    """TRL's trainer, without checkpoints: since nothing here goes on from one."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pass


class KeepBest(TrainerCallback):
    """Has the validation pairs looked at, remembers the weights of the least loss, and ends a run that has run out."""

    def __init__(self, trained: Sequence[nn.Parameter], every: int, steps: int, patience: int) -> None:
        self.trained, self.every, self.steps, self.patience = trained, every, steps, patience
        self.best, self.best_step, self.since, self.kept = math.inf, 0, 0, []
        self.looks: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a look when it is time."""
        control.should_evaluate = state.global_step % self.every == 0 or state.global_step >= self.steps

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Take note."""
        loss = metrics["eval_loss"]
        self.looks.append({"step": state.global_step, "loss": loss, "accuracy": metrics["eval_accuracy"]})
        self.since += 1
        if loss < self.best:
            self.best, self.best_step, self.since = loss, state.global_step, 0
            self.kept = [parameter.detach().clone() for parameter in self.trained]
        if self.patience and self.since >= self.patience:
            control.should_training_stop = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights of the best look back."""
        for parameter, kept in zip(self.trained, self.kept, strict=True):
            parameter.copy_(kept)


def fit_reward(task: RewardTask) -> str:
    """Train and return the new folder's name under `task.root`; the base is as it was, whatever happened.

    Holds the weights' lock throughout. Raises TrainingError for a loss that is not finite, exhausted memory, a parent
    whose virtual tokens stand outside the network, and at the first step after `task.stop` is set.
    """
    settings = task.settings
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _fit(task, LoRA(rank=settings.rank, alpha=settings.alpha))


def _fit(task: RewardTask, tuner: LoRA) -> str:
    settings, weights = task.settings, task.weights
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # of transformers, about TRL
        training(weights, tuner=None if task.parent else tuner, parent=task.parent) as module,
    ):
        if learns_prompt(module):
            raise TrainingError(f"adapter {task.parent.name!r} is virtual tokens; start from the base or a LoRA")
        head = new_head(weights, settings.seed)
        trained = [p for p in [*module.parameters(), *head.parameters()] if p.requires_grad]
        record = _train(task, RewardNetwork(weights, head), trained, Path(folder))
        if not all(torch.isfinite(p).all() for p in trained):
            raise TrainingError("the trained weights are not finite; lower learning_rate")
        calibration = _calibrate(task, head)
        record |= {"trainable_parameters": count_trainable(module) + head.weight.numel()}
        return _keep(task, module, head, calibration, record)


def _train(task: RewardTask, network: RewardNetwork, trained: list[nn.Parameter], folder: Path) -> dict[str, Any]:
    """Move the weights; what happened on the way."""
    common = _common(task)
    plan, steps = schedule(task.rows, common), count_steps(len(task.rows.columns), common)
    watch = Watch(task.rows, plan, common, steps=steps, target=steps, stop=task.stop, report=task.report)
    each = math.ceil(len(task.rows.columns) / rows_a_step(common) / max(1, task.settings.validations))
    best = KeepBest(trained, each, steps, task.settings.patience)
    trainer = build_trainer(task, network, plan, steps, folder)
    for callback in (watch, *([best] if task.val else [])):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    with explained(common, lambda: "Nothing was kept"):
        trainer.train()
    trainer.accelerator.free_memory()
    network.eval()
    if task.val:
        best.restore()
    wanted = ("step", "loss", "accuracy", "margin", "tokens", "seconds")
    history = [{key: row[key] for key in wanted if key in row} for row in trainer.state.log_history if "loss" in row]
    return {"history": history, "validation": best.looks, "kept_step": best.best_step if task.val else steps}


def build_trainer(task: RewardTask, network: RewardNetwork, plan: list[int], steps: int, folder: Path) -> RewardTrainer:
    """TRL's trainer over the encoded pairs in the order of `plan`."""
    shared = fitting.trainer_arguments(
        fitting.Task(task.weights, task.rows, _common(task), None, task.root), steps, folder
    )
    config = RewardConfig(
        **shared | {"save_strategy": "no"},
        max_length=None,  # what is too long was refused where it could be told (reward_rows.py)
        pad_to_multiple_of=PAD_MULTIPLE,
        center_rewards_coefficient=task.settings.center_rewards_coefficient,
        gradient_checkpointing=spares_memory(task.weights),
    )
    return TurnsTrainer(
        model=network,
        args=config,
        train_dataset=_dataset(task.rows).select(plan),
        eval_dataset=_dataset(task.val) if task.val else None,
        processing_class=task.weights.tokenizer,
    )


def _dataset(rows: Rows) -> Dataset:
    return Dataset.from_list([{k: v for k, v in columns.items() if k != "prompt_ids"} for columns in rows.columns])


def _common(task: RewardTask) -> TrainSettings:
    """What the shared loop's parts read."""
    settings = task.settings
    rate = settings.learning_rate
    if rate is None:
        rate = default_rate(LoRA(), task.weights.hidden_size)
    return TrainSettings(
        method=KIND, name=KIND, epochs=settings.epochs, learning_rate=rate, batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps, warmup_steps=settings.warmup_steps,
        seed=settings.seed, bf16=settings.bf16, progress=settings.progress,
    )  # fmt: skip


def _calibrate(task: RewardTask, head: nn.Linear) -> Calibration | None:
    """On the weights as they will be served, not as mixed precision saw them."""
    if task.val is None:
        return None
    sides: dict[str, list[float]] = {"chosen_ids": [], "rejected_ids": []}
    with serving_trained(task.weights) as served:
        for columns in task.val.columns:
            for name, ids in sides.items():
                ids += score_ids(served.model, head, [columns[name]], None, None)
    return fit_calibration(sides["chosen_ids"], sides["rejected_ids"])


def _keep(
    task: RewardTask, module: Any, head: nn.Linear, calibration: Calibration | None, record: dict[str, Any]
) -> str:
    weights, tuner = task.weights, task.weights.tuning.tuner
    told = {
        "parent": None if task.parent is None else task.parent.name,
        "settings": asdict(task.settings),
        "calibration": None if calibration is None else asdict(calibration),
        "pairs": len(task.rows.columns),
        "groups": list(task.groups),
        "pairs_too_long": list(task.rows.too_long),
        "validation_pairs": len(task.val.columns) if task.val else 0,
        **record,
    }
    with draft_beside(task.root) as draft:
        write(weights, module, tuner, draft)
        _name_no_task(draft / CONFIG_FILE)
        save_file({"score.weight": head.weight.detach().cpu()}, draft / HEAD_FILE)
        content = "".join(file_sha256(draft / name) for name in (WEIGHTS_FILE, CONFIG_FILE, HEAD_FILE))
        # The calibration is part of what the name means: the same weights fitted on other pairs are another judge.
        content += weights.digest + json.dumps(told["calibration"])
        name = f"{KIND}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        (draft / TOLD_FILE).write_text(json.dumps(told, indent=1))
        made_with = {"word": word_of(tuner), "options": options_of(tuner)}
        seal(draft, {"base": weights.base, "base_digest": weights.digest, "tuner": made_with})
        if not (task.root / name / MARKER).is_file():
            move_into_place(draft, task.root / name)
        return name


def _name_no_task(path: Path) -> None:
    """The adapter is one of a decoder, under whichever head: as a causal LM's peft would not put it into others."""
    config = json.loads(path.read_text())
    if "task_type" in config:
        path.write_text(json.dumps(config | {"task_type": None}, indent=1, sort_keys=True))
