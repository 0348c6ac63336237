import json
import shutil
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from filelock import FileLock

from corpora.passages import cut_passages
from corpora.types import Contract, Place
from modules import index_files, retriever, vector_store
from modules.retriever import PassageIndex, StoreError

CLAUSE = (
    "{n}. {title}. The {word} of this Agreement is {word}, and {word} it shall be, whatever {word} may mean elsewhere; "
    "the parties have settled the {word} between them, once and for all."
)
WORDS = ("law", "price", "term", "notice", "audit", "escrow", "license", "insurance")


class WordEmbedder:
    """A bag of hashed words, so that texts with the same words are near; counts what it embeds."""

    def __init__(self, n_dimensions=512, salt=b""):
        self.n_dimensions, self.salt, self.seen = n_dimensions, salt, []

    def encode(self, sentences, **_):
        self.seen.extend(sentences)
        rows = np.zeros((len(sentences), self.n_dimensions))
        for row, sentence in zip(rows, sentences, strict=True):
            for word in sentence.lower().replace(",", " ").replace(".", " ").split():
                row[zlib.crc32(self.salt + word.encode()) % self.n_dimensions] += 1
        return rows


def contract(name, words=WORDS):
    clauses = [CLAUSE.format(n=n, title=word.title(), word=word) for n, word in enumerate(words, 1)]
    return Contract(name, f"Agreement of {name}. " * 9 + "\n\n" + "\n\n".join(clauses))


@pytest.fixture
def embedder():
    return WordEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    made = build(tmp_path, embedder, contract("a"), contract("b"))
    yield made
    made.close()


def build(folder, embedder, *contracts, **options):
    return PassageIndex.build(contracts, folder=folder / "index", embedder=embedder, progress=False, **options)


def test_finds_the_clause_in_one_contract_and_in_all(index):
    hits = index.search("what is the escrow", k=3, contract_id="b")
    assert [hit.passage.contract_id for hit in hits] == ["b"] * 3
    assert hits[0].passage.text.startswith("6. Escrow.") and hits[0].passage.heading == "6. Escrow"
    assert hits[0].score > hits[1].score >= hits[2].score
    first, second, *rest = index.search("escrow", k=100)
    assert {first.passage.contract_id, second.passage.contract_id} == {"a", "b"}
    assert "Escrow" in first.passage.text and "Escrow" in second.passage.text
    assert len(rest) + 2 == sum(len(index.search("x", k=100, contract_id=name)) for name in ("a", "b"))


def test_passages_are_cut_from_the_stored_text(index):
    assert index.contract_ids == ("a", "b") and index.contract_text("a") == contract("a").text
    for hit in index.search("the law", k=5):
        passage = hit.passage
        assert index.contract_text(passage.contract_id)[passage.start : passage.end] == passage.text


def test_one_contract_is_ranked_exactly_as_by_brute_force(index, embedder):
    hits = index.search("notice of audit", k=4, contract_id="a")
    passages = [hit.passage for hit in index.search("notice of audit", k=100, contract_id="a")]
    rows = embedder.encode([" ".join(passage.text.split()) for passage in passages])
    query = embedder.encode(["notice of audit"])[0]
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:4], abs=1e-5)


def test_many_queries_are_embedded_in_one_batch_and_kept(index, embedder):
    embedder.seen.clear()
    batched = index.search_many(["law", "price", "law"], k=2, contract_id="a")
    assert embedder.seen == ["law", "price"]
    assert [index.search(query, k=2, contract_id="a") for query in ("law", "price", "law")] == batched
    assert embedder.seen == ["law", "price"]
    assert index.search_many([], contract_id="a") == [] == index.search_many([])


