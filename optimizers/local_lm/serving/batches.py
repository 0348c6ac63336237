"""The model's side of a batch: its cache, masks and positions, from the prompts' rests to a token for every row a step.

Two ways to the same logits: PackedBatch over a prefix held once (attention.py) for models that take to it, and
PaddedBatch over transformers' own cache for all others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from optimizers.local_lm.serving.attention import Packing, attending, shared_prefix_cache
from optimizers.local_lm.serving.prefixes import KV, length_of, plain_cache, supports_prefix

ROOM_TOKENS = 128
_tried: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class Batch:
    """Rows in step: `first` runs what stands before the first new token, `step` brings one token for every row."""

    joins = False  # whether rows can join it
    positions_B_1: Tensor
    mask_B_T: Tensor
    end: int

    def __init__(self, model: Any, rest: Sequence[np.ndarray], kv: KV, new_tokens: int) -> None:
        self.model, self.kv, self.new_tokens, self.before = model, kv, new_tokens, length_of(kv)
        self.lengths, self.width = [len(part) for part in rest], max(map(len, rest))
        self.end = self.before + self.width

    def first(self) -> Tensor:
        """The logits (B×V, float32) of each row's first new token."""
        raise NotImplementedError

    def step(self, tokens_B: Tensor, keep: list[int] | None) -> Tensor:
        """The logits of the token after `tokens_B`; `keep`, if given, lists the rows that stay in the batch."""
        if keep is not None:
            chosen = torch.tensor(keep, device=tokens_B.device)
            self.cache.batch_select_indices(chosen)
            tokens_B, self.mask_B_T = tokens_B[chosen], self.mask_B_T[chosen]
            self.positions_B_1 = self.positions_B_1[chosen]
        self.end += 1
        output = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask(),
            position_ids=self.positions_B_1,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        self.positions_B_1 = self.positions_B_1 + 1
        return output.logits[:, -1].float()

    def _mask(self) -> Tensor | None:
        raise NotImplementedError

    def _seen(self, gaps: Sequence[tuple[int, int]]) -> Tensor:
        """The mask (true where seen) of all positions to come, rows with the gaps given."""
        seen = np.ones((len(gaps), self.end + self.new_tokens), dtype=bool)
        for row, (begin, stop) in zip(seen, gaps, strict=True):
            row[begin:stop] = False
        return torch.from_numpy(seen).to(self.model.device)


class PackedBatch(Batch):
    """Prompts' rests one after another in one row, then one position per row, over one copy of the prefix."""

    joins = True

    def __init__(self, model: Any, rest: Sequence[np.ndarray], kv: KV, new_tokens: int) -> None:
        super().__init__(model, rest, kv, new_tokens)
        device, lengths = model.device, np.array(self.lengths)
        columns = np.concatenate([np.arange(length) for length in lengths])
        rows_T = torch.from_numpy(np.repeat(np.arange(len(rest)), lengths)).to(device)
        self.columns_T = torch.from_numpy(columns).to(device)
        self.ids_T = torch.from_numpy(np.concatenate(rest)).to(device)
        self.last_B = torch.from_numpy(lengths.cumsum() - 1).to(device)
        self.positions_B_1 = torch.from_numpy(self.before + lengths).to(device)[:, None]
        self.mask_B_T = self._seen([(self.before + length, self.end) for length in lengths])
        packing = Packing(rows_T, self.columns_T, len(rest), self.width)
        self.cache = shared_prefix_cache(model, kv, packing, self.width + min(new_tokens, ROOM_TOKENS))

    def first(self) -> Tensor:
        """See Batch.first."""
        output = self.model(
            input_ids=self.ids_T[None],
            # Four-dimensional, so that transformers makes none; the packing says who sees whom.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.model.device),
            position_ids=(self.before + self.columns_T)[None],
            past_key_values=self.cache,
            logits_to_keep=self.last_B,
        )
        return output.logits[0].float()

    def join(self, rest: Sequence[np.ndarray], before: int, new_tokens: int) -> Tensor:
        """Take rows in that see the first `before` positions of the prefix; the logits of their first new tokens.

        `new_tokens`: the most that any row, old or new, may still bring. Columns that no row sees any more go.
        """
        kv = [(keys[:, :, :before], values[:, :, :before]) for keys, values in self.kv] if before else ()
        other = PackedBatch(self.model, rest, kv, new_tokens)
        logits_B_V = other.first()
        own = self.mask_B_T[:, self.before : self.end]
        order = (~own).to(torch.uint8).argsort(dim=1, stable=True)  # what a row sees first, in its order
        lengths = own.sum(1).tolist() + other.lengths
        self.width = max(lengths)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.absorb(theirs, order, self.width, self.width + min(new_tokens, ROOM_TOKENS))
        old = len(own)
        prefix = torch.arange(self.before, device=own.device).expand(len(rest), -1) < before
        self.end, self.new_tokens = self.before + self.width, new_tokens
        seen = self._seen([(self.before + length, self.end) for length in lengths])
        seen[:old, : self.before], seen[old:, : self.before] = self.mask_B_T[:, : self.before], prefix
        self.mask_B_T = seen
        self.positions_B_1 = torch.cat([self.positions_B_1, other.positions_B_1])
        return logits_B_V

    def _mask(self) -> Tensor:
        return self.mask_B_T[:, None, None, : self.end]


