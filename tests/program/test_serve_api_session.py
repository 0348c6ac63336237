"""A session: answers are recorded before they are shown, with their prompts; candidates differ and are laid blind."""

import threading

import dspy
import pytest

from corpora.cuad import CATEGORIES, question_text
from corpora.types import Contract, Quote
from program.contract_review import ContractReview
from program.feedback.rows import FeedbackError, UnknownError
from program.feedback.store import FeedbackStore
from program.feedback.types import Review
from program.serve.errors import AgreementError, ChangedError, ServeError
from program.serve.session import IndexContracts, Session, sample_of

TEXT = "This Agreement is governed by the laws of the State of Ohio."


class Fake(dspy.Module):
    """Says what `say(question)` gives: (answer, quoted words, confidence), None for absence, or an exception."""

    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, question, contract_id=None):
        said = self.say(question)
        if isinstance(said, Exception):
            raise said
        if said is None:
            return dspy.Prediction(answer="not in this contract", quotes=(), found=False, confidence=None)
        answer, words, confidence = said
        start = TEXT.find(words)
        quotes = (Quote(words, contract_id, start, start + len(words)),) if words else ()
        return dspy.Prediction(answer=answer, quotes=quotes, found=True, confidence=confidence)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore.open(tmp_path / "f.db") as opened:
        yield opened


@pytest.fixture
def session(store):
    """`session(say, **settings)` is one on two contracts of one text."""
    made = []

    def make(say, **given):
        contracts = {key: Contract(key, TEXT) for key in ("one", "two")}
        made.append(Session(Fake(say), contracts, store, **{"release": "mine", "threads": 4} | given))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ohio(question):
    return "Ohio", "Ohio", 0.4


def test_an_answer_is_recorded_with_what_it_was_asked(session, store):
    answered = session(ohio).ask("Which law governs?", "one")
    assert list(store.answers()) == [answered] and answered.quotes[0].text == "Ohio"
    assert (answered.release, answered.confidence, answered.category) == ("mine", 0.4, None)
    assert answered.latency_s >= 0


def test_a_category_stands_for_its_question(session):
    one = session(ohio)
    for asked in ("governing  law", question_text("Governing Law")):
        answered = one.ask(asked, "one")
        assert (answered.category, answered.question) == ("Governing Law", question_text("Governing Law"))


def test_what_cannot_be_recorded_is_not_shown(session, store):
    wrong = session(lambda question: ("Utah", "State of Utah", 0.4))
    with pytest.raises(ServeError, match="cannot be recorded"):
        wrong.ask("Which law governs?", "one")
    assert list(store.answers()) == []


def test_a_failure_of_the_program_is_raised_and_is_no_answer(session, store):
    with pytest.raises(OSError, match="no LM"):
        session(lambda question: OSError("no LM")).ask("Which law governs?", "one")
    assert list(store.answers()) == [] and len(list(store.rows())) == 1


def test_unknown_contracts_and_empty_questions_are_refused(session):
    with pytest.raises(UnknownError, match="no contract 'three'"):
        session(ohio).ask("Which law governs?", "three")
    with pytest.raises(FeedbackError, match="empty"):
        session(ohio).ask(" ", "one")


def drawn(answers):
    """A sampler whose samples say each of `answers` in turn."""
    left = iter(answers)
    lock = threading.Lock()

    def sampled(program, number):
        with lock:
            answer = next(left)
        return Fake(lambda question: (answer, "", 0.5))

    return sampled


def test_two_different_answers_are_offered_and_recorded(session, store):
    one = session(ohio, sampled=drawn(["OHIO ", "Utah", "Utah"]), threads=1)
    offer = one.candidates("Which law governs?", "one")
    assert {offer.left.answer, offer.right.answer} == {"Ohio", "Utah"}
    served, sample = sorted((offer.left, offer.right), key=lambda each: each.sample)
    assert served.samples_agree == pytest.approx(1 / 3) and sample.sample.startswith("rollout ")
    assert store.candidates(offer.candidates.id) == offer.candidates and len(list(store.answers())) == 2


def test_equal_answers_are_not_offered_but_kept(session, store):
    with pytest.raises(AgreementError, match="3 more samples all say the same"):
        session(ohio, sampled=drawn(["Ohio"] * 3)).candidates("Which law governs?", "one")
    assert [each.samples_agree for each in store.answers()] == [1.0]


def test_absence_is_an_answer_like_others(session):
    same = session(lambda question: None, rival=Fake(lambda question: None), rival_release="theirs")
    with pytest.raises(AgreementError, match="both releases"):
        same.candidates("Which law governs?", "one")
    offer = session(lambda question: None, rival=Fake(ohio), rival_release="theirs").candidates("Which?", "one")
    assert {each.release: each.found for each in (offer.left, offer.right)} == {"mine": False, "theirs": True}


def test_the_sides_are_drawn_by_the_seed(session):
    def sides(seed):
        one = session(ohio, rival=Fake(lambda question: None), rival_release="theirs", seed=seed)
        return [one.candidates(f"q{i}", "one").left.release for i in range(24)]

    first = sides(3)
    assert first == sides(3) != sides(4) and 6 <= first.count("mine") <= 18


