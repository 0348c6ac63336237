"""Group-relative policy optimization as pure functions of tensors: advantages, KL estimate, clipped loss."""

import torch
from torch import Tensor

from optimizers.errors import TrainingError

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
EPS = 1e-4


def group_advantages(rewards_G: Tensor, *, scale: bool = True) -> Tensor:
    """Each rollout's reward minus its group's mean, over the group's standard deviation if `scale`; G floats.

    Shao et al. 2024 (DeepSeekMath), section 4.1.2; `scale=False`: Liu et al. 2025 (Dr. GRPO), section 3.2. The
    deviation is the sample's (n-1), plus 1e-4. A group whose rewards are all equal, or of one, says nothing: exactly 0.
    """
    centred_G = rewards_G - rewards_G.mean()
    if len(rewards_G) < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return centred_G / (rewards_G.std() + EPS) if scale else centred_G


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): r - log r - 1 with r = ref/policy; unbiased, never negative.

    Schulman 2020 ("k3"); Shao et al. 2024, eq. 4.
    """
    log_ratio = ref_logps - logps
    return log_ratio.exp() - log_ratio - 1


def grpo_loss(
    logps_B_T: Tensor,
    old_logps_B_T: Tensor,
    advantages_B: Tensor,
    mask_B_T: Tensor,
    ref_logps_B_T: Tensor | None = None,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    loss_type: str = "grpo",
    max_tokens: int | None = None,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate with a KL penalty (Shao et al. 2024, eq. 3), to be minimised, and its metrics.

    Per token: -min(w A, clip(w, 1-epsilon, 1+epsilon_high) A) + beta KL, w = policy/old. `mask_B_T` is 1 on completion
    tokens. Over tokens, "grpo": mean per row, then over rows. "bnpo": mean over the tokens at hand. "dapo": mean over
    the whole batch's tokens (Yu et al. 2025, DAPO, section 3.3). "dr_grpo": sum over `max_tokens` per row, a constant
    that keeps long wrong answers from being cheap (Liu et al. 2025, section 3.2). `batch_rows`, `batch_tokens` are
    those of the batch that these rows are a part of (default: these are all): the parts' losses then add up to its own.
    Metrics are sums over tokens: `tokens`, `clipped`, `kl` (0 without a reference).
    """
    mask = mask_B_T.to(logps_B_T.dtype)
    ratio_B_T = (logps_B_T - old_logps_B_T).exp()
    high = epsilon if epsilon_high is None else epsilon_high
    gain_B_T = ratio_B_T * advantages_B[:, None]
    held_B_T = ratio_B_T.clamp(1 - epsilon, 1 + high) * advantages_B[:, None]
    per_token_B_T = -torch.minimum(gain_B_T, held_B_T)
    kl_B_T = torch.zeros_like(logps_B_T) if ref_logps_B_T is None else kl_k3(logps_B_T, ref_logps_B_T)
    if beta:
        per_token_B_T = per_token_B_T + beta * kl_B_T
    rows, tokens = len(mask), float(mask.sum())
    rows_of_all, tokens_of_all = batch_rows or rows, max(batch_tokens or tokens, 1.0)
    if loss_type == "grpo":
        loss = ((per_token_B_T * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum() / rows_of_all
    elif loss_type == "bnpo":
        loss = (per_token_B_T * mask).sum() / max(tokens, 1.0) * (rows / rows_of_all)
    elif loss_type == "dapo":
        loss = (per_token_B_T * mask).sum() / tokens_of_all
    elif loss_type == "dr_grpo":
        if not max_tokens:
            raise TrainingError("loss_type='dr_grpo' divides by a constant length: give max_tokens")
        loss = (per_token_B_T * mask).sum() / (rows_of_all * max_tokens)
    else:
        raise TrainingError(f"loss_type={loss_type!r} is not known; use one of {LOSS_TYPES}")
    clipped = ((held_B_T < gain_B_T) * mask).sum()
    return loss, {"tokens": tokens, "clipped": float(clipped), "kl": float((kl_B_T.detach() * mask).sum())}
