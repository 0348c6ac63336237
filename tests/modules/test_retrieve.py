import copy
import json
import math

import dspy
import numpy as np
import pytest
from dspy.utils import DummyLM

from corpora.cuad import question_text
from modules import retrieve
from modules.absence import AnswerModel
from modules.reranker import Reranker
from modules.retrieval_settings import RetrievalSettings, write_settings
from modules.retrieve import Retrieve, rank, with_neighbours
from modules.retriever import StoreError

TITLES = ("Law", "Price", "Term", "Notice", "Audit", "Escrow", "License", "Insurance")
CLAUSE = (
    "{n}. {title}. The {word} of this Agreement is {word}, and {word} it shall be, whatever {word} may mean elsewhere; "
    "the parties have settled the {word} between them, once and for all."
)
DENSE = RetrievalSettings(k=2, lexical_weight=0.0)
WORDS = RetrievalSettings(k=2, dense_weight=0.0)
FUSED = RetrievalSettings(k=2)


def text(name, last=""):
    clauses = [CLAUSE.format(n=n, title=title, word=title.lower()) for n, title in enumerate(TITLES, 1)]
    return f"Agreement of {name} Inc. " * 9 + "\n\n" + "\n\n".join([*clauses, last])


@pytest.fixture
def index(make_index):
    return make_index(Zyxel=text("Zyxel"), Acme=text("Acme"))


def test_the_nearest_passages_and_the_opening_once(index):
    prediction = Retrieve(index, settings=DENSE)(question="escrow and price", contract_id="Acme")
    hits, opening = index.search("escrow and price", 2, "Acme"), index.opening("escrow and price", "Acme")
    assert prediction.passages == [*(hit.passage for hit in hits), opening.passage]
    assert prediction.scores == pytest.approx([*(hit.score for hit in hits), opening.score])
    assert isinstance(prediction, dspy.Prediction) and opening.passage.start == 0
    twice = Retrieve(index, settings=DENSE)(question="agreement of", contract_id="Acme").passages
    assert [passage.start for passage in twice].count(0) == 1
    without = Retrieve(index, settings=RetrievalSettings(k=1, opening=False))
    assert 0 not in [passage.start for passage in without(question="escrow", contract_id="Acme").passages]
    both = Retrieve(index, settings=DENSE)(question="escrow").passages
    assert {passage.contract_id for passage in both} == {"Zyxel", "Acme"} and len(both) == 2


def test_fusion_ranks_by_meaning_and_by_words(index, monkeypatch):
    dense, words, fused = (
        [hit.passage for hit in rank(index, "insured price", ("Acme",), settings)] for settings in (DENSE, WORDS, FUSED)
    )
    assert "Price" in dense[0].text and {p.heading for p in words} == {"2. Price", "8. Insurance"}
    assert set(fused) == set(dense) and set(fused[:2]) == set(words)
    by_rank = rank(index, "insured price", ("Acme",), RetrievalSettings(fusion="rrf", lexical_weight=1.0))
    assert {hit.passage for hit in by_rank[:2]} == set(words) and by_rank[0].score == pytest.approx(1 / 11 + 1 / 11)
    monkeypatch.setattr(retrieve, "search_words", lambda *_: pytest.fail("asked for words that weigh nothing"))
    assert [hit.passage for hit in rank(index, "insured price", ("Acme",), DENSE)] == dense


def test_a_question_that_names_a_contract_searches_that_one_without_the_name(index):
    program = Retrieve(index, settings=FUSED)
    question = f"Consider the Acme agreement; {question_text('Insurance')}"
    prediction = program(question=question)
    assert prediction.contract_ids == ("Acme",) and prediction.query.startswith("Insurance: Is there a requirement")
    assert {passage.contract_id for passage in prediction.passages} == {"Acme"}
    assert [p.start for p in prediction.passages].count(0) == 1
    assert prediction.passages == program(question=question_text("Insurance"), contract_id="Acme").passages
    assert program(question="What is the insurance?").contract_ids == ()
    unrouted = Retrieve(index, settings=RetrievalSettings(route=False))(question=question)
    assert unrouted.contract_ids == () and unrouted.query == question
    with pytest.raises(StoreError, match="'Beta' is not in the index"):
        program(question="law", contract_id="Beta")


def test_neighbours_stand_behind_their_hit_and_none_twice(index):
    passages = index.passages("Acme")
    by_heading = {hit.passage.heading: hit for hit in index.search("law", 100, "Acme")}
    hits = [by_heading["5. Audit"], by_heading["6. Escrow"], by_heading["8. Insurance"]]
    given = [passages.index(hit.passage) for hit in with_neighbours(index, hits, 1)]
    at = [passages.index(hit.passage) for hit in hits]
    assert given == [at[0], at[0] - 1, at[1], at[1] + 1, at[2]]
    assert list(with_neighbours(index, hits, 0)) == hits
    program = Retrieve(index, settings=RetrievalSettings(k=1, neighbours=1))
    assert len(program(question="escrow", contract_id="Acme").passages) == 4  # with the opening


def test_definitions_are_added_behind_what_uses_them(make_index):
    meaning = '9. Meaning. "Net Price" means what the Buyer pays after all that the law lets the Buyer keep back. ' * 3
    index = make_index(Acme=text("Acme", meaning).replace("settled the price", "settled the Net Price"))
    ids = [
        [p.heading for p in Retrieve(index, settings=RetrievalSettings(k=1, definitions=n))(
            question="price", contract_id="Acme").passages]
        for n in (0, 1)
    ]  # fmt: skip
    assert ids[0][0] == ids[1][0] == "2. Price" and ids[1][1] == "9. Meaning" and ids[1][2:] == ids[0][1:]


