"""The update of a policy's weights on scored rollouts.

TRL's GRPOTrainer does not fit: it draws its own rollouts inside `train()` (its experimental `rollout_func` only changes
who is asked), for prompts of a dataset of its own, and an optimizer lives as long as one `train()`. Here the rollouts
come from outside, a group at a time, and the model serves between two updates.

Does not handle: rewards per token, a value function, more than one device.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optimizers.errors import TrainingError
from optimizers.local_lm.reinforce.losses import grpo_loss
from optimizers.local_lm.serving.prefixes import KV, length_of, plain_cache


@dataclass(frozen=True)
class Sample:
    """One rollout as the update needs it; the log probabilities are of the completion's tokens (T floats each)."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    ref_logps_T: Tensor | None = None
    old_logps_T: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """How to move the policy; see GRPOSettings for what the fields mean."""

    learning_rate: float | None
    loss_type: str = "grpo"
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    inner_epochs: int = 1
    batch_size: int | None = None
    micro_batch_size: int = 8
    temperature: float = 1.0
    max_tokens: int | None = None
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    recompute: bool = False


def completion_logps(
    model: Any, samples: Sequence[Sample], *, temperature: float = 1.0, opening: KV = ()
) -> tuple[Tensor, Tensor]:
    """Log probabilities (nats, at `temperature`) of each sample's completion tokens, B×T float32, and their mask B×T.

    `opening`: keys/values (1×H×L×D per layer) that stand before every prompt.
    """
    prompts, answers = [s.prompt_ids for s in samples], [s.completion_ids for s in samples]
    lead, width = max(map(len, prompts)), max(map(len, answers))
    ids = torch.zeros(len(samples), lead + width, dtype=torch.long)
    mask_B_T = torch.zeros(len(samples), width)
    starts = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        starts.append(lead - len(prompt))
        ids[row, starts[-1] : lead + len(answer)] = torch.tensor(prompt + answer)
        mask_B_T[row, : len(answer)] = 1
    ids, mask_B_T = ids.to(model.device), mask_B_T.to(model.device)
    before = length_of(opening)
    call: dict[str, Any] = {"past_key_values": plain_cache(model, opening, len(samples))} if before else {}
    if any(starts):
        seen = torch.arange(lead + width, device=ids.device) >= torch.tensor(starts, device=ids.device)[:, None]
        seen = torch.cat([seen.new_ones(len(samples), before), seen], 1).long()
        call |= {"attention_mask": seen, "position_ids": (seen.cumsum(-1) - 1).clamp(min=0)[:, before:]}
    elif before:
        call["position_ids"] = torch.arange(before, before + lead + width, device=ids.device).expand(len(ids), -1)
    # Padding after a completion needs no mask: causality alone keeps it away from every token that counts.
    logits = model(input_ids=ids, use_cache=bool(before), logits_to_keep=width + 1, **call).logits[:, :-1]
    logits = logits.float() / temperature
    chosen = logits.gather(-1, ids[:, lead:, None])[..., 0]
    return (chosen - logits.logsumexp(-1)) * mask_B_T, mask_B_T


@torch.no_grad()
def sample_logps(
    model: Any, samples: Sequence[Sample], micro_batch_size: int, *, temperature: float, opening: KV = ()
) -> list[Tensor]:
    """`completion_logps` of many samples, a float32 tensor per sample (T of its completion), on the CPU."""
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    for places in micro_batches(samples, range(len(samples)), micro_batch_size):
        logps_B_T, _ = completion_logps(model, [samples[i] for i in places], temperature=temperature, opening=opening)
        for i, row in zip(places, logps_B_T.cpu(), strict=True):
            found[i] = row[: len(samples[i].completion_ids)]
    return found


