"""What the tests of whole runs share: a small labelled corpus, settings that fit it, and one compiled run."""

import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import dspy
import numpy as np
import pytest

from corpora.cuad import write_cuad
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from optimizers.local_lm import forget_engines
from optimizers.local_lm.tiny import write_tiny_model
from program import compile as compile_module
from program.config import CompileConfig

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


@pytest.fixture(autouse=True, scope="package")
def _no_disk_cache():
    dspy.configure_cache(enable_disk_cache=False)
    yield
    forget_engines()


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
