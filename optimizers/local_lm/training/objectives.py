"""From settings to a trainer, one per objective: TRL's where it does what is wanted, ours (own.py) where not.

All take rows already encoded (rows.py), so that a model is trained on the very tokens it is asked with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from optimizers.local_lm.serving.decoding import score_rows
from optimizers.local_lm.training.anchored import build_anchored
from optimizers.local_lm.training.distill import build_distill
from optimizers.local_lm.training.distill_rollouts import build_self_distill
from optimizers.local_lm.training.labelled import OnLabels, keeps_logits, learns_prompt
from optimizers.local_lm.training.own import PAD_MULTIPLE, build_pairwise
from optimizers.local_lm.training.rows import REFERENCE, Rows
from optimizers.local_lm.training.settings import DPOSettings, KTOSettings, SFTSettings, TrainSettings
from optimizers.local_lm.tuning.adapters import serving
from optimizers.local_lm.weights import Weights, spares_memory

# The reference's log probabilities: once, from the weights that training starts from, whatever the tuner.
REFERRING = {"precompute_ref_log_probs": True, "max_length": None, "pad_to_multiple_of": PAD_MULTIPLE}


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for each pass over rows: the training's own is the one to look at."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@_quiet()
def build_trainer(
    weights: Weights,
    model: Any,
    rows: Dataset,
    plan: list[int],
    eval_rows: Dataset | None,
    settings: TrainSettings,
    arguments: dict[str, Any],
) -> Trainer:
    """The trainer of `settings.method` over `rows` in the order of `plan`."""
    if isinstance(settings, SFTSettings) and settings.kl_beta > 0:
        return build_anchored(weights, model, rows, plan, eval_rows, settings, arguments)
    if isinstance(settings, SFTSettings):
        return _sft(weights, model, rows.select(plan), eval_rows, arguments)
    if isinstance(settings, DPOSettings):
        # The reference's pass is over each row once; the order comes after it.
        trainer = _dpo(weights, settings, arguments, model=model, **_referred(rows, eval_rows))
        _remember(trainer, rows, eval_rows)
        _drop_reference(model)
        trainer.train_dataset = trainer.train_dataset.select(plan)
        return trainer
    if isinstance(settings, KTOSettings):
        # Its batches have to be known beforehand: each lends its answers to its own other prompts.
        given = _referred(rows, eval_rows)
        given["train_dataset"] = rows.select(plan) if given["train_dataset"] is rows else given["train_dataset"]
        trainer = _kto(weights, settings, arguments, model=model, **given)
        _remember(trainer, rows, eval_rows)
        _drop_reference(model)
        return trainer
    build = {"distill": build_distill, "sdft": build_self_distill}.get(settings.method, build_pairwise)
    return build(weights, model, rows, plan, eval_rows, settings, {**arguments, "remove_unused_columns": False})


def _referred(rows: Dataset, eval_rows: Dataset | None) -> dict[str, Dataset | None]:
    """The rows with the reference's log probabilities, if an earlier leg of this run has computed them."""
    return {
        "train_dataset": getattr(rows, "referred", rows),
        "eval_dataset": getattr(eval_rows, "referred", eval_rows),
    }


def _remember(trainer: Trainer, rows: Dataset, eval_rows: Dataset | None) -> None:
    """Keep what the reference said with the rows: a run asks it once, however often it stops to validate."""
    rows.referred = trainer.train_dataset
    if eval_rows is not None:
        eval_rows.referred = trainer.eval_dataset


def _sft(weights: Weights, model: Any, rows: Dataset, eval_rows: Dataset | None, arguments: dict) -> Trainer:
    config = SFTConfig(
        **arguments,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        pad_to_multiple_of=PAD_MULTIPLE,
        activation_checkpointing=_recomputes(weights, model),
    )
    build = _LabelledSFT if _on_labels(weights, model) else SFTTrainer
    return build(
        model=model, args=config, train_dataset=rows, eval_dataset=eval_rows, processing_class=weights.tokenizer
    )


