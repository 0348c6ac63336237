"""What prompts share: found, run through the model once, and kept per adapter."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KV = Sequence[tuple[Tensor, Tensor]]
PREFIX_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
MIN_EXTEND_TOKENS = 16


class PrefixStore:
    """Keys and values of prompt prefixes, per adapter, least recently used dropped first above `limit_bytes`.

    An adapter's opening (virtual tokens before every prompt) is not part of what is kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.entries: OrderedDict[tuple[str | None, bytes], tuple[np.ndarray, KV]] = OrderedDict()

    def longest(self, adapter: str | None, ids: np.ndarray) -> tuple[int, KV | None]:
        """The kept entry that agrees longest with `ids`: number of tokens, and keys/values cropped to them."""
        best, best_key = 0, None
        for key, (kept, _) in self.entries.items():
            if key[0] == adapter and (same := common_prefix([kept, ids])) > best:
                best, best_key = same, key
        if best_key is None:
            return 0, None
        self.entries.move_to_end(best_key)
        return best, [(k[:, :, :best], v[:, :, :best]) for k, v in self.entries[best_key][1]]

    def put(self, adapter: str | None, ids: np.ndarray, kv: KV) -> None:
        """Keep `kv` for `ids` (length L; keys and values 1×H×L×D), then drop the oldest above the limit."""
        self.entries[(adapter, ids.tobytes())] = (ids, kv)
        while len(self.entries) > 1 and self.size_bytes() > self.limit_bytes:
            self.entries.popitem(last=False)

    def size_bytes(self) -> int:
        """Memory of all that is kept, in bytes."""
        return sum(k.nbytes + v.nbytes for _, kv in self.entries.values() for k, v in kv)

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Number of leading tokens that all rows share."""
    length = min(len(row) for row in rows)
    first = rows[0][:length]
    for row in rows[1:]:
        differs = np.flatnonzero(first[:length] != row[:length])
        if len(differs):
            length = int(differs[0])
    return length


def supports_prefix(model: Any) -> bool:
    """Whether every layer keeps plain, croppable keys and values."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def shared_prefix(
    model: Any, rows: Sequence[np.ndarray], store: PrefixStore | None, adapter: str | None, opening: KV = ()
) -> tuple[int, KV]:
    """Number of tokens that stand before all `rows` in the cache, and keys/values of `opening` and of those tokens.

    At least one token of the shortest row is left over. Taken from `store` as far as it goes; a longer shared part is
    computed on top of that and kept.
    """
    if store is None:
        return 0, opening
    length = min(common_prefix(rows), min(len(row) for row in rows) - 1)
    have, kept = store.longest(adapter, rows[0][:length])
    kv = join(opening, kept or ())
    if length - have >= MIN_EXTEND_TOKENS:
        before = length_of(opening)
        cache = plain_cache(model, kv, 1)
        model(
            input_ids=torch.from_numpy(rows[0][None, have:length]).to(model.device),
            position_ids=torch.arange(before + have, before + length, device=model.device)[None],
            past_key_values=cache,
            logits_to_keep=1,
        )
        kv = [(layer.keys, layer.values) for layer in cache.layers]
        # A view would keep the opening's memory with it.
        store.put(adapter, rows[0][:length], [(cut(k, before), cut(v, before)) for k, v in kv])
        have = length
    return have, kv


def cut(tensor: Tensor, start: int) -> Tensor:
    """Positions from `start` on; the tensor itself where that is all of them."""
    return tensor[:, :, start:].contiguous() if start else tensor


def join(first: KV, second: KV) -> KV:
    """Keys and values of `first`, then of `second`, layer by layer."""
    if not first or not second:
        return first or second
    return [
        (torch.cat([k1.to(k2), k2], 2), torch.cat([v1.to(v2), v2], 2))
        for (k1, v1), (k2, v2) in zip(first, second, strict=True)
    ]


def length_of(kv: KV) -> int:
    """Number of positions that `kv` holds."""
    return kv[0][0].shape[2] if kv else 0


def plain_cache(model: Any, kv: KV, rows: int) -> DynamicCache:
    """The cache transformers would make for the model, every row opening with `kv`."""
    cache = DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(kv):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
    return cache
