"""Vectors of passages in Chroma, in a folder: all that is known here of Chroma.

Two clients on one folder lose each other's vectors: one object a folder and process. Not handled: Chroma's server.
"""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import chromadb
import numpy as np
from chromadb.config import Settings

from corpora.types import Passage

# Chroma's defaults miss stored vectors; these gave 0 self-misses in 900. Cosine is what the embedder is trained for.
_HNSW = {"hnsw": {"space": "cosine", "ef_construction": 200, "ef_search": 400, "max_neighbors": 32}}
# SQLite takes 32,766 variables in a statement.
_MAX_IDS = 10_000


class VectorStore:
    """One vector a passage, found by passage, by contract, or by nearness; opened anew to see other processes' work."""

    def __init__(self, folder: Path) -> None:
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        # Also where the store is dropped without close(): else the next open is given this client, with its old view.
        self.close = weakref.finalize(self, client.close)
        self.close.atexit = False
        # embedding_function=None: Chroma's own would download a model.
        self._collection = client.get_or_create_collection("passages", embedding_function=None, configuration=_HNSW)
        self._max_add = client.get_max_batch_size()

    def __len__(self) -> int:
        return self._collection.count()

    def add(self, passages: Sequence[Passage], vectors_P_D: np.ndarray) -> None:
        """Keep a vector for each passage."""
        for i in range(0, len(passages), self._max_add):
            some = passages[i : i + self._max_add]
            self._collection.add(
                ids=[passage.id for passage in some],
                embeddings=vectors_P_D[i : i + self._max_add],
                metadatas=[{"contract_id": passage.contract_id} for passage in some],
            )

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Drop the vectors of these passages."""
        for i in range(0, len(passage_ids), _MAX_IDS):
            self._collection.delete(ids=list(passage_ids[i : i + _MAX_IDS]))

    def delete_contracts(self, contract_ids: Sequence[str]) -> None:
        """Drop the vectors of all passages of these contracts."""
        for i in range(0, len(contract_ids), _MAX_IDS):
            self._collection.delete(where={"contract_id": {"$in": list(contract_ids[i : i + _MAX_IDS])}})

    def passage_ids(self) -> list[str]:
        """The ids of all passages that have a vector."""
        found: list[str] = []
        while some := self._collection.get(include=[], limit=_MAX_IDS, offset=len(found))["ids"]:
            found.extend(some)
        return found

    def of_contract(self, contract_id: str) -> dict[str, np.ndarray]:
        """The contract's vectors (D) by passage id."""
        got = self._collection.get(where={"contract_id": contract_id}, include=["embeddings"])
        return dict(zip(got["ids"], got["embeddings"], strict=True))

    def nearest(self, vector_D: np.ndarray, n: int) -> Iterator[tuple[str, str, float]]:
        """(passage id, contract id, cosine similarity) of the `n` nearest, in no fixed order among equals."""
        found = self._collection.query(
            query_embeddings=[vector_D], n_results=max(1, min(n, len(self))), include=["metadatas", "distances"]
        )
        for passage_id, metadata, distance in zip(
            found["ids"][0], found["metadatas"][0], found["distances"][0], strict=True
        ):
            yield passage_id, metadata["contract_id"], 1.0 - float(distance)
