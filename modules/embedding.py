"""What is asked of an embedder: unit vectors of texts, the text that is embedded for a passage, and its tokens."""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from corpora.sentences import token_places
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


def embed_in_context(
    embedder: Any, texts: Sequence[str], pieces: Sequence[Sequence[tuple[int, int]]]
) -> list[np.ndarray]:
    """Unit vectors, float32 [len(pieces[i]), D], of pieces of each text, pooled from the text's own tokens.

    A piece is half-open character offsets; one behind what the embedder reads is zeros. So each is read in its context,
    by one pass over the text (late chunking; Günther et al. 2024, arXiv 2409.04701). `embedder` is a
    SentenceTransformer whose vectors are means of its tokens'.
    """
    with _embedding:
        tokens = embedder.encode(
            list(texts), batch_size=32, show_progress_bar=False, output_value="token_embeddings", convert_to_numpy=False
        )
        read = embedder.tokenizer(
            list(texts), truncation=True, max_length=embedder.max_seq_length, return_offsets_mapping=True
        )
    found = []
    for tokens_L_D, offsets, own in zip(tokens, read["offset_mapping"], pieces, strict=True):
        sums = np.vstack([np.zeros((1, tokens_L_D.shape[1])), np.cumsum(tokens_L_D.float().cpu().numpy(), axis=0)])
        places = np.array(token_places(np.array(offsets), own), dtype=int).reshape(-1, 2)
        found.append(unit_vectors(sums[places[:, 1]] - sums[places[:, 0]]).astype(np.float32))
    return found


def pieces_in(text: str, pieces: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Where pieces stand in a text that has them in this order, white space folded in both; ValueError for one not."""
    places, at = [], 0
    for piece in map(folded, pieces):
        start = text.index(piece, at)
        at = start + len(piece)
        places.append((start, at))
    return tuple(places)


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
