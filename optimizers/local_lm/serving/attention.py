"""Attention of a batch over a prefix that its rows share, held once, and over what each row has of its own.

A decoding step reads keys and values and little else. With one copy of the shared prefix for all rows it reads a
batch's worth less, as one matrix product per head instead of one per row (the decomposition of Hydragen, Juravsky et
al. 2024, arXiv 2402.05099). Prompts run packed, one after another in a single row, so that no padding goes through the
linear layers. A row's own keys and values lie in a buffer that is written in place, where transformers' DynamicCache
copies all of it at each step.

Serves models of transformers that run SDPA attention with plain caches; batches.py tries it on a model before use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from optimizers.local_lm.serving.prefixes import KV

NAME = "shared_prefix"
GROW_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Packing:
    """Where each of T packed tokens belongs: its row and its column, of `count` rows of `width` columns."""

    rows_T: Tensor
    columns_T: Tensor
    count: int
    width: int

    def spread(self, packed_T_H_D: Tensor, into_B_H_W_D: Tensor) -> Tensor:
        """Write packed tokens to their places."""
        into_B_H_W_D[self.rows_T, :, self.columns_T] = packed_T_H_D
        return into_B_H_W_D

    def gather(self, spread_B_H_W: Tensor) -> Tensor:
        """T×H(×D): the tokens back from their places."""
        return spread_B_H_W[self.rows_T, :, self.columns_T]


class SharedPrefixLayer(DynamicLayer):
    """One layer's cache: `prefix` (keys and values, 1×G×L×D) for all rows, and B×G×room×D for their own.

    The first states to come are packed, as `packing` says; each later call brings one position for every row.
    """

    def __init__(self, prefix: tuple[Tensor, Tensor] | None, packing: Packing, room_tokens: int) -> None:
        super().__init__()
        self.prefix, self.packing, self.room_tokens, self.own_tokens = prefix, packing, room_tokens, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states in place; returns states for `attend`, to whose keys this layer is tied."""
        begin = self.own_tokens
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.own_tokens = self.packing.width
            # Zeros: what stands in a gap is weighed with nought, and nought times garbage may be NaN.
            self.keys, self.values = (
                self.packing.spread(states[0].transpose(0, 1), self._buffer(states, self.packing.count).zero_())
                for states in (key_states, value_states)
            )
            key_states.packed_into = self
            return key_states, value_states
        self.own_tokens = end = begin + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.room_tokens = end + GROW_TOKENS
            for name in ("keys", "values"):
                old = getattr(self, name)
                setattr(self, name, self._buffer(old, len(old)))
                getattr(self, name)[:, :, :begin] = old[:, :, :begin]
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        keys = self.keys[:, :, :end]
        keys.shared_prefix = self.prefix
        return keys, self.values[:, :, :end]

    def _buffer(self, states: Tensor, rows: int) -> Tensor:
        return states.new_empty(rows, states.shape[1], self.room_tokens, states.shape[3])

    def get_seq_length(self) -> int:
        """Positions so far, the prefix's among them."""
        return (self.prefix[0].shape[2] if self.prefix else 0) + self.own_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a mask must cover."""
        return self.get_seq_length() + query_length, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        self.keys, self.values = self.keys[indices], self.values[indices]

    def absorb(self, other: "SharedPrefixLayer", order_B_S: Tensor, width: int, room_tokens: int) -> None:
        """Put the other's rows behind these, whose columns are first set in the order given; `width` columns remain."""
        self.room_tokens, self.own_tokens = room_tokens, width
        rows = len(self.keys)
        for name in ("keys", "values"):
            mine, theirs = getattr(self, name), getattr(other, name)
            both = self._buffer(mine, rows + len(theirs)).zero_()
            kept, new = min(width, order_B_S.shape[1]), min(width, other.packing.width)
            chosen = order_B_S[:, None, :kept, None].expand(-1, mine.shape[1], -1, mine.shape[3])
            both[:rows, :, :kept] = mine.gather(2, chosen)
            both[rows:, :, :new] = theirs[:, :, :new]
            setattr(self, name, both)

    def crop(self, tokens_to_remove: int) -> None:
        """Not for this cache: a batch only grows."""
        raise NotImplementedError("a batch's cache is not cropped; start another")


