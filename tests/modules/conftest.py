"""What the tests of retrieval share: an embedder of words, and indexes of short contracts."""

import zlib

import numpy as np
import pytest

from corpora.types import Contract
from modules.retriever import PassageIndex


class WordEmbedder:
    """A bag of hashed words, so that texts with the same words are near."""

    def encode(self, sentences, **_):
        rows = np.zeros((len(sentences), 512))
        for row, sentence in zip(rows, sentences, strict=True):
            for word in sentence.lower().replace(",", " ").replace(".", " ").split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return rows


@pytest.fixture
def word_embedder():
    return WordEmbedder()


@pytest.fixture
def make_index(tmp_path, word_embedder):
    """`make_index(name=text, ...)` is an index of contracts with these texts."""
    made = []

    def make(**texts):
        contracts = [Contract(name, text) for name, text in texts.items()]
        folder = tmp_path / f"index{len(made)}"
        made.append(PassageIndex.build(contracts, folder=folder, embedder=word_embedder, progress=False))
        return made[-1]

    yield make
    for index in made:
        index.close()
