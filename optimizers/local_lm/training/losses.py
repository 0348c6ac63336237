"""Losses that no trainer of the library computes as wanted here: pure functions of tensors, `(loss, metrics)`.

TRL's ORPO takes its likelihood term over prompt and answer together; with a contract in the prompt that term would be
nearly all about the contract. Here every term is over the answer's tokens alone.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Metrics = dict[str, float]


def token_logps(logits_B_T_V: Tensor, labels_B_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (nats) of the labelled next tokens, B x (T-1), zero where the label is -100; and that mask."""
    targets = labels_B_T[:, 1:]
    mask = targets != -100
    logps = logits_B_T_V[:, :-1].float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return logps * mask, mask


def orpo_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> tuple[Tensor, Metrics]:
    """Odds-ratio preference optimization, Hong et al. 2024 (arXiv:2403.07691), eq. 6.

    `chosen_B`, `rejected_B`: mean log probability per answer token (nats). L = -chosen + beta * -log sigmoid(log OR),
    log OR = log odds(chosen) - log odds(rejected), odds(p) = p / (1 - p).
    """
    log_odds_B = (chosen_B - _log1mexp(chosen_B)) - (rejected_B - _log1mexp(rejected_B))
    ratio = -logsigmoid(log_odds_B).mean()
    loss = -chosen_B.mean() + beta * ratio
    return loss, {"odds_ratio_loss": ratio.item(), "accuracy": (log_odds_B > 0).float().mean().item()}


def cpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, nll_B: Tensor, *, beta: float, alpha: float, label_smoothing: float
) -> tuple[Tensor, Metrics]:
    """Contrastive preference optimization, Xu et al. 2024 (arXiv:2401.08417), eq. 6: no reference, plus an NLL term.

    `chosen_B`, `rejected_B`: summed log probabilities (nats); `nll_B`: mean negative log probability of the chosen.
    """
    margin_B = beta * (chosen_B - rejected_B)
    prefer = -(1 - label_smoothing) * logsigmoid(margin_B) - label_smoothing * logsigmoid(-margin_B)
    return prefer.mean() + alpha * nll_B.mean(), {"accuracy": (margin_B > 0).float().mean().item()}


def simpo_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, gamma: float) -> tuple[Tensor, Metrics]:
    """SimPO, Meng et al. 2024 (arXiv:2405.14734), eq. 6: mean log probabilities and a target margin `gamma`."""
    margin_B = beta * (chosen_B - rejected_B)
    return -logsigmoid(margin_B - gamma).mean(), {"accuracy": (margin_B > 0).float().mean().item()}


def divergence(teacher_N_K: Tensor, student_N_K: Tensor, *, kind: str, jsd_beta: float = 0.5) -> tuple[Tensor, Metrics]:
    """Mean per-token divergence of two log distributions over the same K outcomes (nats).

    "forward_kl" is KL(teacher || student), "reverse_kl" KL(student || teacher), "jsd" the generalised Jensen-Shannon
    divergence of GKD, Agarwal et al. 2024 (arXiv:2306.13649), eq. 1: beta KL(T || M) + (1 - beta) KL(S || M) with
    M = beta T + (1 - beta) S.
    """
    forward = _kl(teacher_N_K, student_N_K).mean()
    if kind == "forward_kl":
        return forward, {"kl": forward.item()}
    if kind == "reverse_kl":
        return _kl(student_N_K, teacher_N_K).mean(), {"kl": forward.item()}
    weights = torch.tensor([jsd_beta, 1 - jsd_beta], device=teacher_N_K.device).log()
    mixed = torch.logaddexp(teacher_N_K + weights[0], student_N_K + weights[1])
    loss = jsd_beta * _kl(teacher_N_K, mixed) + (1 - jsd_beta) * _kl(student_N_K, mixed)
    return loss.mean(), {"kl": forward.item()}


def sampled_divergence(teacher_N: Tensor, student_N: Tensor) -> tuple[Tensor, Metrics]:
    """One sample's estimate of KL(student || teacher) per token, from the likelihoods (nats) of what was said alone.

    L = mean of stop-gradient(student - teacher) * student, whose gradient's expectation over the student's own tokens
    is that of the KL: the estimator of SDFT's algorithm 1 (Shenfeld et al. 2026, arXiv:2601.19897). The value of
    L means nothing by itself; `kl` is the estimate.
    """
    gap_N = (student_N - teacher_N).detach()
    return (gap_N * student_N).mean(), {"kl": gap_N.mean().item()}


def anchored_nll(
    nll_N: Tensor, reference_N_K: Tensor, policy_N_K: Tensor, *, beta: float, n_tokens: Tensor | int | None = None
) -> tuple[Tensor, Metrics]:
    """Likelihood of the labels, and KL(reference || policy) beside it: sum over tokens of nll + beta * KL, per token.

    `nll_N`: nats of each labelled token; `reference_N_K`, `policy_N_K`: log distributions over the same K outcomes.
    Divided by `n_tokens` (None: N). The direction is that of Learning without Forgetting (Li & Hoiem 2017,
    arXiv:1606.09282, eq. 2) and of what predicts forgetting (Shenfeld et al. 2025, arXiv:2509.04259).
    """
    kl_N = _kl(reference_N_K, policy_N_K)
    total = (nll_N + beta * kl_N).sum()
    metrics = {"nll": nll_N.mean().item(), "kl_incumbent": kl_N.mean().item()}
    return total / (len(nll_N) if n_tokens is None else n_tokens), metrics


def with_rest(logps_N_V: Tensor, ids_N_K: Tensor | None) -> Tensor:
    """Log probabilities of `ids_N_K` and, last, of everything else together: N x (K+1). None: all, as they are."""
    if ids_N_K is None:
        return logps_N_V
    chosen = logps_N_V.gather(-1, ids_N_K)
    rest = _log1mexp(chosen.logsumexp(-1, keepdim=True))
    return torch.cat([chosen, rest], dim=-1)


def kept_distribution(name: str, logps_N_V: Tensor, top_k: int | None) -> dict[str, list]:
    """Columns of a row: all log probabilities, or those of the `top_k` likeliest and of the rest, and which tokens."""
    if top_k is None or top_k >= logps_N_V.shape[-1]:
        return {name: logps_N_V.tolist()}
    ids_N_K = logps_N_V.topk(top_k, dim=-1).indices
    return {name: with_rest(logps_N_V, ids_N_K).tolist(), f"{name}_tokens": ids_N_K.tolist()}


def _kl(p_N_K: Tensor, q_N_K: Tensor) -> Tensor:
    return (p_N_K.exp() * (p_N_K - q_N_K)).sum(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by the branch that keeps digits (Maechler 2012); x is kept a hair below 0."""
    x = x.clamp(max=-1e-6)
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
