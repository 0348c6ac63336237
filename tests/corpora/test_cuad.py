import json
import os
from pathlib import Path

import pytest

from corpora.cuad import CATEGORIES, question_text, read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.types import Contract, Corpus, Label, Question, Span

TEXT = "SUPPLY AGREEMENT between Acme Corp. and Beta LLC. Ohio law governs. Ohio courts decide."
LAW = question_text("Governing Law")


def qa(question_id="c1__Governing Law", answers=("Ohio law governs.",), question=LAW, **more):
    entries = [{"text": text, "answer_start": TEXT.find(text)} for text in answers]
    return {"id": question_id, "question": question, "answers": entries, "is_impossible": not entries} | more


def entry(qas, title="c1", *texts):
    return {"title": title, "paragraphs": [{"context": text, "qas": qas} for text in texts or (TEXT,)]}


def read(tmp_path, *entries, **options):
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"version": "aok_v1.0", "data": list(entries)}), encoding="utf-8")
    return read_cuad(path, **options)


def refused(tmp_path, *entries):
    with pytest.raises(CorpusError) as caught:
        read(tmp_path, *entries)
    assert "some.json" in str(caught.value)
    return str(caught.value)


def test_the_categories_are_cuads_41_with_their_full_questions():
    assert len({category.name for category in CATEGORIES}) == len(CATEGORIES) == 41
    assert question_text("Rofr/Rofo/Rofn").startswith('Highlight the parts (if any) of this contract related to "Rofr/')
    assert all(category.question == " ".join(category.question.split()) for category in CATEGORIES)
    with pytest.raises(CorpusError, match="Governing Law"):
        question_text("Governing Laws")


def test_reads_a_label_with_its_spans_in_document_order(tmp_path):
    corpus = read(tmp_path, entry([qa(answers=("Ohio courts decide.", "Ohio law governs."), short_answer="Ohio")]))
    start = TEXT.find("Ohio")
    question = Question("c1__Governing Law", "c1", "Governing Law", LAW)
    spans = (Span(start, start + 17), Span(start + 18, start + 37))
    assert corpus == Corpus("some", (Contract("c1", TEXT),), (Label(question, spans, "Ohio"),))


def test_a_question_without_answers_is_not_in_the_contract(tmp_path):
    (label,) = read(tmp_path, entry([qa(answers=())])).labels
    assert label.spans == () and label.answer is None


def test_the_category_is_the_question_where_the_id_names_none(tmp_path):
    (label,) = read(tmp_path, entry([qa("q-17", question="Which law\xa0 governs? ")])).labels
    assert label.question.category == label.question.text == "Which law governs?"


def test_questions_asked_once_an_answer_are_one_label(tmp_path):
    repeats = [qa(f"c1__Governing Law_{i}", (text,)) for i, text in enumerate(("Ohio courts decide.", "Ohio law"))]
    (label,) = read(tmp_path, entry([*repeats, repeats[0]])).labels
    assert label.question.id == "c1__Governing Law" and label.question.category == "Governing Law"
    assert [TEXT[span.start : span.end] for span in label.spans] == ["Ohio law", "Ohio courts decide."]


def test_one_contract_in_two_entries_is_one_contract(tmp_path):
    corpus = read(tmp_path, entry([qa()]), entry([qa(answers=("Ohio courts decide.",))]))
    assert len(corpus.contracts) == 1 and [len(label.spans) for label in corpus.labels] == [2]


def test_several_paragraphs_are_several_contracts(tmp_path):
    corpus = read(tmp_path, entry([], "c1", TEXT, "Another text."))
    assert [contract.id for contract in corpus.contracts] == ["c1#0", "c1#1"]


def test_max_contracts_takes_the_first(tmp_path):
    entries = [entry([], f"c{i}") for i in range(4)]
    assert [contract.id for contract in read(tmp_path, *entries, max_contracts=2).contracts] == ["c0", "c1"]
    with pytest.raises(CorpusError, match="max_contracts is 0"):
        read(tmp_path, *entries, max_contracts=0)


