"""What one GRPO step is given, before it learns: what was said since the last one, its counts, its samples."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimizers.errors import TrainingError
from optimizers.local_lm.reinforce.losses import group_advantages
from optimizers.local_lm.reinforce.policy import Sample
from optimizers.local_lm.reinforce.rollouts import Rollout
from optimizers.local_lm.reinforce.settings import GRPOSettings
from optimizers.local_lm.serving.engine import Completion

logger = logging.getLogger(__name__)


def since(log: list[Completion], mark: Completion | None) -> list[Completion]:
    """The entries after `mark`; all of them if it has left the log."""
    at = next((i for i in reversed(range(len(log))) if log[i] is mark), -1)
    return log[at + 1 :]


def summarize(groups: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    """A log row before anything is learnt."""
    every = [rollout for group in groups for rollout in group]
    rewards = torch.tensor([rollout.reward for rollout in every])
    return {
        "loss": None,
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()) if len(every) > 1 else 0.0,
        "kl": None,
        "clip_share": 0.0,
        "grad_norm": 0.0,
        "updates": 0,
        "tokens": sum(len(rollout.completion_ids) for rollout in every),
        "groups": len(groups),
        "silent_groups": sum(len({rollout.reward for rollout in group}) == 1 for group in groups),
        "rollouts": len(every),
        "truncated": sum(rollout.truncated for rollout in every),
        "unmatched": sum(rollout.said is None for rollout in every),
    }


def check_unmatched(told: Mapping[str, Any], limit: float) -> None:
    """Raise TrainingError if more than a share of `limit` of the rollouts is not in the engine's log."""
    unmatched, count = told["unmatched"], told["rollouts"]
    if unmatched > limit * count:
        raise TrainingError(
            f"{unmatched} of {count} rollouts are not among what the engine said since the last step; {limit:.0%} are "
            "allowed (max_unmatched). Roll out on this LM, through an adapter set with dspy.configure(adapter=…): "
            "ChatAdapter(use_json_adapter_fallback=False) or XMLAdapter(). For rollouts of another model raise "
            "max_unmatched; they are then trained on as rendered"
        )
    if unmatched:
        logger.warning("%d of %d rollouts are trained on as rendered, not as said", unmatched, count)


def check_variety(groups: Sequence[Sequence[Rollout]]) -> None:
    """Raise TrainingError if each group is one answer over and over: there is nothing to compare."""
    several = [group for group in groups if len(group) > 1]
    if several and all(len({rollout.completion_ids for rollout in group}) == 1 for group in several):
        raise TrainingError(
            "every group holds one answer over and over, and the LM's temperature is 0: give the program "
            "lm.copy(temperature=1.0), or build it with local_lm(..., temperature=1.0)"
        )


def advantage_samples(
    groups: Sequence[Sequence[Rollout]], settings: GRPOSettings, limit: int
) -> tuple[list[Sample], int]:
    """What to train on, with advantages over whole groups, and the number of rollouts longer than `limit` tokens.

    Raises TrainingError if these are more than `max_dropped` allows.
    """
    scale = settings.loss_type != "dr_grpo" if settings.scale_rewards is None else settings.scale_rewards
    samples, too_long = [], 0
    for group in groups:
        rewards = torch.tensor([rollout.reward for rollout in group])
        for rollout, advantage in zip(group, group_advantages(rewards, scale=scale).tolist(), strict=True):
            too_long += (long := len(rollout.prompt_ids) + len(rollout.completion_ids) > limit)
            if rollout.completion_ids and not long and not (rollout.truncated and settings.mask_truncated):
                samples.append(Sample(rollout.prompt_ids, rollout.completion_ids, advantage))
    if too_long > settings.max_dropped * sum(map(len, groups)):
        raise TrainingError(
            f"{too_long} of {sum(map(len, groups))} rollouts exceed {limit} tokens, above the allowed share of "
            f"{settings.max_dropped:.0%} (max_dropped); shorten the prompts, or raise max_length_tokens"
        )
    return samples, too_long
