"""What trainings take of memory, told before them and held against what they may."""

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding

from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.embedder import EmbedderSettings, training_bytes
from optimizers.local_lm import local_lm
from program.compile import _check_memory, build_adapter
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.recipes import Questions
from program.runs import BudgetError
from program.training_memory import GIB, MemoryNeed, memory_words, passage_texts, training_memory


@pytest.fixture(scope="module")
def review(world, tiny_model, tmp_path_factory):
    """The review on a small random model that could be trained."""
    program = ContractReview(world.index, 1)
    program.set_lm(local_lm(str(tiny_model()), work_dir=tmp_path_factory.mktemp("work"), max_tokens=8))
    return program


def need(review, world, recipe, **changes):
    config = CompileConfig(**{"corpus": "c.json", "recipe": recipe, "batch_size": 2, "rank": 2} | changes)
    return training_memory(review, config, world.train, build_adapter())


def test_more_rows_at_once_and_two_answers_a_row_take_more_and_no_training_none(review, world):
    assert need(review, world, "p") is None
    small = need(review, world, "p -> s")
    assert small.device == "cpu" and small.weights_bytes == review.get_lm().engine.weights.model.get_memory_footprint()
    assert 0 < small.training_bytes < small.free_bytes
    assert need(review, world, "s", batch_size=8).training_bytes > 2 * small.training_bytes
    pairs = need(review, world, "s -> a", feedback="feedback.db").training_bytes
    assert pairs > 1.5 * small.training_bytes
    assert need(review, world, "a", feedback="f.db", preference_method="kto").training_bytes < pairs


def test_the_retrievers_training_counts_where_it_takes_more(review, world, tmp_path):
    assert need(review, world, "r") is None  # words are counted there: no embedder that is trained
    lm, embedder = need(review, world, "s"), load_embedder()
    index = PassageIndex.build(world.corpus.contracts, folder=tmp_path / "i", embedder=embedder, progress=False)
    searching = ContractReview(index, 1)
    searching.set_lm(review.get_lm())
    weights, texts = sum(p.numel() for p in embedder.parameters()), passage_texts(index)
    alone, beside = need(searching, world, "r"), need(searching, world, "r -> s")
    index.close()
    # Five times the weights in float32 (a copy, the best, gradients, Adam's two moments), and some passages.
    assert 20 * weights < alone.training_bytes < 30 * weights
    assert alone.training_bytes == beside.training_bytes > lm.training_bytes
    assert alone.weights_bytes == lm.weights_bytes + 4 * weights
    small, large = (training_bytes(embedder, EmbedderSettings(mini_batch_size=n), texts) for n in (8, 64))
    assert small < large == training_bytes(embedder, EmbedderSettings(loss="lists", list_size=64), texts)
    static = SentenceTransformer(modules=[StaticEmbedding(embedder.tokenizer.backend_tokenizer, embedding_dim=8)])
    assert training_bytes(static, EmbedderSettings(), texts) == 20 * 8 * len(embedder.tokenizer)


def test_it_is_said_in_a_line():
    told = MemoryNeed(GIB // 10, 8 * GIB // 10, 14 * GIB, "cuda:0")
    assert memory_words(told) == (
        "0.9 GiB of memory on cuda:0: 0.1 for the weights, 0.8 to train them beside (14 GiB are free)"
    )


def test_above_the_budget_nothing_is_trained(review, world):
    config = CompileConfig(corpus="c.json", recipe="s", batch_size=2, rank=2)
    questions, said = Questions(world.train, world.val, all_train=world.train, all_val=world.val), []
    _check_memory(review, config, questions, 64.0, said.append)
    assert len(said) == 1 and "GiB of memory on cpu" in said[0]
    with pytest.raises(BudgetError, match="and 0.0001 are allowed; raise max_memory_gib, or give a smaller batch_size"):
        _check_memory(review, config, questions, 0.0001, said.append)
    _check_memory(review, CompileConfig(corpus="c.json", recipe="p"), questions, 0.0001, said.append)
    assert len(said) == 2
