"""Batched decoding over a shared prompt prefix: pure of threads, names and files.

The part of the prompts that a batch shares (system text, demonstrations) is run through the model once and its keys
and values are kept; every row then brings only its own rest. Rows that have ended leave the batch.
In float32 a row's greedy tokens are the same alone, in any batch, and with or without a kept prefix.

Does not handle: a kept prefix for models with sliding-window layers (the batch then runs whole prompts).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from optimizers.local_lm.serving.batches import open_batch
from optimizers.local_lm.serving.prefixes import (
    KV,
    PrefixStore,
    common_prefix,
    length_of,
    plain_cache,
    shared_prefix,
)
from optimizers.local_lm.serving.rows import Listener, Output, Row
from optimizers.local_lm.serving.speaking import Speaking


@torch.inference_mode()
def decode(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    stop_ids: frozenset[int],
    store: PrefixStore | None,
    adapter: str | None,
    opening: KV = (),
    listeners: Sequence[Listener | None] = (),
    *,
    ended: Callable[[int, Output], None] = lambda index, output: None,
    arrivals: Callable[[int], Sequence[tuple[Row, Listener | None]]] | None = None,
) -> list[Output]:
    """Continue every row until its end token, stop string or `max_tokens`; outputs in the order of `rows`.

    `opening`: keys/values (1×H×L×D per layer) that stand before every prompt. `listeners`: one or None per row.
    `ended(index, output)` is told at once of each row that ends. `arrivals(live)` is asked at every step, with the
    number of rows that still speak, for rows that join the batch there; their outputs come behind the others'.
    """
    prompts = [np.asarray(row.ids, dtype=np.int64) for row in rows]
    shared, kv = shared_prefix(model, prompts, store, adapter, opening)
    speaking = Speaking(tokenizer, stop_ids, ended)
    speaking.add(rows, listeners)
    with open_batch(model, [prompt[shared:] for prompt in prompts], kv, speaking.left()) as batch:
        logits_B_V = batch.first()
        while True:
            tokens_B, keep = speaking.take(logits_B_V)
            if not speaking.live:
                return speaking.outputs
            logits_B_V = batch.step(tokens_B, keep)
            if arrivals is not None and batch.joins and (new := arrivals(len(speaking.live))):
                speaking.add(*zip(*new, strict=True))
                joining = [np.asarray(row.ids, dtype=np.int64) for row, _ in new]
                # The last token of a prompt is run for the logits behind it, so it is never part of what is shared.
                same = min(common_prefix([prompts[0][:shared], *joining]), min(map(len, joining)) - 1)
                rest = [prompt[same:] for prompt in joining]
                joined = batch.join(rest, length_of(opening) + same, speaking.left())
                logits_B_V = torch.cat([logits_B_V, joined])


@torch.inference_mode()
def score_rows(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    store: PrefixStore | None,
    adapter: str | None,
    opening: KV = (),
) -> list[float]:
    """Sum of log probabilities (nats) of each completion's tokens after `prompt`, in one batched forward pass.

    `opening`: keys/values (1×H×L×D per layer) that stand before the prompt.
    """
    prompt_T = np.asarray(prompt, dtype=np.int64)
    shared, kv = shared_prefix(model, [prompt_T], store, adapter, opening)
    lead = prompt_T[shared:]
    width = max(len(completion) for completion in completions)
    ids = np.full((len(completions), len(lead) + width), int(prompt_T[-1]), dtype=np.int64)
    ids[:, : len(lead)] = lead
    for i, completion in enumerate(completions):
        ids[i, len(lead) : len(lead) + len(completion)] = completion
    # Padding stands on the right: causality alone keeps it away from every token that counts.
    batch = torch.from_numpy(ids).to(model.device)
    before = length_of(kv)
    logits = model(
        input_ids=batch,
        position_ids=torch.arange(before, before + batch.shape[1], device=model.device).expand(len(ids), -1),
        past_key_values=plain_cache(model, kv, len(completions)),
        logits_to_keep=width + 1,
    ).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, batch[:, len(lead) :, None])[..., 0]
    return [float(row[: len(completion)].double().sum()) for row, completion in zip(logps, completions, strict=True)]
