"""What `RetrieverTune` asks of a program that has a `Retrieve` at `program.retrieve`.

    tune = RetrieverTune(ReviewRetrieval(run_folder / "retriever"), EmbedderSettings(max_steps=200))
    program = tune.compile(program, trainset=train, valset=val)

Not handled: a reranker's weights.
"""

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import dspy
import numpy as np
from sentence_transformers import SentenceTransformer

from corpora.cuad import bare_question
from corpora.cuad_wordings import PARAPHRASES
from corpora.sentences import sentences
from corpora.types import Passage, Span
from modules.embedding import embed, folded, pieces_in
from modules.index_files import StoreError
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import rank
from modules.retriever import PassageIndex
from optimizers.embedder import SearchRow
from optimizers.embedder_lists import NEITHER, RIGHT, WRONG, Listed, SearchList
from program.failpoints import reach
from program.retrieval_fit import Asked, answered, fit_answers, fit_fusion, fit_k, recall_of

_KEPT_NEGATIVES = 32
_READ_FOR_SENTENCES = 4


class ReviewRetrieval:
    """`TunableRetrieval` of a program with a `Retrieve` at `program.retrieve`.

    New indexes stand in folders of their own below `folder`, each with its embedder beside it; nothing is deleted.
    `made` are those indexes, open: close them. `val_contracts` bounds how many contracts an embedder is scored on
    while it is trained. `cuts` are ways to cut passages anew ({"max_chars": 1000}, {"overlap_chars": 100}, ...), of
    which the best on those contracts is taken, the index's own among them. With `reworded` CUAD's categories are learnt
    in other people's words too (`corpora.cuad_wordings`).
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        cuts: Sequence[Mapping[str, Any]] = (),
        val_contracts: int = 12,
        reworded: bool = False,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.folder, self.cuts, self.val_contracts, self.reworded = Path(folder), cuts, val_contracts, reworded
        self.seed, self.progress = seed, progress
        self.made: list[PassageIndex] = []

    def embedder(self, program: dspy.Module) -> SentenceTransformer:
        """The embedder of the program's index. Raises StoreError where it is none that can be trained."""
        embedder = program.retrieve.index.embedder
        if not isinstance(embedder, SentenceTransformer):
            raise StoreError(
                f"the index's embedder is a {type(embedder).__name__}; only a SentenceTransformer can be trained. "
                "Build the index with one."
            )
        return embedder

    def rows(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> list[SearchRow]:
        """A row for each passage and each sentence with the better part of a gold span, or mostly gold.

        Negatives are of the same contract and hold no gold text: passages as the program ranks them now, and sentences
        of the passages with gold text and of the first without. Sentences are what `modules.spans` compares. Questions
        without an answer give no rows.
        """
        index, settings = program.retrieve.index, program.retrieve.settings
        rows = []
        for asked in answered(examples):
            ranked = [hit.passage for hit in rank(index, asked.query, (asked.contract_id,), settings)]
            right = [passage for passage in ranked if _is_gold(passage, asked.gold)]
            wrong = [passage for passage in ranked if not _touches(passage, asked.gold)]
            said = [found for passage in (*right, *wrong[:_READ_FOR_SENTENCES]) for found in _sentences(passage)]
            texts = index.embedded_text
            for golden, others in (
                ([texts(p) for p in right], [texts(p) for p in wrong]),
                (
                    [folded(s.text) for s in said if _is_gold(s, asked.gold)],
                    [folded(s.text) for s in said if not _touches(s, asked.gold)],
                ),
            ):
                negatives = tuple(others[:_KEPT_NEGATIVES])
                ways = wordings(asked.query, reworded=self.reworded)
                rows += [SearchRow(asked.query, ways, text, negatives) for text in golden]
        return rows

    def lists(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> list[SearchList]:
        """A list for each contract that is asked about: its passages, their sentences, and all questions put to it."""
        index = program.retrieve.index
        by_contract: dict[str, list[dspy.Example]] = {}
        for example in examples:
            by_contract.setdefault(example.contract_id, []).append(example)
        found = []
        for contract_id, asked in by_contract.items():
            passages = index.passages(contract_id)
            said = [_sentences(passage) for passage in passages]
            golds = [[Span(start, end) for start, end in example.spans] for example in asked]
            queries = [bare_question(example.question) for example in asked]
            found.append(
                SearchList(
                    tuple(_listed(index.embedded_text(p), own) for p, own in zip(passages, said, strict=True)),
                    tuple(wordings(query, reworded=self.reworded) for query in queries),
                    _marks(golds, passages),
                    _marks(golds, [sentence for own in said for sentence in own]),
                )
            )
        return found

    def score(self, embedder: SentenceTransformer, program: dspy.Module, examples: Sequence[dspy.Example]) -> float:
        """Mean of `recall_of` with this embedder's cosines alone."""
        index = program.retrieve.index
        some = self._some(answered(examples))
        found = []
        for contract_id in dict.fromkeys(asked.contract_id for asked in some):
            own = [asked for asked in some if asked.contract_id == contract_id]
            passages = index.passages(contract_id)
            vectors_P_D = embed(embedder, [index.embedded_text(passage) for passage in passages])
            for asked, query_D in zip(own, embed(embedder, [asked.query for asked in own]), strict=True):
                order = np.argsort(-(vectors_P_D @ query_D), kind="stable")
                found.append(recall_of(asked, [passages[i] for i in order]))
        return float(np.mean(found))

    def reindexed(
        self, program: dspy.Module, embedder: SentenceTransformer, examples: Sequence[dspy.Example]
    ) -> dspy.Module:
        """A copy of the program on a new index of the same contracts in a new folder below `folder`.

        The index that the program has is not touched: it serves until the copy is taken in its place.
        """
        old = program.retrieve.index
        cut = self._best_cut(program, embedder, examples)
        folder = self.folder / uuid.uuid4().hex[:8]
        embedder.save(str(folder / "embedder"))
        new = PassageIndex.build(
            (old.contract(key) for key in old.contract_ids),
            folder=folder / "index", embedder=embedder, progress=self.progress, **cut,
        )  # fmt: skip
        self.made.append(new)
        reach("index.swap.built")
        other = _with(program, new, program.retrieve.settings)
        reach("index.swap.taken")
        return other

    def fitted(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> tuple[dspy.Module, float]:
        """A copy of the program with the fusion that finds most, no more passages than that needs, and an AnswerModel.

        The model of what is not answered is left out where all questions have an answer, or none has.
        """
        index, start = program.retrieve.index, program.retrieve.settings
        asked = answered(examples)
        best, score = fit_fusion(index, asked, start)
        best = replace(best, k=fit_k(index, asked, best), answers=fit_answers(index, examples))
        return _with(program, index, best), score

    def _best_cut(
        self, program: dspy.Module, embedder: SentenceTransformer, examples: Sequence[dspy.Example]
    ) -> dict[str, Any]:
        """Of the index's own cut and `cuts` the one under which most is found in as many characters."""
        old, asked = program.retrieve.index, self._some(answered(examples))
        contracts = [old.contract(key) for key in sorted({one.contract_id for one in asked})]
        scores: list[tuple[float, dict[str, Any]]] = []
        for cut in [old.cut, *({**old.cut, **cut} for cut in self.cuts)] if self.cuts else []:
            with tempfile.TemporaryDirectory() as scratch:
                index = PassageIndex.build(contracts, folder=scratch, embedder=embedder, progress=self.progress, **cut)
                scores.append((fit_fusion(index, asked, program.retrieve.settings)[1], cut))
                index.close()
        return max(scores, key=lambda pair: pair[0])[1] if scores else old.cut

    def _some(self, asked: Sequence[Asked]) -> list[Asked]:
        keys = sorted({one.contract_id for one in asked})
        kept = set(Random(self.seed).sample(keys, min(self.val_contracts, len(keys))))
        return [one for one in asked if one.contract_id in kept]


def wordings(query: str, *, reworded: bool = False) -> tuple[str, ...]:
    """Ways of asking the same: as it is, of "Name: details" each part, if `reworded` a category of CUAD as others do.

    Then the query's own words make up about half, so that it stays the one that is known best.
    """
    name, colon, details = query.partition(": ")
    own = (query, name, details) if colon and name and details else (query,)
    others = PARAPHRASES.get(name, ()) if reworded else ()
    return own * max(1, round(len(others) / len(own))) + others


def _listed(text: str, said: Sequence[Passage]) -> Listed:
    return Listed(text, pieces_in(text, [sentence.text for sentence in said]))


def _marks(golds: Sequence[Sequence[Span]], texts: Sequence[Passage]) -> np.ndarray:
    """RIGHT, WRONG or NEITHER, int8 (len(golds), len(texts))."""
    marks = [
        [RIGHT if _is_gold(text, gold) else NEITHER if _touches(text, gold) else WRONG for text in texts]
        for gold in golds
    ]
    return np.array(marks, dtype=np.int8).reshape(len(golds), len(texts))


def _sentences(passage: Passage) -> list[Passage]:
    """The passage's sentences, each as a passage."""
    found = [(passage.start + s.start, passage.start + s.end) for s in sentences(passage.text)]
    return [
        replace(passage, id="", start=a, end=b, text=passage.text[a - passage.start : b - passage.start])
        for a, b in found
    ]


def _is_gold(passage: Passage, gold: Sequence[Span]) -> bool:
    """Whether it holds the better part of a span, or is itself mostly in one."""
    return any(2 * _shared(passage, span) >= min(span.end - span.start, len(passage.text)) for span in gold)


def _touches(passage: Passage, gold: Sequence[Span]) -> bool:
    """Whether it holds any gold text."""
    return any(_shared(passage, span) for span in gold)


def _shared(passage: Passage, span: Span) -> int:
    """How many characters of the span the passage holds."""
    return max(0, min(passage.end, span.end) - max(passage.start, span.start))


def _with(program: dspy.Module, index: PassageIndex, settings: RetrievalSettings) -> dspy.Module:
    other = program.deepcopy()
    other.retrieve.swap(index, settings)
    return other
