import dspy
import pytest

from modules.embedder import load_embedder
from optimizers.embedder import EmbedderSettings, SearchRow
from optimizers.errors import TrainingError
from optimizers.retriever import RetrieverTune

ROWS = [SearchRow(f"topic {i}", (f"topic {i}",), f"passage {i}", (f"passage {i + 9}",)) for i in range(8)]
SETTINGS = EmbedderSettings(max_steps=2, batch_size=4, validations=1, progress=False)
TRAIN, VAL = [dspy.Example(n=0)], [dspy.Example(n=1)]


class Program(dspy.Module):
    def __init__(self, made_of="old index"):
        super().__init__()
        self.made_of = made_of


class FakeRetrieval:
    """Programs are named after what was done to them; scores as told."""

    def __init__(self, embedder_scores, fitted_scores):
        self.embedder_scores, self.fitted_scores, self.asked = iter(embedder_scores), fitted_scores, []

    def embedder(self, program):
        return load_embedder()

    def rows(self, program, examples):
        self.asked.append(("rows", examples))
        return ROWS

    def score(self, embedder, program, examples):
        self.asked.append(("score", examples))
        return next(self.embedder_scores)

    def reindexed(self, program, embedder, examples):
        return Program("new index")

    def fitted(self, program, examples):
        self.asked.append(("fitted", examples))
        return Program(f"{program.made_of}, fitted"), self.fitted_scores[program.made_of]


@pytest.mark.parametrize(
    ("embedder_scores", "fitted_scores", "expected"),
    [
        ((0.5, 0.6), {"old index": 0.6, "new index": 0.7}, "new index, fitted"),
        ((0.5, 0.6), {"old index": 0.6, "new index": 0.6}, "old index, fitted"),
        ((0.5, 0.4), {"old index": 0.6}, "old index, fitted"),  # nothing was learnt: nothing to index
    ],
)
def test_the_better_retriever_on_validation_is_kept_with_its_numbers_fitted(embedder_scores, fitted_scores, expected):
    retrieval, student = FakeRetrieval(embedder_scores, fitted_scores), Program()
    tune = RetrieverTune(retrieval, SETTINGS)
    assert tune.compile(student, trainset=TRAIN, valset=VAL).made_of == expected
    assert student.made_of == "old index"
    assert tune.log.kept == expected.startswith("new") and tune.log.training["steps"] == 2
    assert all(examples == (TRAIN if what == "rows" else VAL) for what, examples in retrieval.asked)


@pytest.mark.parametrize("valset", [None, []])
def test_numbers_are_not_fitted_to_what_was_trained_on(valset):
    with pytest.raises(TrainingError, match="needs a valset"):
        RetrieverTune(FakeRetrieval((), {}), SETTINGS).compile(Program(), trainset=TRAIN, valset=valset)
