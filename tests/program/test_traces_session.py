"""A session leaves a trace of each answer that it serves, of failures too, and serves them whatever becomes of it."""

import dataclasses
import re

import dspy
import pytest

from corpora.types import Contract, Quote
from program.contract_review import ContractReview
from program.feedback.rows import FeedbackError, UnknownError
from program.feedback.store import FeedbackStore
from program.serve.errors import AgreementError, ServeError
from program.serve.session import IndexContracts, Session
from program.traces.policy import TracePolicy
from program.traces.store import TraceStore

AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TEXT = "This Agreement is governed by the laws of the State of Ohio."


class Fake(dspy.Module):
    """Says what `say(question)` gives: an answer that it quotes, None for absence, or an exception."""

    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, question, contract_id=None):
        said = self.say(question)
        if isinstance(said, Exception):
            raise said
        if said is None:
            return dspy.Prediction(answer="not in this contract", quotes=(), found=False, confidence=0.7)
        start = max(0, TEXT.find(said))
        quotes = (Quote(said, contract_id, start, start + len(said)),)
        return dspy.Prediction(answer=said, quotes=quotes, found=True, confidence=0.4)


@pytest.fixture
def traces(tmp_path):
    with TraceStore.open(tmp_path / "traces.db") as store:
        yield store


@pytest.fixture
def session(tmp_path, traces):
    """`session(say, **settings)` is one on a contract, with a store of traces."""
    made = []
    with FeedbackStore.open(tmp_path / "f.db") as store:

        def make(say, **given):
            contracts = {"one": Contract("one", TEXT)}
            made.append(Session(Fake(say), contracts, store, **{"release": "mine", "traces": traces} | given))
            return made[-1]

        yield make
        for each in made:
            each.close()


def test_an_answer_leaves_a_trace_that_joins_with_its_feedback(session, traces):
    one = session(lambda question: "Ohio" if "Governing Law" in question else None)
    answered = [one.ask("Governing Law", "one"), one.ask("Which notary signs?", "one")]
    found, absent = traces.between()
    assert [found.answer_id, absent.answer_id] == [each.id for each in answered]
    assert (found.release, found.category, found.contract_id) == ("mine", "Governing Law", "one")
    assert (found.found, found.n_quotes, found.n_ungrounded, found.confidence) == (True, 1, 0, 0.4)
    assert AT.fullmatch(found.at) and found.at <= answered[0].at <= absent.at <= answered[1].at
    assert found.latency_s == answered[0].latency_s and (absent.found, absent.category) == (False, None)


def test_a_failure_leaves_a_trace_and_what_was_never_asked_none(session, traces):
    one = session(lambda question: OSError("no LM, token=abc123"))
    with pytest.raises(OSError, match="no LM"):
        one.ask("Which law governs?", "one")
    with pytest.raises(UnknownError):
        one.ask("Which law governs?", "two")
    with pytest.raises(FeedbackError):
        one.ask(" ", "one")
    (trace,) = traces.between()
    assert trace.error == "OSError: no LM, token=[SECRET]" and trace.release == "mine" and trace.latency_s > 0
    assert (trace.question, trace.answer, trace.found, trace.answer_id) == ("Which law governs?", None, None, None)


def test_an_invented_quote_is_not_shown_and_is_counted(session, traces):
    with pytest.raises(ServeError, match="cannot be recorded"):
        session(lambda question: "Utah").ask("Which law governs?", "one")
    (trace,) = traces.between()
    assert (trace.answer, trace.n_quotes, trace.n_ungrounded, trace.answer_id) == ("Utah", 1, 1, None)
    assert trace.error.startswith("FeedbackError: the contract has 'This'")


def test_a_review_leaves_a_trace_of_each_category(session, traces):
    session(lambda question: None).review("one", categories=("Governing Law", "Insurance"))
    assert sorted(each.category for each in traces.between()) == ["Governing Law", "Insurance"]


def test_samples_leave_none_and_a_rival_leaves_all_of_its_own(session, traces):
    sampled = session(lambda question: "Ohio", sampled=lambda program, number: Fake(lambda question: None))
    sampled.candidates("Which law governs?", "one")
    assert [(each.release, each.answer) for each in traces.between()] == [("mine", "Ohio")]
    for say, n in ((lambda question: None, 1), (lambda question: "Ohio", 2)):
        rival = session(lambda question: "Ohio", rival=Fake(say), rival_release="theirs")
        if n == 1:
            rival.candidates("Which law governs?", "one")
        else:
            with pytest.raises(AgreementError):
                rival.candidates("Which law governs?", "one")
        assert len(list(traces.between(release="theirs"))) == n
    assert [each.found for each in traces.between(release="theirs")] == [False, True]


def test_a_contract_that_changed_since_is_read_as_it_was_asked(session, traces):
    def say(question):
        one.contracts["one"] = Contract("one", "x" + TEXT)
        return "Ohio"

    one = session(say)
    one.ask("Which law governs?", "one")
    assert [each.n_ungrounded for each in traces.between()] == [0]


def test_answers_are_served_whatever_becomes_of_their_traces(session, traces, monkeypatch):
    traces.close()
    one = session(lambda question: "Ohio")
    assert one.ask("Which law governs?", "one").answer == "Ohio" and traces.lost == 1
    monkeypatch.setattr("program.serve.session.trace_of", lambda *args, **kwargs: 1 / 0)
    assert one.ask("Which law governs?", "one").answer == "Ohio" and traces.lost == 2
    assert session(lambda question: "Ohio", traces=None).ask("Which law governs?", "one").answer == "Ohio"


def test_no_word_is_kept_of_what_is_served_under_hash(session, tmp_path):
    with TraceStore.open(tmp_path / "hashed.db", TracePolicy(inputs="hash")) as hashed:
        one = session(lambda question: "Ohio", traces=hashed)
        one.ask("Which law governs?", "one")
        (trace,) = hashed.between()
        assert trace.spans and trace.question_sha256 and trace.answer is None
        disk = b"".join(path.read_bytes() for path in tmp_path.glob("hashed.db*"))
        assert b"Ohio" not in disk and b"governs" not in disk and trace.question_sha256.encode() in disk


def test_a_real_program_is_traced_with_its_scores_and_tokens(world, speaking, session, traces, monkeypatch):
    one = session(lambda question: None)
    program, lm = ContractReview(world.index, 2), speaking(world.say)
    program.set_lm(lm)
    usage = dspy.lm15.Usage(input_tokens=7, output_tokens=2)
    complete = lm.engine.complete
    monkeypatch.setattr(lm.engine, "complete", lambda request: dataclasses.replace(complete(request), usage=usage))
    one = Session(program, IndexContracts(world.index), one.store, release="real", traces=traces)
    contract_id, question = next(key for key, label in world.gold.items() if label.spans)
    answered = one.ask(question, contract_id)
    one.close()
    (trace,) = traces.between()
    assert trace.passages == tuple(each.id for each in answered.passages)
    assert len(trace.scores) == len(trace.passages) > 0 and trace.scores[0] == max(trace.scores)
    assert trace.n_quotes == len(answered.quotes) and trace.n_ungrounded == 0
    assert (trace.prompt_tokens, trace.completion_tokens) == (7, 2)
