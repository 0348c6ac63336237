"""A scalar head on the decoder that the engine serves: the network that TRL trains, and the scoring of token ids.

The head stands on the very decoder in memory, so base weights are held once, in 4 bits too where they are so loaded;
a second copy would double the memory of a large base for nothing. What is trained beside the head is an adapter like
any other, put into the decoder for as long as it trains or scores (tuning/adapters.py).
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from optimizers.local_lm.serving.prefixes import KV, PrefixStore, length_of, plain_cache, shared_prefix
from optimizers.local_lm.weights import Weights


def new_head(weights: Weights, seed: int) -> nn.Linear:
    """A head drawn from N(0, 1 / (width + 1)), as Stiennon et al. 2020 (arXiv:2009.01325) begin; float32, no bias."""
    width = weights.hidden_size
    head = nn.Linear(width, 1, bias=False, dtype=torch.float32)
    nn.init.normal_(head.weight, std=(width + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    return head.to(weights.device)


class RewardNetwork(nn.Module):
    """The decoder in memory and a head over the last token of each row: what TRL's RewardTrainer takes for a model.

    transformers' own classifiers look for the last token that is not the padding token, which loses the end of the turn
    where the two are one; here the mask tells.
    """

    def __init__(self, weights: Weights, head: nn.Linear) -> None:
        super().__init__()
        self.decoder, self.score = weights.model.base_model, head
        self.config = copy.deepcopy(weights.model.config)  # the trainer writes into it
        self.config.num_labels = 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> SequenceClassifierOutput:
        """`logits` (Bx1, float32): the reward of each row of `input_ids` (BxT, padded on the right)."""
        hidden_B_T_E = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last_B = attention_mask.sum(1) - 1
        with torch.autocast(input_ids.device.type, enabled=False):
            logits_B_1 = self.score(hidden_B_T_E[torch.arange(len(last_B)), last_B].float())
        return SequenceClassifierOutput(logits=logits_B_1)

    def add_model_tags(self, tags: Sequence[str]) -> None:
        """The trainer tags models for a hub's page; nothing here goes to one."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass, as the trainer asks where memory is short."""
        self.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs)


@torch.inference_mode()
def score_ids(
    model: Any, head: nn.Linear, rows: Sequence[Sequence[int]], store: PrefixStore | None, adapter: str | None
) -> list[float]:
    """The reward of each row of token ids, in one pass; what all rows share is computed once and kept in `store`.

    Padding stands on the right: causality alone keeps it away from the last token of every row.
    """
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    shared, kv = _prefix(model, arrays, store, adapter)
    rest = [row[shared:] for row in arrays]
    width = max(map(len, rest))
    ids = np.stack([np.pad(part, (0, width - len(part)), mode="edge") for part in rest])
    before = length_of(kv)
    hidden_B_S_E = model.base_model(
        input_ids=torch.from_numpy(ids).to(model.device),
        position_ids=torch.arange(before, before + width, device=model.device).expand(len(ids), -1),
        past_key_values=plain_cache(model, kv, len(ids)),
    ).last_hidden_state
    last_B = torch.tensor([len(part) - 1 for part in rest], device=model.device)
    rewards_B = head(hidden_B_S_E[torch.arange(len(rest), device=model.device), last_B].float())[:, 0]
    return rewards_B.double().tolist()


def plan_batches(rows: Sequence[Sequence[int]], prompts: Sequence[int], max_batch: int) -> list[list[int]]:
    """Places of `rows` in batches: answers to one prompt (`prompts` numbers them) together, lone ones by length."""
    by_prompt: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(place)
    groups = [places for places in by_prompt.values() if len(places) > 1]
    groups.append(sorted((places[0] for places in by_prompt.values() if len(places) == 1), key=lambda i: len(rows[i])))
    return [places[i : i + max_batch] for places in groups for i in range(0, len(places), max_batch)]


def _prefix(model: Any, rows: Sequence[np.ndarray], store: PrefixStore | None, adapter: str | None) -> tuple[int, KV]:
    # A row alone shares nothing: its own tokens would only drive others' prefixes out of the store.
    return shared_prefix(model, rows, store if len(rows) > 1 else None, adapter)
