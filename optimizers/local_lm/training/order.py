"""Which rows validate, and the order in which the others are learnt."""

import math
from collections.abc import Sequence
from random import Random

from sklearn.model_selection import GroupShuffleSplit

from optimizers.errors import TrainingError
from optimizers.local_lm.training.rows import Rows, longest
from optimizers.local_lm.training.settings import TrainSettings

BATCHES_A_POOL = 16  # rows are sorted by length within so many batches' worth: little padding, still shuffled


def split_rows(rows: Rows, val_share: float, seed: int) -> tuple[Rows, Rows]:
    """Training and validation rows, no group on both sides. Raises TrainingError for fewer than two groups."""
    if val_share == 0:
        return rows, rows.pick([])
    if len(set(rows.groups)) < 2:
        raise TrainingError(
            f"val_share={val_share} needs rows of at least two groups and got {len(set(rows.groups))}; "
            "give rows a 'group' (their contract), or set val_share=0"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=val_share, random_state=seed)
    train, val = next(splitter.split(rows.columns, groups=rows.groups))
    return rows.pick(train.tolist()), rows.pick(val.tolist())


def rows_a_step(settings: TrainSettings) -> int:
    """Rows that one optimizer step learns from."""
    return settings.batch_size * settings.gradient_accumulation_steps


def count_steps(n_rows: int, settings: TrainSettings) -> int:
    """Optimizer steps of a run over `n_rows` rows."""
    if settings.max_steps > 0:
        return settings.max_steps
    return math.ceil(n_rows * settings.epochs / rows_a_step(settings))


def schedule(rows: Rows, settings: TrainSettings, losses: Sequence[float] | None = None) -> list[int]:
    """The place in `rows` of every row of every step, in learning order; a function of its arguments alone.

    "random" shuffles each epoch and keeps rows of like length together; "easy_to_hard" sorts by the rows' difficulty
    or, where one has none, by `losses`. A killed run that goes on needs the very same order, so it is fixed beforehand.
    """
    wanted = round(len(rows.columns) * settings.epochs)
    if settings.max_steps > 0:
        wanted = settings.max_steps * rows_a_step(settings)
    rng, stream = Random(settings.seed), []
    while len(stream) < wanted:
        stream += _epoch(rows, settings, losses, rng)
    return stream[:wanted]


def _epoch(rows: Rows, settings: TrainSettings, losses: Sequence[float] | None, rng: Random) -> list[int]:
    places = list(range(len(rows.columns)))
    if settings.order == "given":
        return places
    if settings.order == "easy_to_hard":
        own = rows.difficulty
        by_loss = any(value is None for value in own)
        if by_loss and losses is None:
            raise TrainingError("order='easy_to_hard' needs a 'difficulty' in every row, or losses")
        return sorted(places, key=lambda place: losses[place] if by_loss else own[place])
    rng.shuffle(places)
    pool, size = BATCHES_A_POOL * settings.batch_size, settings.batch_size
    batches = []
    for start in range(0, len(places), pool):
        alike = sorted(places[start : start + pool], key=lambda place: longest(rows.columns[place]), reverse=True)
        batches += [alike[i : i + size] for i in range(0, len(alike), size)]
    rng.shuffle(batches)
    return [place for batch in batches for place in batch]