def test_adding_the_same_twice_embeds_nothing_and_another_text_replaces(index, embedder):
    embedder.seen.clear()
    assert index.add([contract("a"), contract("b"), contract("a")], progress=False) == 0 and embedder.seen == []
    index.search("law", contract_id="a")
    changed = contract("a", ("arbitration", "law"))
    assert index.add([changed], progress=False) == 1
    assert index.contract_text("a") == changed.text
    assert "Arbitration" in index.search("arbitration", contract_id="a")[0].passage.text
    assert not any(
        "Escrow" in hit.passage.text for hit in index.search("escrow", k=100) if hit.passage.contract_id == "a"
    )
    with pytest.raises(StoreError, match="'c' stands twice"):
        index.add([contract("c"), contract("c", ("law",))])


def test_opens_again_from_the_folder(tmp_path, index, embedder):
    before = index.search("license", k=2), index.search("license", k=3, contract_id="b")
    index.close()
    again = PassageIndex.open(tmp_path / "index", embedder)
    assert (again.search("license", k=2), again.search("license", k=3, contract_id="b")) == before
    assert PassageIndex.open(tmp_path / "index" / ".." / "index", embedder) is again
    again.close()


def test_refuses_what_it_does_not_hold(tmp_path, index):
    for call in (lambda: index.search("law", contract_id="aa"), lambda: index.contract_text("aa")):
        with pytest.raises(StoreError, match="'aa' is not in the index of 2 .*; near it: a"):
            call()
    with pytest.raises(StoreError, match="query ' ' is empty"):
        index.search(" ")
    with pytest.raises(StoreError, match="0 passages"):
        index.search("law", k=0)
    with pytest.raises(StoreError, match="no index in"):
        PassageIndex.open(tmp_path, WordEmbedder())


def test_refuses_another_embedder_and_another_cut(tmp_path, index, embedder):
    for other in (WordEmbedder(salt=b"x"), WordEmbedder(n_dimensions=32)):
        with pytest.raises(StoreError, match="another embedder"):
            PassageIndex.open(tmp_path / "index", other)
    with pytest.raises(StoreError, match="max_chars=600.*max_chars=300"):
        build(tmp_path, embedder, contract("a"), max_chars=300)


def test_an_interrupted_build_goes_on_and_its_torn_contract_is_never_found(tmp_path, embedder, monkeypatch):
    real = index_files.write_contract

    def dies(folder, stored, *, complete):
        if complete and stored.contract.id == "b":
            raise KeyboardInterrupt
        real(folder, stored, complete=complete)

    monkeypatch.setattr(retriever, "_BATCH_PASSAGES", 1)
    monkeypatch.setattr(retriever, "write_contract", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, embedder, contract("a"), contract("b"))
    monkeypatch.setattr(retriever, "write_contract", real)
    index = PassageIndex.open(tmp_path / "index", embedder)
    assert index.contract_ids == ("a",)
    assert {hit.passage.contract_id for hit in index.search("escrow", k=5)} == {"a"}
    embedder.seen.clear()
    index = build(tmp_path, embedder, contract("a"), contract("b"))
    assert index.contract_ids == ("a", "b") and not any("Agreement of a" in text for text in embedder.seen)
    assert len(index.search("escrow", k=100)) == 2 * len(index.search("escrow", k=100, contract_id="a"))
    index.close()


def test_a_second_writer_waits_and_then_says_so(tmp_path, index, monkeypatch):
    monkeypatch.setattr(index_files, "LOCK_TIMEOUT_S", 0.1)
    held = threading.Event()
    release = threading.Event()

    def hold():
        with FileLock(tmp_path / "index" / ".lock"):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(StoreError, match="another process has been writing"):
        index.add([contract("c")])
    release.set()
    thread.join()
    assert index.contract_ids == ("a", "b")


@pytest.mark.slow
def test_writing_after_another_process_has_written_keeps_what_it_wrote(tmp_path, index, embedder):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_retriever import *\n"
        "PassageIndex.open(sys.argv[1], WordEmbedder()).add([contract('c')], progress=False)"
    )
    paths = [str(tmp_path / "index"), __file__.rsplit("/", 1)[0], __file__.rsplit("/", 3)[0]]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    index.add([contract("d")], progress=False)
    assert index.contract_ids == ("a", "b", "c", "d")
    assert {hit.passage.contract_id for hit in index.search("escrow", k=4)} == {"a", "b", "c", "d"}


