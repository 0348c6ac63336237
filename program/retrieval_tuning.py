"""What `RetrieverTune` asks of a program that has a `Retrieve` at `program.retrieve`.

    tune = RetrieverTune(ReviewRetrieval(run_folder / "retriever"), EmbedderSettings(max_steps=200))
    program = tune.compile(program, trainset=train, valset=val)

Rankings are compared by how many of the gold characters stand in the first so many characters retrieved, so that the
size of a passage neither helps nor harms. Not handled: a reranker's weights.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

import dspy
import numpy as np
from sentence_transformers import SentenceTransformer

from corpora.cuad import bare_question
from corpora.sentences import sentences
from corpora.types import Passage, Span
from modules.absence import AnswerModel, fit_answer_model
from modules.embedding import embed, folded
from modules.index_files import StoreError
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import evidence_in, rank
from modules.retriever import PassageIndex
from optimizers.embedder import SearchRow
from program.retrieval_metric import Place, character_scores, recall_in_chars

BUDGETS_CHARS = (600, 1200, 2400, 4800)
LEXICAL_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
RRF_CONSTANTS = (5.0, 10.0, 20.0, 60.0)
_KEPT_NEGATIVES = 32
_READ_FOR_SENTENCES = 4
# Of the share of gold characters that k passages hold, fewer passages may lose so much.
_K_LOSS = 0.01


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with an answer, as it is put to one contract: the query, and where the gold text stands."""

    query: str
    contract_id: str
    gold: tuple[Span, ...]


