"""Choosing tokens: argmax at temperature 0, else by inverse CDF, each row from a generator of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from optimizers.local_lm.serving.rows import Row


class Sampler:
    """Tokens for rows that come and go: argmax at temperature 0, else nucleus/top-k sampling.

    Each row draws from a generator of its own, so a seeded row does not depend on its neighbours.
    """

    def __init__(self) -> None:
        self.plain: dict[int, Row] = {}
        self.cut: dict[int, Row] = {}
        self.dice: dict[int, torch.Generator] = {}

    def add(self, slot: int, row: Row) -> None:
        """Know the row of `slot`."""
        if row.temperature > 0:
            # Sorting a vocabulary is the dear part: rows that cut nothing off are drawn without it.
            (self.cut if row.top_p < 1 or row.top_k > 0 else self.plain)[slot] = row
            self.dice[slot] = die = torch.Generator()
            die.manual_seed(row.seed) if row.seed is not None else die.seed()

    def __call__(self, logits_B_V: Tensor, slots: Sequence[int]) -> Tensor:
        """tokens_B, one for the row of each slot."""
        tokens = logits_B_V.argmax(-1)
        for rows, draw in ((self.plain, _draw_plain), (self.cut, _draw_cut)):
            at = [i for i, slot in enumerate(slots) if slot in rows]
            if at:
                draws = torch.cat([torch.rand(1, generator=self.dice[slots[i]]) for i in at]).to(tokens.device)
                picked = torch.tensor(at, device=tokens.device)
                tokens[picked] = draw(logits_B_V[picked], [rows[slots[i]] for i in at], draws)
        return tokens


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
