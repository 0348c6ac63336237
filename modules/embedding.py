"""What is asked of an embedder: unit vectors of texts, the text that is embedded for a passage, and its tokens."""

import copy
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from corpora.types import Passage

# A fast tokenizer serves one thread at a time.
_embedding = threading.Lock()


class Embedder(Protocol):
    """What is used of a SentenceTransformer."""

    def encode(self, sentences: list[str], **kwargs: Any) -> np.ndarray: ...


def embed(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Unit vectors, float32 [len(texts), D]; white space is folded, so that page layout does not count."""
    with _embedding:
        vectors = embedder.encode([folded(text) for text in texts], batch_size=32, show_progress_bar=False)
    return unit_vectors(np.asarray(vectors, dtype=np.float32))


def embedded_text(passage: Passage) -> str:
    """A passage behind the headings that it stands under, unless it begins with them; white space folded."""
    text, heading = folded(passage.text), folded(passage.heading)
    return text if text.startswith(heading) else f"{heading}: {text}"


def token_counter(embedder: Any) -> Callable[[list[str]], list[int]] | None:
    """A function of texts to the number of tokens that each is to `embedder`; None where that has no tokenizer.

    Special tokens count. An embedder leaves out what is above its `max_seq_length`, without a word.
    """
    tokenizer = getattr(embedder, "tokenizer", None)
    if tokenizer is None:
        return None
    # A copy: counting switches truncation off, and another thread may be embedding with the tokenizer.
    own = copy.deepcopy(tokenizer)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in own(texts, truncation=False, padding=False, verbose=False)["input_ids"]]

    return count


def folded(text: str) -> str:
    """The text with every run of white space a single space, none at the ends."""
    return " ".join(text.split())


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """`vectors` (..., D) at length 1; a zero vector stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
