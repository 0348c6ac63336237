"""Training an embedder on pairs: questions brought near a passage that answers them, in batches of many topics.

One real row:

    SearchRow(topic="Governing Law", wordings=("Governing Law: Which state/country's law governs ...", "Governing Law"),
              positive="8.2 Governing Law. This Agreement shall be governed by ...", negatives=("8.1 Disputes. ...",))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
)

from optimizers.embedder_settings import EmbedderSettings


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A passage that answers a question, and passages of the same contract that do not, the hardest first.

    `topic` is what is asked, `wordings` the ways of asking it. All are texts as the embedder is to see them.
    """

    topic: str
    wordings: tuple[str, ...]
    positive: str
    negatives: tuple[str, ...] = ()


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


def columns(texts: tuple[str, ...]) -> dict[str, str]:
    """A batch's row as the losses name its columns."""
    return dict(zip(("anchor", "positive", *(f"negative_{i}" for i in range(len(texts) - 2))), texts, strict=True))


def row_loss(model: SentenceTransformer, guide: SentenceTransformer, settings: EmbedderSettings) -> torch.nn.Module:
    """The loss that the settings name, on columns as `columns` names them."""
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
