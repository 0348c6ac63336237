"""Vectors of passages in Chroma, in a folder or on servers: all that is known here of Chroma.

Two clients on one folder lose each other's vectors: one object a folder and process. Servers have no such limit; with
several of them each contract's vectors are on one, by a hash of its id, and a search asks all.
"""

import hashlib
import heapq
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import chromadb
import numpy as np
from chromadb.config import Settings

from corpora.types import Passage
from modules.index_files import StoreError

# Chroma's defaults miss stored vectors; these gave 0 self-misses in 900. Cosine is what the embedder is trained for.
_HNSW = {"hnsw": {"space": "cosine", "ef_construction": 200, "ef_search": 400, "max_neighbors": 32}}
# SQLite takes 32,766 variables in a statement.
_MAX_IDS = 10_000
_PORT = 8000
# Of each server, by all threads together.
_CALLS_AT_ONCE = 8


class VectorStore(Protocol):
    """One vector a passage, found by passage, by contract, or by nearness; `close()` lets go of it."""

    close: Callable[[], Any]

    def __len__(self) -> int: ...

    def add(self, passages: Sequence[Passage], vectors_P_D: np.ndarray) -> None:
        """Keep a vector for each passage."""

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Drop the vectors of these passages."""

    def delete_contracts(self, contract_ids: Sequence[str]) -> None:
        """Drop the vectors of all passages of these contracts."""

    def passage_ids(self) -> list[str]:
        """The ids of all passages that have a vector."""

    def of_contract(self, contract_id: str) -> dict[str, np.ndarray]:
        """The contract's vectors (D) by passage id."""

    def nearest(self, vector_D: np.ndarray, n: int) -> Iterator[tuple[str, str, float]]:
        """(passage id, contract id, cosine similarity) of the `n` nearest, in no fixed order among equals."""


def open_store(folder: Path, name: str, servers: Sequence[str] = ()) -> VectorStore:
    """The vectors in `folder`, or those called `name` on Chroma servers ("http://host:8000"), made if not there.

    What others have written since is seen after opening anew. Raises StoreError for a server that does not answer.
    """
    if not servers:
        return _Collection(chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False)), "passages")
    shards = [_Collection(_connected(server), name) for server in servers]
    return shards[0] if len(shards) == 1 else _Shards(shards)


def _connected(server: str) -> Any:
    at = urlsplit(server if "//" in server else f"http://{server}")
    try:
        return chromadb.HttpClient(
            at.hostname or "", at.port or _PORT, ssl=at.scheme == "https", settings=Settings(anonymized_telemetry=False)
        )
    except Exception as error:  # its client raises many types; each means that nobody is there
        raise StoreError(
            f"no Chroma server answers at {server!r} ({type(error).__name__}: {error}). Start one there "
            "(`chroma run --path FOLDER --port PORT`), or give its address."
        ) from error


class _Collection:
    """The vectors of one Chroma client."""

    def __init__(self, client: Any, name: str) -> None:
        # Also where the store is dropped without close(): else the next open is given this client, with its old view.
        self.close = weakref.finalize(self, client.close)
        self.close.atexit = False
        # embedding_function=None: Chroma's own would download a model.
        self._collection = client.get_or_create_collection(name, embedding_function=None, configuration=_HNSW)
        self._max_add = client.get_max_batch_size()

    def __len__(self) -> int:
        return self._collection.count()

    def add(self, passages: Sequence[Passage], vectors_P_D: np.ndarray) -> None:
        for i in range(0, len(passages), self._max_add):
            some = passages[i : i + self._max_add]
            self._collection.add(
                ids=[passage.id for passage in some],
                embeddings=vectors_P_D[i : i + self._max_add],
                metadatas=[{"contract_id": passage.contract_id} for passage in some],
            )

    def delete(self, passage_ids: Sequence[str]) -> None:
        for i in range(0, len(passage_ids), _MAX_IDS):
            self._collection.delete(ids=list(passage_ids[i : i + _MAX_IDS]))

    def delete_contracts(self, contract_ids: Sequence[str]) -> None:
        for i in range(0, len(contract_ids), _MAX_IDS):
            self._collection.delete(where={"contract_id": {"$in": list(contract_ids[i : i + _MAX_IDS])}})

    def passage_ids(self) -> list[str]:
        found: list[str] = []
        while some := self._collection.get(include=[], limit=_MAX_IDS, offset=len(found))["ids"]:
            found.extend(some)
        return found

    def of_contract(self, contract_id: str) -> dict[str, np.ndarray]:
        got = self._collection.get(where={"contract_id": contract_id}, include=["embeddings"])
        return dict(zip(got["ids"], got["embeddings"], strict=True))

    def nearest(self, vector_D: np.ndarray, n: int) -> Iterator[tuple[str, str, float]]:
        found = self._collection.query(
            query_embeddings=[vector_D], n_results=max(1, n), include=["metadatas", "distances"]
        )
        for passage_id, metadata, distance in zip(
            found["ids"][0], found["metadatas"][0], found["distances"][0], strict=True
        ):
            yield passage_id, metadata["contract_id"], 1.0 - float(distance)


class _Shards:
    """Several stores as one, each contract in one of them; all are asked at once."""

    def __init__(self, shards: Sequence[_Collection]) -> None:
        self._shards = shards
        self._asking = ThreadPoolExecutor(_CALLS_AT_ONCE * len(shards), "shards")

    def close(self) -> None:
        self._asking.shutdown()
        for shard in self._shards:
            shard.close()

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def add(self, passages: Sequence[Passage], vectors_P_D: np.ndarray) -> None:
        homes = np.array([self._home(passage.contract_id) for passage in passages])

        def put(home: int) -> None:
            chosen = np.flatnonzero(homes == home)
            self._shards[home].add([passages[i] for i in chosen], vectors_P_D[chosen])

        list(self._asking.map(put, np.unique(homes)))

    def delete(self, passage_ids: Sequence[str]) -> None:
        for shard in self._shards:  # an id does not tell its contract
            shard.delete(passage_ids)

    def delete_contracts(self, contract_ids: Sequence[str]) -> None:
        for i, shard in enumerate(self._shards):
            shard.delete_contracts([key for key in contract_ids if self._home(key) == i])

    def passage_ids(self) -> list[str]:
        return [passage_id for shard in self._shards for passage_id in shard.passage_ids()]

    def of_contract(self, contract_id: str) -> dict[str, np.ndarray]:
        return self._shards[self._home(contract_id)].of_contract(contract_id)

    def nearest(self, vector_D: np.ndarray, n: int) -> Iterator[tuple[str, str, float]]:
        found = self._asking.map(lambda shard: list(shard.nearest(vector_D, n)), self._shards)
        yield from heapq.nlargest(n, chain.from_iterable(found), key=lambda hit: hit[2])

    def _home(self, contract_id: str) -> int:
        return int(hashlib.sha256(contract_id.encode()).hexdigest(), 16) % len(self._shards)