def passages_in_chroma(index):
    return set(index._store.passage_ids())


def test_removed_contracts_are_gone_from_search_files_and_vectors(tmp_path, index, embedder):
    index.add([contract("c")], progress=False)
    index.search("law", contract_id="a")
    assert index.remove(["a", "nowhere", "c", "a"]) == 2
    assert index.contract_ids == ("b",) and len(list((tmp_path / "index" / "contracts").iterdir())) == 1
    assert {hit.passage.contract_id for hit in index.search("escrow", k=100)} == {"b"}
    assert passages_in_chroma(index) == {hit.passage.id for hit in index.search("x", k=100, contract_id="b")}
    with pytest.raises(StoreError, match="'a' is not in the index of 1"):
        index.search("law", contract_id="a")
    index.close()
    again = PassageIndex.open(tmp_path / "index", embedder)
    assert again.contract_ids == ("b",) and again.add([contract("a")], progress=False) == 1
    assert again.remove([]) == 0 and again.contract_ids == ("a", "b")
    again.close()


def test_removing_is_seen_by_other_processes(index):
    generation = json.loads((index.folder / "index.json").read_text())["generation"]
    assert index.remove(["nowhere"]) == 0
    assert json.loads((index.folder / "index.json").read_text())["generation"] == generation
    index.remove(["a"])
    assert json.loads((index.folder / "index.json").read_text())["generation"] != generation


def test_repair_drops_strays_and_torn_contracts(tmp_path, index, embedder, monkeypatch):
    assert index.repair() == () == index.repair(thorough=False) and index.contract_ids == ("a", "b")
    first = index.search("x", k=1, contract_id="a")[0].passage.id
    index._store._collection.delete(ids=[first])
    index._store._collection.add(ids=["ghost:0-9"], embeddings=[[0.1] * 512], metadatas=[{"contract_id": "ghost"}])
    folder = tmp_path / "index" / "contracts"
    (folder / "0.json").write_text('{"id": "c", "complete": false, "text": "", "passages": []}')
    (folder / "1.partial").write_text('{"id"')
    assert index.repair(thorough=False) == ()  # as many as there should be
    monkeypatch.setattr(vector_store, "_MAX_IDS", 3)  # in several requests
    assert index.repair() == ("a",) and index.contract_ids == ("b",)
    assert passages_in_chroma(index) == {hit.passage.id for hit in index.search("x", k=100, contract_id="b")}
    assert len(list(folder.iterdir())) == 1
    index._store._collection.delete(ids=[next(iter(passages_in_chroma(index)))])
    assert index.repair(thorough=False) == ("b",) and passages_in_chroma(index) == set()


def test_places_stay_with_a_contract_and_are_replaced_without_embedding(tmp_path, index, embedder):
    plain = contract("c")
    placed = Contract("c", plain.text, (Place(0, 1, 1), Place(181, 2, 1)))
    index.add([placed], progress=False)
    assert index.contract("c") == placed and index.contract("a") == contract("a")
    embedder.seen.clear()
    moved = Contract("c", plain.text, (Place(0, None, 1),))
    assert index.add([moved], progress=False) == 0 and index.contract("c") == moved and embedder.seen == []
    assert index.add([plain], progress=False) == 0 and index.contract("c") == moved
    index.close()
    again = PassageIndex.open(tmp_path / "index", embedder)
    assert again.contract("c") == moved
    again.close()


