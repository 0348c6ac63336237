"""The numbers of retrieval that can be fitted, one frozen object, kept as `retrieval.json` beside an index."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from modules.absence import AnswerModel
from modules.index_files import StoreError, read_retrieval, write_retrieval
from modules.spans import SpanModel


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How `Retrieve` ranks and what it adds; made for one embedder, so fit them again with another.

    `k` passages are chosen; `fusion` ("rrf" or "sum") joins the `depth` best by meaning and by words with their weights
    (a weight of 0 leaves a ranking out); a reranker, where there is one, orders the `reranked` best anew. `opening`
    adds the contract's first passage, `neighbours` so many passages before and after each chosen one, `definitions` at
    most so many that define terms of the chosen ones. `route` first looks for the contract that a question of the whole
    index names. `answers` tells how likely a contract answers the question at all (`modules.absence`).
    `spans` makes a span's score a confidence, and `sentences_in_context` reads sentences in their passages
    (`modules.spans`). Raises ValueError.
    """

    k: int = 4
    fusion: str = "sum"
    dense_weight: float = 1.0
    lexical_weight: float = 0.7
    rrf_constant: float = 10.0
    depth: int = 200
    reranked: int = 32
    opening: bool = True
    neighbours: int = 0
    definitions: int = 0
    route: bool = True
    answers: AnswerModel | None = None
    spans: SpanModel | None = None
    sentences_in_context: bool = False

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("depth", 1), ("reranked", 1), ("neighbours", 0), ("definitions", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.fusion not in ("rrf", "sum"):
            raise ValueError(f"fusion is {self.fusion!r}; it must be 'rrf' or 'sum'")
        for name in ("dense_weight", "lexical_weight", "rrf_constant"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number, 0 or more")
        if self.dense_weight == self.lexical_weight == 0:
            raise ValueError("dense_weight and lexical_weight are both 0; nothing is left to rank by")


def read_settings(folder: Path) -> RetrievalSettings:
    """The settings beside the index in `folder`, the defaults where there are none; StoreError if they break a rule."""
    given = read_retrieval(folder)
    known = {field.name for field in fields(RetrievalSettings)}
    if unknown := sorted(given.keys() - known):
        raise StoreError(
            f"the retrieval settings in {folder} have the unknown keys {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))}. Take them out, or use the version that wrote them."
        )
    try:
        return settings_from(given)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the retrieval settings in {folder} break a rule: {error}. Correct or delete them."
        ) from error


def settings_from(given: Mapping[str, Any]) -> RetrievalSettings:
    """The settings that `asdict` made `given` of, as JSON brings it back. Raises KeyError, TypeError and ValueError."""
    model = given.get("answers")
    if model is not None:
        model = AnswerModel(**{**model, "weights": tuple(model["weights"])})
    spans = given.get("spans")
    if spans is not None:
        spans = SpanModel(**{**spans, "in_phrases": tuple(spans.get("in_phrases", ()))})
    return RetrievalSettings(**{**given, "answers": model, "spans": spans})


def write_settings(folder: Path, settings: RetrievalSettings) -> None:
    """Keep `settings` beside the index in `folder`; whole or not at all."""
    write_retrieval(folder, asdict(settings))
