"""The DSPy provider: `lm.finetune(...)` trains an adapter on the model the engine serves and returns its new name.

BootstrapFinetune and BetterTogether call it unchanged. A job that fails raises from `result()`; it never holds an LM.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

from optimizers.errors import TrainingError
from optimizers.local_lm.prompts import PROVIDER
from optimizers.local_lm.reinforce import LocalReinforceJob
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.training.settings import TrainSettings, settings_from
from optimizers.local_lm.tuning.adapters import count_trainable, training, tuner_of
from optimizers.local_lm.tuning.tuners import default_rate, options_of, tuner_from, word_of

if TYPE_CHECKING:
    from optimizers.local_lm.training.estimate import Estimate
    from optimizers.local_lm.training.fit import Task
    from optimizers.local_lm.training.watch import Progress


class LocalTrainingJob(TrainingJob):
    """A fine-tuning job in this process.

    `progress` is where it stands, `estimate` what it was expected to take, `log` the adapter's training.json once it
    has succeeded.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: dict[str, Any] | None = None
        self.progress: Progress | None = None
        self.estimate: Estimate | None = None
        self.stopping = threading.Event()

    def set_result(self, result: Any) -> None:
        """DSPy hands a failure over as a result; here it becomes the future's exception."""
        if isinstance(result, Exception):
            self.set_exception(result)
        else:
            super().set_result(result)

    def cancel(self) -> bool:
        """End the training at its next step; `result()` then raises. False if it had ended already."""
        if self.done():
            return False
        self.stopping.set()
        return True

    def status(self) -> TrainingStatus:
        """Where the job stands."""
        if not self.done():
            return TrainingStatus.running if self.thread is not None else TrainingStatus.not_started
        if self.exception() is None:
            return TrainingStatus.succeeded
        return TrainingStatus.cancelled if self.stopping.is_set() else TrainingStatus.failed


class LocalProvider(Provider):
    """Provider of `local_lm`. `launch` and `kill` do nothing: the model stays loaded, and training waits its turn."""

    def __init__(self, engine: LocalEngine) -> None:
        super().__init__()
        self.engine = engine
        self.finetunable = True
        self.TrainingJob = LocalTrainingJob
        self.reinforceable = True
        self.ReinforceJob = LocalReinforceJob
        self.running: WeakSet[LocalTrainingJob | LocalReinforceJob] = WeakSet()

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

        `train_data`: rows as training/rows.py describes them for the method. `train_kwargs`: fields of the method's
        settings (training/settings.py) and of the tuner's (tuning/tuners.py). Raises TrainingError, ModelError.
        """
        from optimizers.local_lm.training.estimate import check_fits  # trainers take seconds to import
        from optimizers.local_lm.training.fit import fit
        from optimizers.local_lm.training.search import search

        local = job if isinstance(job, LocalTrainingJob) else LocalTrainingJob()

        def report(progress: "Progress") -> None:
            local.progress = progress

        self.running.add(local)
        try:
            task = self._task(model, train_data, train_data_format, train_kwargs)
            task = replace(task, stop=local.stopping, report=report)
            local.estimate = self._estimate(task)
            check_fits(task.weights, task.rows, task.settings, local.estimate)
            tried = []
            if task.settings.search:
                task, tried = search(task)
            name, _ = fit(task)
        finally:
            self.running.discard(local)
        local.log = {**json.loads((task.root / name / "training.json").read_text()), "search": tried}
        return self.engine.model_string(name)

    def dry_run(
        self, model: str, train_data: Sequence[Mapping[str, Any]], train_kwargs: Mapping[str, Any] | None = None
    ) -> "Estimate":
        """What `finetune` would take here: rows, tokens, steps, memory, time; trains nothing. Raises as it would."""
        return self._estimate(self._task(model, train_data, None, train_kwargs))

    def stop(self) -> None:
        """End every job in progress, GRPO's too, at its next step; wait until the model is as it was before it."""
        for job in list(self.running):
            job.cancel()  # GRPO's waits for its step to leave
            if isinstance(job, LocalTrainingJob) and job.thread is not None:
                job.thread.join()

    def _task(
        self,
        model: str,
        train_data: Sequence[Mapping[str, Any]],
        kind: TrainDataFormat | str | None,
        train_kwargs: Mapping[str, Any] | None,
    ) -> "Task":
        from optimizers.local_lm.training.fit import Task
        from optimizers.local_lm.training.rows import encode

        if kind not in (None, TrainDataFormat.CHAT, TrainDataFormat.COMPLETION):
            raise TrainingError(f"train_data_format={kind!r} is not finetune's; give 'chat', 'completion' or None")
        settings, options = settings_from(train_kwargs)
        weights, parent = self.engine.weights, self.engine.adapter_of(model)
        tuner = self._tuner(settings, options, parent)
        if settings.learning_rate is None:
            settings = replace(settings, learning_rate=self._rate(settings, tuner))
        return Task(
            weights=weights,
            rows=encode(weights, train_data, settings),
            settings=settings,
            tuner=tuner,
            root=self.engine.adapters_dir,
            parent=parent,
            model_string=self.engine.model_string,
        )

    def learning_rate(self, model: str, train_kwargs: Mapping[str, Any] | None = None) -> float:
        """The learning rate that `finetune` takes where `train_kwargs` give none. Raises TrainingError as it would."""
        settings, options = settings_from(train_kwargs)
        return self._rate(settings, self._tuner(settings, options, self.engine.adapter_of(model)))

    def _rate(self, settings: TrainSettings, tuner: Any) -> float:
        return default_rate(tuner, self.engine.weights.hidden_size) * settings.rate_factor

    def _tuner(self, settings: TrainSettings, options: Mapping[str, Any], parent: str | None) -> Any:
        own = None if parent is None else tuner_of(self.engine.adapters_dir / parent)
        word = settings.tuner or ("lora" if own is None else word_of(own))
        known = sorted(options_of(tuner_from(word)))
        if unknown := sorted(set(options) - set(known)):
            keys = sorted(entry.name for entry in fields(settings))
            raise TrainingError(
                f"train_kwargs {unknown} are not known; method {settings.method!r} knows {keys}, tuner {word!r} {known}"
            )
        return tuner_from(word, options) if own is None or settings.tuner else own

    def _estimate(self, task: "Task") -> "Estimate":
        from optimizers.local_lm.training.estimate import estimate

        parent = None if task.parent is None else task.root / task.parent
        with training(task.weights, tuner=task.tuner, parent=parent) as model:
            trainable = count_trainable(model)
        return estimate(task.weights, task.rows, task.settings, trainable)
