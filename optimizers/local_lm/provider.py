"""The DSPy provider: `lm.finetune(...)` trains an adapter on the model the engine serves and returns its new name.

BootstrapFinetune and BetterTogether call it unchanged. A failure is raised by them: DSPy hands the exception over as
the job's result and both re-raise it (BetterTogether stops there and sets `flag_compilation_error_occurred`).
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

from optimizers.errors import TrainingError
from optimizers.local_lm.engine import PROVIDER, LocalEngine
from optimizers.local_lm.settings import settings_from


class LocalTrainingJob(TrainingJob):
    """A fine-tuning job in this process; `log` is the adapter's training.json once the job has succeeded."""

    log: dict[str, Any] | None = None

    def status(self) -> TrainingStatus:
        """Where the job stands."""
        if not self.done():
            return TrainingStatus.running if self.thread is not None else TrainingStatus.not_started
        return TrainingStatus.failed if isinstance(self.result(), Exception) else TrainingStatus.succeeded


class LocalProvider(Provider):
    """Provider of `local_lm`. `launch` and `kill` do nothing: the model stays loaded, and training waits its turn."""

    def __init__(self, engine: LocalEngine) -> None:
        super().__init__()
        self.engine = engine
        self.finetunable = True
        self.TrainingJob = LocalTrainingJob
        self._job: TrainingJob | None = None
        self._stop = threading.Event()

    def __deepcopy__(self, memo: dict) -> "LocalProvider":
        return self

    @staticmethod
    def is_provider_model(model: str) -> bool:
        """Whether a model string names a local LM."""
        return model.startswith(f"{PROVIDER}/")

    def finetune(
        self,
        job: TrainingJob,
        model: str,
        train_data: Sequence[Mapping[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Train from `model` (the base, or a copy of the adapter it names) and return the new model string.

        `train_data`: rows {"messages": [...]} ending with the assistant, or {"prompt", "completion"}, each a string
        or a list of messages. `train_kwargs`: fields of SFTSettings. Raises TrainingError, ModelError.
        """
        from optimizers.local_lm.sft import train_sft  # the trainer's import takes seconds: only when it trains

        settings = settings_from(train_kwargs)
        chats = training_chats(train_data, train_data_format)
        parent = self.engine.adapter_of(model)
        root = self.engine.adapters_dir
        self._job = job
        try:
            name = train_sft(self.engine.weights, chats, settings, root, parent, self._stop)
        finally:
            self._job = None
            self._stop.clear()
        if isinstance(job, LocalTrainingJob):
            job.log = json.loads((root / name / "training.json").read_text())
        return self.engine.model_string(name)

    def stop(self) -> None:
        """End a training in progress at its next step, and wait until the model is again as it was before it."""
        job = self._job
        if job is not None and job.thread is not None:
            self._stop.set()
            job.thread.join()


def training_chats(rows: Sequence[Mapping[str, Any]], kind: TrainDataFormat | str | None) -> list[list[dict[str, str]]]:
    """DSPy's training rows as chats ending with the answer. Raises TrainingError for another format or no rows."""
    if kind not in (None, TrainDataFormat.CHAT, TrainDataFormat.COMPLETION):
        raise TrainingError(f"train_data_format={kind!r} is not supervised fine-tuning's; give 'chat' or 'completion'")
    if not rows:
        raise TrainingError("nothing to train on: no rows came; if a metric filtered them, look at what it refused")
    return [_chat(index, row) for index, row in enumerate(rows)]


def _chat(index: int, row: Mapping[str, Any]) -> list[dict[str, str]]:
    if set(row) == {"messages"}:
        return [dict(turn) for turn in row["messages"]]
    if set(row) == {"prompt", "completion"}:
        return _turns(row["prompt"], "user") + _turns(row["completion"], "assistant")
    raise TrainingError(f"training row {index} has keys {sorted(row)}; give 'messages', or 'prompt' and 'completion'")


def _turns(said: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": said}] if isinstance(said, str) else [dict(turn) for turn in said]
