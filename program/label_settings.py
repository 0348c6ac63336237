"""How a program labels for itself: frozen, checked when made.

One real row: `LabelSettings(answered=600, written=200, samples=5, filters=("verbatim", "confidence", "quota"))`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.signatures import WRITE_TASKS
from program.asking import LabelingError
from program.config import refuse_unknown

FILTERS = (
    "verbatim", "plausible", "pii", "novelty", "contradiction", "confidence", "agreement", "round trip", "judge",
    "near-duplicate", "quota",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """How labels are proposed and which are kept.

    Proposed a round: `answered` known questions put to unlabelled contracts, `written` questions about passages (half
    of them behind `demonstrations` of people's labels, the task put in the first `descriptions` of WRITE_TASKS in turn,
    each followed by `follow_ups` more in one conversation), `reworded` kept questions in other words; labels are
    carried over (`modules.projection`) where words are at least `min_similarity` alike. `filters` are the names of
    FILTERS to apply, in that order; `precision` is what confidence thresholds are fitted for on the validation
    questions; of `samples` sampled answers "agreement" wants most to be the draft's; `pii` is "keep", "drop" or "mask",
    which is in question and answer, for quotes are places in the contract; `per_category` and `per_contract` bound what
    is kept, and so does `copies`, of labels that say nearly the same on other contracts.
    At most `max_rows` labels are trained on, drawn by difficulty; `near_misses` says how many "not in this contract"
    rows there are for each found one.
    """

    answered: int = 600
    written: int = 0
    demonstrations: int = 2
    descriptions: int = 1
    follow_ups: int = 0
    reworded: int = 0
    min_similarity: float = 0.6
    filters: tuple[str, ...] = tuple(name for name in FILTERS if name not in ("agreement", "judge"))
    precision: float = 0.9
    samples: int = 5
    pii: str = "keep"
    copies: int = 3
    per_category: int | None = 100
    per_contract: int | None = 20
    max_rows: int = 400
    near_misses: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.filters if name not in FILTERS]:
            raise LabelingError(f"filters {unknown} are not known; known are {', '.join(FILTERS)}")
        for name in ("answered", "written", "demonstrations", "follow_ups", "reworded", "max_rows", "near_misses"):
            if getattr(self, name) < 0:
                raise LabelingError(f"{name} is {getattr(self, name)!r}; it must be 0 or more")
        if self.copies < 1:
            raise LabelingError(f"copies is {self.copies!r}; it must be 1 or more")
        if not 1 <= self.descriptions <= len(WRITE_TASKS):
            raise LabelingError(f"descriptions is {self.descriptions!r}; it must be from 1 to {len(WRITE_TASKS)}")
        if "agreement" in self.filters and self.samples < 1:
            raise LabelingError(f"samples is {self.samples!r}; agreement needs 1 or more, or leave that filter out")
        if self.pii not in ("keep", "drop", "mask"):
            raise LabelingError(f'pii is {self.pii!r}; it must be "keep", "drop" or "mask"')


def label_settings(given: Mapping[str, Any], *, seed: int = 0) -> LabelSettings:
    """The settings of a table of keys, as a config has them; ConfigError for another key, LabelingError for a value."""
    refuse_unknown(given, LabelSettings)
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    try:
        return LabelSettings(**{"seed": seed} | told)
    except TypeError as error:
        raise LabelingError(f"label_settings {dict(given)} has a value of another type ({error})") from error
