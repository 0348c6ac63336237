"""Passages by their words: BM25 (Robertson and Walker 1994, in Lucene's form) over what a `PassageIndex` holds.

Kept in memory only and made when first asked for; what has changed in the index since is made anew. Words are
stemmed, and a passage counts with the headings that it stands under. Not handled: other languages than English.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache

import bm25s
import numpy as np
import Stemmer

from corpora.types import Passage
from modules.index_files import Stored
from modules.per_index import PerIndex
from modules.retriever import Hit, PassageIndex

# It sets its own logger to DEBUG when it is imported, and says a line for every index that it builds.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class Bm25:
    """BM25 over some passages; searching is thread-safe."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        words = _words([f"{passage.heading} {passage.text}" for passage in passages])
        self._bm25: bm25s.BM25 | None = None
        if any(words):
            self._bm25 = bm25s.BM25()
            self._bm25.index(words, show_progress=False)

    def search(self, query: str, k: int) -> tuple[Hit, ...]:
        """At most `k` passages that share a word with `query`, best first; scores are above 0 and have no upper end."""
        (words,) = _words([query])
        if self._bm25 is None or not words:
            return ()
        scores_P = self._bm25.get_scores(words)
        sharing = np.flatnonzero(scores_P > 0)
        best = sharing[np.argsort(-scores_P[sharing], kind="stable")[:k]]
        return tuple(Hit(self._passages[i], float(scores_P[i])) for i in best)


def search_words(index: PassageIndex, query: str, k: int = 4, contract_id: str | None = None) -> tuple[Hit, ...]:
    """The `k` passages of one contract, or of all, that BM25 scores highest; fewer where fewer share a word.

    A word weighs by how rare it is in what is searched, the contract or all of them. StoreError for a contract that is
    not in the index.
    """
    bm25 = _of_all(index) if contract_id is None else _of_contract(index.passages(contract_id))
    return bm25.search(query, k)


def _words(texts: Sequence[str]) -> list[list[str]]:
    """The stemmed words of each text in lower case, without English stop words and single characters."""
    # A stemmer of its own: one object must not serve two threads.
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False)


def _all_passages(contents: Mapping[str, Stored]) -> Bm25:
    return Bm25([passage for key in sorted(contents) for passage in contents[key].passages])


_of_all = PerIndex(_all_passages)
_of_contract = lru_cache(maxsize=512)(Bm25)
