"""Corpora cut into train, validation and test: by contract, never by question, near-duplicates on one side.

Two amendments of one contract share nearly all their words; on different sides they would make memory look like skill.
Not handled: stratifying by category, and near-duplicate clauses in contracts that are otherwise different.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from random import Random

import numpy as np
from datasketch import MinHash, MinHashLSH

from corpora.errors import CorpusError
from corpora.types import Contract, Corpus

_SHINGLE_WORDS = 5
_NUM_PERM = 64


@dataclass(frozen=True, slots=True)
class Split:
    """Three corpora without a contract, or a near-duplicate of one, in common."""

    train: Corpus
    val: Corpus
    test: Corpus


def split_corpus(
    corpus: Corpus,
    *,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    near_duplicate_jaccard: float = 0.8,
) -> Split:
    """Split into train, val and test of about these fractions of the contracts; same contracts and seed, same split.

    Near-duplicates stay together, so a side can be larger or smaller than its fraction. The order of the contracts
    does not matter. Raises CorpusError where a side would be empty.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CorpusError(f"the fractions are {fractions}; they must be three, each above 0, and sum to 1.")
    groups = near_duplicate_groups(corpus.contracts, near_duplicate_jaccard)
    if len(groups) < 3:
        raise CorpusError(
            f"{corpus.name!r} has {len(corpus.contracts)} contracts in {len(groups)} groups of near-duplicates; train, "
            "val and test take at least 3. Add contracts, or give files of your own for each."
        )
    Random(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    sides: tuple[list[str], ...] = ([], [], [])
    targets = _targets(len(corpus.contracts), fractions)
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        empty = [i for i in range(3) if not sides[i]]
        # The last groups are for the sides that have none, however large those before them were.
        eligible = empty if left == len(empty) else range(3)
        side = max(eligible, key=lambda i: targets[i] - len(sides[i]))
        sides[side].extend(group)
    named = zip(("train", "val", "test"), sides, strict=True)
    return Split(**{name: subset(corpus, ids, name=f"{corpus.name}/{name}") for name, ids in named})


def split_in_two(corpus: Corpus, *, fractions: tuple[float, float, float], seed: int = 0) -> tuple[Corpus, Corpus]:
    """Train and validation alone: the third side of `split_corpus` is joined to the first. Raises as it does."""
    parts = split_corpus(corpus, fractions=fractions, seed=seed)
    return subset(corpus, [c.id for c in parts.train.contracts + parts.test.contracts]), parts.val


def distinct(contracts: Iterable[Contract]) -> list[Contract]:
    """Each contract once, in order; CorpusError where one id has two texts."""
    known: dict[str, Contract] = {}
    for contract in contracts:
        if known.setdefault(contract.id, contract).text != contract.text:
            raise CorpusError(f"two contracts are called {contract.id!r}, with different texts; rename one of them")
    return list(known.values())


def near_duplicate_groups(contracts: Sequence[Contract], jaccard: float) -> list[tuple[str, ...]]:
    """Contract ids in groups: two whose sets of word 5-shingles have at least this Jaccard similarity are in one.

    Every contract is in one group, and groups are connected components: a chain of near-duplicates is one group. Ids
    and groups are sorted. MinHash LSH (64 permutations, Broder 1997) proposes pairs from a little below the threshold,
    the shingles themselves decide. CorpusError if `jaccard` is not in (0, 1].
    """
    if not 0 < jaccard <= 1:
        raise CorpusError(f"the Jaccard threshold is {jaccard}; it must be above 0 and at most 1.")
    _refuse_repeats(contract.id for contract in contracts)
    shingles = {contract.id: _shingles(contract.text) for contract in sorted(contracts, key=lambda c: c.id)}
    parent = {contract_id: contract_id for contract_id in shingles}
    # Lower by three standard errors of a 64-permutation estimate: a pair that LSH does not propose is never looked at.
    margin = 3 * (jaccard * (1 - jaccard) / _NUM_PERM) ** 0.5
    lsh = MinHashLSH(threshold=max(0.05, jaccard - margin), num_perm=_NUM_PERM, weights=(0.2, 0.8))
    for contract_id, own in shingles.items():
        signature = MinHash(num_perm=_NUM_PERM, hashfunc=int)
        signature.update_batch(own)
        for other_id in lsh.query(signature):
            root, other_root = _root(parent, contract_id), _root(parent, other_id)
            if root != other_root and _jaccard(own, shingles[other_id]) >= jaccard:
                parent[root] = other_root
        lsh.insert(contract_id, signature)
    groups: dict[str, list[str]] = {}
    for contract_id in shingles:
        groups.setdefault(_root(parent, contract_id), []).append(contract_id)
    return sorted(tuple(group) for group in groups.values())


def nearly_among(contracts: Iterable[Contract], others: Sequence[Contract], jaccard: float = 0.8) -> set[str]:
    """Ids of `contracts` that are among `others`, by id or as near-duplicates (`near_duplicate_groups`)."""
    contracts, known = tuple(contracts), {contract.id for contract in others}
    new = tuple(contract for contract in contracts if contract.id not in known)
    groups = near_duplicate_groups(new + tuple(others), jaccard)
    like = {member for group in groups if known & set(group) for member in group}
    return {contract.id for contract in contracts} & (known | like)


def sample_contracts(corpus: Corpus, n: int, seed: int) -> Corpus:
    """`n` contracts drawn without replacement, and their labels, in the corpus's order; CorpusError if it has fewer."""
    if not 1 <= n <= len(corpus.contracts):
        has = len(corpus.contracts)
        raise CorpusError(f"{n} contracts were asked of {corpus.name!r}, which has {has}. Ask for 1 to {has}.")
    return subset(corpus, Random(seed).sample(sorted(contract.id for contract in corpus.contracts), n))


def subset(corpus: Corpus, contract_ids: Iterable[str], *, name: str | None = None) -> Corpus:
    """The named contracts and their labels, in the corpus's order; CorpusError for an id it does not hold."""
    wanted, held = set(contract_ids), {contract.id for contract in corpus.contracts}
    for contract_id in sorted(wanted - held):
        near = get_close_matches(contract_id, sorted(held), n=3, cutoff=0.4)
        raise CorpusError(
            f"{corpus.name!r} has no contract {contract_id!r}; near it: {', '.join(near) or 'none'}. Correct the id."
        )
    return Corpus(
        name or corpus.name,
        tuple(contract for contract in corpus.contracts if contract.id in wanted),
        tuple(label for label in corpus.labels if label.question.contract_id in wanted),
    )


def _targets(n: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Contracts a side: at least one each for val and test, the rest for train."""
    val, test = (max(1, round(n * fraction)) for fraction in fractions[1:])
    return n - val - test, val, test


def _refuse_repeats(contract_ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for contract_id in contract_ids:
        if contract_id in seen:
            raise CorpusError(f"the contract id {contract_id!r} stands twice. Give each contract an id of its own.")
        seen.add(contract_id)


def _shingles(text: str) -> np.ndarray:
    """The distinct 5-word shingles of a text as sorted uint32 hashes; a text shorter than that is one shingle."""
    words = text.lower().split()
    n = min(_SHINGLE_WORDS, len(words))
    # A word is hashed once, and a shingle is arithmetic on its words' hashes: 408 contracts of CUAD take 2 s in all.
    ids = {word: _word_hash(word) for word in set(words)}
    hashes = np.array([ids[word] for word in words], dtype=np.uint64)
    mixed = np.zeros(len(words) - n + 1, dtype=np.uint64)
    for i in range(n):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[i : len(words) - n + 1 + i]
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _word_hash(word: str) -> int:
    # Not hash(): Python salts that anew in every process, and the split must not depend on it.
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (a.size + b.size - shared)


def _root(parent: dict[str, str], node: str) -> str:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
