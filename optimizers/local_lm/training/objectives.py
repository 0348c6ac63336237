"""From settings to a trainer, one per objective: TRL's where it does what is wanted, ours (own.py) where not.

All take rows already encoded (rows.py), so that a model is trained on the very tokens it is asked with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from optimizers.local_lm.serving.decoding import score_rows
from optimizers.local_lm.training.own import PAD_MULTIPLE, build_distill, build_pairwise
from optimizers.local_lm.training.rows import Rows
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
    if isinstance(settings, SFTSettings):
        return _sft(weights, model, rows.select(plan), eval_rows, arguments)
    if isinstance(settings, DPOSettings):
        # The reference's pass is over each row once; the order comes after it.
        trainer = _dpo(weights, settings, arguments, model=model, train_dataset=rows, eval_dataset=eval_rows)
        _drop_reference(model)
        trainer.train_dataset = trainer.train_dataset.select(plan)
        return trainer
    if isinstance(settings, KTOSettings):
        # Its batches have to be known beforehand: each lends its answers to its own other prompts.
        ordered = rows.select(plan)
        trainer = _kto(weights, settings, arguments, model=model, train_dataset=ordered, eval_dataset=eval_rows)
        _drop_reference(model)
        return trainer
    build = build_distill if settings.method == "distill" else build_pairwise
    return build(weights, model, rows, plan, eval_rows, settings, {**arguments, "remove_unused_columns": False})


def _sft(weights: Weights, model: Any, rows: Dataset, eval_rows: Dataset | None, arguments: dict) -> Trainer:
    config = SFTConfig(
        **arguments,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        pad_to_multiple_of=PAD_MULTIPLE,
        activation_checkpointing=spares_memory(weights) and not _learns_prompt(model),
    )
    # TRL's kernel leaves out what no label asks for on CUDA only; on a CPU it scores every position of the prompt too.
    keeps_logits = "logits_to_keep" in signature(type(weights.model).forward).parameters
    on_labels = weights.device.type == "cpu" and keeps_logits and not _learns_prompt(model)
    build = _LabelledSFT if on_labels else SFTTrainer
    return build(
        model=model, args=config, train_dataset=rows, eval_dataset=eval_rows, processing_class=weights.tokenizer
    )


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


def _learns_prompt(model: Any) -> bool:
    """Whether keys and values come from outside the network, which recomputing a layer would not see."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


class _EncodedDPO(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class _EncodedKTO(KTOTrainer):
    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        # The KL term wants answers that belong to other prompts: each batch's, moved on by one.
        def rotate(batch: dict[str, list]) -> dict[str, list]:
            return {"KL_completion_ids": batch["completion_ids"][-1:] + batch["completion_ids"][:-1]}

        return dataset.map(rotate, batched=True, batch_size=args.per_device_train_batch_size)


def _dpo(weights: Weights, settings: DPOSettings, arguments: dict[str, Any], **given: Any) -> Trainer:
    config = DPOConfig(
        **arguments,
        **REFERRING,
        beta=settings.beta,
        loss_type=list(settings.loss_type),
        loss_weights=None if settings.loss_weights is None else list(settings.loss_weights),
        label_smoothing=settings.label_smoothing,
    )
    return _EncodedDPO(args=config, processing_class=weights.tokenizer, **given)


def _kto(weights: Weights, settings: KTOSettings, arguments: dict[str, Any], **given: Any) -> Trainer:
    config = KTOConfig(
        **arguments,
        **REFERRING,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )
    return _EncodedKTO(args=config, processing_class=weights.tokenizer, **given)


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
