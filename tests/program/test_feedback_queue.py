"""The queue: the least sure first, through contracts, what was judged not, what was skipped last."""

from types import SimpleNamespace

import pytest

from corpora.types import Contract
from program.feedback.queue import Queue, uncertainty
from program.feedback.store import FeedbackStore
from program.feedback.types import Answered, Said


def sure(**given):
    about = {
        "id": "",
        "asked_id": "",
        "question": "",
        "contract_id": "",
        "category": None,
        "contract_sha256": "",
        "at": "",
    }
    return uncertainty(Answered("x", given.pop("found", True), **given, **about))


@pytest.fixture
def world(tmp_path):
    with FeedbackStore.open(tmp_path / "f.db") as store:

        def answer(contract, question, confidence, text="yes", **given):
            asked = store.ask(question, Contract(contract, f"the text of {contract}"))
            return store.answer(asked, Said(text, True, confidence=confidence, **given))

        queue = Queue(store)

        def shown(**given):
            return [(each.answered.contract_id, each.answered.question) for each in queue.waiting(**given)]

        yield SimpleNamespace(store=store, answer=answer, shown=shown, queue=queue)


def test_uncertainty_is_of_confidence_retrieval_and_samples():
    assert sure(confidence=1.0) == 0 and sure(confidence=0.0) == 1 and sure() == 0.5
    assert sure(confidence=1.0, p_answered=0.1) == pytest.approx(0.45)  # found where retrieval sees nothing
    assert sure(confidence=1.0, p_answered=0.1, found=False) == pytest.approx(0.05)
    assert sure(confidence=1.0, samples_agree=0.0) == 0.5
    assert sure(confidence=1.0, readable=False) == 1


def test_the_least_sure_come_first_and_unknown_in_the_middle(world):
    for name, confidence in (("sure", 0.95), ("unknown", None), ("unsure", 0.1)):
        world.answer(name, "q", confidence)
    assert world.shown() == [("unsure", "q"), ("unknown", "q"), ("sure", "q")]


def test_a_contract_has_its_turn_and_no_more(world):
    for i in range(5):
        world.answer("one", f"q{i}", 0.1 + i / 100)
    world.answer("two", "q", 0.9)
    turns = [("one", "q0"), ("one", "q1"), ("two", "q"), ("one", "q2"), ("one", "q3"), ("one", "q4")]
    assert world.shown(per_contract=2) == turns


def test_what_was_judged_waits_no_more(world):
    rated, chosen, other, corrected = (world.answer("c", f"q{i}", 0.5) for i in range(4))
    world.store.rate(rated.id, thumbs="down")
    world.store.correct(corrected.id, found=False)
    second = world.store.answer(chosen.asked_id, Said("no", True, sample="rollout 1"))
    world.store.choose(world.store.offer(second.id, chosen.id).id, "tie")
    assert world.shown() == [("c", other.question)]
    # The same words again, in other case and spacing of the question, are judged already; another answer is not.
    world.answer("c", " Q0 ", 0.5, "YES")
    assert world.shown() == [("c", other.question)]
    world.answer("c", "q0", 0.4, "another")
    assert world.shown() == [("c", "q0"), ("c", other.question)]
    # What was corrected has its answer, whatever is said next.
    world.answer("c", corrected.question, 0.1, "another")
    assert len(world.shown()) == 2


def test_of_one_question_the_last_served_answer_waits(world):
    world.answer("c", "q", 0.1)
    last = world.answer("c", "q", 0.7)
    world.answer("c", "q", 0.0, "sampled", sample="rollout 1")
    assert [each.answered.id for each in world.queue.waiting()] == [last.id]


def test_what_was_skipped_comes_last(world):
    first = world.answer("a", "q", 0.1)
    world.answer("b", "q", 0.9)
    world.store.skip(first.id)
    assert world.shown() == [("b", "q"), ("a", "q")]


def test_withdrawn_feedback_opens_the_question_again(world):
    answered = world.answer("a", "q", 0.1)
    world.store.rate(answered.id, thumbs="up", by="Ada")
    assert world.shown() == []
    world.store.withdraw("Ada")
    assert world.shown() == [("a", "q")]
