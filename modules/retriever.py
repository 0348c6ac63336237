"""Passages by meaning: an index of contracts in one folder.

The folder holds the vectors in `chroma/`, unless Chroma servers hold them, and everything else as `modules.index_files`
says; all of it can be built again from the contracts. One real hit, for the question about "Governing Law":

    Hit(Passage(id="ashgrove-2019-0007:9120-9311", ..., heading="8.2 Governing Law"), score=0.61)

Not handled: word search (`modules.lexical`), more contracts than fit in memory as text.
"""

import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from corpora.passages import cut_passages
from corpora.types import Contract, Passage
from modules.embedding import Embedder, embed, embedded_text, folded, token_counter, unit_vectors
from modules.index_files import (
    Stored,
    StoreError,
    delete_contract,
    delete_incomplete,
    locked,
    read_about,
    read_contracts,
    write_about,
    write_contract,
)
from modules.vector_store import VectorStore, open_store

__all__ = ["Embedder", "Hit", "PassageIndex", "StoreError"]

_PROBE = "This Agreement shall be governed by the laws of the State of New York."
_BATCH_PASSAGES = 256
# Of one long contract: bounds what embedding holds at a time.
_SLICE_PASSAGES = 1024
_CACHED_CONTRACTS = 512
_CACHED_QUERIES = 4096
# How contracts are cut and embedded; an index of before such a setting existed has its default.
_CUT = {"max_chars": 600, "overlap_chars": 0, "embed_headings": False}


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and its score: from an index its cosine similarity to the query, -1 to 1."""

    passage: Passage
    score: float


class PassageIndex:
    """Contracts cut into passages, searchable by meaning; made by `build` or `open`, one object a folder and process.

    Searching is thread-safe. One process writes at a time; another process sees it after `open`. A deep copy is the
    same object: optimizers copy programs, not indexes.
    """

    # Two Chroma clients on one folder lose each other's vectors, so a process has one, whoever opens the folder.
    _opened: "weakref.WeakValueDictionary[Path, PassageIndex]" = weakref.WeakValueDictionary()
    _opening = threading.RLock()

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        """Use `build` or `open`."""
        self.folder = folder
        self._embedder = embedder
        self._write_lock, self._store_lock = threading.RLock(), threading.RLock()
        self._queries: OrderedDict[str, np.ndarray] = OrderedDict()
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._store: VectorStore | None = None
        self._connect()

    @classmethod
    def build(
        cls,
        contracts: Iterable[Contract],
        *,
        folder: Path | str,
        embedder: Embedder,
        max_chars: int = 600,
        overlap_chars: int = 0,
        embed_headings: bool = False,
        servers: Sequence[str] = (),
        like: "PassageIndex | None" = None,
        progress: bool = True,
    ) -> "PassageIndex":
        """Index `contracts` in `folder`, made if it is not there; an interrupted build goes on where it stopped.

        Passages are cut by `cut_passages`, none longer than what the embedder reads; with `embed_headings` each is
        embedded behind the headings that it stands under. Contracts already in the folder stay. `servers` are addresses
        of Chroma servers ("http://host:8000") that a new index keeps its vectors on, by contract where there are
        several; the texts stay in the folder. `like` is another index by the same embedder: what stands in it in the
        same words is not embedded again. Raises StoreError if it was built with other settings, or `like` by another
        embedder.
        """
        asked = {"max_chars": max_chars, "overlap_chars": overlap_chars, "embed_headings": embed_headings}
        folder = Path(folder).resolve()
        (folder / "contracts").mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not (folder / "index.json").exists():
                probe = [round(float(x), 6) for x in embed(embedder, [_PROBE])[0]]
                max_tokens = getattr(embedder, "max_seq_length", None)
                own = {"max_tokens": max_tokens, "generation": uuid.uuid4().hex, "probe": probe}
                where = {"servers": list(servers), "collection": f"evergreen-{uuid.uuid4().hex}"} if servers else {}
                write_about(folder, asked | own | where)
        index = cls.open(folder, embedder)
        if index.cut != asked:
            made, wanted = (
                ", ".join(f"{key}={cut[key]}" for key in asked if index.cut[key] != asked[key])
                for cut in (index.cut, asked)
            )
            raise StoreError(
                f"the index in {folder} was built with {made}, and {wanted} was asked for. Ask for the same, or build "
                "in another folder."
            )
        index.add(contracts, progress=progress, like=like)
        return index

    @classmethod
    def open(cls, folder: Path | str, embedder: Embedder) -> "PassageIndex":
        """The index in `folder`; StoreError if there is none, or if `embedder` is not the one it was built with."""
        folder = Path(folder).resolve()
        about = read_about(folder)
        likeness = _likeness(about["probe"], embed(embedder, [_PROBE])[0])
        if likeness < 0.999:
            raise StoreError(
                f"the index in {folder} was built with another embedder (one sentence's two vectors have a cosine of "
                f"{likeness:.3f}). Open it with that one, or build in another folder."
            )
        with cls._opening:
            index = cls._opened.get(folder)
            if index is None:
                index = cls._opened[folder] = cls(folder, embedder)
            index._embedder = embedder
            index.refresh()
            return index

    def refresh(self) -> None:
        """See what other processes have added since."""
        with self._write_lock, self._store_lock:
            if self._is_behind():
                self._connect()

    def close(self) -> None:
        """Let go of the folder; the index cannot be used after it."""
        with self._opening:
            self._store.close()
            if self._opened.get(self.folder) is self:
                del self._opened[self.folder]

    def add(
        self,
        contracts: Iterable[Contract],
        *,
        progress: bool = True,
        on_passages: Callable[[int], object] = lambda n: None,
        like: "PassageIndex | None" = None,
    ) -> int:
        """Index what is new and replace what has another text than before; the number of contracts indexed.

        A contract is in the index when it is whole; one that was interrupted is indexed anew the next time. Where only
        the places differ, those are replaced. `on_passages` is told of every so many passages that have been embedded.
        `like` is as in `build`.
        Raises StoreError where an id stands twice with different texts, or another process is writing for more than a
        minute.
        """
        wanted: dict[str, Contract] = {}
        for contract in contracts:
            if wanted.setdefault(contract.id, contract).text != contract.text:
                raise StoreError(f"the contract id {contract.id!r} stands twice, with different texts. Rename one.")
        if like is not None and like.folder != self.folder:
            self._refuse_unlike(like)
        with self._write_lock, locked(self.folder):
            # Chroma's own copy of the vectors is as old as its client: writing with an old one would lose the others.
            self.refresh()
            self._replace_places(wanted.values())
            count_tokens = token_counter(self._embedder) if self._max_tokens else None
            cuts = [
                Stored(contract, self._cut_passages(contract, count_tokens))
                for contract in wanted.values()
                if contract.id not in self._stored or self._stored[contract.id].contract.text != contract.text
            ]
            if cuts:
                self._new_generation()
            total = sum(len(stored.passages) for stored in cuts)
            with tqdm(total=total, desc="indexing", unit=" passages", disable=not progress or not cuts) as bar:
                for batch in _batches(cuts):
                    self._add_batch(batch, lambda n: (bar.update(n), on_passages(n)), like)
        return len(cuts)

    def remove(self, contract_ids: Iterable[str]) -> int:
        """Take contracts out of the index; how many of them were in it. StoreError as in `add`."""
        with self._write_lock, locked(self.folder):
            self.refresh()
            gone = [contract_id for contract_id in dict.fromkeys(contract_ids) if contract_id in self._stored]
            self._remove(gone)
        return len(gone)

    def repair(self, *, thorough: bool = True) -> tuple[str, ...]:
        """Make files and vectors agree, as they may not when a writer was killed; the contracts that were taken out.

        Vectors of no passage are dropped, and so are contracts whose vectors are not all there: add those again.
        Without `thorough` the ids are compared only where their number is not right.
        """
        with self._write_lock, locked(self.folder):
            self.refresh()
            wanted = {passage.id: key for key, stored in self._stored.items() for passage in stored.passages}
            if not thorough and len(self._store) == len(wanted):
                return ()
            delete_incomplete(self.folder)
            found = self._store.passage_ids()
            torn = sorted({wanted[passage_id] for passage_id in wanted.keys() - set(found)})
            self._store.delete([passage_id for passage_id in found if passage_id not in wanted])
            self._remove(torn)
            return tuple(torn)

    @property
    def contract_ids(self) -> tuple[str, ...]:
        """The ids of all contracts in the index, sorted."""
        return tuple(sorted(self._stored))

    @property
    def n_passages(self) -> int:
        """How many passages the index holds."""
        return sum(len(stored.passages) for stored in self._stored.values())

    def contract(self, contract_id: str) -> Contract:
        """The contract as it was added, its places with it; StoreError if it is not in the index."""
        return self._get(contract_id).contract

    @property
    def contents(self) -> Mapping[str, Stored]:
        """The contracts and their passages by id; a new mapping after every change, and never changed itself."""
        return self._stored

    def contract_text(self, contract_id: str) -> str:
        """The text that the offsets of the contract's passages count in; StoreError if it is not in the index."""
        return self._get(contract_id).contract.text

    def passages(self, contract_id: str) -> tuple[Passage, ...]:
        """The contract's passages in its order, the same tuple until it changes; StoreError if it is not there."""
        return self._get(contract_id).passages

    @property
    def embedder(self) -> Embedder:
        """What the passages were embedded by."""
        return self._embedder

    def embedded_text(self, passage: Passage) -> str:
        """The text that is embedded for a passage: its own, behind its headings where the index embeds those."""
        return embedded_text(passage) if self.cut["embed_headings"] else folded(passage.text)

    def search(self, query: str, k: int = 4, contract_id: str | None = None) -> tuple[Hit, ...]:
        """The `k` passages nearest to `query`, best first, of one contract or of all; fewer only if there are fewer."""
        return self.search_many([query], k, contract_id)[0]

    def search_many(self, queries: Sequence[str], k: int = 4, contract_id: str | None = None) -> list[tuple[Hit, ...]]:
        """`search` for each query, all embedded in one batch; StoreError for an unknown contract or an empty query."""
        if k < 1:
            raise StoreError(f"{k} passages were asked for; ask for 1 or more.")
        if empty := [query for query in queries if not query.strip()]:
            raise StoreError(f"the query {empty[0]!r} is empty. Ask something.")
        if contract_id is None:
            return [self._search_all(vector, k) for vector in self._query_vectors(queries)]
        # One contract is a few hundred passages: comparing with all of them is exact and quicker than Chroma's filtered
        # search, which is approximate.
        passages, vectors_P_D = self._contract(contract_id)
        return [_best(passages, vectors_P_D @ vector_D, k) for vector_D in self._query_vectors(queries)]

    def opening(self, query: str, contract_id: str) -> Hit:
        """The contract's first passage, scored against `query`; StoreError for an unknown contract."""
        passages, vectors_P_D = self._contract(contract_id)
        return Hit(passages[0], float(vectors_P_D[0] @ self._query_vectors([query])[0]))

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassageIndex":
        return self

    def _connect(self) -> None:
        """Read the folder, and open its vectors anew."""
        if self._store is not None:
            self._store.close()
        about = read_about(self.folder)
        self._generation = about["generation"]
        self.cut = {key: about.get(key, default) for key, default in _CUT.items()}
        self._max_tokens = about.get("max_tokens")
        self._stored = {stored.contract.id: stored for stored in read_contracts(self.folder)}
        self._vectors.clear()
        self._store = open_store(self.folder / "chroma", about.get("collection", ""), about.get("servers", ()))

    def _cut_passages(
        self, contract: Contract, count_tokens: Callable[[list[str]], list[int]] | None
    ) -> tuple[Passage, ...]:
        bound: dict[str, Any] = {}
        if count_tokens is not None:
            bound["max_tokens"] = self._max_tokens
            bound["count_tokens"] = lambda passages: count_tokens([self.embedded_text(p) for p in passages])
        return cut_passages(
            contract,
            max_chars=self.cut["max_chars"],
            overlap_chars=self.cut["overlap_chars"],
            heading_path=self.cut["embed_headings"],
            **bound,
        )

    def _new_generation(self) -> None:
        self._generation = uuid.uuid4().hex
        write_about(self.folder, read_about(self.folder) | {"generation": self._generation})

    def _replace_places(self, contracts: Iterable[Contract]) -> None:
        for contract in contracts:
            known = self._stored.get(contract.id)
            if (
                known is not None
                and known.contract.text == contract.text
                and contract.places not in ((), known.contract.places)
            ):
                stored = Stored(contract, known.passages)
                write_contract(self.folder, stored, complete=True)
                with self._store_lock:
                    self._stored = self._stored | {contract.id: stored}

    def _remove(self, contract_ids: list[str]) -> None:
        """Files first: vectors without a file are passed over by every search."""
        if not contract_ids:
            return
        self._new_generation()
        with self._store_lock:
            gone = set(contract_ids)
            self._stored = {key: stored for key, stored in self._stored.items() if key not in gone}
            for contract_id in contract_ids:
                self._vectors.pop(contract_id, None)
                delete_contract(self.folder, contract_id)
            self._store.delete_contracts(contract_ids)

    def _refuse_unlike(self, other: "PassageIndex") -> None:
        likeness = _likeness(read_about(other.folder)["probe"], np.array(read_about(self.folder)["probe"]))
        if likeness < 0.999:
            raise StoreError(
                f"the vectors of {other.folder} are another embedder's (one sentence's two have a cosine of "
                f"{likeness:.3f}). Leave it out: then all is embedded."
            )

    def _vectors_in(self, other: "PassageIndex", contract_ids: Iterable[str]) -> dict[str, np.ndarray]:
        """The vectors that another index has of these contracts, by the text that was embedded."""
        found: dict[str, np.ndarray] = {}
        for contract_id in contract_ids:
            if contract_id in other.contents:
                passages, vectors_P_D = other._contract(contract_id)
                found.update(zip(map(other.embedded_text, passages), vectors_P_D, strict=True))
        return found

    def _embedded(self, passages: Sequence[Passage], known: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [P, D]; what is known is not embedded again."""
        texts = [self.embedded_text(passage) for passage in passages]
        if not known:
            return embed(self._embedder, texts)
        new = list(dict.fromkeys(text for text in texts if text not in known))
        made = dict(zip(new, embed(self._embedder, new), strict=True)) if new else {}
        return np.stack([known[text] if text in known else made[text] for text in texts])

    def _add_batch(
        self, batch: list[Stored], on_passages: Callable[[int], object], like: "PassageIndex | None" = None
    ) -> None:
        """Index a few contracts; between the two writes of its file a contract counts as absent."""
        passages = [passage for stored in batch for passage in stored.passages]
        slices, known = [], {} if like is None else self._vectors_in(like, [stored.contract.id for stored in batch])
        for i in range(0, len(passages), _SLICE_PASSAGES):
            some = passages[i : i + _SLICE_PASSAGES]
            slices.append(self._embedded(some, known))
            on_passages(len(some))
        vectors = np.concatenate(slices)
        fresh = {stored.contract.id: stored for stored in batch}
        with self._store_lock:
            # A new dictionary: other threads may be reading the old one.
            self._stored = {key: stored for key, stored in self._stored.items() if key not in fresh}
            for stored in batch:
                self._vectors.pop(stored.contract.id, None)
                write_contract(self.folder, stored, complete=False)
            self._store.delete_contracts(list(fresh))
            self._store.add(passages, vectors)
            for stored in batch:
                write_contract(self.folder, stored, complete=True)
            self._stored = self._stored | fresh

    def _is_behind(self) -> bool:
        return read_about(self.folder)["generation"] != self._generation

    def _get(self, contract_id: str) -> Stored:
        stored = self._stored.get(contract_id)
        if stored is None:
            near = get_close_matches(contract_id, self.contract_ids, n=3, cutoff=0.4)
            raise StoreError(
                f"the contract {contract_id!r} is not in the index of {len(self._stored)} in {self.folder}; near it: "
                f"{', '.join(near) or 'none'}. Add it, or correct the id."
            )
        return stored

    def _query_vectors(self, queries: Sequence[str]) -> list[np.ndarray]:
        """One unit vector a query; kept, because the same 41 questions are asked of every contract."""
        with self._store_lock:
            found = {query: self._queries[query] for query in queries if query in self._queries}
        new = [query for query in dict.fromkeys(queries) if query not in found]
        if new:
            found.update(zip(new, embed(self._embedder, new), strict=True))
            with self._store_lock:
                self._queries.update((query, found[query]) for query in new)
                while len(self._queries) > _CACHED_QUERIES:
                    self._queries.popitem(last=False)
        return [found[query] for query in queries]

    def _contract(self, contract_id: str) -> tuple[tuple[Passage, ...], np.ndarray]:
        """The contract's passages and their vectors, float32 [P, D]."""
        with self._store_lock:
            passages = self._get(contract_id).passages
            if contract_id not in self._vectors:
                self._vectors[contract_id] = self._fetch(contract_id, passages)
            self._vectors.move_to_end(contract_id)
            if len(self._vectors) > _CACHED_CONTRACTS:
                self._vectors.popitem(last=False)
            return passages, self._vectors[contract_id]

    def _fetch(self, contract_id: str, passages: tuple[Passage, ...]) -> np.ndarray:
        rows = self._store.of_contract(contract_id)
        if rows.keys() != {passage.id for passage in passages}:
            behind = "Another process has changed it: open it again."
            cure = behind if self._is_behind() else "It is damaged: delete the folder and build it again."
            raise StoreError(
                f"the index in {self.folder} has {len(rows)} vectors of the contract {contract_id!r}, and "
                f"{len(passages)} passages. {cure}"
            )
        return np.array([rows[passage.id] for passage in passages], dtype=np.float32)

    def _search_all(self, vector: np.ndarray, k: int) -> tuple[Hit, ...]:
        with self._store_lock:
            count, n = len(self._store), k
            while True:
                hits = tuple(self._hits(self._store.nearest(vector, n)))
                # Vectors of an interrupted contract are passed over, so more may have to be asked for.
                if len(hits) >= k or n >= count:
                    # Chroma leaves the order of equals open; the same question must get the same passages.
                    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))[:k])
                n *= 2

    def _hits(self, found: Iterable[tuple[str, str, float]]) -> Iterator[Hit]:
        for passage_id, contract_id, score in found:
            stored = self._stored.get(contract_id)
            passage = next((p for p in stored.passages if p.id == passage_id), None) if stored else None
            if passage is not None:
                yield Hit(passage, score)


def _likeness(probe: list[float], vector: np.ndarray) -> float:
    return float(unit_vectors(np.array(probe, dtype=np.float32)) @ vector) if len(probe) == len(vector) else 0.0


def _best(passages: tuple[Passage, ...], scores_P: np.ndarray, k: int) -> tuple[Hit, ...]:
    return tuple(Hit(passages[i], float(scores_P[i])) for i in np.argsort(-scores_P, kind="stable")[:k])


def _batches(cuts: Iterable[Stored]) -> Iterator[list[Stored]]:
    """Whole contracts, so many at a time that they are at least `_BATCH_PASSAGES` passages."""
    batch: list[Stored] = []
    for stored in cuts:
        batch.append(stored)
        if sum(len(one.passages) for one in batch) >= _BATCH_PASSAGES:
            yield batch
            batch = []
    if batch:
        yield batch
