"""The parts of `benchmarks/retrieval.py` that its figures rest on."""

from itertools import pairwise

from benchmarks.retrieval import K, as_json, chunks, named, routing_figures, score
from corpora.synthetic import write_corpus
from corpora.types import Contract, Label, Passage, Question, Span
from modules.retriever import Hit


def test_reference_chunks_are_a_partition_within_500_characters():
    for text in ("word " * 500, "A line.\n" * 300, "Para.\n\n" + "x" * 1300 + "\n\nend", "short"):
        cut = chunks(Contract("c", text))
        assert "".join(chunk.text for chunk in cut) == text and max(len(chunk.text) for chunk in cut) <= 500
        assert all(before.end == after.start for before, after in pairwise(cut))
    assert len(chunks(Contract("c", "A line.\n" * 300))) == 5


def test_a_row_has_precision_and_recall_at_each_k():
    label = Label(Question("q", "c", "x", "x"), (Span(10, 20),))
    hits = [Hit(Passage(f"c:{i}", "c", i, i + 10, ""), 0.0) for i in (0, 5, 10)]
    row = score("row", [(label, "x")], [hits])
    assert row.recall[0].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0] and len(K) == 7
    assert row.precision[0].tolist() == [0.0, 5 / 15, *[0.5] * 5] and row.contracts == ["c"]
    assert score("row", [(label, "x")], [hits], lambda _, got, k: [got[-1].passage]).recall[0, 0] == 1.0
    nothing = score("row", [(label, "x")], [[]])
    assert nothing.precision[0].tolist() == [0.0] * 7 == nothing.recall[0].tolist()
    assert as_json([nothing])[0]["precision@1"]["mean"] == 0.0


def test_contracts_are_named_by_their_labels_and_found():
    corpus = write_corpus(("juniper",), 6, seed=2)
    names = named(corpus)
    assert len(names) == 6 and all(" between " in name for name in names.values())
    figures = routing_figures(corpus)
    assert figures["Consider the <name> between <parties>; ... among those routed to"] == 1.0
    assert figures["bare questions routed"] == 0.0
