import threading

import dspy
import numpy as np
import pytest

from corpora.cuad_wordings import PARAPHRASES
from corpora.synthetic import write_corpus
from corpora.types import Quote, Span
from modules.embedder import load_embedder
from modules.extract import Extract
from modules.index_files import StoreError
from modules.retrieval_settings import RetrievalSettings
from modules.retriever import PassageIndex
from modules.spans import ScoredSpan
from optimizers.embedder import EmbedderSettings
from optimizers.embedder_lists import RIGHT, WRONG
from optimizers.retriever import RetrieverTune
from program.contract_review import ContractReview
from program.examples import to_examples
from program.metrics import cuad_matches
from program.retrieval_fit import (
    Asked,
    _better_in_phrases,
    _span_model,
    answered,
    fit_answers,
    fit_extraction,
    fit_fusion,
    fit_k,
)
from program.retrieval_tuning import ReviewRetrieval, wordings

SHORT = {"max_steps": 6, "batch_size": 8, "validations": 1, "progress": False}


@pytest.fixture(scope="module")
def corpus():
    return write_corpus(["juniper"], 6, seed=4)


@pytest.fixture(scope="module")
def corpus_index(corpus, tmp_path_factory):
    index = PassageIndex.build(
        corpus.contracts,
        folder=tmp_path_factory.mktemp("tuning") / "index", embedder=load_embedder(), max_chars=400, progress=False,
    )  # fmt: skip
    yield index
    index.close()


@pytest.fixture
def program(corpus_index):
    """A program of its own for each test, on one index that none of them writes to."""
    return ContractReview(corpus_index, 4)


def side(corpus, *numbers):
    keys = [corpus.contracts[n].id for n in numbers]
    return [example for example in to_examples(corpus) if example.contract_id in keys]


def test_positives_hold_gold_text_and_negatives_do_not(corpus, program, tmp_path):
    examples = side(corpus, 0, 1)
    rows = ReviewRetrieval(tmp_path / "new").rows(program, examples)
    asked = answered(examples)
    assert {row.topic for row in rows} == {one.query for one in asked} and len(rows) >= len(asked)
    index = program.retrieve.index
    for one in asked:
        own = [row for row in rows if row.topic == one.query and row.wordings == wordings(one.query)]
        gold = [" ".join(index.contract_text(one.contract_id)[s.start : s.end].split()) for s in one.gold]
        mine = [row for row in own if any(text in row.positive for text in gold)]
        assert mine or any(len(text) > 300 for text in gold)
        passages = [
            p for p in index.passages(one.contract_id) if any(p.start < s.end and s.start < p.end for s in one.gold)
        ]
        touched = {index.embedded_text(passage) for passage in passages}
        assert any(not touched & set(row.negatives) and row.negatives for row in own)


def test_a_question_of_a_name_and_details_is_asked_by_each_too():
    assert wordings("Venue: Which courts decide?") == ("Venue: Which courts decide?", "Venue", "Which courts decide?")
    assert wordings("Who may terminate?") == ("Who may terminate?",)


def test_a_category_of_cuad_can_be_asked_in_other_words_too_and_in_its_own_about_half_the_time():
    own = "Audit Rights: May a party look into the books?"
    assert wordings(own) == (own, "Audit Rights", "May a party look into the books?")
    asked = wordings(own, reworded=True)
    assert set(PARAPHRASES["Audit Rights"]) < set(asked)
    own = sum(wording not in PARAPHRASES["Audit Rights"] for wording in asked)
    assert 0.4 < own / len(asked) < 0.6


def test_a_compile_leaves_the_old_index_as_it_was_and_makes_a_better_one(corpus, program, tmp_path):
    retrieval = ReviewRetrieval(tmp_path / "new", progress=False)
    old = program.retrieve.index
    before = [old.search(one.query, 3, one.contract_id) for one in answered(side(corpus, 5))]
    tune = RetrieverTune(retrieval, EmbedderSettings(**SHORT))
    tuned = tune.compile(program, trainset=side(corpus, 0, 1, 2, 3), valset=side(corpus, 4))
    try:
        assert tune.log.kept and tune.log.score_after > tune.log.score_before
        assert program.retrieve.index is old
        assert before == [old.search(one.query, 3, one.contract_id) for one in answered(side(corpus, 5))]
        new = tuned.retrieve.index
        assert new.contract_ids == old.contract_ids and new.cut == old.cut and new.folder != old.folder
        again = PassageIndex.open(new.folder, load_embedder(str(new.folder.parent / "embedder")))
        assert again is new
        with pytest.raises(StoreError, match="another embedder"):
            PassageIndex.open(new.folder, load_embedder())
    finally:
        for index in retrieval.made:
            index.close()


