"""Distillation on answers that are given: the starting model under the teacher's prompt, into it under the student's.

The teacher's distributions are computed once, before the first step, with the weights that training starts from. For
the student's own answers, and a teacher that moves, see distill_rollouts.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments

from optimizers.local_lm.training.losses import divergence, kept_distribution, with_rest
from optimizers.local_lm.training.own import PAD_MULTIPLE, CountingTrainer, pad_id
from optimizers.local_lm.training.settings import DistillSettings
from optimizers.local_lm.weights import Weights


class DistillTrainer(CountingTrainer):
    """The student's next-token distribution under its own prompt towards the teacher's, known beforehand."""

    def loss_of(
        self, model: Any, batch: dict[str, Tensor], n_tokens: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Divergence over the completion's tokens."""
        settings = self.settings
        logits_N_V = answer_logits(model, batch)
        student = (logits_N_V.float() / settings.temperature).log_softmax(-1)
        return divergence(
            batch["teacher"], with_rest(student, batch.get("teacher_tokens")),
            kind=settings.divergence, jsd_beta=settings.jsd_beta,
        )  # fmt: skip


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
        data_collator=lambda batch: _collate(batch, pad_id(weights)),
        train_dataset=rows.select(plan),
        eval_dataset=eval_rows,
        settings=settings,
    )


def answer_batch(prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, skip: int = 0) -> dict:
    """`input_ids` and `attention_mask` (BxT, padded on the right) and `predicts` (BxT): true where the next token is an
    answer's, its first `skip` tokens left out."""
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = -(-max(map(len, sequences)) // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.full((len(sequences), width), pad)
    seen = torch.zeros(len(sequences), width, dtype=torch.long)
    predicts = torch.zeros(len(sequences), width, dtype=torch.bool)
    for i, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        ids[i, : len(sequence)], seen[i, : len(sequence)] = torch.tensor(sequence), 1
        predicts[i, len(prompt) - 1 + skip : len(sequence) - 1] = True
    return {"input_ids": ids, "attention_mask": seen, "predicts": predicts}


def answer_logits(model: Any, batch: dict[str, Tensor], keeps: bool = False) -> Tensor:
    """The logits (NxV) behind every true place of `predicts`, row by row; `keeps`: as `keeps_logits` says."""
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    predicts_B_T = batch["predicts"]
    if keeps:
        places_K = predicts_B_T.any(dim=0).nonzero().squeeze(1)
        return model(**asked, logits_to_keep=places_K).logits[predicts_B_T[:, places_K]]
    # Virtual tokens, where there are any, stand before the prompt.
    return model(**asked).logits[:, -predicts_B_T.shape[1] :][predicts_B_T]


@torch.no_grad()
def _teacher(model: Any, row: dict[str, Any], settings: DistillSettings) -> dict[str, Any]:
    model.eval()
    ids = torch.tensor([row["teacher_ids"] + row["completion_ids"]], device=model.device)
    n_answer = len(row["completion_ids"])
    logits = model(input_ids=ids, use_cache=False).logits[0, -n_answer - 1 : -1]
    logps = (logits.float() / settings.temperature).log_softmax(-1)
    return kept_distribution("teacher", logps, settings.top_k)


def _collate(batch: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    told = answer_batch([row["prompt_ids"] for row in batch], [row["completion_ids"] for row in batch], pad)
    for name in ("teacher", "teacher_tokens"):
        if name in batch[0]:
            told[name] = torch.cat([torch.tensor(row[name]) for row in batch])
    return told
