"""What watches a training run from inside: progress, the end of a leg, a stop, and errors put into words."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import TrainerCallback

from optimizers.errors import TrainingError
from optimizers.local_lm.training.order import rows_a_step
from optimizers.local_lm.training.rows import Rows, n_tokens
from optimizers.local_lm.training.settings import TrainSettings


@dataclass(frozen=True)
class Progress:
    """Where a job stands; `seconds_left` counts from the last step's speed."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    seconds_left: float


class NotFiniteError(TrainingError):
    """A loss or gradient that is no number."""


class Watch(TrainerCallback):
    """Reports progress, ends the leg at its target, and stops at a loss that is not finite or when it is told to."""

    def __init__(
        self,
        train: Rows,
        plan: list[int],
        settings: TrainSettings,
        *,
        steps: int,
        target: int,
        stop: threading.Event,
        report: Callable[[Progress], None],
    ) -> None:
        self.train, self.plan, self.size = train, plan, rows_a_step(settings)
        self.steps, self.target, self.stop, self.report = steps, target, stop, report
        self.begun, self.first_step, self.seconds_before = time.perf_counter(), 0, 0.0
        rows = [n_tokens(train.columns[place]) for place in plan]
        self.tokens = list(accumulate(sum(rows[i : i + self.size]) for i in range(0, len(rows), self.size)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember where this leg starts."""
        self.begun, self.first_step = time.perf_counter(), state.global_step
        self.seconds_before = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if told to."""
        if self.stop.is_set():
            raise TrainingError(f"training was stopped at step {state.global_step}; no adapter was made of it")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the target: checkpoint and end."""
        if state.global_step >= self.target:
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Note the time beside the loss, and see that the loss is a number."""
        if not logs or "loss" not in logs:
            return
        loss, seconds = float(logs["loss"]), time.perf_counter() - self.begun
        if not (math.isfinite(loss) and math.isfinite(float(logs.get("grad_norm", 0.0)))):
            raise NotFiniteError(self._not_finite(loss, state.global_step))
        step, tokens = state.global_step, self.tokens[state.global_step - 1]
        state.log_history[-1] |= {"seconds": round(self.seconds_before + seconds, 3), "tokens": tokens}
        left = seconds / max(1, step - self.first_step) * (self.steps - step)
        self.report(Progress(step, self.steps, loss, tokens, round(seconds, 3), round(left, 3)))

    def _not_finite(self, loss: float, step: int) -> str:
        places = self.plan[(step - 1) * self.size : step * self.size]
        rows = sorted({self.train.source[place] for place in places})
        return f"the loss or its gradient is not finite at step {step} (loss {loss}), on training rows {rows}"


@contextmanager
def explained(settings: TrainSettings, kept: Callable[[], str]) -> Iterator[None]:
    """Errors of the trainer as errors that say what to do, and what is `kept`."""
    try:
        yield
    except NotFiniteError as err:
        raise TrainingError(f"{err}; lower learning_rate or mend those rows. {kept()}") from err
    except (torch.cuda.OutOfMemoryError, MemoryError) as err:
        size = settings.batch_size
        raise TrainingError(
            f"out of memory with batch_size={size}; use batch_size={max(1, size // 2)} with "
            f"gradient_accumulation_steps={2 * settings.gradient_accumulation_steps}, shorter rows "
            f"(max_length_tokens), or quantize='nf4'. {kept()}"
        ) from err
