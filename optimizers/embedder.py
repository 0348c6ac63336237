"""The embedder's own training: questions brought near the passages that answer them, by sentence-transformers.

What it learns from are pairs (`optimizers.embedder_rows`) or whole contracts (`optimizers.embedder_lists`).

Not handled: cross-encoders, several GPUs, resuming a training that was killed.
"""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from optimizers.embedder_lists import ListCollator, ListLoss, SearchList, draw_steps
from optimizers.embedder_rows import SearchRow, columns, draw_batches, row_loss
from optimizers.embedder_settings import EmbedderSettings
from optimizers.errors import TrainingError
from optimizers.local_lm.training.estimate import UNITS_A_LAYER
from optimizers.machine import cpu_has_bf16

__all__ = ["EmbedderSettings", "SearchList", "SearchRow", "train_embedder", "training_bytes"]
logger = logging.getLogger(__name__)
Score = Callable[[SentenceTransformer], float]


def train_embedder(
    embedder: SentenceTransformer,
    lessons: Sequence[SearchRow] | Sequence[SearchList],
    settings: EmbedderSettings,
    score: Score | None = None,
) -> tuple[SentenceTransformer, dict[str, Any]]:
    """A trained copy of `embedder`, and the log: rows, steps, losses, validation scores.

    `lessons` are rows, or lists where `settings.loss` is "lists". With `score` (higher is better) the best of the
    states that it was asked about is given back, the untrained one among them. Raises TrainingError where there is
    nothing to learn from or the loss is not finite.
    """
    on_lists = settings.loss == "lists"
    sizes, table = _list_table(lessons, settings) if on_lists else _row_table(lessons, settings)
    model = copy.deepcopy(embedder)
    # With dropout, attention leaves its fast path: on a CPU a step took half as long again (benchmarks/LOG.md).
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    watch = _Watch(model, score, settings, len(sizes))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=_arguments(settings, model, sizes, scratch),
            train_dataset=Dataset.from_list(table),
            loss=ListLoss(model, settings) if on_lists else row_loss(model, embedder, settings),
            data_collator=ListCollator(model, lessons, settings) if on_lists else None,
            callbacks=[watch],
        )
        # Its bar prints a line for every loss; _Watch has one of its own.
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.train()
    watch.restore()
    model.eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, {
        "rows": len(lessons),
        "steps": trainer.state.global_step,
        "losses": losses,
        "scores": watch.scores,
        "best_step": watch.best_step,
    }


def training_bytes(embedder: SentenceTransformer, settings: EmbedderSettings, texts: Sequence[str]) -> int:
    """What training takes beside the embedder that is loaded, with passages as long as the longest of `texts`.

    A copy of the weights, the best of them so far, gradients and Adam's two moments, in float32, and the activations
    of as many passages as stand in one graph. Meant to be right within a factor of two. Of an embedder that is no
    transformer the activations are left out.
    """
    held = 5 * 4 * sum(p.numel() for p in embedder.parameters())
    if (transformer := getattr(embedder[0], "auto_model", None)) is None:
        return held
    config = transformer.config.get_text_config()
    read = max(len(ids) for ids in embedder.tokenizer(list(texts))["input_ids"])
    tokens = min(read, embedder.max_seq_length or read)
    rows = settings.list_size if settings.loss == "lists" else settings.mini_batch_size
    size = 2 if _in_bf16(embedder, settings) else 4
    return held + rows * tokens * config.hidden_size * config.num_hidden_layers * UNITS_A_LAYER * size


def _in_bf16(model: SentenceTransformer, settings: EmbedderSettings) -> bool:
    if settings.bf16 is not None:
        return settings.bf16
    return model.device.type == "cuda" or cpu_has_bf16()


def _row_table(rows: Sequence[SearchRow], settings: EmbedderSettings) -> tuple[list[int], list[dict[str, str]]]:
    """How many rows each step takes, and all steps' rows."""
    batches = draw_batches(rows, settings)
    if not batches:
        raise TrainingError(
            f"{len(rows)} rows make no batch: two questions on different topics, or one with a passage that does not "
            "answer it, are needed. Give more labelled questions."
        )
    return [len(batch) for batch in batches], [columns(texts) for batch in batches for texts in batch]


def _list_table(lists: Sequence[SearchList], settings: EmbedderSettings) -> tuple[list[int], list[dict[str, int]]]:
    """The same for lists: one a step."""
    steps = draw_steps(lists, settings)
    if not steps:
        raise TrainingError(
            f"none of {len(lists)} contracts has both a passage and a question. Give labelled questions."
        )
    return [1] * len(steps), [{"list": i, "step": step} for step, i in enumerate(steps)]


def _arguments(
    settings: EmbedderSettings, model: SentenceTransformer, sizes: list[int], folder: str
) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        batch_sampler=lambda dataset, **given: _Drawn(dataset, sizes, **given),
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup_share * len(sizes)),
        bf16=_in_bf16(model, settings),
        use_cpu=model.device.type == "cpu",
        seed=settings.seed,
        logging_steps=max(1, len(sizes) // 20),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


class _Drawn(DefaultBatchSampler):
    """Batches as they were drawn: the rows of the data set in order, so many at a time as `sizes` says."""

    def __init__(self, dataset: Dataset, sizes: list[int], **given: Any) -> None:
        super().__init__(dataset, **given)
        self._sizes = sizes

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self._sizes:
            yield list(range(start, start + size))
            start += size

    def __len__(self) -> int:
        return len(self._sizes)


class _Watch(TrainerCallback):
    """Takes the score after each part, keeps the best weights, and ends what gets no better or has no finite loss."""

    def __init__(self, model: SentenceTransformer, score: Score | None, settings: EmbedderSettings, steps: int) -> None:
        self._model, self._score, self._patience = model, score, settings.patience
        self._every = max(1, steps // settings.validations)
        self._best: dict[str, torch.Tensor] | None = None
        self.scores: list[tuple[int, float]] = []
        self.best_step = 0
        self._told: dict[str, str] = {}
        self._bar = tqdm(total=steps, desc="training the embedder", unit=" steps", disable=not settings.progress)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._look(state.global_step)
            later = [step for step, _ in self.scores if step > self.best_step]
            control.should_training_stop |= len(later) >= self._patience

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not loss < float("inf"):
            raise TrainingError(f"the loss is {loss} at step {state.global_step}; lower learning_rate")
        if logs and "loss" in logs:
            self._tell(loss=loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()

    def restore(self) -> None:
        """Give the model the best weights, where scores were taken."""
        if self._best is not None:
            self._model.load_state_dict(self._best)

    def _look(self, step: int) -> None:
        if self._score is None or (self.scores and self.scores[-1][0] == step):
            return
        training = self._model.training
        self._model.eval()
        score = self._score(self._model)
        self._model.train(training)
        if not self.scores or score > max(known for _, known in self.scores):
            self.best_step = step
            self._best = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self.scores.append((step, score))
        logger.info("step %d: %.3f on the validation questions", step, score)
        self._tell(score=score)

    def _tell(self, **numbers: float) -> None:
        self._told |= {name: f"{value:.3f}" for name, value in numbers.items()}
        self._bar.set_postfix(self._told)
