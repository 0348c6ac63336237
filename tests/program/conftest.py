"""What the tests of whole runs share: a small labelled corpus, settings that fit it, and one compiled run."""

import hashlib
import itertools
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import dspy
import numpy as np
import pytest

from corpora.cuad import write_cuad
from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.retriever import PassageIndex
from modules.signatures import NOT_FOUND
from optimizers.local_lm import forget_engines
from optimizers.local_lm.tiny import write_tiny_model
from program import compile as compile_module
from program.config import CompileConfig
from program.examples import to_examples

CATEGORIES = ("Document Name", "Governing Law", "Insurance")
# The answers of a random model are noise of max_tokens bytes: short ones, one small passage, one step of training.
SMALL = {
    "max_tokens": 24, "k_passages": 1, "max_chars": 300, "max_train_questions": 4, "max_val_questions": 2,
    "threads": 4, "sft_epochs": 1.0, "rank": 2, "recipe": "p -> s",
}  # fmt: skip


class WordEmbedder:
    """Bags of words instead of sentence vectors: what these runs are about is not which passage is found."""

    def encode(self, sentences, **_):
        vectors = np.ones((len(sentences), 64), dtype=np.float32) / 64
        for row, sentence in zip(vectors, sentences, strict=True):
            for word in sentence.split():
                row[zlib.crc32(word.encode()) % 64] += 1
        return vectors


class Speaker:
    """An engine that says what `say(prompt)` gives: a text, (text, log probability), or an exception, which it raises.

    `prompts` are the last turns it was asked, `whole` the conversations, demonstrations included.
    """

    def __init__(self, say):
        self.say, self.prompts, self.whole = say, [], []

    def __deepcopy__(self, memo):
        return self

    def complete(self, request):
        turns = ["".join(part.text for part in message.parts) for message in request.messages]
        self.prompts.append(turns[-1])
        self.whole.append("\n".join([str(request.system), *turns]))
        said = self.say(turns[-1])
        if isinstance(said, Exception):
            raise type(said)(*said.args)  # one of its own for each thread
        text, logprob = said if isinstance(said, tuple) else (said, None)
        message, usage = dspy.lm15.Message.assistant(text), dspy.lm15.Usage()
        logprobs = None if logprob is None else (dspy.lm15.TokenLogprob(token="x", logprob=logprob),)
        return dspy.lm15.Response(None, request.model, message, "stop", usage, logprobs=logprobs)


_numbers = itertools.count()


