"""Choosing tokens: argmax at temperature 0, else by inverse CDF, each row from a generator of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from optimizers.local_lm.serving.rows import Row


def sampler(rows: Sequence[Row]) -> Callable[[Tensor, list[int]], Tensor]:
    """A function (logits_B_V, slots) -> tokens_B: argmax at temperature 0, else nucleus/top-k sampling.

    Each row draws from a generator of its own, so a seeded row does not depend on its neighbours.
    """
    hot = {i for i, row in enumerate(rows) if row.temperature > 0}
    if not hot:
        return lambda logits_B_V, slots: logits_B_V.argmax(-1)
    cut = {i for i in hot if rows[i].top_p < 1 or rows[i].top_k > 0}
    dice = {i: torch.Generator() for i in hot}
    for i, die in dice.items():
        seed = rows[i].seed
        die.manual_seed(seed) if seed is not None else die.seed()

    def sample(logits_B_V: Tensor, slots: list[int]) -> Tensor:
        tokens = logits_B_V.argmax(-1)
        # Sorting a vocabulary is the dear part: rows that cut nothing off are drawn without it.
        for these, draw in ((hot - cut, _draw_plain), (cut, _draw_cut)):
            at = [i for i, slot in enumerate(slots) if slot in these]
            if at:
                draws = torch.cat([torch.rand(1, generator=dice[slots[i]]) for i in at]).to(tokens.device)
                picked = torch.tensor(at, device=tokens.device)
                tokens[picked] = draw(logits_B_V[picked], [rows[slots[i]] for i in at], draws)
        return tokens

    return sample


def _draw_plain(logits_B_V: Tensor, rows: Sequence[Row], draws_B: Tensor) -> Tensor:
    """Inverse-CDF sampling over all probabilities; draws uniform in [0, 1)."""
    return _invert(_heated(logits_B_V, rows).softmax(-1), draws_B)


def _draw_cut(logits_B_V: Tensor, rows: Sequence[Row], draws_B: Tensor) -> Tensor:
    """Inverse-CDF sampling over probabilities in falling order, cut by top-k and top-p; draws uniform in [0, 1)."""
    probs, order = _heated(logits_B_V, rows).softmax(-1).sort(-1, descending=True)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    cut_k = torch.tensor([[row.top_k or probs.shape[-1]] for row in rows], device=probs.device)
    cut_p = torch.tensor([[row.top_p] for row in rows], device=probs.device, dtype=torch.float32)
    keep = (ranks < cut_k) & ((probs.cumsum(-1) - probs < cut_p) | (ranks == 0))
    return order.gather(-1, _invert(probs * keep, draws_B)[:, None])[:, 0]


def _heated(logits_B_V: Tensor, rows: Sequence[Row]) -> Tensor:
    heat = torch.tensor([[row.temperature] for row in rows], device=logits_B_V.device, dtype=torch.float32)
    return logits_B_V / heat


def _invert(mass_B_V: Tensor, draws_B: Tensor) -> Tensor:
    total = mass_B_V.cumsum(-1)
    # The last entry with mass bounds the answer: rounding must not choose one that was cut off.
    last = (mass_B_V > 0).to(torch.int32).cumsum(-1).argmax(-1)
    aim = draws_B[:, None] * total[:, -1:]
    return torch.searchsorted(total, aim, right=True)[:, 0].minimum(last)
