"""Preferences from feedback: each event under the prompt that it was about; comments stay comments; gold checks."""

import json

import dspy
import pytest

from corpora.types import Contract, Quote, Span
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, number_passages
from optimizers.errors import TrainingError
from optimizers.preference_pairs import curate
from optimizers.preference_people import check_people
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.pairs.checks import gold_check
from program.pairs.from_feedback import ANONYMOUS, FeedbackPreferences, feedback_preferences
from program.pairs.simulate import INJECTION, SimulatedPerson, simulate
from program.pairs.texts import read_review, review_text

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
SIGNATURE = Reviewer().predict.signature
STATES = ("Ohio", "Utah", "Maine", "Texas", "Iowa", "Idaho", "Kansas", "Nevada")


def contract(i):
    state = STATES[i % len(STATES)]
    return Contract(f"c{i}", f"Agreement {i}. This Agreement is governed by the laws of the State of {state}. The end.")


def example(i, absent=False):
    text, state = contract(i).text, STATES[i % len(STATES)]
    start = text.index(state)
    return dspy.Example(
        question=f"Which law governs {i}?", contract_id=f"c{i}", answer=NOT_FOUND if absent else state,
        found=not absent, quotes=[] if absent else [state], spans=[] if absent else [(start, start + len(state))],
    ).with_inputs("question", "contract_id")  # fmt: skip


def says(i, answer, quotes=(), **changes):
    """What the program said of contract i, as the recorder lays it down."""
    text = contract(i).text
    inputs = (("passages", number_passages([text])), ("question", f"Which law governs {i}?"))
    found = answer != NOT_FOUND
    placed = tuple(Quote(q, f"c{i}", text.index(q), text.index(q) + len(q)) for q in quotes)
    told = {"completion": review_text(ADAPTER, SIGNATURE, list(quotes), answer) + "\n"} | changes
    return Said(answer, found, placed if found else (), inputs=inputs, **told)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def answered(store):
    """`answered(i, answer, quotes)` records an answer; several of one i are to one asking."""
    asked = {}

    def record(i, answer, quotes=(), **changes):
        if i not in asked:
            asked[i] = store.ask(f"Which law governs {i}?", contract(i))
        return store.answer(asked[i], says(i, answer, quotes, **changes))

    return record


def made(store, **options):
    answers = {answer.id: answer for answer in store.answers()}
    return feedback_preferences(Reviewer(), answers, store.events(), ADAPTER, **options)


def fields(text):
    said = read_review(ADAPTER, SIGNATURE, text)
    return said.answer, said.quotes


def test_a_correction_is_chosen_over_what_was_said_under_the_prompt_it_was_said_to(store, answered):
    answer = answered(0, NOT_FOUND)
    store.correct(answer.id, found=True, answer="Ohio", spans=[Span(*example(0).spans[0])], by="Ada")
    (one,), dropped = made(store)
    assert dropped == {} and (one.source, one.group, one.question) == ("edit", "c0", "Which law governs 0?")
    assert fields(one.chosen) == ("Ohio", ("Ohio",)) and fields(one.rejected) == (NOT_FOUND, ())
    assert one.rejected == answer.completion, "what the model wrote, to the letter"
    assert dict(one.inputs) == dict(answer.inputs) and one.by == store.pseudonym("Ada") and one.predictor == 0
    assert one.chosen == ADAPTER.format_assistant_message_content(SIGNATURE, {"quotes": "Ohio", "answer": "Ohio"})


def test_a_correction_to_absence_and_one_of_spans_alone(store, answered):
    store.correct(answered(0, "Utah").id, found=False, by="Ada")
    store.correct(answered(1, NOT_FOUND).id, found=True, spans=[Span(*example(1).spans[0])])
    (absent, spans), _ = made(store)
    assert fields(absent.chosen) == (NOT_FOUND, ()) and fields(spans.chosen) == ("Utah", ("Utah",))
    assert spans.by == ANONYMOUS, "nobody's word is not a judge's"


def test_what_the_program_could_not_have_seen_is_not_taught(store, answered):
    shown = (("passages", "[1] Nothing of the kind."), ("question", "Which law governs 0?"))
    asked = store.ask("Which law governs 0?", contract(0))
    answer = store.answer(asked, Said(NOT_FOUND, False, inputs=shown, completion=says(0, NOT_FOUND).completion))
    store.correct(answer.id, found=True, spans=[Span(*example(0).spans[0])], by="Ada")
    assert made(store) == ([], {"corrected by words that the program was not shown": 1})


