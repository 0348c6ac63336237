import math
from types import SimpleNamespace

import dspy
import pytest
from dspy.utils import DummyLM

from corpora.types import Passage
from modules.reviewer import Reviewer, least_certain
from modules.signatures import NOT_FOUND

TEXT = "Law. This Agreement is governed by the laws of\nOhio. Fees. The fee is ten dollars."
CUT = TEXT.index("Fees.")
PASSAGES = [Passage("c:1", "c", CUT, len(TEXT), TEXT[CUT:]), Passage("c:0", "c", 0, CUT, TEXT[:CUT])]


def review(**fields):
    """What the reviewer makes of an LM that says `fields`."""
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=DummyLM([fields]), adapter=adapter):
        return Reviewer()(question="Which law?", passages=PASSAGES)


def test_an_answer_with_its_quote():
    said = review(quotes="governed by the laws of Ohio", answer="the  laws of Ohio")
    (quote,) = said.quotes
    assert (said.answer, said.found, said.readable, said.n_dropped_quotes) == ("the laws of Ohio", True, True, 0)
    assert quote.text == TEXT[quote.start : quote.end] == "governed by the laws of\nOhio"


def test_a_made_up_quote_is_never_returned():
    said = review(quotes="governed by the laws of Ohio\ngoverned by the laws of Texas", answer="Ohio")
    assert [quote.text for quote in said.quotes] == ["governed by the laws of\nOhio"] and said.n_dropped_quotes == 1
    said = review(quotes="governed by the laws of Texas", answer="Texas")
    assert (said.quotes, said.found, said.confidence, said.n_dropped_quotes) == ((), True, 0.0, 1)


def test_the_same_quote_twice_is_one():
    assert len(review(quotes="the laws of Ohio\nthe laws of  Ohio", answer="Ohio").quotes) == 1


@pytest.mark.parametrize("quotes", ["none", "governed by the laws of Texas"])
def test_the_answer_is_the_quote_where_no_other_stands_there(quotes):
    assert [quote.text for quote in review(quotes=quotes, answer="laws of Ohio").quotes] == ["laws of\nOhio"]


@pytest.mark.parametrize("answer", [NOT_FOUND, "Not in this contract.", f" {NOT_FOUND} "])
def test_absence(answer):
    said = review(quotes="the laws of Ohio", answer=answer)
    assert (said.answer, said.quotes, said.found, said.readable) == (NOT_FOUND, (), False, True)


@pytest.mark.parametrize("fields", [{"rubbish": "x"}, {"quotes": "none"}, {"answer": NOT_FOUND}])
def test_what_cannot_be_read_is_wrong_and_never_absent(fields):
    said = review(**fields)
    assert (said.readable, said.found, said.answer, said.quotes, said.confidence) == (False, True, "", (), 0.0)


def test_a_failure_of_the_machinery_is_no_answer(monkeypatch):
    reviewer = Reviewer()

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reviewer.predict, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        reviewer(question="Which law?", passages=PASSAGES)


def _with_logprobs(monkeypatch, **fields):
    reviewer, asked = Reviewer(), {}
    tokens = {"content": [{"logprob": -0.1}, {"logprob": -2.0}, {"logprob": -0.5}]}

    def answer(**inputs):
        asked.update(inputs)
        return dspy.Prediction(**fields, logprobs=tokens)

    monkeypatch.setattr(reviewer.predict, "forward", answer)
    return reviewer(question="Which law?", passages=PASSAGES), asked


def test_confidence_is_that_of_the_least_certain_token(monkeypatch):
    with dspy.context(lm=DummyLM([])):
        said, asked = _with_logprobs(monkeypatch, quotes="the laws of Ohio", answer="Ohio")
        assert said.confidence == pytest.approx(math.exp(-2.0))
        absent, _ = _with_logprobs(monkeypatch, quotes="none", answer=NOT_FOUND)
        assert absent.confidence == pytest.approx(math.exp(-2.0))
        ungrounded, _ = _with_logprobs(monkeypatch, quotes="none", answer="Texas")
        assert ungrounded.confidence == 0.0
    assert asked["passages"].startswith("[1] Law.") and "\n[2] Fees." in asked["passages"]  # in the contract's order


def test_confidence_of_other_shapes_and_of_none():
    tokens = [SimpleNamespace(logprob=-1.0), SimpleNamespace(logprob=-0.2)]
    assert least_certain(dspy.Prediction(logprobs=SimpleNamespace(content=tokens))) == pytest.approx(math.exp(-1))
    assert least_certain(dspy.Prediction(answer="x")) is None
    assert least_certain(dspy.Prediction(logprobs={"content": []})) is None
    assert review(quotes="the laws of Ohio", answer="Ohio").confidence is None