def test_one_long_contract_is_embedded_in_slices_that_are_told(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(retriever, "_SLICE_PASSAGES", 3)
    index, told = build(tmp_path, embedder), []
    index.add([contract("a"), contract("b")], progress=False, on_passages=told.append)
    assert max(told) == 3 and sum(told) == index.n_passages == len(index.search("x", k=100))
    assert "Escrow" in index.search("escrow", 1, "b")[0].passage.text
    index.close()


class Noise(WordEmbedder):
    """Vectors in no time, where what is measured is the rest."""

    def encode(self, sentences, **_):
        self.seen.append(len(sentences))
        return np.ones((len(sentences), 4)) + np.arange(len(sentences))[:, None] % 7


class Counting:
    """Takes what Chroma would be given, whose graph is not what is measured."""

    added = 0

    def add(self, *, ids, embeddings, metadatas):
        assert len(ids) == len(embeddings) == len(metadatas)
        self.added += len(ids)

    def delete(self, *, where):
        pass


def test_a_contract_of_a_million_tokens(tmp_path, seconds):
    clause = "{n}.1 Term. The term of order {n} lasts until the goods have been paid for, and no longer than that.\n\n"
    text = "".join(clause.format(n=n % 997) for n in range(50_000))
    long = Contract("long", text)
    assert len(text.split()) == 1_000_000

    def cut(contract):
        assert cut_passages(contract, max_chars=600)[-1].end == len(contract.text)

    # Four times the text takes four times as long, or 16 times if it is quadratic.
    assert seconds(cut, long) < 10 * seconds(cut, Contract("quarter", text[: len(text) // 4])) + 1
    noise = Noise()
    index = build(tmp_path, noise)
    index._store._collection, real = Counting(), index._store._collection
    index.add([long], progress=False)
    assert index._store._collection.added == index.n_passages > 8_000
    # What is embedded at a time does not grow with the contract.
    assert max(noise.seen) == 1024
    index._store._collection = real
    index.close()


def test_damaged_files_are_named(tmp_path, index, embedder):
    index.close()
    path = next((tmp_path / "index" / "contracts").glob("*.json"))
    for content in ("{", "[]", json.dumps({"id": "a"})):
        path.write_text(content)
        with pytest.raises(StoreError, match=path.name):
            PassageIndex.open(tmp_path / "index", embedder)
    (tmp_path / "index" / "index.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="format 1"):
        PassageIndex.open(tmp_path / "index", embedder)


def test_missing_vectors_are_an_error_and_not_fewer_passages(tmp_path, index, embedder):
    index.close()
    shutil.rmtree(tmp_path / "index" / "chroma")
    again = PassageIndex.open(tmp_path / "index", embedder)
    with pytest.raises(StoreError, match="0 vectors of the contract 'a'"):
        again.search("law", contract_id="a")
    again.close()


def test_threads_get_what_one_alone_gets(index):
    asked = [(word, name) for word in WORDS for name in ("a", "b", None)] * 4
    alone = [index.search(word, 3, name) for word, name in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: index.search(one[0], 3, one[1]), asked)) == alone


def test_what_another_index_has_in_the_same_words_is_not_embedded_again(tmp_path, index, embedder):
    changed, new = contract("b", (*WORDS[:-1], "arbitration")), contract("c", ("warranty", "law"))
    embedder.seen.clear()
    after = build(tmp_path / "after", embedder, contract("a"), changed, new, like=index)
    asked = embedder.seen[:]
    there = {index.embedded_text(passage) for name in "ab" for passage in index.passages(name)}
    assert not there & set(asked) and 2 < len(asked) < after.n_passages / 2
    whole = build(tmp_path / "whole", embedder, contract("a"), changed, new)
    for name in "abc":
        assert np.allclose(after._contract(name)[1], whole._contract(name)[1], atol=1e-6)
    best = [one.search("what is the arbitration", 1)[0].passage for one in (after, whole)]
    assert best[0] == best[1] and "arbitration" in best[0].text
    for one in (after, whole):
        one.close()


def test_vectors_of_another_embedder_are_refused(tmp_path, index):
    with pytest.raises(StoreError, match="another embedder's"):
        build(tmp_path / "after", WordEmbedder(salt=b"x"), contract("a"), like=index)