def test_refuses_a_span_that_is_not_in_the_text(tmp_path):
    wrong = qa()
    wrong["answers"][0]["answer_start"] += 1
    message = refused(tmp_path, entry([wrong]))
    assert "'c1'" in message and "c1__Governing Law" in message and f"stands at {TEXT.find('Ohio')}" in message
    # Counted from the end the words are there; Python would slice them, other readers would not.
    for start in (TEXT.find("Ohio law") - len(TEXT), 10**6):
        wrong["answers"][0]["answer_start"] = start
        refused(tmp_path, entry([wrong]))
    assert "nowhere" in refused(tmp_path, entry([qa(answers=("Texas law governs.",))]))


def test_refuses_contradictions(tmp_path):
    assert "is_impossible is true" in refused(tmp_path, entry([qa(is_impossible=True)]))
    assert "is_impossible is false" in refused(tmp_path, entry([qa(answers=(), is_impossible=False)]))
    assert "differently" in refused(tmp_path, entry([qa(), qa(answers=())]))
    assert "differently" in refused(tmp_path, entry([qa(short_answer="Ohio"), qa(short_answer="Iowa")]))
    assert "another question" in refused(tmp_path, entry([qa(), qa(question="Which courts decide?")]))


def test_refuses_what_is_not_a_contract(tmp_path):
    assert "no text" in refused(tmp_path, entry([], "c1", " \n"))
    assert "different texts" in refused(tmp_path, entry([]), entry([], "c1", TEXT + "!"))
    assert "surrogate" in refused(tmp_path, entry([], "c1", "half \ud83d"))


@pytest.mark.parametrize("key", ["id", "question", "answers", "is_impossible"])
def test_refuses_missing_and_mistyped_keys(tmp_path, key):
    broken = qa()
    del broken[key]
    assert key in refused(tmp_path, entry([broken]))
    assert key in refused(tmp_path, entry([qa() | {key: 7}]))


def test_refuses_files_of_another_kind(tmp_path):
    path = tmp_path / "some.json"
    for content in (b"{", b"[1, 2]", b'{"rows": []}', b'"text"', b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match="some.json"):
            read_cuad(path)
    with pytest.raises(CorpusError, match="absent.json"):
        read_cuad(tmp_path / "absent.json")


def test_writing_and_reading_gives_the_same_corpus(tmp_path):
    corpus = read(
        tmp_path, entry([qa(short_answer="Ohio"), qa("c1__Parties", (), "Who?")]), entry([], "c2", "Ünïcode\r\n")
    )
    write_cuad(corpus, tmp_path / "some.json")
    assert read_cuad(tmp_path / "some.json") == corpus


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    corpus = read(tmp_path, entry([qa()]))
    before = (tmp_path / "some.json").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_cuad(Corpus("some", corpus.contracts, ()), tmp_path / "some.json")
    assert (tmp_path / "some.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_does_not_write_what_would_read_differently(tmp_path):
    contract = Contract("c1", TEXT)
    for question in (Question("q1", "c1", "Governing Law", LAW), Question("c2__Parties", "c2", "Parties", "Who?")):
        with pytest.raises(CorpusError, match=question.id):
            write_cuad(Corpus("x", (contract,), (Label(question, ()),)), tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_the_real_training_split():
    path = Path(os.environ.get("EVERGREEN_CUAD", Path(__file__).parents[3] / "shared/cuad/CUADv1_train.json"))
    if not path.exists():
        pytest.skip(f"no CUAD at {path}: set EVERGREEN_CUAD to CUADv1_train.json")
    corpus = read_cuad(path)
    assert len(corpus.contracts) == 408 and len(corpus.labels) == 408 * 41
    assert sum(len(label.spans) for label in corpus.labels) == 11_180
    wording = {category.name: category.question for category in CATEGORIES}
    assert all(wording[label.question.category] == label.question.text for label in corpus.labels)
