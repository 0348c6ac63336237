"""Traces from Python: of any program that answers a question about a contract, from any thread."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import dspy
import numpy as np
import pytest

from corpora.cuad import question_text
from corpora.types import Contract, Passage, Quote
from modules.index_files import StoreError
from program.contract_review import ContractReview
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.serve.session import IndexContracts
from program.traces.policy import TracePolicy
from program.traces.store import TraceStore
from program.traces.tracing import Tracing, n_ungrounded, tokens_of, trace_of

TEXT = "This Agreement is governed by the laws of the State of Ohio."
CONTRACTS = {"one": Contract("one", TEXT)}
OHIO = Quote("Ohio", "one", TEXT.index("Ohio"), TEXT.index("Ohio") + 4)


@pytest.fixture
def traces(tmp_path):
    with TraceStore.open(tmp_path / "traces.db") as store:
        yield store


class Finds(dspy.Module):
    def forward(self, question):
        passages = [Passage("one:5-9", "one", 5, 9, TEXT[5:9]), Passage("one:0-5", "one", 0, 5, TEXT[:5])]
        return dspy.Prediction(passages=passages, scores=[np.float32(0.5), 0.25])


class Answers(dspy.Module):
    """Says what `say(question)` gives: quotes, or an exception, which it raises."""

    def __init__(self, say=lambda question: (OHIO,)):
        super().__init__()
        self.say, self.finds = say, Finds()

    def forward(self, question, contract_id=None):
        passages = self.finds(question=question).passages
        said = self.say(question)
        if isinstance(said, Exception):
            raise said
        confidence = np.float32(0.5)
        return dspy.Prediction(answer="Ohio", quotes=said, found=True, confidence=confidence, passages=passages)


def test_a_call_leaves_a_trace(traces):
    with dspy.context(callbacks=[Tracing(traces, "mine", contracts=CONTRACTS)]):
        Answers()(question=question_text("Governing Law"), contract_id="one")
        Answers()("Which law governs?")
    first, second = traces.between()
    assert (first.release, first.contract_id, first.category) == ("mine", "one", "Governing Law")
    assert (first.answer, first.found, first.n_quotes, first.n_ungrounded) == ("Ohio", True, 1, 0)
    assert first.spans == ((OHIO.start, OHIO.end),) and first.confidence == 0.5 and first.p_answered is None
    assert first.passages == ("one:5-9", "one:0-5") and first.scores == (0.5, 0.25)
    assert first.latency_s > 0 and (first.prompt_tokens, first.error, first.answer_id) == (None, None, None)
    assert (second.question, second.contract_id, second.category) == ("Which law governs?", "", None)


def test_an_invented_quote_is_counted(traces):
    invented = (
        OHIO,
        Quote("Utah", "one", 3, 7),
        Quote("Ohio", "two", OHIO.start, OHIO.end),
        Quote("Ohio", "one", -5, -1),
    )
    for contracts in (CONTRACTS, None):
        with dspy.context(callbacks=[Tracing(traces, "mine", contracts=contracts)]):
            Answers(lambda question: invented)(question="Which?", contract_id="one")
    assert [(each.n_quotes, each.n_ungrounded) for each in traces.between()] == [(4, 3), (4, None)]
    assert n_ungrounded((), {}) == 0 and n_ungrounded((Quote("", "one", 3, 3),), {"one": TEXT}) == 1


def test_a_failure_is_traced_and_raised(traces):
    with dspy.context(callbacks=[Tracing(traces, "mine")]), pytest.raises(OSError, match="no LM"):
        Answers(lambda question: OSError("no LM at http://ada:pw1@host"))(question="Which?", contract_id="one")
    (trace,) = traces.between()
    assert trace.error == "OSError: no LM at http://[SECRET]@host" and (trace.found, trace.answer) == (None, None)
    assert trace.question == "Which?" and trace.latency_s > 0


class Outer(dspy.Module):
    def __init__(self):
        super().__init__()
        self.inner = Answers()

    def forward(self, question, contract_id):
        return self.inner(question=question, contract_id=contract_id)


class Wrapped(dspy.Module):
    def __init__(self):
        super().__init__()
        self.inner = Outer()

    def forward(self, wish):
        self.inner(question=wish, contract_id="one")
        return self.inner(question=wish, contract_id="one")


def test_the_outermost_program_is_traced_once_and_others_are_not(traces):
    tracing = Tracing(traces, "mine")
    with dspy.context(callbacks=[tracing]):
        Outer()(question="nested", contract_id="one")
        Wrapped()(wish="twice")
        Finds()(question="alone")
        dspy.Predict("question, contract_id -> answer")
    assert [each.question for each in traces.between()] == ["nested", "twice", "twice"]
    assert all(each.scores for each in traces.between()) and not tracing._calls and not tracing._own


def test_threads_keep_their_calls_apart(traces):
    barrier = threading.Barrier(8)

    def say(question):
        barrier.wait(20)
        return (OHIO,) if question.endswith("0") else ()

    program = Answers(say)
    with dspy.context(callbacks=[Tracing(traces, "mine", shadow=True)]):
        pairs = [
            (program, dspy.Example(question=f"q{i}", contract_id=f"c{i}").with_inputs("question", "contract_id"))
            for i in range(8)
        ]
        dspy.Parallel(num_threads=8, disable_progress_bar=True)(pairs)
    got = sorted((each.question, each.contract_id, each.n_quotes) for each in traces.between())
    assert got == [(f"q{i}", f"c{i}", int(i == 0)) for i in range(8)]
    assert all(each.shadow for each in traces.between())


def test_a_store_that_cannot_be_written_fails_no_call(traces):
    traces.close()
    with dspy.context(callbacks=[Tracing(traces, "mine")]):
        assert Answers()(question="Which?", contract_id="one").answer == "Ohio"
    assert traces.lost == 1


def test_an_answer_that_no_trace_can_be_made_of_is_counted(traces):
    with dspy.context(callbacks=[Tracing(traces, "mine")]):
        assert Answers(lambda question: "quotes")(question="Which?", contract_id="one").quotes == "quotes"
    assert traces.lost == 1 and traces.count() == 0


@pytest.fixture
def counted(speaking, monkeypatch):
    """`counted(say)` is an LM that tells its tokens: 7 read, 2 written."""

    def make(say):
        lm, usage = speaking(say), dspy.lm15.Usage(input_tokens=7, output_tokens=2)
        complete = lm.engine.complete
        monkeypatch.setattr(lm.engine, "complete", lambda request: replace(complete(request), usage=usage))
        return lm

    return make


def test_a_real_program_is_traced_with_scores_and_tokens(world, counted, traces):
    program = ContractReview(world.index, 2)
    program.set_lm(counted(world.say))
    contract_id, question = next(key for key, label in world.gold.items() if label.spans)
    contracts = IndexContracts(world.index)
    with dspy.context(callbacks=[Tracing(traces, "mine", contracts=contracts)]):
        said = program(question=question, contract_id=contract_id)
        program.retrieve(question=question, contract_id=contract_id)
        with pytest.raises(StoreError):  # a retriever by itself answers nothing, and fails at no answer
            program.retrieve(question=question, contract_id="no such contract")
        with dspy.context(track_usage=True):
            program(question=question, contract_id=contract_id)
    first, second = traces.between()
    assert first.passages == tuple(each.id for each in said.passages) and len(first.scores) == len(first.passages)
    assert first.scores[0] == max(first.scores) and first.n_ungrounded == 0
    assert (first.prompt_tokens, first.completion_tokens) == (None, None)
    assert (second.prompt_tokens, second.completion_tokens) == (7, 2)


def test_tokens_are_those_of_all_lms():
    usage = {"a": {"prompt_tokens": 3, "completion_tokens": 1}, "b": {"input_tokens": 4, "output_tokens": None}}
    assert tokens_of(usage) == (7, 1) and tokens_of({}) == tokens_of(None) == (None, None)
    assert tokens_of({"a": {"prompt_tokens": 0}}) == (0, None)


def test_a_trace_is_made_of_what_the_feedback_store_keeps(tmp_path):
    with FeedbackStore.open(tmp_path / "f.db") as store:
        answered = store.answer(
            store.ask("Which?", CONTRACTS["one"], "Governing Law"), Said("Ohio", True, (OHIO,), 0.5, 0.9, "mine")
        )
    trace = trace_of(answered, texts={"one": TEXT})
    assert (trace.answer_id, trace.release, trace.at) == (answered.id, "mine", answered.at)
    assert (trace.answer, trace.n_ungrounded, trace.category, trace.p_answered) == ("Ohio", 0, "Governing Law", 0.9)
    assert trace_of(answered).id != trace.id
    silent = trace_of(answered, Said("", False, confidence=float("nan")), release="theirs", shadow=True, answer_id="x")
    assert (silent.shadow, silent.found, silent.release, silent.answer_id) == (True, False, "theirs", "x")
    assert silent.confidence is None


def test_a_shadow_names_the_answer_that_was_shown(traces):
    answered = SimpleNamespace()  # nothing of the feedback store is needed but the id
    answered.at, answered.question, answered.contract_id, answered.category = traces.now(), "Which?", "one", None
    traces.policy = TracePolicy(sample=0.5)
    kept = 0
    for i in range(40):
        live = traces.record(trace_of(answered, Said("Ohio", True), answer_id=f"a{i}"))
        shadow = traces.record(trace_of(answered, Said("Utah", True), shadow=True, answer_id=f"a{i}"))
        assert (live is None) == (shadow is None)
        kept += live is not None
    assert 8 < kept < 32