class Backwards:
    """A cross-encoder to which the last of a list is the best."""

    def predict(self, pairs, **_):
        self.pairs = pairs
        return np.arange(len(pairs), dtype=np.float32)


def test_a_reranker_orders_the_best_anew_and_no_others(index):
    model = Backwards()
    settings = RetrievalSettings(k=3, reranked=4, opening=False)
    program = Retrieve(index, settings=settings, reranker=Reranker(model))
    ranked = rank(index, "escrow", ("Acme",), settings)
    prediction = program(question="escrow", contract_id="Acme")
    assert prediction.passages == [hit.passage for hit in ranked[3:0:-1]] and prediction.scores == [3.0, 2.0, 1.0]
    assert len(model.pairs) == 4 and model.pairs[0][0] == "escrow"
    assert program.deepcopy().reranker is program.reranker


def test_absence_is_a_low_probability_by_the_fitted_model(index):
    program = Retrieve(index)
    prediction = program(question="escrow", contract_id="Acme")
    assert prediction.p_answered is None and prediction.absent is None
    model = AnswerModel((9.0, 0.0, 0.0, 0.0, 0.0), -3.0, {"escrow": 1.0}, threshold=0.5)
    program = Retrieve(index, settings=RetrievalSettings(answers=model))
    best = index.search("escrow", 1, "Acme")[0].score
    prediction = program(question="escrow", contract_id="Acme")
    assert prediction.p_answered == pytest.approx(1 / (1 + math.exp(-(9 * best - 3 + 1)))) and not prediction.absent
    assert program(question="ballet and whales", contract_id="Acme").absent
    assert program(question="escrow").p_answered is None and program(question="escrow").absent is None
    assert program(question="Under the agreement with Acme Inc., what of escrow?").p_answered is not None


def test_an_lm_writes_the_query_and_an_unreadable_one_is_not_used(index):
    program = Retrieve(index, settings=DENSE, rewrite=True)
    assert [name for name, _ in program.named_predictors()] == ["rewrite"]
    with dspy.context(lm=DummyLM([{"query": "escrow"}]), adapter=dspy.ChatAdapter()):
        prediction = program(question="Who keeps the code?", contract_id="Acme")
    assert prediction.query == "escrow" and "Escrow" in prediction.passages[0].text
    unreadable = dspy.ChatAdapter(use_json_adapter_fallback=False)
    for said in ({"query": " "}, {"other": "x"}):
        with dspy.context(lm=DummyLM([said]), adapter=unreadable):
            assert program(question="price", contract_id="Acme").query == "price"


def test_the_whole_index_gives_k_passages_however_few_are_fused(index):
    assert len(Retrieve(index, settings=RetrievalSettings(k=3, depth=1))(question="escrow").passages) == 3


def test_settings_beside_the_index_are_used_and_k_in_their_place(index):
    write_settings(index.folder, RetrievalSettings(k=3, opening=False))
    assert len(Retrieve(index)(question="law", contract_id="Acme").passages) == 3
    assert len(Retrieve(index, 1)(question="law", contract_id="Acme").passages) == 1
    assert Retrieve(index, settings=DENSE).k == 2


def test_the_module_saves_and_copies_no_index(index):
    program = Retrieve(index, k=2)
    assert json.dumps(program.dump_state()) == "{}"
    program.load_state(program.dump_state())
    for other in (copy.deepcopy(program), program.deepcopy(), program.reset_copy()):
        assert other is not program and other.index is index and other.k == 2


def _clause(index, heading):
    (passage,) = [p for p in index.passages("Acme") if p.heading == heading]
    return passage


def test_passages_that_touch_what_is_left_out_are_passed_over(index):
    program = Retrieve(index, settings=FUSED)
    clause = _clause(index, "6. Escrow")
    full = program(question="escrow", contract_id="Acme").passages
    assert full[0] == clause
    for stretch in ((clause.start, clause.end), (clause.start, clause.start + 1), (clause.end - 1, clause.end)):
        left = program(question="escrow", contract_id="Acme", without=[stretch])
        assert clause not in left.passages and len(left.passages) == len(left.scores) == len(full)
    # The end of a stretch is not part of it.
    beside = [(clause.end, clause.end + 1), (clause.start - 1, clause.start)]
    assert clause in program(question="escrow", contract_id="Acme", without=beside).passages
    assert program(question="escrow", contract_id="Acme", without=()).passages == full
    assert program(question="escrow", contract_id="Acme").passages == full


def test_openings_neighbours_and_definitions_are_left_out_too(make_index):
    meaning = '9. Meaning. "Net Price" means what the Buyer pays after all that the law lets the Buyer keep back. ' * 3
    index = make_index(Acme=text("Acme", meaning).replace("settled the price", "settled the Net Price"))
    program = Retrieve(index, settings=RetrievalSettings(k=1, definitions=1, neighbours=1))
    full = program(question="price", contract_id="Acme").passages
    assert [p.heading for p in full][:4] == ["2. Price", "3. Term", "1. Law", "9. Meaning"] and full[-1].start == 0
    for passage in full[1:]:
        left = program(question="price", contract_id="Acme", without=[(passage.start, passage.end)]).passages
        assert left == [p for p in full if p != passage]


def test_a_reranker_sees_nothing_of_what_is_left_out(index):
    model, clause = Backwards(), _clause(index, "6. Escrow")
    settings = RetrievalSettings(k=2, reranked=3, opening=False)
    program = Retrieve(index, settings=settings, reranker=Reranker(model))
    program(question="escrow", contract_id="Acme", without=[(clause.start, clause.end)])
    assert len(model.pairs) == 3 and not any("escrow" in shown for _, shown in model.pairs)
