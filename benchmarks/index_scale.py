"""How an index's vectors are found as they grow: latency, recall against exact search, memory and disk.

    python -m benchmarks.index_scale --sizes 10000 100000
    python -m benchmarks.index_scale --sizes 10000 --throughput 8        # embedding and indexing, by contracts

Vectors are synthetic, 384 wide like MiniLM's: each contract has a centre, its passages lie around it, so near and far
are as uneven as in contracts. A query is a passage's vector with noise. Recall at 10 is against comparing with all.
Memory is what opening the store and asking it adds to the process.
`--throughput N` builds an index of N generated contracts and times the same passages through the encoder alone.
"""

import argparse
import gc
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil

from corpora.synthetic import write_corpus
from corpora.types import Passage
from modules.embedder import load_embedder
from modules.embedding import embed, unit_vectors
from modules.retriever import PassageIndex
from modules.vector_store import open_store

DIMENSIONS, PASSAGES_A_CONTRACT, NOISE = 384, 100, 0.6
N_QUERIES, K, BATCH = 200, 10, 5_000


def vectors_of(n: int, seed: int) -> np.ndarray:
    """`n` unit vectors, float32 (n, 384), so many around each centre as a contract has passages."""
    rng = np.random.default_rng(seed)
    centres = unit_vectors(rng.standard_normal((n // PASSAGES_A_CONTRACT + 1, DIMENSIONS), dtype=np.float32))
    homes = np.repeat(np.arange(len(centres)), PASSAGES_A_CONTRACT)[:n]
    noise = unit_vectors(rng.standard_normal((n, DIMENSIONS), dtype=np.float32))
    return unit_vectors(centres[homes] + NOISE * noise)


def nearest_exactly(vectors: np.ndarray, queries: np.ndarray) -> list[set[int]]:
    """The rows of the K vectors with the highest cosine to each query."""
    return [set(np.argpartition(-(vectors @ query), K)[:K].tolist()) for query in queries]


def fill(folder: Path, name: str, n: int, servers: list[str]) -> float:
    """Put `n` vectors into a store; the seconds that took."""
    vectors = vectors_of(n, seed=0)
    passages = [Passage(str(i), f"c{i // PASSAGES_A_CONTRACT}", 0, 1, "") for i in range(n)]
    store = open_store(folder, name, servers)
    began = time.perf_counter()
    for i in range(0, n, BATCH):
        store.add(passages[i : i + BATCH], vectors[i : i + BATCH])
    added_s = time.perf_counter() - began
    store.close()
    return added_s


def measure(n: int, servers: list[str]) -> None:
    """Fill a store with `n` vectors, ask it, print one row."""
    vectors = vectors_of(n, seed=0)
    rng = np.random.default_rng(1)
    asked = vectors[rng.choice(n, N_QUERIES, replace=False)]
    queries = unit_vectors(asked + 0.3 * unit_vectors(rng.standard_normal(asked.shape, dtype=np.float32)))
    wanted = nearest_exactly(vectors, queries)
    del vectors
    with tempfile.TemporaryDirectory() as scratch:
        folder, name = Path(scratch) / "chroma", f"scale-{uuid4().hex}"  # a server may have one from before
        # In a process of its own: what filling took and gave back is not what asking takes.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            added_s = other.submit(fill, folder, name, n, servers).result()
        gc.collect()
        before_mib = held_mib()
        store = open_store(folder, name, servers)
        list(store.nearest(queries[0], K))  # the index is read from the disk with the first question
        seconds, hits = [], []
        for query in queries:
            began = time.perf_counter()
            found = list(store.nearest(query, K))
            seconds.append(time.perf_counter() - began)
            hits.append({int(passage_id) for passage_id, _, _ in found})
        used_mib = held_mib() - before_mib
        recall = np.mean([len(a & b) / K for a, b in zip(hits, wanted, strict=True)])
        p50, p99 = (1000 * np.quantile(seconds, q) for q in (0.5, 0.99))
        disk_mib = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file()) / 2**20
        cells = (f"{n:,}", f"{n / added_s:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{recall:.3f}")
        print(f"| {' | '.join(cells)} | {used_mib:,.0f} | {disk_mib:,.0f} |", flush=True)
        if servers:
            store.delete_contracts(sorted({f"c{i // PASSAGES_A_CONTRACT}" for i in range(n)}))
        store.close()


def held_mib() -> float:
    """What this process holds of the machine's memory now."""
    return psutil.Process().memory_info().rss / 2**20


def throughput(n_contracts: int) -> None:
    """Passages a second into an index, and through the encoder alone, in turns."""
    contracts = write_corpus(("ashgrove", "marlowe"), n_contracts, seed=3).contracts
    embedder = load_embedder()
    shares = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as scratch:
            began = time.perf_counter()
            index = PassageIndex.build(contracts, folder=Path(scratch) / "index", embedder=embedder, progress=False)
            indexed_s = time.perf_counter() - began
            texts = [index.embedded_text(p) for key in index.contract_ids for p in index.passages(key)]
            index.close()
        began = time.perf_counter()
        embed(embedder, texts)
        alone_s = time.perf_counter() - began
        shares.append(alone_s / indexed_s)
        speeds = f"{len(texts) / indexed_s:.0f} a second indexed, {len(texts) / alone_s:.0f} encoded alone"
        print(f"{len(texts)} passages: {speeds}")
    print(f"share of the encoder's own: {np.median(shares):.2f}")


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--servers", nargs="*", default=[], help="Chroma servers instead of a folder")
    parser.add_argument("--throughput", type=int, metavar="CONTRACTS", help="index so many generated contracts as well")
    args = parser.parse_args()
    if args.throughput:
        throughput(args.throughput)
    print("| vectors | added a second | p50 ms | p99 ms | recall@10 | memory MiB | disk MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for n in args.sizes:
        measure(n, args.servers)


if __name__ == "__main__":
    main()