def test_a_review_asks_all_categories_in_order(session):
    names = [category.name for category in CATEGORIES]
    seen = []
    review = session(lambda question: ohio(question) if "Governing Law" in question else None).review(
        "two", lambda number, answered: seen.append((number, answered.category))
    )
    assert [each.category for each in review.answers] == names and sorted(seen) == list(enumerate(names))
    assert [each.category for each in review.answers if each.found] == ["Governing Law"]
    assert (review.contract_id, review.release) == ("two", "mine")


def test_a_review_stops_at_its_first_failure(session, store):
    asked = []

    def say(question):
        asked.append(question)
        return OSError("no LM")

    one = session(say, threads=1)
    with pytest.raises(OSError, match="no LM"):
        one.review("one")
    one._pool.shutdown()  # what was not taken back would be asked by then
    assert len(asked) < 5 and list(store.answers()) == []


def test_a_correction_counts_in_the_contract_as_it_was_asked(session, store):
    one = session(ohio)
    answered = one.ask("Which law governs?", "one")
    span = answered.quotes[0]
    assert one.correct(answered.id, found=True, spans=[span]).spans == (span,)
    with pytest.raises(FeedbackError, match="found=false"):
        one.correct(answered.id, found=True, answer="Not in this contract.")
    one.contracts["one"] = Contract("one", " " + TEXT)
    with pytest.raises(ChangedError, match="has changed"):
        one.correct(answered.id, found=True, spans=[span])


def test_a_review_is_exported_over_the_text_that_was_reviewed(session):
    one = session(ohio)
    before, review = one.contracts["one"], one.review("one", categories=("Governing Law", "Insurance"))
    assert one.contract_of(review) is before
    one.contracts["one"] = Contract("one", TEXT + " ")
    assert one.contract_of(review) == before
    mixed = Review("one", "mine", (*review.answers, one.ask("Insurance", "one")))
    with pytest.raises(ChangedError, match="while it was reviewed"):
        one.contract_of(mixed)


def test_the_queue_is_of_contracts_that_are_here_as_they_were(session):
    one = session(ohio)
    for key in ("one", "two"):
        one.ask("Which law governs?", key)
    assert len(one.queue()) == 2 and len(one.queue(1)) == 1
    one.contracts["one"] = Contract("one", " " + TEXT)
    assert [each.answered.contract_id for each in one.queue()] == ["two"]
    del one.contracts["two"]
    assert one.queue() == []


def test_a_program_runs_under_the_settings_that_the_session_was_made_under(session):
    adapter, seen = dspy.JSONAdapter(), []

    def say(question):
        seen.append(dspy.settings.adapter)
        return ohio(question)

    with dspy.context(adapter=adapter):
        one = session(say)
    one.ask("Which law governs?", "one")
    one.review("one", categories=("Insurance",))
    assert seen == [adapter, adapter]


def test_many_threads_ask_at_once(session, store):
    one, answers = session(lambda question: (question, "", 0.5)), []
    threads = [threading.Thread(target=lambda i=i: answers.append(one.ask(f"question {i}", "one"))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.answer for each in answers) == sorted(each.question for each in answers)
    assert sorted(each.id for each in store.answers()) == sorted(each.id for each in answers)


def test_a_real_program_is_recorded_with_the_prompt_that_it_was_given(world, speaking, store):
    program = ContractReview(world.index, 2)
    program.set_lm(speaking(world.say))
    session = Session(program, IndexContracts(world.index), store, release="mine", samples=1)
    (contract_id, question), label = next(
        (key, label) for key, label in world.gold.items() if label.spans and label.question.category == "Governing Law"
    )
    # Another thread than the one whose settings (the adapter) are meant.
    found = []
    thread = threading.Thread(target=lambda: found.append(session.ask(question, contract_id)))
    thread.start()
    thread.join()
    session.close()
    (answered,) = found
    predictor = program.predictors()[answered.predictor]
    lm = predictor.lm
    messages = dspy.settings.adapter.format(predictor.signature, predictor.demos, dict(answered.inputs))
    assert messages[-1]["content"] == lm.engine.prompts[-1] and answered.category == "Governing Law"
    assert answered.completion == world.say(lm.engine.prompts[-1])[0] and answered.confidence == pytest.approx(
        0.905, abs=1e-3
    )
    texts = {(shown.start, shown.end) for shown in answered.passages}
    assert all(world.texts[contract_id][start:end].split()[0] in answered.inputs[0][1] for start, end in texts)
    assert len(session.contracts) == 8 and session.contracts[contract_id].text == world.texts[contract_id]
    assert label.question.text == answered.question and not lm.history


def test_a_sample_is_the_program_at_a_temperature_past_the_cache(world, speaking):
    program = ContractReview(world.index, 1)
    program.set_lm(speaking(world.say, temperature=0.0))
    (predictor,) = sample_of(program, 17).predictors()
    assert (predictor.lm.kwargs["temperature"], predictor.lm.kwargs["rollout_id"]) == (1.0, 17)
    assert program.predictors()[0].lm.kwargs["temperature"] == 0.0


def test_what_cannot_be_read_is_recorded_with_what_was_said(world, speaking, store):
    program = ContractReview(world.index, 1)
    program.set_lm(speaking(lambda prompt: ("no fields at all", -0.1)))
    session = Session(program, IndexContracts(world.index), store, release="mine", samples=1)
    contract_id, question = next(iter(world.gold))
    answered = session.ask(question, contract_id)
    assert not answered.readable and answered.completion == "no fields at all" and dict(answered.inputs)["passages"]
    with pytest.raises(AgreementError, match="could not be read"):
        session.candidates(question, contract_id)
    session.close()
