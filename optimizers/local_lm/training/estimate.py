"""What a training run will take, before it starts: tokens, steps, memory, time, and whether it fits.

Memory is arithmetic: weights, gradients and Adam's two moments of what is trained, activations of one batch. Time is
tokens times the model's arithmetic at a speed measured on this machine. Both are meant to be right within a
factor of two.
"""

import time
from dataclasses import dataclass
from functools import cache

import psutil
import torch

from optimizers.errors import TrainingError
from optimizers.local_lm.training.order import count_steps, rows_a_step, split_rows
from optimizers.local_lm.training.rows import Rows, longest, n_tokens
from optimizers.local_lm.training.settings import TrainSettings
from optimizers.local_lm.weights import Weights, spares_memory

GIB = 2**30
# Bytes kept for the backward pass per token, layer and unit of width, in the compute type's bytes: inputs of the linear
# layers, norms, activation and attention of a transformer block without recomputation (Korthikanti et al. 2022, eq. 2).
UNITS_A_LAYER = 17
_EFFICIENCY = 0.4  # of a large product's speed that a whole training step reaches


@dataclass(frozen=True)
class Estimate:
    """`bytes_needed` beyond the weights already loaded; `bytes_free` on the training device now."""

    rows: int
    rows_too_long: int
    validation_rows: int
    tokens: int
    steps: int
    trainable_parameters: int
    bytes_needed: int
    bytes_free: int
    seconds: float

    def __str__(self) -> str:
        left_out = f", {self.rows_too_long} too long and left out" if self.rows_too_long else ""
        return (
            f"{self.rows} rows{left_out}; {self.tokens:,} tokens in {self.steps} steps; "
            f"{self.trainable_parameters:,} trainable parameters; about {self.bytes_needed / GIB:.2f} GiB beside the "
            f"weights ({self.bytes_free / GIB:.1f} GiB free) and {_clock(self.seconds)}"
        )


def estimate(weights: Weights, rows: Rows, settings: TrainSettings, trainable_parameters: int) -> Estimate:
    """Estimate a run that trains `trainable_parameters` of the model on `rows`."""
    train, val = split_rows(rows, settings.val_share, settings.seed)
    steps = count_steps(len(train.columns), settings)
    epochs = steps * rows_a_step(settings) / len(train.columns)
    tokens = round(sum(n_tokens(columns) for columns in train.columns) * epochs)
    return Estimate(
        rows=len(train.columns),
        rows_too_long=len(rows.too_long),
        validation_rows=len(val.columns),
        tokens=tokens,
        steps=steps,
        trainable_parameters=trainable_parameters,
        bytes_needed=_bytes_needed(weights, train, settings, trainable_parameters),
        bytes_free=bytes_free(weights),
        seconds=_seconds(weights, tokens, trainable_parameters),
    )


def check_fits(weights: Weights, rows: Rows, settings: TrainSettings, told: Estimate) -> None:
    """Raise TrainingError, with the number that does not fit and what would, if memory will not do."""
    if told.bytes_needed <= told.bytes_free:
        return
    size = settings.batch_size
    while size > 1:
        size //= 2
        smaller = _bytes_needed(weights, rows, settings, told.trainable_parameters, batch_size=size)
        if smaller <= told.bytes_free:
            fits = f"batch_size={size} with gradient_accumulation_steps={settings.batch_size // size} would fit"
            break
    else:
        fits = "not even batch_size=1 would fit; use a tuner with fewer parameters, shorter rows, or quantize='nf4'"
    raise TrainingError(
        f"training needs about {told.bytes_needed / GIB:.1f} GiB beside the weights, and {weights.device} has "
        f"{told.bytes_free / GIB:.1f} GiB free; {fits}"
    )


def _bytes_needed(
    weights: Weights, rows: Rows, settings: TrainSettings, trainable: int, batch_size: int | None = None
) -> int:
    config = weights.model.config.get_text_config()
    size = 2 if weights.device.type == "cuda" or settings.bf16 is not False else 4
    sequences = (batch_size or settings.batch_size) * (2 if "chosen_ids" in rows.columns[0] else 1)
    tokens = sequences * max(longest(columns) for columns in rows.columns)
    layers = 1 if spares_memory(weights) else config.num_hidden_layers
    recomputed = tokens * config.hidden_size * config.num_hidden_layers * size if layers == 1 else 0
    activations = tokens * config.hidden_size * layers * UNITS_A_LAYER * size + recomputed
    logits = tokens * config.vocab_size * (size + 4 + 4)  # in the compute type, as float32, and their gradient
    optimizer = trainable * (4 + 4 + (2 if spares_memory(weights) else 8))
    return activations + logits + optimizer


def bytes_free(weights: Weights) -> int:
    """What is free now of the memory that the weights are in."""
    if weights.device.type == "cuda":
        return torch.cuda.mem_get_info(weights.device)[0]
    return psutil.virtual_memory().available


def _seconds(weights: Weights, tokens: int, trainable: int) -> float:
    parameters = sum(p.numel() for p in weights.model.parameters())
    # Forward 2, backward to the activations 2, to the weights 2 for those that are trained, per parameter and token.
    work = tokens * (4 * parameters + 2 * min(trainable, parameters))
    return work / (_EFFICIENCY * _speed(str(weights.device), weights.hidden_size))


@cache
def _speed(device: str, width: int) -> float:
    """Floating-point operations a second of this model's kind of product here: 512 tokens through width x 3 width."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    x, w = (
        torch.randn(512, width, device=device, dtype=dtype),
        torch.randn(width, 3 * width, device=device, dtype=dtype),
    )
    for _ in range(3):
        x @ w
    n, begun = 10, time.perf_counter()
    for _ in range(n):
        x @ w
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return n * 2 * x.numel() * 3 * width / max(time.perf_counter() - begun, 1e-9)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