def micro_batches(samples: Sequence[Sample], places: Sequence[int], size: int) -> Iterator[list[int]]:
    """`places` in groups of at most `size`, prompts of one length and completions of like length together."""
    order = sorted(places, key=lambda i: (len(samples[i].prompt_ids), len(samples[i].completion_ids)))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def update_policy(
    model: Any,
    samples: Sequence[Sample],
    how: Update,
    moments: dict[str, dict[str, Any]],
    *,
    seed: int,
    stop: threading.Event,
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Move the model's trainable weights by AdamW on `samples`; returns metrics and AdamW's state for the next call.

    `moments`: what the last call returned, by parameter name ({} at first). Metrics are means over tokens (`kl`,
    `clip_share`) or optimizer steps (`loss`, `grad_norm`), and `updates`. Raises TrainingError for a gradient that is
    not finite, and before the next rows are run once `stop` is set.
    """
    _prepare(model, how.recompute)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=how.learning_rate, weight_decay=how.weight_decay)
    for name, p in named.items():
        state = moments.get(name)
        if state is not None and state["exp_avg"].shape == p.shape:
            optimizer.state[p] = {key: value.to(p.device, copy=True) for key, value in state.items()}
            optimizer.state[p]["step"] = state["step"].clone()  # AdamW keeps its count on the CPU
    size = how.batch_size or len(samples)
    if how.inner_epochs > 1 or size < len(samples):
        old = sample_logps(model, samples, temperature=how.temperature, micro_batch_size=how.micro_batch_size)
        samples = [replace(s, old_logps_T=logps) for s, logps in zip(samples, old, strict=True)]
    die, told = torch.Generator().manual_seed(seed), []
    for _ in range(how.inner_epochs):
        order = torch.randperm(len(samples), generator=die).tolist()
        for start in range(0, len(order), size):
            told.append(_one_update(model, optimizer, samples, order[start : start + size], how, stop))
    tokens = max(sum(one["tokens"] for one in told), 1.0)
    metrics = {
        "loss": sum(one["loss"] for one in told) / len(told),
        "grad_norm": sum(one["grad_norm"] for one in told) / len(told),
        "kl": sum(one["kl"] for one in told) / tokens,
        "clip_share": sum(one["clipped"] for one in told) / tokens,
        "updates": len(told),
    }
    kept = {
        name: {k: v.detach().cpu() for k, v in optimizer.state[p].items()}
        for name, p in named.items()
        if p in optimizer.state
    }
    return metrics, kept


def _one_update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    places: Sequence[int],
    how: Update,
    stop: threading.Event,
) -> dict[str, float]:
    optimizer.zero_grad(set_to_none=True)
    told = {"loss": 0.0, "tokens": 0.0, "clipped": 0.0, "kl": 0.0}
    tokens = sum(len(samples[i].completion_ids) for i in places)
    for part in micro_batches(samples, places, how.micro_batch_size):
        if stop.is_set():
            raise TrainingError("training was stopped within a step; nothing of this step is kept")
        rows = [samples[i] for i in part]
        logps_B_T, mask_B_T = completion_logps(model, rows, temperature=how.temperature)
        loss, metrics = grpo_loss(
            logps_B_T,
            _padded([row.old_logps_T for row in rows], logps_B_T.detach()),
            torch.tensor([row.advantage for row in rows], device=logps_B_T.device),
            mask_B_T,
            None if rows[0].ref_logps_T is None else _padded([row.ref_logps_T for row in rows], logps_B_T.detach()),
            epsilon=how.epsilon,
            epsilon_high=how.epsilon_high,
            beta=how.beta,
            loss_type=how.loss_type,
            max_tokens=how.max_tokens,
            batch_rows=len(places),
            batch_tokens=tokens,
        )
        loss.backward()
        for key, value in {"loss": float(loss.detach()), **metrics}.items():
            told[key] += value
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, how.max_grad_norm))
    if not norm < float("inf"):
        raise TrainingError(f"the gradient's norm is {norm} (loss {told['loss']}); lower learning_rate")
    optimizer.step()
    return {**told, "grad_norm": norm}


def _padded(rows: Sequence[Tensor | None], like_B_T: Tensor) -> Tensor:
    """Rows of differing length as one tensor shaped as `like_B_T`, which stands in where there is none."""
    if rows[0] is None:
        return like_B_T
    filled = torch.zeros_like(like_B_T)
    for at, row in enumerate(rows):
        filled[at, : len(row)] = row.to(filled)
    return filled


def _prepare(model: Any, recompute: bool) -> None:
    """Without dropout, which would make the ratio of new to old differ from 1 before anything has moved."""
    model.train(recompute)  # transformers recomputes activations in train mode alone
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
