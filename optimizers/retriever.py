"""The retriever's optimizer: its embedder is trained on labelled questions, its numbers fitted, its index made anew.

    tune = RetrieverTune(retrieval, settings=EmbedderSettings(max_steps=200))
    program = tune.compile(program, trainset=train, valset=val)

What a retriever is made of is told by `retrieval`, so any program's can be tuned; `program.retrieval_tuning` has this
project's.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dspy
from dspy.teleprompt.teleprompt import Teleprompter
from sentence_transformers import SentenceTransformer

from optimizers.embedder import EmbedderSettings, SearchList, SearchRow, train_embedder
from optimizers.errors import TrainingError

logger = logging.getLogger(__name__)


class TunableRetrieval(Protocol):
    """What RetrieverTune asks of a program's retrieval; no method changes the program that it is given."""

    def embedder(self, program: dspy.Module) -> SentenceTransformer:
        """The embedder that the program's index was made with."""

    def rows(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> list[SearchRow]:
        """What labelled questions teach an embedder: passages that answer them, and passages that do not."""

    def lists(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> list[SearchList]:
        """The same contract by contract; examples without an answer count. Asked where the loss is "lists"."""

    def score(self, embedder: SentenceTransformer, program: dspy.Module, examples: Sequence[dspy.Example]) -> float:
        """How well this embedder alone ranks for these questions; asked several times while it is trained."""

    def reindexed(
        self, program: dspy.Module, embedder: SentenceTransformer, examples: Sequence[dspy.Example]
    ) -> dspy.Module:
        """A copy of the program on an index of its own that this embedder made; the old index stays whole.

        How contracts are cut may be chosen on the questions.
        """

    def fitted(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> tuple[dspy.Module, float]:
        """A copy of the program with the numbers of retrieval that suit these questions, and its score there."""


@dataclass(frozen=True, slots=True)
class RetrieverLog:
    """What a compile did: scores on the validation questions before and after, the training's log, what was kept."""

    score_before: float
    score_after: float
    kept: bool
    training: dict[str, Any]


class RetrieverTune(Teleprompter):
    """Compiles a program's retriever: trains the embedder, indexes anew, fits fusion, k and absence on `valset`.

    Where the tuned retriever scores no better on `valset` than the old one with numbers fitted alike, the old one is
    kept, with those numbers. Prompts and weights of the language model stay. `log` tells of the last compile.
    """

    def __init__(self, retrieval: TunableRetrieval, settings: EmbedderSettings | None = None) -> None:
        super().__init__()
        self.retrieval, self.settings = retrieval, settings or EmbedderSettings()
        self.log: RetrieverLog | None = None

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: list[dspy.Example] | None = None,
    ) -> dspy.Module:
        """A copy of `student` with the better retriever; `teacher` is not used. Raises TrainingError.

        `valset` has to be of other contracts than `trainset`, for the numbers would be fitted to what was learnt by
        heart.
        """
        if not valset:
            raise TrainingError("RetrieverTune needs a valset, of other contracts than the trainset; give one")
        lessons = self.retrieval.lists if self.settings.loss == "lists" else self.retrieval.rows
        learnt = lessons(student, trainset)
        before, score_before = self.retrieval.fitted(student, valset)
        embedder, training = train_embedder(
            self.retrieval.embedder(student),
            learnt,
            self.settings,
            lambda model: self.retrieval.score(model, student, valset),
        )
        after, score_after = before, score_before
        if training["best_step"]:
            after, score_after = self.retrieval.fitted(self.retrieval.reindexed(student, embedder, valset), valset)
        kept = score_after > score_before
        self.log = RetrieverLog(score_before, score_after, kept, training)
        logger.info("retriever: %.3f before, %.3f after %d steps", score_before, score_after, training["steps"])
        return after if kept else before
