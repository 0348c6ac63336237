"""The DSPy module that finds the passages a question is about: by meaning and by words, in the contract it names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import dspy
from dspy.utils.exceptions import AdapterParseError

from corpora.cuad import bare_question
from corpora.types import Passage
from modules.absence import Evidence, evidence, p_answered
from modules.definitions import defining_passages
from modules.fusion import reciprocal_rank, weighted_sum
from modules.index_files import Stored
from modules.lexical import search_words
from modules.per_index import PerIndex
from modules.reranker import Reranker
from modules.retrieval_settings import RetrievalSettings, read_settings
from modules.retriever import Hit, PassageIndex
from modules.routing import Route, Router, make_router, route
from modules.signatures import WriteSearchQuery


class Retrieve(dspy.Module):
    """The `k` best passages for a question, what goes with them, and the opening of the contract that it is put to.

    Title, parties and date stand in the opening, and no question is near it: on generated contracts it takes the share
    of answers that are retrieved from 0.74 to 0.90 at k=4 (benchmarks/LOG.md). CUAD's question frame is left out of the
    query. Without `settings` those beside the index are used; `k` is put in their place. With `rewrite` an LM writes
    the query, by the predictor of that name. Index and reranker are no part of the saved state: give them again when
    a saved program is loaded.
    """

    def __init__(
        self,
        index: PassageIndex,
        k: int | None = None,
        *,
        settings: RetrievalSettings | None = None,
        reranker: Reranker | None = None,
        rewrite: bool = False,
    ) -> None:
        super().__init__()
        settings = settings or read_settings(index.folder)
        self.reranker = reranker
        self._now = index, settings if k is None else replace(settings, k=k)
        self.rewrite = dspy.Predict(WriteSearchQuery) if rewrite else None

    @property
    def index(self) -> PassageIndex:
        """What is searched now."""
        return self._now[0]

    @property
    def settings(self) -> RetrievalSettings:
        """The numbers that are used now."""
        return self._now[1]

    @property
    def k(self) -> int:
        """How many passages are chosen before others are added."""
        return self.settings.k

    def swap(self, index: PassageIndex, settings: RetrievalSettings) -> None:
        """Search `index` with `settings` from the next call on; a call that runs ends on what it began with."""
        self._now = index, settings

    def forward(
        self, question: str, contract_id: str | None = None, without: Sequence[tuple[int, int]] = ()
    ) -> dspy.Prediction:
        """`Prediction(passages, scores, contract_ids, query, p_answered, absent)`; StoreError as the index raises it.

        The chosen passages best first, behind each its neighbours, then definitions, then openings; what is added has
        the score of what it goes with. For None the contracts that the question names are searched, or all of them
        (then without an opening) where it names none; `contract_ids` are those searched, () for all. `p_answered`
        is the highest probability that one of these answers it, `absent` whether that is below the settings' threshold;
        both are None without a fitted model, and where all are searched. Passages that touch `without`, half-open
        character offsets of `contract_id`, are passed over as if the contract lacked them.
        """
        index, settings = self._now  # once: another thread may swap them
        to = Route((contract_id,), question)
        if contract_id is None:
            to = route(_router(index), question) if settings.route else Route((), question)
        question = bare_question(to.question)
        query = self._query(question)
        likely = None
        if settings.answers is not None and to.contract_ids:
            likely = max(
                p_answered(settings.answers, question, evidence_in(index, question, key)) for key in to.contract_ids
            )
        ranked = tuple(hit for hit in rank(index, query, to.contract_ids, settings) if not _touches(hit, without))
        if self.reranker is not None:
            n = max(settings.reranked, settings.k)
            ranked = (*self.reranker(query, ranked[:n]), *ranked[n:])
        chosen = list(with_neighbours(index, ranked[: settings.k], settings.neighbours))
        chosen += _definitions(index, chosen, settings.definitions)
        if settings.opening:
            chosen += _openings(index, to.contract_ids, ranked, chosen)
        chosen = [hit for hit in chosen if not _touches(hit, without)]  # neighbours and openings are not ranked
        return dspy.Prediction(
            passages=[hit.passage for hit in chosen],
            scores=[hit.score for hit in chosen],
            contract_ids=to.contract_ids,
            query=query,
            p_answered=likely,
            absent=None if likely is None else likely < settings.answers.threshold,
        )

    def _query(self, question: str) -> str:
        """What the predictor writes; the question itself where there is none, or what it says cannot be read."""
        if self.rewrite is None:
            return question
        try:
            return (self.rewrite(question=question).query or "").strip() or question
        except AdapterParseError:
            return question


def rank(index: PassageIndex, query: str, contract_ids: Sequence[str], settings: RetrievalSettings) -> tuple[Hit, ...]:
    """All passages of these contracts, or the best of the whole index for (), fused by meaning and words, best first.

    Scores are the fused ones; cosines where the words weigh nothing, BM25's where the meaning does. StoreError as the
    index raises it.
    """
    hits = [hit for key in contract_ids or (None,) for hit in _rank_one(index, query, key, settings)]
    return tuple(sorted(hits, key=lambda hit: -hit.score))


def _rank_one(index: PassageIndex, query: str, contract_id: str | None, settings: RetrievalSettings) -> list[Hit]:
    depth = max(settings.depth, settings.k) if contract_id is None else len(index.passages(contract_id))
    dense = index.search(query, depth, contract_id) if settings.dense_weight else ()
    words = search_words(index, query, depth, contract_id) if settings.lexical_weight else ()
    return fuse(dense, words, settings)


def fuse(dense: Sequence[Hit], words: Sequence[Hit], settings: RetrievalSettings) -> list[Hit]:
    """The rankings by meaning and by words as one, best first; where one of them weighs nothing, the other as it is."""
    if settings.lexical_weight == 0:
        return list(dense)
    if settings.dense_weight == 0:
        return list(words)
    weights = settings.dense_weight, settings.lexical_weight
    passages = {hit.passage.id: hit.passage for hits in (dense, words) for hit in hits}
    rankings = [[(hit.passage.id, hit.score) for hit in hits] for hits in (dense, words)]
    if settings.fusion == "rrf":
        fused = reciprocal_rank(rankings, weights, settings.rrf_constant)
    else:
        fused = weighted_sum(rankings, weights)
    return [Hit(passages[key], score) for key, score in fused]


def _touches(hit: Hit, stretches: Sequence[tuple[int, int]]) -> bool:
    return any(hit.passage.start < end and start < hit.passage.end for start, end in stretches)


def _definitions(index: PassageIndex, chosen: Sequence[Hit], most: int) -> list[Hit]:
    added: list[Hit] = []
    for contract_id in dict.fromkeys(hit.passage.contract_id for hit in chosen):
        own = [hit for hit in chosen if hit.passage.contract_id == contract_id]
        text, passages = index.contract_text(contract_id), index.passages(contract_id)
        limit = most - len(added)
        if limit > 0:
            defining = defining_passages(text, passages, [hit.passage for hit in own], limit)
            added += [Hit(passage, own[0].score) for passage in defining]
    return added


def _openings(
    index: PassageIndex, contract_ids: Sequence[str], ranked: Sequence[Hit], chosen: Sequence[Hit]
) -> list[Hit]:
    scores = {hit.passage.id: hit.score for hit in ranked}
    shown = {hit.passage.id for hit in chosen}
    openings = [index.passages(contract_id)[0] for contract_id in contract_ids]
    return [Hit(p, scores.get(p.id, 0.0)) for p in openings if p.id not in shown]


def search_both(index: PassageIndex, query: str, contract_id: str) -> tuple[tuple[Hit, ...], tuple[Hit, ...]]:
    """All passages of the contract by meaning, and those that share a word with `query` by words. StoreError."""
    n = len(index.passages(contract_id))
    return index.search(query, n, contract_id), search_words(index, query, n, contract_id)


def evidence_in(index: PassageIndex, query: str, contract_id: str) -> Evidence:
    """How all passages of the contract score for `query`, by meaning and by words. StoreError."""
    dense, words = search_both(index, query, contract_id)
    return evidence([hit.score for hit in dense], [hit.score for hit in words])


def with_neighbours(index: PassageIndex, hits: Sequence[Hit], n: int) -> Iterator[Hit]:
    """Each hit and then the `n` passages behind and before it in its contract, nearest first, none twice."""
    given: set[str] = set()
    chosen = {hit.passage.id for hit in hits}
    for hit in hits:
        around: list[Passage] = []
        if n:
            passages = index.passages(hit.passage.contract_id)
            at = next(i for i, passage in enumerate(passages) if passage.id == hit.passage.id)
            around = [passages[i] for d in range(1, n + 1) for i in (at + d, at - d) if 0 <= i < len(passages)]
        for passage in (hit.passage, *around):
            if passage.id not in given and (passage.id == hit.passage.id or passage.id not in chosen):
                given.add(passage.id)
                yield Hit(passage, hit.score)


def _make_router(contents: Mapping[str, Stored]) -> Router:
    return make_router({key: stored.contract for key, stored in contents.items()})


_router = PerIndex(_make_router)
