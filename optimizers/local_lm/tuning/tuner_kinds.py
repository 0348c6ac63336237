"""The tuners' configs: frozen, a few options each, every default a good start. tuners.py has their words and checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Full:
    """Every weight, in float32 copies beside the frozen base; on a half-precision base train with bf16 autocast."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates (Hu et al. 2022, eq. 3) on all linear layers, as "LoRA Without Regret" (Schulman 2025) has it.

    `target_modules`: "all-linear" (all but the output head) or names. On an nf4 base this is QLoRA.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA whose update turns a weight's direction while its norm is trained apart (Liu et al. 2024, eq. 5)."""


@dataclass(frozen=True)
class RSLoRA(LoRA):
    """LoRA scaled by alpha/sqrt(rank) instead of alpha/rank (Kalajdzievski 2023): for high ranks."""


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA on a base kept in 4 bits (Dettmers et al. 2023); the weights must be loaded with quantize="nf4"."""


@dataclass(frozen=True)
class Bottleneck:
    """Small residual networks behind output projections: y + up(act(down(y))), `width` wide, zero at the start.

    `placement` "both" (attention and MLP; Houlsby et al. 2019), "mlp" (Pfeiffer et al. 2021) or "attention".
    """

    width: int = 32
    activation: str = "silu"
    placement: str = "both"


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values before every layer's own (Li & Liang 2021), begun from those of real text.

    `init_text` None: tokens drawn from the vocabulary.
    """

    tokens: int = 16
    init_text: str | None = None


@dataclass(frozen=True)
class Prompt:
    """Trained embeddings before the prompt (Lester et al. 2021), begun from those of real text, as Prefix is."""

    tokens: int = 16
    init_text: str | None = None


@dataclass(frozen=True)
class PTuning:
    """Trained embeddings before the prompt, reached through an MLP while training (Liu et al. 2021); `hidden` wide.

    `hidden` None: the model's width.
    """

    tokens: int = 16
    hidden: int | None = None


@dataclass(frozen=True)
class IA3:
    """Trained factors on attention's keys or queries, values, and the MLP's inner activations (Liu et al. 2022)."""


@dataclass(frozen=True)
class BitFit:
    """Biases alone (Ben Zaken et al. 2022); a model without any gets zero biases on all its linear layers.

    Each is trained as an offset from the base's bias, so that weight decay pulls towards the base, not to zero.
    """


@dataclass(frozen=True)
class NormTuning:
    """Weights (and biases) of the normalisation layers alone (Zhao et al. 2024)."""


@dataclass(frozen=True)
class TopLayers:
    """The last `layers` decoder layers and the final norm, in float32 copies; the head and embeddings stay."""

    layers: int = 2


@dataclass(frozen=True)
class OSF:
    """Orthogonal subspace fine-tuning (Nayak et al. 2025), for one task after another: each linear layer's strongest
    singular directions, `kept` of them as a share, are frozen and updates kept orthogonal to them."""

    kept: float = 0.5


@dataclass(frozen=True)
class Peft:
    """Any other tuner of peft by its `peft_type` (upper case), `config` being keywords of that tuner's own config."""

    peft_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
