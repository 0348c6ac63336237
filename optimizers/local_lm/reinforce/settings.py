"""How to reinforce: one frozen config, read from DSPy's flat train_kwargs beside the options of a tuner."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from optimizers.errors import TrainingError
from optimizers.local_lm.reinforce.losses import LOSS_TYPES
from optimizers.local_lm.tuning.tuners import tuner_from

POSITIVE = (
    *("learning_rate", "epsilon", "epsilon_high", "inner_epochs", "batch_size", "micro_batch_size", "max_grad_norm"),
    *("temperature", "max_completion_tokens", "max_length_tokens"),
)


@dataclass(frozen=True)
class GRPOSettings:
    """How to reinforce; the defaults are DeepSeekMath's GRPO (Shao et al. 2024) on a LoRA adapter.

    `learning_rate` None: a tenth of the tuner's own, since a policy gradient is noisier than a supervised one.
    `loss_type`: see losses.grpo_loss; `epsilon_high` None: as `epsilon` (DAPO's own is 0.28). `beta` weighs the KL
    from the weights that the job starts from, the base or an adapter; 0 spares that pass. `inner_epochs` passes are
    made over a step's rollouts, `batch_size` of them per optimizer step (None: all), run `micro_batch_size` at a
    time. `scale_rewards` None: yes, save for "dr_grpo". `mask_truncated` leaves answers cut off at max_tokens out of
    the loss, not out of their group's mean (DAPO's overlong filter). `temperature` None: the LM's.
    `max_completion_tokens`, the constant of "dr_grpo", None: the LM's max_tokens. Rollouts above `max_length_tokens`
    (None: the context) are left out; a step with a share of them above `max_dropped`, or of rollouts not matched with
    what the engine said above `max_unmatched`, is refused. `recompute` activations in the backward pass (slower, less
    memory; None: on CUDA with a quantized base). `num_generations` is dspy.GRPO's own note. Other keys of
    train_kwargs are options of `tuner` ("rank", "alpha" for "lora"; see tuning/tuners.py).
    """

    name: str = "grpo"
    tuner: str = "lora"
    learning_rate: float | None = None
    loss_type: str = "grpo"
    beta: float = 0.04
    epsilon: float = 0.2
    epsilon_high: float | None = None
    inner_epochs: int = 1
    batch_size: int | None = None
    micro_batch_size: int = 8
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    scale_rewards: bool | None = None
    mask_truncated: bool = False
    temperature: float | None = None
    max_completion_tokens: int | None = None
    max_length_tokens: int | None = None
    max_dropped: float = 0.1
    max_unmatched: float = 0.25
    recompute: bool | None = None
    num_generations: int | None = None
    seed: int = 0


def grpo_settings(train_kwargs: Mapping[str, Any] | None) -> tuple[GRPOSettings, Any]:
    """GRPOSettings and the tuner's config from `train_kwargs`. Raises TrainingError for unknown keys or bad values."""
    given = dict(train_kwargs or {})
    own = [entry.name for entry in fields(GRPOSettings)]
    settings = GRPOSettings(**{key: value for key, value in given.items() if key in own})
    try:
        tuner = tuner_from(settings.tuner, {key: value for key, value in given.items() if key not in own})
    except TrainingError as err:
        raise TrainingError(f"{err}; beside the tuner's, train_kwargs may hold {own}") from err
    for name in POSITIVE:
        if (value := getattr(settings, name)) is not None and not value > 0:
            raise TrainingError(f"{name}={value!r} must be above 0")
    if not settings.beta >= 0:
        raise TrainingError(f"beta={settings.beta!r} must be 0 or above")
    if settings.loss_type not in LOSS_TYPES:
        raise TrainingError(f"loss_type={settings.loss_type!r} is not known; use one of {LOSS_TYPES}")
    return settings, tuner
