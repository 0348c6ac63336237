"""Trainers of our own, on transformers' Trainer: preference without a reference (distillation: distill.py)."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference

from optimizers.local_lm.training.losses import cpo_loss, orpo_loss, simpo_loss, token_logps
from optimizers.local_lm.training.settings import CPOSettings, ORPOSettings, TrainSettings
from optimizers.local_lm.weights import Weights

PAD_MULTIPLE = 64


class CountingTrainer(Trainer):
    """A Trainer whose loss comes from `loss_of(model, batch)`, and whose log carries that loss's metrics."""

    def __init__(self, *args: Any, settings: TrainSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.last_metrics = settings, {}

    def loss_of(
        self, model: Any, batch: dict[str, Tensor], n_tokens: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The objective; `n_tokens` are the labels of all batches of the step, None where they are not counted."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None):
        """What the Trainer minimises."""
        loss, metrics = self.loss_of(model, inputs, num_items_in_batch)
        if model.training:
            self.last_metrics = metrics
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None):
        """Validation: the loss alone."""
        with torch.no_grad():
            loss, _ = self.loss_of(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the metrics."""
        if "loss" in logs:
            logs = {**logs, **self.last_metrics}
        super().log(logs, start_time)


class PairwiseTrainer(CountingTrainer):
    """ORPO, CPO and SimPO over batches whose first half is chosen and second half rejected."""

    def loss_of(
        self, model: Any, batch: dict[str, Tensor], n_tokens: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of losses.py that the settings name."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        logps, mask = token_logps(logits[:, -labels.shape[1] :], labels)
        sums, means = logps.sum(1), logps.sum(1) / mask.sum(1)
        chosen, rejected = means.chunk(2)
        settings = self.settings
        if isinstance(settings, ORPOSettings):
            return orpo_loss(chosen, rejected, beta=settings.beta)
        if settings.loss_type == "simpo":
            return simpo_loss(chosen, rejected, beta=settings.beta, gamma=settings.simpo_gamma)
        return cpo_loss(
            *sums.chunk(2), -chosen, beta=settings.beta, alpha=settings.cpo_alpha,
            label_smoothing=settings.label_smoothing,
        )  # fmt: skip


def build_pairwise(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: ORPOSettings | CPOSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "orpo" and "cpo"."""
    return PairwiseTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        data_collator=DataCollatorForPreference(pad_id(weights), pad_to_multiple_of=PAD_MULTIPLE),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
    )


def pad_id(weights: Weights) -> int:
    """What stands where a batch's rows are shorter than its longest; masked wherever it stands."""
    tokenizer = weights.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(weights.stop_ids)