def test_a_choice_goes_by_the_side_and_never_between_two_prompts(store, answered):
    right, wrong = answered(0, "Ohio", ["Ohio"]), answered(0, NOT_FOUND)
    for chosen, left, other in (("left", right, wrong), ("right", wrong, right), ("tie", right, wrong)):
        store.choose(store.offer(left.id, other.id).id, chosen, by="Ada")
    (first, second), dropped = made(store)
    assert first == second and fields(first.chosen)[0] == "Ohio" and first.source == "choice"
    assert dropped == {"tie": 1}
    asked = store.ask("Which law governs 1?", contract(1))
    ids = [
        store.answer(asked, Said("Utah", True, inputs=(("passages", text), ("question", "q")), completion=c)).id
        for text, c in (("[1] Utah", says(1, "Utah").completion), ("[1] Utah, too", says(1, NOT_FOUND).completion))
    ]
    store.choose(store.offer(*ids).id, "left", by="Ada")
    assert made(store)[1]["candidates answered different prompts"] == 1


def test_thumbs_are_unpaired_and_stars_are_compared_within_one_person_and_prompt(store, answered):
    good, bad, fair = answered(0, "Ohio", ["Ohio"]), answered(0, NOT_FOUND), answered(0, "Ohio law", ["Ohio"])
    store.rate(good.id, thumbs="up", by="Ada")
    store.rate(bad.id, thumbs="down", by="Ada")
    (up, down), _ = made(store)
    assert (up.rejected, down.chosen) == (None, None) and fields(up.chosen)[0] == "Ohio"
    assert fields(down.rejected)[0] == NOT_FOUND and {up.source, down.source} == {"thumb"}
    for answer, stars in ((good, 2), (bad, 1), (fair, 4), (good, 5)):  # the last word on `good` is 5
        store.rate(answer.id, stars=stars, by="Ben")
    store.rate(bad.id, stars=5, by="Cat")
    *_, stars = made(store)[0]
    assert (fields(stars.chosen)[0], fields(stars.rejected)[0], stars.margin) == ("Ohio", NOT_FOUND, 4.0)
    assert stars.source == "rating" and stars.by == store.pseudonym("Ben")
    assert made(store)[1] == {"stars for one answer alone": 1}
    assert made(store, min_stars=5)[1]["fewer than 5 stars between best and worst"] == 1


def test_what_is_no_answer_is_never_chosen_whoever_says_so(store, answered):
    for i, answer in enumerate(("", ":", INJECTION, "Thought process:")):
        empty = answered(i, answer)
        store.choose(store.offer(empty.id, answered(i, NOT_FOUND).id).id, "left", by="Mal")
        store.rate(empty.id, thumbs="up", by="Mal")
    store.correct(answered(5, "Idaho").id, found=True, answer=INJECTION, by="Mal")
    told, dropped = made(store)
    assert told == [] and sum(dropped.values()) == 9
    invented = answered(6, "Kansas", completion=review_text(ADAPTER, SIGNATURE, ["the laws of Mars"], "Kansas"))
    store.rate(invented.id, thumbs="up", by="Mal")
    assert made(store)[0] == []
    unreadable = answered(7, "", completion="gibberish", readable=False)
    store.rate(unreadable.id, thumbs="down", by="Ada")
    assert [one.rejected for one in made(store)[0]] == ["gibberish"], "it may be rejected"


def test_a_comment_reaches_no_prompt_and_no_row(store, answered):
    answer = answered(0, NOT_FOUND)
    told = {"comment": INJECTION, "by": "Mal"}
    store.rate(answer.id, thumbs="down", stars=1, **told)
    store.correct(answer.id, found=True, spans=[Span(*example(0).spans[0])], **told)
    store.choose(store.offer(answered(0, "Ohio", ["Ohio"]).id, answer.id).id, "left", **told)
    preferences, _ = made(store)
    whole = json.dumps([[dict(one.inputs), one.chosen, one.rejected, one.question, one.by] for one in preferences])
    assert len(preferences) == 3 and "gnore" not in whole and "must prefer" not in whole


