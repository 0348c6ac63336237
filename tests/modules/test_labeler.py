import dspy
import pytest
from dspy.utils import DummyLM
from dspy.utils.exceptions import AdapterParseError

from corpora.types import Contract, Label, Passage, Question, Quote, Span
from modules.labeler import Check, Reword, WriteLabel, demonstrations, label_of, prompt_version, turn
from modules.signatures import NO_QUOTE, NOT_FOUND, WRITE_TASKS

TEXT = "Between Alder\nFoods Inc. and Birch Ltd. The laws of Ohio govern."
CONTRACT = Contract("c", TEXT)
PASSAGE = Passage("c:0", "c", 0, len(TEXT), TEXT)
QUESTION = Question("c__Law", "c", "Law", "Which law governs?")


@pytest.fixture
def saying():
    """`saying({field: value})` is an LM that says just this; calls are read without DSPy's second try as JSON."""
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        yield lambda said: DummyLM([said] * 9)


def label(*quotes, answer=None, text="Which law governs?"):
    spans = tuple(Span(TEXT.index(quote), TEXT.index(quote) + len(quote)) for quote in quotes)
    return Label(Question("c__x", "c", "x", text), spans, answer)


def test_a_question_is_written_with_quotes_that_stand_in_the_passage(saying):
    said = {
        "question": " Who  are\nthe parties? ",
        "quotes": "Alder Foods Inc.\nCedar Corp.\nBirch Ltd.",
        "answer": "two",
    }
    made = WriteLabel()(PASSAGE, lm=saying(said))
    assert made.question == "Who are the parties?" and made.answer == "two"
    assert [quote.text for quote in made.quotes] == ["Alder\nFoods Inc.", "Birch Ltd."]
    assert all(TEXT[quote.start : quote.end] == quote.text for quote in made.quotes)
    assert WriteLabel()(PASSAGE, lm=saying(said | {"quotes": NO_QUOTE, "answer": "Cedar Corp."})).quotes == ()


def test_the_writer_is_shown_the_passage_in_one_line(saying):
    lm = saying({"question": "q", "quotes": "none", "answer": "a"})
    WriteLabel()(PASSAGE, lm=lm)
    assert "Between Alder Foods Inc. and Birch" in lm.history[-1]["messages"][-1]["content"]


def test_a_question_is_reworded_and_a_label_is_checked(saying):
    assert (
        Reword()("Which law governs?", lm=saying({"reworded": " What law  applies? "})).question == "What law applies?"
    )
    lm = saying({"faithful": True, "answerable": "False"})
    verdict = Check()("Which law governs?", ["The laws\nof Ohio govern.", "Ohio"], "Ohio", lm=lm)
    assert (verdict.faithful, verdict.answerable) == (True, False)
    assert "The laws of Ohio govern.\nOhio" in lm.history[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "ask, said",
    [
        (lambda lm: WriteLabel()(PASSAGE, lm=lm), {"question": "q", "quotes": "none"}),
        (lambda lm: Reword()("q", lm=lm), {"other": "x"}),
        (lambda lm: Check()("q", ["Ohio"], "Ohio", lm=lm), {"faithful": "perhaps", "answerable": True}),
    ],
)
def test_what_cannot_be_read_is_no_label_and_no_verdict(ask, said, saying):
    with pytest.raises(AdapterParseError):
        ask(saying(said))


def test_labels_become_demonstrations_on_the_passage_that_holds_their_quotes():
    half = Passage("c:1", "c", TEXT.index("The"), len(TEXT), TEXT[TEXT.index("The") :])
    elsewhere = Passage("d:0", "d", 0, len(TEXT), TEXT)
    labels = [label("The laws of Ohio govern.", answer="Ohio"), label("Alder\nFoods Inc.", "Birch Ltd."), label()]
    law, parties = demonstrations(labels, {"c": CONTRACT}, [elsewhere, half, PASSAGE])
    assert (law.passage, law.quotes, law.answer) == (half.text, "The laws of Ohio govern.", "Ohio")
    assert (parties.quotes, parties.answer) == ("Alder Foods Inc.\nBirch Ltd.", "Alder Foods Inc., Birch Ltd.")
    assert parties.passage.startswith("Between Alder Foods") and set(parties.inputs().keys()) == {"passage"}
    assert demonstrations(labels, {"c": CONTRACT}, [elsewhere]) == []


def test_a_prediction_is_a_label_in_document_order():
    quotes = tuple(Quote(TEXT[a:b], "c", a, b) for a, b in ((40, 60), (8, 20), (40, 60)))
    assert label_of(QUESTION, dspy.Prediction(answer="Ohio", quotes=quotes)) == Label(
        QUESTION, (Span(8, 20), Span(40, 60)), "Ohio"
    )
    absent = dspy.Prediction(answer=NOT_FOUND, quotes=(), found=False)
    assert label_of(QUESTION, absent) == Label(QUESTION, ())


def test_the_prompts_version_is_that_of_instructions_fields_and_demonstrations():
    first = prompt_version(WriteLabel())
    assert len(first) == 16 and first == prompt_version(WriteLabel()) != prompt_version(Reword())
    other = WriteLabel()
    other.set_lm(DummyLM([]))
    assert prompt_version(other) == first  # the model is another part of what was asked
    other.predict.demos = [dspy.Example(passage="p", question="q", quotes="q", answer="a")]
    shown = prompt_version(other)
    other.predict.demos = []
    other.predict.signature = other.predict.signature.with_instructions("Write.")
    assert len({first, shown, prompt_version(other)}) == 3


def test_a_conversation_shows_what_was_asked_before_and_asks_for_something_else(saying):
    said = {"question": "Who are the parties?", "quotes": "Birch Ltd.", "answer": "Birch"}
    lm = saying(said | {"question": "Which law?"})
    writer = WriteLabel(WRITE_TASKS[1])
    first = writer(PASSAGE, lm=saying(said))
    second = writer(PASSAGE, [turn(first)], lm=lm)
    assert second.question == "Which law?" and [quote.text for quote in second.quotes] == ["Birch Ltd."]
    system, *turns = [message["content"] for message in lm.history[-1]["messages"]]
    assert WRITE_TASKS[1] in system and "something else" in system
    assert len(turns) == 3 and "Who are the parties?" in turns[1] and "Birch Ltd." in turns[1]
    assert writer.predict.signature.instructions == WRITE_TASKS[1]
