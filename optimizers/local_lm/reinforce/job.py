"""The job: what dspy.GRPO calls, one step of it, and what is kept on disk between two steps."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from typing import Any
from uuid import uuid4

import torch
from dspy.clients.provider import ReinforceJob
from dspy.clients.utils_finetune import GRPOStatus, TrainDataFormat, TrainingStatus

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.reinforce.batch import (
    advantage_samples,
    check_unmatched,
    check_variety,
    since,
    summarize,
)
from optimizers.local_lm.reinforce.policy import Sample, Update, sample_logps, update_policy
from optimizers.local_lm.reinforce.rollouts import encode_groups, read_groups
from optimizers.local_lm.reinforce.settings import GRPOSettings, grpo_settings
from optimizers.local_lm.serving.engine import Completion, LocalEngine
from optimizers.local_lm.tuning.adapters import (
    count_trainable,
    drop_adapter,
    keep_adapter,
    serving,
    training,
    tuner_of,
)
from optimizers.local_lm.tuning.tuners import default_rate
from optimizers.local_lm.weights import Weights, spares_memory

logger = logging.getLogger(__name__)
FIRST_IDS = 1024


class LocalReinforceJob(ReinforceJob):
    """GRPO on one in-process model, one `step` per batch of scored rollouts.

    `log` has one row per step: `step`, `adapter`, `loss`, `reward_mean`, `reward_std`, `kl` (None: no reference, or no
    update), `clip_share`, `grad_norm`, `updates` (0: nothing was to be learnt and no adapter was made), `tokens`,
    `seconds`, and counts: `groups`, `silent_groups` (all rewards equal), `rollouts`, `truncated`, `too_long`,
    `unmatched`, `fillers`, `repeated`.
    """

    log: list[dict[str, Any]]

    def initialize(self) -> None:
        """Read the settings and note where the LM starts. Raises TrainingError, ModelError."""
        if not isinstance(self.lm.engine, LocalEngine):
            raise TrainingError(f"{self.lm.model!r} has no local engine; build the LM with local_lm(...)")
        self.engine: LocalEngine = self.lm.engine
        self.settings, self.tuner = grpo_settings(self.train_kwargs)
        self.start = self.adapter = self.engine.adapter_of(self.lm.model)
        if self.start is not None and "tuner" not in self.train_kwargs:
            self.tuner = tuner_of(self.engine.adapters_dir / self.start)
        self.job_id, self.log = f"{self.settings.name}-{uuid4().hex[:8]}", []
        self._status = TrainingStatus.running
        self._stop, self._busy = threading.Event(), threading.Lock()
        self._moments: dict[str, dict[str, Any]] = {}
        self._made: set[str] = set()
        self._trained_on: list[Any] = []
        self._mark: Completion | None = None
        self._ids = range(FIRST_IDS)
        self.lm.provider.running.add(self)

    # -- what DSPy calls

    def step(
        self, train_data: Sequence[Mapping[str, Any]], train_data_format: TrainDataFormat | str | None = None
    ) -> None:
        """One GRPO step on groups of scored rollouts, sampled from the LM as it stands; then `lm.model` is the next.

        `train_data`: {"batch_id", "group": [{"messages", "completion": {"role", "content"}, "reward"}]}. Raises
        TrainingError if anything goes wrong, and once the job was cancelled; LM, base and AdamW's moments then are as
        they were before the step.
        """
        if train_data_format not in (None, TrainDataFormat.GRPO_CHAT):
            raise TrainingError(f"train_data_format={train_data_format!r} is not GRPO's; give 'grpo_chat'")
        with self._busy:
            self._check_running()
            try:
                self._step(train_data)
            except (TrainingError, ModelError):
                raise
            except (torch.cuda.OutOfMemoryError, MemoryError) as err:
                raise TrainingError(
                    f"out of memory in step {len(self.log) + 1}, micro_batch_size={self.settings.micro_batch_size}; "
                    "lower it, or max_length_tokens, set recompute=True, or load the base with quantize='nf4'"
                ) from err
            except Exception as err:
                raise TrainingError(f"step {len(self.log) + 1} failed: {type(err).__name__}: {err}") from err

    def get_status(self) -> GRPOStatus:
        """Where the job stands. Raises TrainingError once it has ended: dspy.GRPO would ask for ever."""
        self._check_running()
        return GRPOStatus(
            job_id=self.job_id,
            status=self._status.value,
            current_model=self.lm.model,
            checkpoints=dict(self.checkpoints),
            last_checkpoint=self.last_checkpoint,
            pending_batch_ids=list(self._ids),
        )

    def status(self) -> TrainingStatus:
        """running; succeeded, once terminated; or cancelled."""
        return self._status

    def save_checkpoint(self, checkpoint_name: str) -> None:
        """Keep the current weights: `checkpoints[checkpoint_name]` is their model string, good for `lm.copy(model=…)`.

        Raises TrainingError for a name already used.
        """
        if checkpoint_name in self.checkpoints:
            raise TrainingError(f"checkpoint {checkpoint_name!r} exists; give each a name of its own")
        self.checkpoints[checkpoint_name] = self.lm.model
        self.last_checkpoint = checkpoint_name

    def terminate(self) -> None:
        """End the job; `lm` stays at its last weights."""
        with self._busy:
            self.lm.provider.running.discard(self)
            self._moments, self._trained_on = {}, []
            if self._status == TrainingStatus.running:
                self._status = TrainingStatus.succeeded

    def cancel(self) -> None:
        """End the job from any thread: a step in progress raises TrainingError before its next rows, and is undone."""
        self._stop.set()
        if self._status == TrainingStatus.running:
            self._status = TrainingStatus.cancelled
        self.terminate()  # waits for the step to leave

    # -- inside

    def _check_running(self) -> None:
        if self._status != TrainingStatus.running:
            raise TrainingError(f"job {self.job_id} has ended ({self._status.value}); start another with lm.reinforce")

    def _step(self, train_data: Sequence[Any]) -> None:
        begun, settings, weights = time.perf_counter(), self.settings, self.engine.weights
        fresh = self._fresh(train_data)
        log = list(self.engine.completions)
        groups = encode_groups(weights, read_groups(fresh), since(log, self._mark))
        told = {"step": len(self.log) + 1, "adapter": self.adapter, **summarize(groups)}
        told |= {"fillers": sum(map(len, fresh)) - told["rollouts"], "repeated": len(train_data) - len(fresh)}
        check_unmatched(told, settings.max_unmatched)
        if not self.lm.kwargs.get("temperature") and settings.temperature is None:
            check_variety(groups)
        limit = min(settings.max_length_tokens or weights.context_tokens, weights.context_tokens)
        samples, told["too_long"] = advantage_samples(groups, settings, limit)
        if any(sample.advantage for sample in samples):
            told |= self._learn(samples, told)
        else:  # the KL's gradient alone, blown up by Adam to full steps, would undo what was learnt
            logger.warning("step %d: rewards are equal within each group; nothing to learn", told["step"])
        self.log.append({**told, "seconds": round(time.perf_counter() - begun, 3)})
        self._trained_on, self._mark = fresh, log[-1] if log else None
        self._ids = range(self._ids.stop, self._ids.stop + 4 * max(row["groups"] for row in self.log))

    def _fresh(self, train_data: Sequence[Any]) -> list[Any]:
        """The groups of this step, each once, without those of the last; they are told apart as objects."""
        rows = [row.get("group") if isinstance(row, Mapping) else row for row in train_data]
        old = {id(group) for group in self._trained_on}  # still held, so no new object has one of these ids
        fresh = {id(group): group for group in rows if id(group) not in old}
        if rows and not fresh:
            raise TrainingError("every group was trained on in the last step; send rollouts of the model as it is now")
        return list(fresh.values())

    def _learn(self, samples: list[Sample], told: Mapping[str, Any]) -> dict[str, Any]:
        """Train a copy of the current adapter, keep it under a name of its own, and move the LM to it."""
        weights, root, settings, how = self.engine.weights, self.engine.adapters_dir, self.settings, self._how()
        parent = None if self.adapter is None else root / self.adapter
        seed = settings.seed + told["step"]
        with weights.lock, torch.random.fork_rng():
            torch.manual_seed(seed)
            if how.beta:
                samples = self._with_reference(samples, how)
            with training(weights, tuner=self.tuner, parent=parent) as model:
                with _autocast(weights):
                    metrics, moments = update_policy(model, samples, how, self._moments, seed=seed, stop=self._stop)
                if not how.beta:
                    metrics["kl"] = None
                record = {
                    "base": weights.base,
                    "settings": asdict(settings),
                    "tuner": asdict(self.tuner),
                    "trainable_parameters": count_trainable(model),
                    "history": [*self.log, {**told, **metrics}],
                }
                name = keep_adapter(model, weights, root, kind=settings.name, record=record, parent=self.start)
            before, self.adapter, self._moments = self.adapter, name, moments
            self._made.add(name)
            self.lm.model = self.engine.model_string(name)
            self._drop(before)
        return {**metrics, "adapter": name}

    def _how(self) -> Update:
        settings, kwargs = self.settings, self.lm.kwargs
        shared = {entry.name for entry in fields(Update)} & {entry.name for entry in fields(GRPOSettings)}
        return replace(
            Update(**{name: getattr(settings, name) for name in shared}),
            learning_rate=settings.learning_rate or default_rate(self.tuner, self.engine.weights.hidden_size) / 10,
            temperature=settings.temperature or kwargs.get("temperature") or 1.0,
            max_tokens=settings.max_completion_tokens or kwargs.get("max_tokens") or self.engine.max_tokens,
            recompute=spares_memory(self.engine.weights) if settings.recompute is None else settings.recompute,
        )

    def _with_reference(self, samples: Sequence[Sample], how: Update) -> list[Sample]:
        """The samples with log probabilities under the weights that the job started from."""
        with serving(self.engine.weights, self.start, self.engine.adapters_dir) as served:
            logps = sample_logps(
                served.model, samples, how.micro_batch_size, temperature=how.temperature, opening=served.opening
            )
        return [replace(sample, ref_logps_T=ref) for sample, ref in zip(samples, logps, strict=True)]

    def _drop(self, adapter: str | None) -> None:
        """Delete the adapter of an earlier step unless a checkpoint points at it. Hold the weights' lock."""
        pointed = {self.engine.adapter_of(model) for model in self.checkpoints.values()} | {self.adapter, self.start}
        if adapter in self._made and adapter not in pointed:
            self._made.discard(adapter)
            drop_adapter(self.engine.weights, self.engine.adapters_dir, adapter)


def _autocast(weights: Weights) -> Any:
    """Half precision where the base is: what is trained is kept in float32."""
    kind = weights.model.dtype
    return nullcontext() if kind == torch.float32 else torch.autocast(weights.device.type, dtype=kind)
