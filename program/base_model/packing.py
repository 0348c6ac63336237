"""Trees of tokens packed into rows of one fixed shape, with the mask that keeps trees and branches apart."""

from dataclasses import dataclass

import torch

from program.base_model.rows import Tree

PROMPT_WEIGHT = 0.1
# The first words of a quote or a question decide which passage answers, or that none does, or what is asked; the rest
# is copying, and there is more of it.
DECISION_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T tokens; `weights_B_T[b, t]` weighs the loss of predicting `targets_B_T[b, t]` at position t."""

    ids_B_T: torch.Tensor
    positions_B_T: torch.Tensor
    targets_B_T: torch.Tensor
    weights_B_T: torch.Tensor
    tree_B_T: torch.Tensor
    branch_B_T: torch.Tensor


def pack(trees: list[Tree], n_rows: int, n_tokens: int, *, absent_decision_weight: float = DECISION_WEIGHT) -> Batch:
    """First-fit of trees into `n_rows` rows of `n_tokens`; a tree that fits nowhere is left out."""
    fields = [torch.zeros(n_rows, n_tokens, dtype=torch.long) for _ in range(5)]
    ids, positions, targets, tree_ids, branch_ids = fields
    weights = torch.zeros(n_rows, n_tokens)
    filled = [0] * n_rows
    for number, tree in enumerate(sorted(trees, key=len, reverse=True), start=1):
        row = next((r for r in range(n_rows) if filled[r] + len(tree) <= n_tokens), None)
        if row is None:
            continue
        root = filled[row]
        depth = len(tree.prefix.ids)
        for branch_number, segment in enumerate((tree.prefix, *tree.branches)):
            start, length = filled[row], len(segment.ids)
            here = slice(start, start + length)
            ids[row, here] = torch.tensor(segment.ids)
            first = 0 if branch_number == 0 else depth
            positions[row, here] = torch.arange(first, first + length)
            tree_ids[row, here], branch_ids[row, here] = number, branch_number
            # The first token of a branch is predicted at the prefix's last, which can carry one target only: where a
            # tree has several branches it is left out (it belongs to a prompt, but for a lone branch's completion).
            targets[row, start : start + length - 1] = torch.tensor(segment.ids[1:])
            weight = torch.full((length - 1,), PROMPT_WEIGHT)
            weight[max(segment.n_prompt - 1, 0) :] = 1.0
            weight[[place - 1 for place in segment.deciding]] = (
                absent_decision_weight if segment.absent else DECISION_WEIGHT
            )
            weights[row, start : start + length - 1] = weight
            if branch_number == 1 and len(tree.branches) == 1 and segment.n_prompt == 0:
                targets[row, root + depth - 1], weights[row, root + depth - 1] = segment.ids[0], 1.0
            filled[row] = start + length
    return Batch(ids, positions, targets, weights, tree_ids, branch_ids)


def tree_mask(batch: Batch) -> torch.Tensor:
    """[B, 1, T, T] bool: a token sees its own tree's prefix and its own branch up to itself; padding sees itself."""
    tree, branch = batch.tree_B_T, batch.branch_B_T
    n_tokens = tree.shape[1]
    same_tree = tree[:, :, None] == tree[:, None, :]
    visible = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    return (same_tree & visible & causal)[:, None]
