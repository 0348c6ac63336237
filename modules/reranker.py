"""A cross-encoder that reads question and passage together, to put the best of what was retrieved in order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modules.embedding import embedded_text
from modules.retriever import Hit


class CrossEncoding(Protocol):
    """What is used of a sentence-transformers CrossEncoder."""

    def predict(self, sentences: list[tuple[str, str]], **kwargs: Any) -> np.ndarray: ...


class Reranker:
    """Orders hits anew by a cross-encoder; a deep copy is the same object: optimizers copy programs, not models."""

    def __init__(self, model: CrossEncoding) -> None:
        self._model = model

    def __call__(self, query: str, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """The hits by the model's scores, best first; ValueError for a model with several scores a pair."""
        if not hits:
            return ()
        pairs = [(query, embedded_text(hit.passage)) for hit in hits]
        scores = np.asarray(self._model.predict(pairs, show_progress_bar=False), dtype=float)
        if scores.shape != (len(hits),):
            raise ValueError(
                f"the reranker gives scores of shape {scores.shape} for {len(hits)} pairs; it must give one number a "
                "pair. Use a cross-encoder with one label."
            )
        best = np.argsort(-scores, kind="stable")
        return tuple(Hit(hits[i].passage, float(scores[i])) for i in best)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reranker":
        return self


def load_reranker(name: str, *, device: str = "cpu") -> Reranker:
    """A reranker of the CrossEncoder called `name`, a folder or a hub id; a folder never touches the network."""
    from sentence_transformers import CrossEncoder

    return Reranker(CrossEncoder(name, device=device, local_files_only=Path(name).is_dir(), trust_remote_code=False))