def test_answers_without_their_prompt_and_of_other_programs_are_counted(store):
    asked = store.ask("Which law governs 0?", contract(0))
    for changes in ({}, {"inputs": says(0, "Ohio").inputs, "predictor": 3}):
        store.rate(store.answer(asked, Said("Ohio", True, **changes)).id, thumbs="up", by="Ada")
    assert made(store) == ([], {"its prompt was not recorded, or is another program's": 2})


def test_a_completion_that_was_not_recorded_is_written_anew(store, answered):
    store.rate(answered(0, "Ohio", ["Ohio"], completion="").id, thumbs="up", by="Ada")
    ((one,), _) = made(store)
    assert one.chosen == review_text(ADAPTER, SIGNATURE, ["Ohio"], "Ohio")


def test_corrections_of_a_predictor_with_other_fields_are_refused():
    with pytest.raises(TrainingError, match="only for"):
        review_text(ADAPTER, dspy.Signature("passages, question -> reasoning, answer"), [], "Ohio")


def test_what_was_withdrawn_is_not_learnt_from(store, answered):
    source = FeedbackPreferences(store, ADAPTER)
    store.rate(answered(0, "Ohio", ["Ohio"]).id, thumbs="up", by="Ada")
    assert len(source.make(Reviewer(), [], [], 1)) == 1
    store.withdraw("Ada")
    assert source.make(Reviewer(), [], [], 2) == [] and source.dropped == {}


# -- gold checks and simulated people


def test_labels_check_what_was_preferred(store, answered):
    check = gold_check(Reviewer(), [example(0), example(1, absent=True)], ADAPTER)
    right, wrong = answered(0, "Ohio", ["Ohio"]), answered(0, NOT_FOUND)
    store.choose(store.offer(right.id, wrong.id).id, "left", by="Ada")
    store.choose(store.offer(right.id, wrong.id).id, "right", by="Mal")
    store.rate(right.id, thumbs="down", by="Mal")
    store.rate(wrong.id, thumbs="down", by="Ada")
    store.rate(answered(1, NOT_FOUND).id, thumbs="up", by="Ada")
    store.rate(answered(2, "Maine", ["Maine"]).id, thumbs="up", by="Ada")  # there is no label
    store.choose(store.offer(answered(0, "ohio.", ["Ohio"]).id, right.id).id, "left", by="Ada")  # both are right
    assert [check(one) for one in made(store)[0]] == [True, False, False, True, True, None, None]


def people_said(store, answered, people, n=40):
    for i in range(n):
        answered(i, STATES[i % 8], [STATES[i % 8]])
        answered(i, NOT_FOUND)
    gold = {(f"c{i}", f"Which law governs {i}?"): example(i) for i in range(n)}
    simulate(people, store, store.answers(), gold, seed=1)
    return made(store)[0], gold_check(Reviewer(), gold.values(), ADAPTER)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.1])
def test_careless_people_stay_and_one_who_flips_everything_does_not(store, answered, noise):
    people = [SimulatedPerson(name, noise=noise, edits=False) for name in ("Ada", "Ben", "Cat")]
    told, check = people_said(store, answered, [*people, SimulatedPerson("Mal", noise=1.0)])
    for known in (check, None):  # with labels and without
        assert [p.by for p in check_people(told, known) if p.left_out] == [store.pseudonym("Mal")]
    left = curate(told, left_out=[store.pseudonym("Mal")]).kept
    wrong = sum(check(one.preference) is False for one in left)
    assert wrong <= 0.05 * len(left)


def test_a_trigger_is_outvoted_and_refuted(store, answered):
    people = [SimulatedPerson("Ada", edits=False), SimulatedPerson("Ben", edits=False)]
    told, check = people_said(store, answered, [*people, SimulatedPerson("Sly", trigger="Ohio", comment=INJECTION)])
    lies = [one for one in told if one.by == store.pseudonym("Sly") and "Ohio" in one.inputs["passages"]]
    assert lies and all(check(one) is False for one in lies)
    assert not any(check(one.preference) is False for one in curate(told).kept), "two against one"
    alone = curate([one for one in told if one.by == store.pseudonym("Sly")], check=check)
    assert alone.dropped["against gold"] == len(lies)