@pytest.fixture
def speaking():
    """`speaking(say)` is an LM whose engine is `Speaker(say)`, for which no call is cached, retried or read twice."""

    def make(say, **kwargs):
        options = {"num_retries": 0, "cache": False, "logprobs": True} | kwargs
        return dspy.LM(f"local/speaker{next(_numbers)}", engine=Speaker(say), **options)

    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        yield make


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Eight generated contracts on one index, to read: 3 labelled (`train`), 2 to choose on (`val`), 3 `unlabelled`.

    `gold` is contract id and question -> label, of all eight; `say` answers prompts of the review by it, as far as the
    passages hold the quotes.
    """
    categories = ("Governing Law", "Renewal Term", "Anti-Assignment", "Cap On Liability", "Audit Rights", "Insurance")
    whole = write_corpus(("juniper",), 8, seed=3)
    labels = tuple(label for label in whole.labels if label.question.category in categories)
    corpus = Corpus(whole.name, whole.contracts, labels)
    texts = {contract.id: contract.text for contract in corpus.contracts}
    ids = list(texts)

    def examples(some):
        return to_examples(subset(corpus, some))

    def say(prompt):
        folded = " ".join(prompt.split())
        for label in labels:
            text = texts[label.question.contract_id]
            quotes = [" ".join(text[span.start : span.end].split()) for span in label.spans]
            if label.question.text in prompt and quotes and all(quote in folded for quote in quotes):
                return completion(quotes="\n".join(quotes), answer=label.answer or ", ".join(quotes)), -0.1
        return completion(quotes="none", answer=NOT_FOUND), -0.1

    folder = tmp_path_factory.mktemp("world")
    index = PassageIndex.build(corpus.contracts, folder=folder, embedder=WordEmbedder(), max_chars=600, progress=False)
    yield SimpleNamespace(
        corpus=corpus, texts=texts, index=index, say=say, completion=completion,
        train=examples(ids[:3]), val=examples(ids[3:5]), unlabelled=corpus.contracts[5:],
        gold={(label.question.contract_id, label.question.text): label for label in labels},
    )  # fmt: skip
    index.close()


@pytest.fixture
def make_index(tmp_path):
    """`make_index(contracts)` is an index of these contracts, on bags of words."""
    made = []

    def make(contracts):
        folder = tmp_path / f"index{len(made)}"
        made.append(
            PassageIndex.build(contracts, folder=folder, embedder=WordEmbedder(), max_chars=600, progress=False)
        )
        return made[-1]

    yield make
    for index in made:
        index.close()


def completion(**fields):
    """What a model says that fills in these fields."""
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()), "[[ ## completed ## ]]"])


@pytest.fixture(autouse=True, scope="package")
def _no_disk_cache():
    dspy.configure_cache(enable_disk_cache=False)
    yield
    forget_engines()


@pytest.fixture(scope="session")
def words_embedder():
    """The class, for fixtures that patch it in themselves."""
    return WordEmbedder


@pytest.fixture
def word_embedder(monkeypatch):
    monkeypatch.setattr(compile_module, "load_embedder", WordEmbedder)


@pytest.fixture(scope="session")
def small_corpus():
    """`small_corpus(path)` writes contracts with three questions each to a CUADv1-format file and returns them."""

    def write(path: Path, *, houses: Iterable[str] = ("juniper",), n_contracts: int = 5, seed: int = 1) -> Corpus:
        whole = write_corpus(houses, n_contracts, seed=seed)
        labels = tuple(label for label in whole.labels if label.question.category in CATEGORIES)
        corpus = Corpus(whole.name, whole.contracts, labels)
        write_cuad(corpus, path)
        return corpus

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model(kind)` is the folder of a random model whose context holds the prompts of these runs."""
    folder = tmp_path_factory.mktemp("models")

    def write(kind: str = "qwen3") -> Path:
        if not (folder / kind).exists():
            write_tiny_model(folder / kind, kind=kind, hidden=16, layers=1, context_tokens=4096)
        return folder / kind

    return write


@pytest.fixture(scope="session")
def small_config():
    """`small_config(corpus, lm, out, **changes)` is a config under which a run takes seconds."""

    def make(corpus: Path, lm: Path, out: Path, **changes) -> CompileConfig:
        return CompileConfig(**({"corpus": str(corpus), "lm": str(lm), "out": str(out)} | SMALL | changes))

    return make


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, small_corpus, tiny_model, small_config):
    """One run of "p -> s", its last stage kept, that has been moved since, its corpus gone; for reading only."""
    folder = tmp_path_factory.mktemp("compiled")
    corpus = small_corpus(folder / "corpus.json")
    digest = hashlib.sha256((folder / "corpus.json").read_bytes()).hexdigest()
    config = small_config(folder / "corpus.json", tiny_model(), folder / "first" / "run")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        # Of a random model's stages, all wrong, the first would be kept, which has neither prompts nor weights.
        patch.setattr(compile_module, "chosen", lambda stages: stages[-1])
        result = compile_module.compile(config, progress=False, command="evergreen compile", say=said.append)
    os.rename(folder / "first", folder / "moved")
    (folder / "corpus.json").unlink()
    path = folder / "moved" / "run"
    return SimpleNamespace(path=path, result=result, config=config, corpus=corpus, digest=digest, said=said)
