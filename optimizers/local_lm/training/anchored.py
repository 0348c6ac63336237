"""Supervised fine-tuning that is held to where it started: the likelihood of the answers, and KL to the incumbent.

The incumbent is the weights that training starts from, its adapter included; its next-token distributions over each
row's answer are computed once, before the first step. Not handled: tuners that start elsewhere than the incumbent
(prompt learning), which are refused.
"""

from inspect import signature
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from optimizers.errors import TrainingError
from optimizers.local_lm.training.losses import anchored_nll, with_rest
from optimizers.local_lm.training.settings import SFTSettings
from optimizers.local_lm.weights import Weights

PAD_MULTIPLE = 64


class AnchoredSFT(Trainer):
    """NLL of the labelled tokens plus `kl_beta` times KL(incumbent || model) on them, each per token."""

    def __init__(self, *args: Any, settings: SFTSettings, keeps_logits: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.keeps_logits, self.last_metrics = settings, keeps_logits, {}

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """What the Trainer minimises."""
        labels_B_T = inputs["labels"][:, 1:]
        places_K = (labels_B_T != -100).any(dim=0).nonzero().squeeze(1)
        kept = {"logits_to_keep": places_K} if self.keeps_logits else {}
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **kept
        ).logits  # fmt: skip
        logits_B_K_V = logits if kept else logits[:, places_K]
        asked_B_K = labels_B_T[:, places_K] != -100
        logps_N_V = logits_B_K_V[asked_B_K].float().log_softmax(-1)
        nll_N = cross_entropy(logps_N_V, labels_B_T[:, places_K][asked_B_K], reduction="none")
        policy_N_K = with_rest(logps_N_V, inputs.get("reference_tokens"))
        loss, metrics = anchored_nll(
            nll_N, inputs["reference"], policy_N_K, beta=self.settings.kl_beta, n_tokens=num_items_in_batch
        )
        if model.training:
            self.last_metrics = metrics
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None):
        """Validation: the loss alone."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the metrics."""
        super().log({**logs, **self.last_metrics} if "loss" in logs else logs, start_time)


def build_anchored(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: SFTSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "sft" with `kl_beta` above 0. Raises TrainingError for a tuner that does not start as it was."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise TrainingError(
            "kl_beta holds training to the weights it starts from, and virtual tokens start somewhere else; use a "
            "tuner that begins as the incumbent ('lora'), or kl_beta=0"
        )
    rows = rows.map(lambda row: _reference(model, row, settings), load_from_cache_file=False)
    if eval_rows is not None:
        eval_rows = eval_rows.map(lambda row: _reference(model, row, settings), load_from_cache_file=False)
    tokenizer = weights.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(weights.stop_ids)
    return AnchoredSFT(
        model=model,
        args=TrainingArguments(**{**arguments, "remove_unused_columns": False}),
        data_collator=lambda batch: _collate(batch, pad),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
        keeps_logits="logits_to_keep" in signature(type(weights.model).forward).parameters,
    )


@torch.no_grad()
def _reference(model: Any, row: dict[str, Any], settings: SFTSettings) -> dict[str, Any]:
    """The incumbent's log probabilities at each labelled token, in the order in which the loss meets them."""
    model.eval()
    logits = model(input_ids=torch.tensor([row["input_ids"]], device=model.device), use_cache=False).logits[0, :-1]
    asked = torch.tensor(row["labels"][1:], device=model.device) != -100
    logps = logits[asked].float().log_softmax(-1)
    if settings.kl_top_k is None or settings.kl_top_k >= logps.shape[-1]:
        return {"reference": logps.tolist()}
    tokens = logps.topk(settings.kl_top_k, dim=-1).indices
    return {"reference": with_rest(logps, tokens).tolist(), "reference_tokens": tokens.tolist()}


def _collate(batch: list[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    width = -(-max(len(row["input_ids"]) for row in batch) // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.full((len(batch), width), pad_id)
    labels = torch.full((len(batch), width), -100)
    seen = torch.zeros(len(batch), width, dtype=torch.long)
    for i, row in enumerate(batch):
        n = len(row["input_ids"])
        ids[i, :n], labels[i, :n], seen[i, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), 1
    told = {"input_ids": ids, "attention_mask": seen, "labels": labels}
    for name in ("reference", "reference_tokens"):
        if name in batch[0]:
            told[name] = torch.cat([torch.tensor(row[name]) for row in batch])
    return told