class PaddedBatch(Batch):
    """Prompts' rests padded on the left, over transformers' own cache, the prefix repeated for every row."""

    def __init__(self, model: Any, rest: Sequence[np.ndarray], kv: KV, new_tokens: int) -> None:
        super().__init__(model, rest, kv, new_tokens)
        ids = np.stack([np.pad(part, (self.width - len(part), 0), mode="edge") for part in rest])
        self.ids_B_S = torch.from_numpy(ids).to(model.device)
        self.mask_B_T = self._seen([(self.before, self.end - length) for length in self.lengths])
        self.padded = min(self.lengths) < self.width
        self.cache = plain_cache(model, kv, len(rest))

    def first(self) -> Tensor:
        """See Batch.first."""
        positions_B_S = (self.mask_B_T[:, : self.end].cumsum(-1) - 1).clamp(min=0)[:, self.before :]
        self.positions_B_1 = positions_B_S[:, -1:] + 1
        output = self.model(
            input_ids=self.ids_B_S,
            attention_mask=self._mask(),
            position_ids=positions_B_S,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _mask(self) -> Tensor | None:
        return self.mask_B_T[:, : self.end].long() if self.padded else None


@contextmanager
def open_batch(model: Any, rest: Sequence[np.ndarray], kv: KV, new_tokens: int) -> Iterator[Batch]:
    """A batch of the kind that suits the model, while the block lasts; `rest`: each row's tokens after `kv`."""
    if not shares_prefix(model):
        yield PaddedBatch(model, rest, kv, new_tokens)
        return
    with attending(model):
        yield PackedBatch(model, rest, kv, new_tokens)


def shares_prefix(model: Any) -> bool:
    """Whether the model decodes over a shared prefix as it would over whole prompts; tried once per model, on it."""
    if model not in _tried:
        plain = model.config.get_text_config(decoder=True)._attn_implementation == "sdpa"
        _tried[model] = plain and supports_prefix(model) and _agrees(model)
    return _tried[model]


@torch.inference_mode()
def _agrees(model: Any) -> bool:
    """Two rows of unequal length over a common prefix and then one token more, against whole prompts without cache."""
    vocab = model.config.get_text_config(decoder=True).vocab_size
    tokens = (np.arange(3, 14) * 7919) % vocab
    prefix, rest, last = tokens[:6], [tokens[6:9], tokens[8:10]], tokens[10:]
    whole = [torch.from_numpy(np.concatenate([prefix, part, last]))[None].to(model.device) for part in rest]
    expected = torch.stack([model(input_ids=ids).logits[0, -2:] for ids in whole]).float()
    try:
        cache = plain_cache(model, (), 1)
        model(input_ids=torch.from_numpy(prefix)[None].to(model.device), past_key_values=cache)
        with attending(model):
            batch = PackedBatch(model, rest, [(layer.keys, layer.values) for layer in cache.layers], 1)
            got = [batch.first(), batch.step(torch.from_numpy(last).to(model.device).expand(2), None)]
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # an architecture with attention, masks or heads of its own
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool(((torch.stack(got, 1) - expected).abs().max() < tolerance * expected.std()).item())
