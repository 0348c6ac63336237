from concurrent.futures import ThreadPoolExecutor

import pytest

from modules.absence import AnswerModel
from modules.extract import Extract
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve
from modules.spans import SpanModel, confidences

TEXT = (
    "Agreement of Acme Inc. with Zyxel LLC.\n\n1. Law. The law of Ohio governs this Agreement in every respect. "
    "Courts of Ohio decide.\n\n2. Fees. The Buyer pays the fees at once, and no fees are ever given back to the Buyer."
)


@pytest.fixture
def index(make_index):
    return make_index(Acme=TEXT)


def test_spans_come_from_the_retrieved_passages_with_the_fitted_confidence(index):
    program = Extract(Retrieve(index))
    prediction = program(question="the buyer pays the fees", contract_id="Acme")
    assert "The Buyer pays the fees" in prediction.spans[0].quote.text and prediction.confidences is None
    assert all(TEXT[s.quote.start : s.quote.end] == s.quote.text for s in prediction.spans)
    answers = AnswerModel((3.0, 0.0, 0.0, 0.0, 0.0), -1.0, {}, 0.2)
    model = SpanModel(5.0, 2.0, 0.1, 1.0, -3.0)
    program.retrieve.swap(index, RetrievalSettings(answers=answers, spans=model))
    fitted = program(question="the buyer pays the fees", contract_id="Acme")
    assert fitted.confidences == confidences(model, "the buyer pays the fees", fitted.spans, fitted.p_answered)
    assert all(0 < one < 1 for one in (*fitted.confidences, fitted.p_answered))


def test_many_threads_and_a_copy_ask_one_cache(index):
    program = Extract(Retrieve(index))
    alone = program(question="which law governs", contract_id="Acme").spans
    copied = program.deepcopy()
    assert copied._finders is program._finders
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(p, question="which law governs", contract_id="Acme") for p in (program, copied) * 8]
    assert all(call.result().spans == alone for call in calls)
