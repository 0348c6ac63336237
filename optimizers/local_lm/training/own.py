"""Trainers of our own, on transformers' Trainer: preference without a reference, and distillation."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference

from optimizers.local_lm.training.losses import cpo_loss, divergence, orpo_loss, simpo_loss, token_logps, with_rest
from optimizers.local_lm.training.settings import CPOSettings, DistillSettings, ORPOSettings, TrainSettings
from optimizers.local_lm.weights import Weights

PAD_MULTIPLE = 64


class _Counting(Trainer):
    """A Trainer whose loss comes from `loss_of(model, batch)`, and whose log carries that loss's metrics."""

    def __init__(self, *args: Any, settings: TrainSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.last_metrics = settings, {}

    def loss_of(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The objective."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None):
        """What the Trainer minimises."""
        loss, metrics = self.loss_of(model, inputs)
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


class PairwiseTrainer(_Counting):
    """ORPO, CPO and SimPO over batches whose first half is chosen and second half rejected."""

    def loss_of(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
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


class DistillTrainer(_Counting):
    """The student's next-token distribution under its own prompt towards the teacher's, known beforehand."""

    def loss_of(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Divergence over the completion's tokens."""
        settings = self.settings
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        logits = logits[:, -batch["input_ids"].shape[1] :]
        student = (logits[batch["predicts"]].float() / settings.temperature).log_softmax(-1)
        return divergence(
            batch["teacher"], with_rest(student, batch.get("teacher_tokens")),
            kind=settings.divergence, jsd_beta=settings.jsd_beta,
        )  # fmt: skip


def build_pairwise(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: ORPOSettings | CPOSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "orpo" and "cpo"."""
    return PairwiseTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        data_collator=DataCollatorForPreference(_pad_id(weights), pad_to_multiple_of=PAD_MULTIPLE),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
    )


def build_distill(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: DistillSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "distill"; runs the teacher over every row first, with the weights that training starts from."""
    rows = rows.map(lambda row: _teacher(model, row, settings), load_from_cache_file=False)
    if eval_rows is not None:
        eval_rows = eval_rows.map(lambda row: _teacher(model, row, settings), load_from_cache_file=False)
    return DistillTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        data_collator=lambda batch: _collate_distill(batch, _pad_id(weights)),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
    )


@torch.no_grad()
def _teacher(model: Any, row: dict[str, Any], settings: DistillSettings) -> dict[str, Any]:
    model.eval()
    ids = torch.tensor([row["teacher_ids"] + row["completion_ids"]], device=model.device)
    n_answer = len(row["completion_ids"])
    logits = model(input_ids=ids, use_cache=False).logits[0, -n_answer - 1 : -1]
    logps = (logits.float() / settings.temperature).log_softmax(-1)
    if settings.top_k is None or settings.top_k >= logps.shape[-1]:
        return {"teacher": logps.tolist()}
    tokens = logps.topk(settings.top_k, dim=-1).indices
    return {"teacher": with_rest(logps, tokens).tolist(), "teacher_tokens": tokens.tolist()}


def _collate_distill(batch: list[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    sequences = [row["prompt_ids"] + row["completion_ids"] for row in batch]
    width = -(-max(map(len, sequences)) // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.full((len(batch), width), pad_id)
    seen = torch.zeros(len(batch), width, dtype=torch.long)
    predicts = torch.zeros(len(batch), width, dtype=torch.bool)
    for i, (row, sequence) in enumerate(zip(batch, sequences, strict=True)):
        ids[i, : len(sequence)], seen[i, : len(sequence)] = torch.tensor(sequence), 1
        predicts[i, len(row["prompt_ids"]) - 1 : len(sequence) - 1] = True
    told = {"input_ids": ids, "attention_mask": seen, "predicts": predicts}
    for name in ("teacher", "teacher_tokens"):
        if name in batch[0]:
            told[name] = torch.cat([torch.tensor(row[name]) for row in batch])
    return told


def _pad_id(weights: Weights) -> int:
    tokenizer = weights.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(weights.stop_ids)