def _on_labels(weights: Weights, model: Any) -> bool:
    """Whether to score labelled positions alone by ourselves: on a CPU, where TRL's kernel scores the prompt's too."""
    return weights.device.type == "cpu" and keeps_logits(weights, model)


class _LabelledSFT(SFTTrainer):
    """The same loss from the logits of labelled positions alone."""

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: torch.Tensor | None = None
    ) -> Any:
        labels_B_T = inputs["labels"][:, 1:]
        places_K = (labels_B_T != -100).any(dim=0).nonzero().squeeze(1)
        asked = {key: value for key, value in inputs.items() if key != "labels"}
        outputs = model(**asked, logits_to_keep=places_K, use_cache=False)
        labels_N = labels_B_T[:, places_K].flatten()
        total = cross_entropy(outputs.logits.flatten(0, 1).float(), labels_N, ignore_index=-100, reduction="sum")
        loss = total / ((labels_N != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def _recomputes(weights: Weights, model: Any) -> bool:
    """Whether a step computes activations twice to save memory, which TRL's preference trainers do unless told."""
    return spares_memory(weights) and not learns_prompt(model)


class _EncodedDPO(OnLabels, DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # Rows that bring theirs along, from an earlier leg or of another reference, are taken at their word.
        return dataset if REFERENCE[0] in dataset.column_names else super()._precompute_ref_logps(dataset, *args)


class _EncodedKTO(OnLabels, KTOTrainer):
    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        # The KL term wants answers that belong to other prompts: each batch's, moved on by one.
        def rotate(batch: dict[str, list]) -> dict[str, list]:
            return {"KL_completion_ids": batch["completion_ids"][-1:] + batch["completion_ids"][:-1]}

        return dataset.map(rotate, batched=True, batch_size=args.per_device_train_batch_size)

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset if "ref_logps" in dataset.column_names else super()._precompute_ref_logps(dataset, *args)


def _dpo(weights: Weights, settings: DPOSettings, arguments: dict[str, Any], **given: Any) -> Trainer:
    config = DPOConfig(
        **arguments,
        **REFERRING,
        activation_checkpointing=_recomputes(weights, given["model"]),
        beta=settings.beta,
        loss_type=list(settings.loss_type),
        loss_weights=None if settings.loss_weights is None else list(settings.loss_weights),
        label_smoothing=settings.label_smoothing,
    )
    on_labels = _on_labels(weights, given["model"])
    return _EncodedDPO(on_labels=on_labels, args=config, processing_class=weights.tokenizer, **given)


def _kto(weights: Weights, settings: KTOSettings, arguments: dict[str, Any], **given: Any) -> Trainer:
    config = KTOConfig(
        **arguments,
        **REFERRING,
        activation_checkpointing=_recomputes(weights, given["model"]),
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )
    on_labels = _on_labels(weights, given["model"])
    return _EncodedKTO(on_labels=on_labels, args=config, processing_class=weights.tokenizer, **given)


def _drop_reference(model: Any) -> None:
    """TRL copies the adapter as its reference; with the reference's log probabilities known it only takes room."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


def row_losses(weights: Weights, rows: Rows, root: Any, parent: str | None) -> list[float]:
    """Mean negative log probability (nats) of each row's answer under the model that training starts from."""
    losses = []
    with weights.lock, serving(weights, parent, root) as served, torch.inference_mode():
        for columns in rows.columns:
            prompt, answer = _prompt_and_answer(columns)
            total = score_rows(served.model, prompt, [answer], None, parent, opening=served.opening)[0]
            losses.append(-total / max(1, len(answer)))
    return losses


def _prompt_and_answer(columns: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "input_ids" in columns:
        start = next(i for i, label in enumerate(columns["labels"]) if label != -100)
        return columns["input_ids"][:start], columns["input_ids"][start:]
    return columns["prompt_ids"], columns.get("chosen_ids") or columns["completion_ids"]