def shared_prefix_cache(model: Any, kv: KV, packing: Packing, room_tokens: int) -> Cache:
    """A cache whose every row opens with `kv`, with room for `room_tokens` of its own before it has to grow."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return Cache(layers=[SharedPrefixLayer(kv[i] if kv else None, packing, room_tokens) for i in range(count)])


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for keys that SharedPrefixLayer gave; SDPA for all others.

    query B×H×Q×D; key and value B×G×S×D; mask B×1×Q×(L+S), true where seen. Returns B×Q×H×D. Raises ValueError for
    attention with more to it than a scale and a mask.
    """
    layer, prefix = getattr(key, "packed_into", None), getattr(key, "shared_prefix", None)
    if layer is None and prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if special := [name for name in ("position_bias", "softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"attention with {special} over a shared prefix is not written")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer is not None:
        return _attend_packed(query, layer, scale), None
    return _attend_once(query, key, value, prefix, attention_mask, scale), None


def _attend_once(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], mask: Tensor | None, scale: float
) -> Tensor:
    """One query per row: scores over the prefix for all rows in one product, then one softmax over both parts."""
    rows, heads, _, width = query.shape
    groups, length = key.shape[1], prefix[0].shape[2]
    query_B_G_N_D = (query * scale).reshape(rows, groups, heads // groups, width)
    over_prefix = _for_all_rows(query_B_G_N_D, prefix[0][0].transpose(-1, -2))
    scores = torch.cat([over_prefix, query_B_G_N_D @ key.transpose(-1, -2)], -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    out = _for_all_rows(weights[..., :length], prefix[1][0])
    out = out + weights[..., length:] @ value
    return out.reshape(rows, 1, heads, width)


def _for_all_rows(left_B_G_N_X: Tensor, right_G_X_Y: Tensor) -> Tensor:
    rows, groups, each, inner = left_B_G_N_X.shape
    product = left_B_G_N_X.transpose(0, 1).reshape(groups, rows * each, inner) @ right_G_X_Y
    return product.view(groups, rows, each, -1).transpose(0, 1)


def _attend_packed(query: Tensor, layer: SharedPrefixLayer, scale: float) -> Tensor:
    """1×T×H×D for packed queries 1×H×T×D: each row over its own tokens, all over the prefix, weighed by their masses.

    A row's tokens stand at the left of its columns, so causality alone hides the gap behind them.
    """
    packing, (_, heads, _, width) = layer.packing, query.shape
    spread = packing.spread(query[0].transpose(0, 1), query.new_zeros(packing.count, heads, packing.width, width))
    own = [states[:, :, : packing.width] for states in (layer.keys, layer.values)]
    out, mass = map(packing.gather, attend_with_mass(spread, *own, scale, causal=True))
    if layer.prefix is None:
        return out[None]
    before, mass_before = attend_with_mass(query, *layer.prefix, scale, causal=False)
    before, mass_before = before[0].transpose(0, 1), mass_before[0].transpose(0, 1)
    share = torch.sigmoid(mass - mass_before)[..., None].to(out.dtype)
    return (before + share * (out - before))[None]


def attend_with_mass(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention B×H×Q×D and the log of its softmax's denominator B×H×Q, by the device's fused kernel."""
    heads = query.shape[1]
    key, value = (states.repeat_interleave(heads // states.shape[1], 1) for states in (key, value))
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=None, scale=scale
        )
    if query.device.type == "cuda":
        out, mass, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return out, mass[..., : query.shape[2]]  # the kernel pads it
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Let the model's layers attend by `attend` for as long as the block lasts."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
