"""How to fine-tune: one frozen config, apart from the trainer so that reading it costs no import of one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from optimizers.errors import TrainingError


@dataclass(frozen=True)
class SFTSettings:
    """How to fine-tune; the defaults suit a few hundred rows (LoRA: ten times full fine-tuning's learning rate).

    `max_steps` -1 means `epochs`; `max_length_tokens` None means the model's context; `bf16` None means: on CUDA yes,
    on the CPU no. `alpha`/`rank` are of no effect when an adapter is continued. Longer rows are left out and counted;
    above `max_dropped` (a share of the rows) training is refused.
    """

    method: str = "sft"
    name: str = "sft"
    epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float = 1e-3
    batch_size: int = 8
    rank: int = 16
    alpha: int = 32
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_length_tokens: int | None = None
    max_dropped: float = 0.1
    seed: int = 0
    bf16: bool | None = None
    progress: bool = True


def settings_from(train_kwargs: Mapping[str, Any] | None) -> SFTSettings:
    """SFTSettings from DSPy's `train_kwargs`. Raises TrainingError for an unknown key or a value out of range."""
    given = dict(train_kwargs or {})
    known = [field.name for field in fields(SFTSettings)]
    if unknown := sorted(set(given) - set(known)):
        raise TrainingError(f"train_kwargs {unknown} are not known; known are {known}")
    settings = SFTSettings(**given)
    if settings.method != "sft":
        raise TrainingError(f"method={settings.method!r}: this provider trains 'sft' only; see optimizers for others")
    for name in ("epochs", "learning_rate", "batch_size", "rank", "alpha"):
        if not getattr(settings, name) > 0:
            raise TrainingError(f"{name}={getattr(settings, name)!r} must be above 0")
    return settings
