"""The embedder's own training: questions brought near the passages that answer them, by sentence-transformers.

One real row:

    SearchRow(topic="Governing Law", wordings=("Governing Law: Which state/country's law governs ...", "Governing Law"),
              positive="8.2 Governing Law. This Agreement shall be governed by ...", negatives=("8.1 Disputes. ...",))

Not handled: cross-encoders, several GPUs, resuming a training that was killed.
"""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
)
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from optimizers.errors import TrainingError
from optimizers.machine import cpu_has_bf16

logger = logging.getLogger(__name__)
LOSSES = ("mnrl", "gist")
Score = Callable[[SentenceTransformer], float]


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A passage that answers a question, and passages of the same contract that do not, the hardest first.

    `topic` is what is asked, `wordings` the ways of asking it. All are texts as the embedder is to see them.
    """

    topic: str
    wordings: tuple[str, ...]
    positive: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """How an embedder is trained.

    `loss`: "mnrl", each passage against all others of its batch (multiple negatives ranking; Henderson et al. 2017,
    arXiv 1705.00652), or "gist", the same without those that the untrained embedder finds nearer than the right one
    (Solatorio 2024, arXiv 2402.16829). `symmetric` asks the reverse too: which question a passage answers. A batch is
    `batch_size` questions on different topics, each with `hard_negatives` drawn from its `hardest` ones; it is embedded
    `mini_batch_size` texts at a time (gradient cache; Gao et al. 2021, arXiv 2101.06983), so a large one takes no more
    memory. `max_steps` above 0 is in place of `epochs`. After each of `validations` equal parts the score is taken;
    after `patience` parts without a better one it ends. `bf16` None: on CUDA, and on CPUs that have the instructions.
    Raises TrainingError.
    """

    epochs: float = 2.0
    max_steps: int = -1
    batch_size: int = 32
    hard_negatives: int = 1
    hardest: int = 8
    learning_rate: float = 1e-4
    warmup_share: float = 0.1
    loss: str = "mnrl"
    symmetric: bool = True
    scale: float = 20.0
    mini_batch_size: int = 8
    validations: int = 4
    patience: int = 2
    bf16: bool | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise TrainingError(f"loss={self.loss!r} is not known; use one of {LOSSES}")
        for name in ("batch_size", "hardest", "mini_batch_size", "validations", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be 1 or more")
        for name in ("epochs", "learning_rate", "scale"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be above 0")
        if self.hard_negatives < 0 or not 0 <= self.warmup_share < 1:
            raise TrainingError(
                f"hard_negatives={self.hard_negatives!r} must be 0 or more, and warmup_share={self.warmup_share!r} "
                "0 or more and below 1"
            )


def train_embedder(
    embedder: SentenceTransformer, rows: Sequence[SearchRow], settings: EmbedderSettings, score: Score | None = None
) -> tuple[SentenceTransformer, dict[str, Any]]:
    """A trained copy of `embedder`, and the log: rows, steps, losses, validation scores.

    With `score` (higher is better) the best of the states that it was asked about is given back, the untrained one
    among them. Raises TrainingError where there is nothing to learn from or the loss is not finite.
    """
    batches = draw_batches(rows, settings)
    if not batches:
        raise TrainingError(
            f"{len(rows)} rows make no batch: two questions on different topics, or one with a passage that does not "
            "answer it, are needed. Give more labelled questions."
        )
    model = copy.deepcopy(embedder)
    # With dropout, attention leaves its fast path: on a CPU a step took half as long again (benchmarks/LOG.md).
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    watch = _Watch(model, score, settings, len(batches))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=_arguments(settings, model, [len(batch) for batch in batches], scratch),
            train_dataset=Dataset.from_list([_columns(texts) for batch in batches for texts in batch]),
            loss=_loss(model, embedder, settings),
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
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "losses": losses,
        "scores": watch.scores,
        "best_step": watch.best_step,
    }


def draw_batches(rows: Sequence[SearchRow], settings: EmbedderSettings) -> list[list[tuple[str, ...]]]:
    """Batches of (wording, right passage, wrong passages), no two on one topic, no passage that answers another's.

    In a batch every other passage counts as wrong, so one that is right must not be in it. A row that does not fit
    waits for the next batch. Rows without a wrong passage are left out where others have one.
    """
    rng = Random(settings.seed)
    n_wrong = settings.hard_negatives if any(row.negatives for row in rows) else 0
    rows = [row for row in rows if row.negatives or not n_wrong]
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row.positive, set()).add(row.topic)
    n_batches = (
        settings.max_steps if settings.max_steps > 0 else round(settings.epochs * len(rows) / settings.batch_size)
    )
    batches: list[list[tuple[str, ...]]] = []
    waiting: list[SearchRow] = []
    while len(batches) < n_batches:
        if len(waiting) < settings.batch_size or not batches:
            waiting += rng.sample(rows, len(rows))
        batch, waiting = _draw_batch(waiting, answers, n_wrong, settings, rng)
        if not batch:
            return []
        batches.append(batch)
    return batches


def _draw_batch(
    waiting: list[SearchRow], answers: dict[str, set[str]], n_wrong: int, settings: EmbedderSettings, rng: Random
) -> tuple[list[tuple[str, ...]], list[SearchRow]]:
    """The next batch, and the rows that still wait, in their order."""
    batch: list[tuple[str, ...]] = []
    left: list[SearchRow] = []
    topics: set[str] = set()
    answered: set[str] = set()
    for i, row in enumerate(waiting):
        if len(batch) == settings.batch_size:
            left += waiting[i:]
            break
        wrong = rng.choices(row.negatives[: settings.hardest], k=n_wrong) if n_wrong else []
        others = set().union(*(answers.get(text, ()) for text in (row.positive, *wrong))) - {row.topic}
        if row.topic in topics | answered or others & topics:
            left.append(row)
            continue
        batch.append((rng.choice(row.wordings), row.positive, *wrong))
        topics.add(row.topic)
        answered |= others
    # Texts that are embedded together are padded to the longest of them.
    batch.sort(key=lambda texts: len(texts[1]))
    # One question alone, without a wrong passage, teaches nothing.
    return (batch if len(batch) > 1 or n_wrong else []), left


def _columns(texts: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(("anchor", "positive", *(f"negative_{i}" for i in range(len(texts) - 2))), texts, strict=True))


def _loss(model: SentenceTransformer, guide: SentenceTransformer, settings: EmbedderSettings) -> torch.nn.Module:
    if settings.loss == "gist":
        return CachedGISTEmbedLoss(
            model, guide, temperature=1 / settings.scale, mini_batch_size=settings.mini_batch_size
        )
    return CachedMultipleNegativesRankingLoss(
        model,
        scale=settings.scale,
        mini_batch_size=settings.mini_batch_size,
        directions=("query_to_doc", "doc_to_query") if settings.symmetric else ("query_to_doc",),
        partition_mode="per_direction" if settings.symmetric else "joint",
    )


def _arguments(
    settings: EmbedderSettings, model: SentenceTransformer, sizes: list[int], folder: str
) -> SentenceTransformerTrainingArguments:
    bf16 = settings.bf16
    if bf16 is None:
        bf16 = model.device.type == "cuda" or cpu_has_bf16()
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        batch_sampler=lambda dataset, **given: _Drawn(dataset, sizes, **given),
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup_share * len(sizes)),
        bf16=bf16,
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