def test_only_a_sentence_transformer_is_trained(program, tmp_path):
    class Words:
        def encode(self, sentences, **_):
            return np.ones((len(sentences), 4))

    index = PassageIndex.build((), folder=tmp_path / "words", embedder=Words(), progress=False)
    program.retrieve.swap(index, RetrievalSettings())
    with pytest.raises(StoreError, match="only a SentenceTransformer can be trained"):
        ReviewRetrieval(tmp_path).embedder(program)
    index.close()


def test_the_fusion_that_finds_most_is_chosen(corpus, program):
    index, asked = program.retrieve.index, answered(side(corpus, 0, 1))
    settings, score = fit_fusion(index, asked, RetrievalSettings())
    poor, low = fit_fusion(index, [Asked("zzz", one.contract_id, one.gold) for one in asked], RetrievalSettings())
    assert score > low and poor.k == settings.k
    # Questions in the gold text's own words: words find them, so they must weigh something.
    own = [
        Asked(index.contract_text(one.contract_id)[one.gold[0].start : one.gold[0].end], one.contract_id, one.gold)
        for one in asked
    ]
    assert fit_fusion(index, own, RetrievalSettings(lexical_weight=0.0))[1] >= score


def test_no_more_passages_are_taken_than_find_something(program, corpus):
    index = program.retrieve.index
    passages = index.passages(corpus.contracts[0].id)
    asked = [Asked(p.text, p.contract_id, (Span(p.start, p.end),)) for p in passages[3:9]]
    assert fit_k(index, asked, RetrievalSettings(k=8)) == 1


