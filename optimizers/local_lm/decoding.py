"""Batched decoding over a shared prompt prefix: pure of threads, names and files.

The part of the prompts that a batch shares (system text, demonstrations) is run through the model once and its keys
and values are kept; every row then brings only its own rest, left-padded. Rows that have ended leave the batch.
In float32 a row's greedy tokens are the same alone, in any batch, and with or without a kept prefix.

Does not handle: a kept prefix for models with sliding-window layers (the batch then runs whole prompts).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KV = list[tuple[Tensor, Tensor]]
MIN_EXTEND_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One prompt and how to continue it. `logprobs`: None for none, 0 for the chosen tokens', n for n alternatives."""

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None


@dataclass
class Output:
    """What one row said: `ids` without the end-of-turn token, log probabilities (nats, temperature 1) one per id."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    stop_tokens: int = 0


class PrefixStore:
    """Keys and values of prompt prefixes, per adapter, least recently used dropped first above `limit_bytes`."""

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
    model: Any, rows: Sequence[np.ndarray], store: PrefixStore | None, adapter: str | None
) -> tuple[int, KV]:
    """Length and keys/values of what `rows` share, at least one token short of the shortest row.

    Taken from `store` as far as it goes; a longer shared part is computed on top of that and kept.
    """
    if store is None:
        return 0, []
    length = min(common_prefix(rows), min(len(row) for row in rows) - 1)
    have, kv = store.longest(adapter, rows[0][:length])
    if length - have >= MIN_EXTEND_TOKENS:
        cache = _cache(model, kv or [], 1)
        model(
            input_ids=torch.from_numpy(rows[0][None, have:length]).to(model.device),
            past_key_values=cache,
            logits_to_keep=1,
        )
        kv = [(layer.keys, layer.values) for layer in cache.layers]
        store.put(adapter, rows[0][:length], kv)
        have = length
    return have, kv or []


def _cache(model: Any, kv: KV, rows: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(kv):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
    return cache


@torch.inference_mode()
def decode(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    stop_ids: frozenset[int],
    store: PrefixStore | None,
    adapter: str | None,
) -> list[Output]:
    """Continue every row until its end token, stop string or `max_tokens`; outputs in the order of `rows`."""
    prompts = [np.asarray(row.ids, dtype=np.int64) for row in rows]
    shared, kv = shared_prefix(model, prompts, store, adapter)
    rest = [prompt[shared:] for prompt in prompts]
    width = max(len(part) for part in rest)
    ids = np.full((len(rows), width), next(iter(stop_ids)), dtype=np.int64)
    seen = np.ones((len(rows), shared + width), dtype=np.int64)
    for i, part in enumerate(rest):
        ids[i, width - len(part) :] = part
        seen[i, shared : shared + width - len(part)] = 0
    device = model.device
    mask_B_T = torch.from_numpy(seen).to(device)
    positions_B_S = (mask_B_T.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    cache = _cache(model, kv, len(rows))
    state = _State(tokenizer, rows, stop_ids)
    step_ids = torch.from_numpy(ids).to(device)
    padded = bool((seen == 0).any())
    while True:
        logits_B_V = (
            model(
                input_ids=step_ids,
                attention_mask=mask_B_T if padded else None,
                position_ids=positions_B_S,
                past_key_values=cache,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        keep = state.take(logits_B_V)
        if not state.live:
            return state.outputs
        if keep is not None:
            chosen = torch.tensor(keep, device=device)
            cache.batch_select_indices(chosen)
            mask_B_T, positions_B_S = mask_B_T[chosen], positions_B_S[chosen]
        step_ids = torch.tensor(state.last, device=device)[:, None]
        positions_B_S = positions_B_S[:, -1:] + 1
        mask_B_T = torch.cat([mask_B_T, mask_B_T.new_ones(len(state.slots), 1)], dim=1)


class _State:
    """The rows still in the batch (`slots`, indices into `rows`), those that still speak (`live`), and all outputs."""

    def __init__(self, tokenizer: Any, rows: Sequence[Row], stop_ids: frozenset[int]) -> None:
        self.tokenizer, self.rows, self.stop_ids = tokenizer, rows, stop_ids
        self.outputs = [Output() for _ in rows]
        self.slots = list(range(len(rows)))
        self.live = set(self.slots)
        self.last: list[int] = []
        self.sample = sampler(rows)

    def take(self, logits_B_V: Tensor) -> list[int] | None:
        """Choose one token per slot; returns the slots to keep when at least half have ended, else None."""
        tokens = self.sample(logits_B_V, self.slots)
        scores = self._scores(logits_B_V, tokens)
        self.last = tokens.tolist()
        for at, slot in enumerate(self.slots):
            if slot in self.live and self._ends(slot, self.last[at], at, scores):
                self.live.discard(slot)
        if not self.live or 2 * len(self.live) > len(self.slots):
            return None
        keep = [at for at, slot in enumerate(self.slots) if slot in self.live]
        self.slots = [self.slots[at] for at in keep]
        self.last = [self.last[at] for at in keep]
        return keep

    def _scores(self, logits_B_V: Tensor, tokens: Tensor) -> tuple | None:
        asked = [self.rows[slot].logprobs for slot in self.slots]
        if all(n is None for n in asked):
            return None
        logps_B_V = logits_B_V.log_softmax(-1)
        chosen = logps_B_V.gather(-1, tokens[:, None])[:, 0].tolist()
        width = min(max(n or 0 for n in asked), logps_B_V.shape[-1])
        if width == 0:
            return chosen, None, None
        best = logps_B_V.topk(width, dim=-1)
        return chosen, best.indices.tolist(), best.values.tolist()

    def _ends(self, slot: int, token: int, at: int, scores: tuple | None) -> bool:
        row, output = self.rows[slot], self.outputs[slot]
        if token in self.stop_ids:
            output.finish_reason, output.stop_tokens = "stop", 1
            output.text = self.tokenizer.decode(output.ids, skip_special_tokens=True)
            return True
        output.ids.append(token)
        if scores is not None and row.logprobs is not None:
            output.logprobs.append(scores[0][at])
            top = [] if not row.logprobs else list(zip(scores[1][at], scores[2][at], strict=True))[: row.logprobs]
            output.top.append(top)
        if row.stop and self._stopped(row, output):
            return True
        if len(output.ids) >= row.max_tokens:
            output.text = self.tokenizer.decode(output.ids, skip_special_tokens=True)
            return True
        return False

    def _stopped(self, row: Row, output: Output) -> bool:
        # A stop string of n characters may lie in as many as 4n byte-level tokens; older text was looked at before.
        window = output.ids[-(4 * max(map(len, row.stop)) + 4) :]
        tail = self.tokenizer.decode(window, skip_special_tokens=True)
        if not any(stop in tail for stop in row.stop):
            return False
        text = self.tokenizer.decode(output.ids, skip_special_tokens=True)
        found = [text.find(stop) for stop in row.stop if stop in text]
        if not found:
            return False
        output.text, output.finish_reason = text[: min(found)], "stop"
        return True


def sampler(rows: Sequence[Row]) -> Callable[[Tensor, list[int]], Tensor]:
    """A function (logits_B_V, slots) -> tokens_B: argmax at temperature 0, else nucleus/top-k sampling.

    Each row draws from a generator of its own, so a seeded row does not depend on its neighbours.
    """
    hot = {i for i, row in enumerate(rows) if row.temperature > 0}
    if not hot:
        return lambda logits_B_V, slots: logits_B_V.argmax(-1)
    dice = {i: torch.Generator() for i in hot}
    for i, die in dice.items():
        seed = rows[i].seed
        die.manual_seed(seed) if seed is not None else die.seed()

    def sample(logits_B_V: Tensor, slots: list[int]) -> Tensor:
        tokens = logits_B_V.argmax(-1)
        at = [i for i, slot in enumerate(slots) if slot in hot]
        if not at:
            return tokens
        these = [rows[slots[i]] for i in at]
        draws = torch.cat([torch.rand(1, generator=dice[slots[i]]) for i in at])
        picked = torch.tensor(at, device=tokens.device)
        tokens[picked] = _draw(logits_B_V[picked], these, draws)
        return tokens

    return sample


def _draw(logits_B_V: Tensor, rows: Sequence[Row], draws_B: Tensor) -> Tensor:
    """Inverse-CDF sampling over probabilities in falling order, cut by top-k and top-p; draws uniform in [0, 1)."""
    column = {"device": logits_B_V.device, "dtype": torch.float32}
    heat = torch.tensor([[row.temperature] for row in rows], **column)
    probs, order = (logits_B_V / heat).softmax(-1).sort(-1, descending=True)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    cut_k = torch.tensor([[row.top_k or probs.shape[-1]] for row in rows], device=probs.device)
    cut_p = torch.tensor([[row.top_p] for row in rows], **column)
    keep = (ranks < cut_k) & ((probs.cumsum(-1) - probs < cut_p) | (ranks == 0))
    total = (probs * keep).cumsum(-1)
    aim = draws_B.to(total)[:, None] * total[:, -1:]
    at = torch.searchsorted(total, aim, right=True).clamp(max=probs.shape[-1] - 1)
    return order.gather(-1, at)[:, 0]


@torch.inference_mode()
def score_rows(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    store: PrefixStore | None,
    adapter: str | None,
) -> list[float]:
    """Sum of log probabilities (nats) of each completion's tokens after `prompt`, in one batched forward pass."""
    prompt_T = np.asarray(prompt, dtype=np.int64)
    shared, kv = shared_prefix(model, [prompt_T], store, adapter)
    lead = prompt_T[shared:]
    width = max(len(completion) for completion in completions)
    ids = np.full((len(completions), len(lead) + width), int(prompt_T[-1]), dtype=np.int64)
    ids[:, : len(lead)] = lead
    for i, completion in enumerate(completions):
        ids[i, len(lead) : len(lead) + len(completion)] = completion
    # Padding stands on the right: causality alone keeps it away from every token that counts.
    batch = torch.from_numpy(ids).to(model.device)
    logits = model(
        input_ids=batch, past_key_values=_cache(model, kv, len(completions)), logits_to_keep=width + 1
    ).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, batch[:, len(lead) :, None])[..., 0]
    return [float(row[: len(completion)].double().sum()) for row, completion in zip(logps, completions, strict=True)]
