"""Supervised fine-tuning that is held to where it started: the likelihood of the answers, and KL to the incumbent.

The incumbent is the weights that training starts from, its adapter included; its next-token distributions over each
row's answer are computed once, before the first step. Not handled: tuners that start elsewhere than the incumbent
(prompt learning), which are refused.
"""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from optimizers.errors import TrainingError
from optimizers.local_lm.training.labelled import keeps_logits, learns_prompt
from optimizers.local_lm.training.losses import anchored_nll, kept_distribution, with_rest
from optimizers.local_lm.training.own import PAD_MULTIPLE, CountingTrainer, pad_id
from optimizers.local_lm.training.settings import SFTSettings
from optimizers.local_lm.weights import Weights


class AnchoredSFT(CountingTrainer):
    """NLL of the labelled tokens plus `kl_beta` times KL(incumbent || model) on them, each per token."""

    def __init__(self, *args: Any, keeps_logits: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keeps_logits = keeps_logits

    def loss_of(
        self, model: Any, batch: dict[str, Tensor], n_tokens: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The objective; `n_tokens` are those of all batches of the step, None for this one's."""
        labels_B_T = batch["labels"][:, 1:]
        places_K = (labels_B_T != -100).any(dim=0).nonzero().squeeze(1)
        kept = {"logits_to_keep": places_K} if self.keeps_logits else {}
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **kept
        ).logits  # fmt: skip
        logits_B_K_V = logits if kept else logits[:, places_K]
        asked_B_K = labels_B_T[:, places_K] != -100
        logps_N_V = logits_B_K_V[asked_B_K].float().log_softmax(-1)
        nll_N = cross_entropy(logps_N_V, labels_B_T[:, places_K][asked_B_K], reduction="none")
        policy_N_K = with_rest(logps_N_V, batch.get("reference_tokens"))
        return anchored_nll(nll_N, batch["reference"], policy_N_K, beta=self.settings.kl_beta, n_tokens=n_tokens)


def build_anchored(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: SFTSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "sft" with `kl_beta` above 0. Raises TrainingError for a tuner that does not start as it was."""
    if learns_prompt(model):
        raise TrainingError(
            "kl_beta holds training to the weights it starts from, and virtual tokens start somewhere else; use a "
            "tuner that begins as the incumbent ('lora'), or kl_beta=0"
        )
    rows = rows.map(lambda row: _reference(model, row, settings), load_from_cache_file=False)
    if eval_rows is not None:
        eval_rows = eval_rows.map(lambda row: _reference(model, row, settings), load_from_cache_file=False)
    return AnchoredSFT(
        model=model,
        args=TrainingArguments(**{**arguments, "remove_unused_columns": False}),
        data_collator=lambda batch: _collate(batch, pad_id(weights)),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
        keeps_logits=keeps_logits(weights, model),
    )


@torch.no_grad()
def _reference(model: Any, row: dict[str, Any], settings: SFTSettings) -> dict[str, Any]:
    """The incumbent's log probabilities at each labelled token, in the order in which the loss meets them."""
    model.eval()
    logits = model(input_ids=torch.tensor([row["input_ids"]], device=model.device), use_cache=False).logits[0, :-1]
    asked = torch.tensor(row["labels"][1:], device=model.device) != -100
    logps = logits[asked].float().log_softmax(-1)
    return kept_distribution("reference", logps, settings.kl_top_k)


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