def test_a_swap_is_whole_for_every_call(corpus, program, tmp_path):
    """Two indexes with different settings are swapped to and fro while they are searched: no call mixes them."""
    one = program.retrieve.index
    two = PassageIndex.build(
        corpus.contracts, folder=tmp_path / "two", embedder=load_embedder(), max_chars=800, progress=False
    )
    states = [(one, RetrievalSettings(k=2, opening=False)), (two, RetrievalSettings(k=5, opening=False))]
    ids = [{p.id for key in index.contract_ids for p in index.passages(key)} for index, _ in states]
    retrieve, key = program.retrieve, corpus.contracts[0].id
    retrieve.swap(*states[0])
    stop, mixed, seen = threading.Event(), [], set()

    def ask():
        while not stop.is_set():
            found = {p.id for p in retrieve("Which law governs?", key).passages}
            seen.add(len(found))
            if not any(
                len(found) == settings.k and found <= own for (_, settings), own in zip(states, ids, strict=True)
            ):
                mixed.append(found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(200):
        retrieve.swap(*states[i % 2])
        stop.wait(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    two.close()
    assert not mixed and seen == {2, 5}


def test_sentences_are_learnt_too(corpus, program, tmp_path):
    rows = ReviewRetrieval(tmp_path / "new").rows(program, side(corpus, 0))
    index = program.retrieve.index
    passages = {index.embedded_text(p) for key in index.contract_ids for p in index.passages(key)}
    sentences = [row for row in rows if row.positive not in passages]
    assert sentences and all(row.negatives for row in sentences)
    text = " ".join(index.contract_text(corpus.contracts[0].id).split())
    assert all(sentence in text for row in sentences for sentence in (row.positive, *row.negatives))
    assert not any(row.positive in row.negatives for row in rows)


def test_what_is_not_answered_is_learnt_too(corpus, program, tmp_path):
    retrieval = ReviewRetrieval(tmp_path / "new")
    fitted, _ = retrieval.fitted(program, side(corpus, 0, 1, 2))
    held_out = side(corpus, 3, 4, 5)
    found = [fitted.retrieve(e.question, e.contract_id) for e in held_out]
    right = np.mean([(one.p_answered > 0.5) == e.found for one, e in zip(found, held_out, strict=True)])
    assert right > max(np.mean([e.found for e in held_out]), np.mean([not e.found for e in held_out]))
    only, _ = retrieval.fitted(program, [e for e in side(corpus, 0) if e.found])
    assert only.retrieve.settings.answers is None


def test_the_cut_under_which_most_is_found_is_taken(corpus, program, tmp_path):
    retrieval = ReviewRetrieval(tmp_path / "new", cuts=[{"max_chars": 3000}, {"max_chars": 250}], progress=False)
    tuned = retrieval.reindexed(program, load_embedder(), side(corpus, 0, 1))
    try:
        scores = {}
        for size in (400, 3000, 250):
            index = PassageIndex.build(
                corpus.contracts[:2], folder=tmp_path / str(size), embedder=load_embedder(), max_chars=size,
                progress=False,
            )  # fmt: skip
            scores[size] = fit_fusion(index, answered(side(corpus, 0, 1)), RetrievalSettings())[1]
            index.close()
        assert tuned.retrieve.index.cut["max_chars"] == max(scores, key=scores.get)
        assert (
            len(set(scores.values())) > 1 and tuned.retrieve.index.contract_ids == program.retrieve.index.contract_ids
        )
    finally:
        for index in retrieval.made:
            index.close()


def test_confidences_of_spans_are_fitted_on_labels(corpus, program):
    settings = RetrievalSettings(k=4, answers=fit_answers(program.retrieve.index, side(corpus, 0, 1)))
    retrieve = program.retrieve
    retrieve.swap(retrieve.index, settings)
    extract, right, wrong = Extract(retrieve), [], []
    retrieve.swap(retrieve.index, fit_extraction(retrieve, side(corpus, 0, 1), (False,))[0])
    for example in side(corpus, 2, 3):
        found = extract(question=example.question, contract_id=example.contract_id)
        for span, confidence in zip(found.spans, found.confidences, strict=True):
            matches = cuad_matches([span.quote.text], example.quotes, example.category == "Parties")
            (right if matches.any() else wrong).append(confidence)
    assert np.mean(right) > 3 * np.mean(wrong)


def test_a_list_is_a_contract_with_all_its_questions(corpus, program, tmp_path):
    examples = side(corpus, 0, 1)
    lists = ReviewRetrieval(tmp_path / "new").lists(program, examples)
    assert len(lists) == 2 and sum(len(one.wordings) for one in lists) == len(examples)
    index = program.retrieve.index
    for one, contract in zip(lists, corpus.contracts, strict=False):
        passages = index.passages(contract.id)
        assert [p.text for p in one.passages] == [index.embedded_text(p) for p in passages]
        own = [example for example in examples if example.contract_id == contract.id]
        said = [" ".join(p.text[a:b].split()) for p in one.passages for a, b in p.sentences]
        text = " ".join(contract.text.split())
        assert "".join(said).replace(" ", "") == text.replace(" ", "")
        for example, marks, sentence_marks in zip(own, one.passage_marks, one.sentence_marks, strict=True):
            touched = [any(p.start < b and a < p.end for a, b in example.spans) for p in passages]
            assert [mark != WRONG for mark in marks] == touched
            assert (RIGHT in marks) == (RIGHT in sentence_marks) == bool(example.spans)


def test_a_retriever_learns_from_whole_contracts(corpus, program, tmp_path):
    retrieval = ReviewRetrieval(tmp_path / "new", progress=False)
    tune = RetrieverTune(retrieval, EmbedderSettings(**{**SHORT, "max_steps": 3}, loss="lists", list_size=8))
    tune.compile(program, trainset=side(corpus, 0, 1, 2, 3), valset=side(corpus, 4))
    for index in retrieval.made:
        index.close()
    assert tune.log.training["rows"] == 4 and tune.log.score_after >= tune.log.score_before


def test_the_way_of_reading_sentences_that_finds_more_is_taken(corpus, program):
    examples = side(corpus, 0)
    tried = {way: fit_extraction(program.retrieve, examples, (way,)) for way in (False, True)}
    best, score = fit_extraction(program.retrieve, examples)
    assert score == max(one for _, one in tried.values()) > 0
    assert best == tried[best.sentences_in_context][0] and best.spans is not None


def test_questions_get_phrases_where_the_right_ones_stand_higher_among_them():
    def found(*texts):
        return [ScoredSpan(Quote(text, "c", 0, len(text)), 0.9 - i / 10) for i, text in enumerate(texts)], 0.5

    date, law, rare = (dspy.Example(quotes=[text], category="") for text in ("May 1, 2019", "Ohio law governs.", "x y"))
    queries = ["date", "date", "law", "law", "rare"]
    whole = [found("made on May 1, 2019 by and between the parties", "May 1, 2019")] * 2
    phrased = [found("May 1, 2019", "by and between")] * 2
    whole += [found("Ohio law governs.")] * 2 + [found("x y and z w and more", "x y")]
    phrased += [found("Courts", "Ohio law governs.")] * 2 + [found("x y")]
    examples = [date, date, law, law, rare]
    assert _better_in_phrases(queries, whole, phrased, examples) == ["date", "rare"]
    absent = dspy.Example(quotes=[], category="")
    assert _better_in_phrases(["none"], [found("a")], [found("b")], [absent]) == []
    asked = [one.copy(question=query) for one, query in zip(examples, queries, strict=True)]
    assert _span_model(phrased, asked, ["date"]).in_phrases == ("date",)
