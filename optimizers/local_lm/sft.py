"""Supervised fine-tuning of a LoRA adapter on the base in memory, with TRL's SFTTrainer, on completion tokens only.

Does not handle: full fine-tuning, packing, evaluation during training (score the result with dspy.Evaluate instead).
"""

import logging
import math
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from optimizers.errors import TrainingError
from optimizers.local_lm.adapters import keep_adapter, training
from optimizers.local_lm.prompts import encode_completion, encode_prompt
from optimizers.local_lm.settings import SFTSettings
from optimizers.local_lm.weights import Weights

logger = logging.getLogger(__name__)
PAD_MULTIPLE = 64


def encode_rows(
    weights: Weights, chats: Sequence[Sequence[Mapping[str, str]]], max_length_tokens: int
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Chats that end with the assistant's answer, as `input_ids` and `labels` (-100 up to where the answer starts).

    Returns the rows that fit and the indices of those that do not (they would lose their answer's end).
    Raises TrainingError for a chat that does not end with an assistant turn.
    """
    rows, too_long = [], []
    for index, chat in enumerate(chats):
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            roles = [turn["role"] for turn in chat]
            raise TrainingError(f"training row {index} has roles {roles}; the last must be the assistant's answer")
        prompt = encode_prompt(weights, chat[:-1])
        answer = encode_completion(weights, chat[:-1], chat[-1]["content"], with_end=True)
        if len(prompt) + len(answer) > max_length_tokens:
            too_long.append(index)
            continue
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows, too_long


def train_sft(
    weights: Weights,
    chats: Sequence[Sequence[Mapping[str, str]]],
    settings: SFTSettings,
    root: Path,
    parent: str | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Train on `chats` from the base, or from a copy of adapter `parent`; returns the new adapter's name under `root`.

    Holds the weights' lock throughout. Raises TrainingError for no rows, too many long rows, a loss not finite, and at
    the first step after `stop` is set.
    """
    limit = min(settings.max_length_tokens or weights.context_tokens, weights.context_tokens)
    rows, too_long = encode_rows(weights, chats, limit)
    _check_rows(len(chats), rows, too_long, limit, settings)
    lora = None
    if parent is None:
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
    begun = time.perf_counter()
    with training(weights, lora=lora, parent=None if parent is None else root / parent) as peft:
        history = _fit(weights, peft, rows, settings, stop or threading.Event())
        record = {
            "base": weights.base,
            "settings": asdict(settings),
            "rows": len(rows),
            "rows_too_long": too_long,
            "max_length_tokens": limit,
            "trainable_parameters": sum(p.numel() for p in peft.parameters() if p.requires_grad),
            "seconds": round(time.perf_counter() - begun, 3),
            "history": history,
        }
        return keep_adapter(peft, weights, root, kind=settings.name, record=record, parent=parent)


def _check_rows(given: int, rows: Sequence, too_long: Sequence[int], limit: int, settings: SFTSettings) -> None:
    if too_long:
        logger.warning("%d of %d training rows exceed %d tokens and are left out", len(too_long), given, limit)
    if not rows:
        raise TrainingError(
            f"nothing to train on: {given} rows came, {len(too_long)} of them above {limit} tokens; "
            "if a metric filtered the rows, look at what it refused"
        )
    if len(too_long) > settings.max_dropped * given:
        raise TrainingError(
            f"{len(too_long)} of {given} training rows exceed {limit} tokens, above the allowed share of "
            f"{settings.max_dropped:.0%} (max_dropped); shorten them, or raise max_length_tokens if the context allows"
        )


def _fit(
    weights: Weights, peft: Any, rows: list[dict], settings: SFTSettings, stop: threading.Event
) -> list[dict[str, float]]:
    on_cpu = weights.device.type == "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type="linear",
            seed=settings.seed,
            data_seed=settings.seed,
            use_cpu=on_cpu,
            bf16=(not on_cpu or _cpu_has_bf16()) if settings.bf16 is None else settings.bf16,
            activation_checkpointing=weights.quantize is not None and not on_cpu,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            pad_to_multiple_of=PAD_MULTIPLE,
            train_sampling_strategy="group_by_length",
            dataloader_num_workers=0,
            dataloader_pin_memory=not on_cpu,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=not settings.progress,
        )
        watch = _Watch(stop)
        trainer = SFTTrainer(
            model=peft,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=weights.tokenizer,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # it would print every loss to stdout
        trainer.train()
        trainer.accelerator.free_memory()
    return watch.history


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Watch(TrainerCallback):
    """Keeps the losses and stops training at the first that is not finite, or when it is told to."""

    def __init__(self, stop: threading.Event) -> None:
        self.history: list[dict[str, float]] = []
        self.begun = time.perf_counter()
        self.stop = stop

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.is_set():
            raise TrainingError(f"training was stopped at step {state.global_step}; nothing of it is kept")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {state.global_step}; lower learning_rate or mend the rows")
        self.history.append(
            {
                "step": state.global_step,
                "loss": loss,
                "tokens": int(logs.get("num_tokens", 0)),
                "seconds": round(time.perf_counter() - self.begun, 3),
            }
        )