class ReviewRetrieval:
    """`TunableRetrieval` of a program with a `Retrieve` at `program.retrieve`.

    New indexes stand in folders of their own below `folder`, each with its embedder beside it; nothing is deleted.
    `made` are those indexes, open: close them. `val_contracts` bounds how many contracts an embedder is scored on
    while it is trained.
    """

    def __init__(self, folder: Path | str, *, val_contracts: int = 12, seed: int = 0, progress: bool = True) -> None:
        self.folder, self.val_contracts = Path(folder), val_contracts
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
            wrong = [passage for passage in ranked if not any(_shared(passage, span) for span in asked.gold)]
            said = [found for passage in (*right, *wrong[:_READ_FOR_SENTENCES]) for found in _sentences(passage)]
            texts = index.embedded_text
            for golden, others in (
                ([texts(p) for p in right], [texts(p) for p in wrong]),
                (
                    [folded(s.text) for s in said if _is_gold(s, asked.gold)],
                    [folded(s.text) for s in said if not any(_shared(s, span) for span in asked.gold)],
                ),
            ):
                negatives = tuple(others[:_KEPT_NEGATIVES])
                rows += [SearchRow(asked.query, wordings(asked.query), text, negatives) for text in golden]
        return rows

    def score(self, embedder: SentenceTransformer, program: dspy.Module, examples: Sequence[dspy.Example]) -> float:
        """Share of the gold characters in the first BUDGETS_CHARS characters, their mean; ranked by cosine alone."""
        index = program.retrieve.index
        some = self._some(answered(examples))
        found = []
        for contract_id in dict.fromkeys(asked.contract_id for asked in some):
            own = [asked for asked in some if asked.contract_id == contract_id]
            passages = index.passages(contract_id)
            vectors_P_D = embed(embedder, [index.embedded_text(passage) for passage in passages])
            for asked, query_D in zip(own, embed(embedder, [asked.query for asked in own]), strict=True):
                order = np.argsort(-(vectors_P_D @ query_D), kind="stable")
                found.append(_recall(asked, [passages[i] for i in order]))
        return float(np.mean(found))

    def reindexed(self, program: dspy.Module, embedder: SentenceTransformer) -> dspy.Module:
        """A copy of the program on a new index of the same contracts, cut alike, in a new folder below `folder`.

        The index that the program has is not touched: it serves until the copy is taken in its place.
        """
        old = program.retrieve.index
        folder = self.folder / uuid.uuid4().hex[:8]
        embedder.save(str(folder / "embedder"))
        new = PassageIndex.build(
            (old.contract(key) for key in old.contract_ids),
            folder=folder / "index", embedder=embedder, progress=self.progress, **old.cut,
        )  # fmt: skip
        self.made.append(new)
        return _with(program, new, program.retrieve.settings)

    def fitted(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> tuple[dspy.Module, float]:
        """A copy of the program with the fusion that finds most, no more passages than that needs, and an AnswerModel.

        The model of what is not answered is left out where all questions have an answer, or none has.
        """
        index, start = program.retrieve.index, program.retrieve.settings
        asked = answered(examples)
        best, score = fit_fusion(index, asked, start)
        best = replace(best, k=fit_k(index, asked, best), answers=fit_answers(index, examples))
        return _with(program, index, best), score

    def _some(self, asked: Sequence[Asked]) -> list[Asked]:
        keys = sorted({one.contract_id for one in asked})
        kept = set(Random(self.seed).sample(keys, min(self.val_contracts, len(keys))))
        return [one for one in asked if one.contract_id in kept]


def recalls(program: dspy.Module, examples: Sequence[dspy.Example], ks: Sequence[int]) -> list[tuple[str, list[float]]]:
    """(topic, share of the gold characters among the best k passages for each k) of each question with an answer."""
    index, settings = program.retrieve.index, program.retrieve.settings
    rows = []
    for asked in answered(examples):
        ranked = _ranked(index, asked, settings)
        rows.append((asked.query.partition(":")[0], [_recall_at(asked, ranked, k) for k in ks]))
    return rows


def answered(examples: Sequence[dspy.Example]) -> list[Asked]:
    """The examples that have an answer, with their spans (`program.examples.to_examples`)."""
    return [
        Asked(bare_question(e.question), e.contract_id, tuple(Span(start, end) for start, end in e.spans))
        for e in examples
        if e.spans
    ]


def wordings(query: str) -> tuple[str, ...]:
    """Ways of asking the same: as it is, and of "Name: details" each part too."""
    name, colon, details = query.partition(": ")
    return (query, name, details) if colon and name and details else (query,)


def fit_fusion(
    index: PassageIndex, asked: Sequence[Asked], start: RetrievalSettings
) -> tuple[RetrievalSettings, float]:
    """The fusion with the highest mean recall at BUDGETS_CHARS on these questions, and that recall."""
    grid = [start]
    grid += [replace(start, fusion="sum", dense_weight=1.0, lexical_weight=w) for w in LEXICAL_WEIGHTS]
    grid += [
        replace(start, fusion="rrf", dense_weight=1.0, rrf_constant=c, lexical_weight=w)
        for c, w in product(RRF_CONSTANTS, LEXICAL_WEIGHTS[3:])
    ]
    scores = [float(np.mean([_recall(one, _ranked(index, one, settings)) for one in asked])) for settings in grid]
    at = int(np.argmax(scores))
    return grid[at], scores[at]


def fit_k(index: PassageIndex, asked: Sequence[Asked], settings: RetrievalSettings) -> int:
    """The fewest passages that hold as much gold text as `settings.k` do, but for a hundredth of all."""
    ranked = [_ranked(index, one, settings) for one in asked]

    def recall(k: int) -> float:
        return float(np.mean([_recall_at(one, found, k) for one, found in zip(asked, ranked, strict=True)]))

    enough = recall(settings.k) - _K_LOSS
    return next(k for k in range(1, settings.k + 1) if recall(k) >= enough)


def fit_answers(index: PassageIndex, examples: Sequence[dspy.Example]) -> AnswerModel | None:
    """How likely a contract of the index answers a question; None where all of these are answered, or none is."""
    has_answer = [bool(example.spans) for example in examples]
    if len(set(has_answer)) < 2:
        return None
    queries = [bare_question(example.question) for example in examples]
    found = [evidence_in(index, query, e.contract_id) for query, e in zip(queries, examples, strict=True)]
    return fit_answer_model(queries, found, has_answer)


def _ranked(index: PassageIndex, asked: Asked, settings: RetrievalSettings) -> list[Passage]:
    return [hit.passage for hit in rank(index, asked.query, (asked.contract_id,), settings)]


def _recall(asked: Asked, ranked: Sequence[Passage]) -> float:
    places = [_place(passage) for passage in ranked]
    return float(np.mean([recall_in_chars(_gold(asked), places, budget) for budget in BUDGETS_CHARS]))


def _recall_at(asked: Asked, ranked: Sequence[Passage], k: int) -> float:
    return character_scores(_gold(asked), [_place(passage) for passage in ranked[:k]])[1]


def _gold(asked: Asked) -> list[Place]:
    return [(asked.contract_id, span) for span in asked.gold]


def _place(passage: Passage) -> Place:
    return passage.contract_id, Span(passage.start, passage.end)


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


def _shared(passage: Passage, span: Span) -> int:
    """How many characters of the span the passage holds."""
    return max(0, min(passage.end, span.end) - max(passage.start, span.start))


def _with(program: dspy.Module, index: PassageIndex, settings: RetrievalSettings) -> dspy.Module:
    other = program.deepcopy()
    other.retrieve.swap(index, settings)
    return other
