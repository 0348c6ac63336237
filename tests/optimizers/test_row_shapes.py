"""Rows in other shapes than the served prompt: what each says, how many there are, and that the rest is as served."""

from collections import Counter

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune
from dspy.utils import DummyLM

from optimizers.errors import TrainingError
from optimizers.instruct import InstructTune
from optimizers.row_shapes import KINDS, RowShapes, drawn

pytestmark = pytest.mark.usefixtures("plain_chat")
TASKS = ("Reply to this.", "Say what is asked.")
TRAIN = [dspy.Example(question=f"question {i:02}", answer=f"answer {i:02}").with_inputs("question") for i in range(20)]


class Ask(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict(dspy.Signature("question -> answer", "Answer."))

    def forward(self, question):
        return self.ask(question=question)


class Teacher(Ask):
    """Says each example's answer; after "question 07" one may ask "more 07" and "again 07", and so on from 01."""

    def __init__(self):
        super().__init__()
        self.set_lm(DummyLM({e.question: {"answer": e.answer} for e in TRAIN}))

    def follow_ups(self, example, prediction):
        number = example.question.split()[-1]
        assert prediction.answer == example.answer
        return [
            ({"question": f"{word} {number}"}, {"answer": f"{word}, {number}"})
            for word in ("more", "again")
            if number != "00"
        ]


@pytest.fixture
def rows(monkeypatch):
    """`rows(shapes)` are the rows that InstructTune would train a student on, in their order."""
    taken = []

    def note(finetune_dict):
        taken.extend(job["train_data"] for job in finetune_dict.values())
        return {key: job["lm"] for key, job in finetune_dict.items()}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(note))

    def make(shapes=None, teacher=None, trainset=TRAIN, **options):
        program = Ask()
        program.set_lm(dspy.LM("local/base", api_key="none"))
        program.ask.demos = [dspy.Example(question="shown", answer="before")]
        options = {"exclude_demos": True, "num_threads": 2} | options
        InstructTune(shapes=shapes, **options).compile(program, trainset, teacher or Teacher())
        return taken.pop()

    return make


def asked(row):
    return [turn["content"].split("## ]]\n")[1].split("\n")[0] for turn in row["messages"] if turn["role"] == "user"]


def as_served(rows):
    return Counter(str(row) for row in rows)


def test_without_shapes_and_with_shares_of_nothing_all_rows_are_as_served(rows):
    plain = rows()
    assert as_served(rows(RowShapes())) == as_served(plain) and len(plain) == 20
    assert all(len(row["messages"]) == 3 and row.keys() == {"messages"} for row in plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_rows_has_the_shape_and_the_rest_is_as_served(rows, kind):
    plain, shaped = as_served(rows()), rows(RowShapes(**{kind: 0.25}, tasks=TASKS))
    assert len(shaped) == 20 and sum((as_served(shaped) - plain).values()) == 5
    assert {asked(row)[0 if kind == "conversed" else -1] for row in shaped} == {e.question for e in TRAIN}


def test_described_rows_say_the_task_in_other_words(rows):
    shaped = rows(RowShapes(described=0.5, tasks=TASKS))
    told = Counter(task for row in shaped for task in TASKS if task in row["messages"][0]["content"])
    assert sum(told.values()) == 10 and set(told) == set(TASKS)
    assert all(len(row["messages"]) == 3 for row in shaped)


def test_demonstrated_rows_stand_behind_others_and_never_behind_themselves(rows):
    shaped = rows(RowShapes(demonstrated=1.0, demonstrations=3))
    assert all(len(row["messages"]) == 9 and len(set(asked(row))) == 4 for row in shaped)
    for row in shaped:
        for question, turn in zip(asked(row), row["messages"][2::2], strict=True):
            assert question.replace("question", "answer") + "\n" in turn["content"]
    assert all("loss_on" not in row for row in shaped)
    copies = rows(RowShapes(demonstrated=1.0, demonstrations=3), trainset=TRAIN[:2] * 3)
    assert sorted(map(asked, copies)) == [["question 00", "question 01"]] * 3 + [["question 01", "question 00"]] * 3


def test_demonstrations_of_the_program_stay_where_they_are_served(rows):
    shaped = rows(RowShapes(described=0.5, demonstrated=0.5, tasks=TASKS), exclude_demos=False)
    shown = [asked(row)[0] == "shown" for row in shaped]
    assert sum(shown) == 10
    assert [any(task in str(row) for task in TASKS) for row in shaped] == shown


def test_conversations_go_on_from_the_served_prompt_and_learn_every_answer(rows):
    plain = {asked(row)[0]: row["messages"] for row in rows()}
    for row in rows(RowShapes(conversed=1.0)):
        first, *more = asked(row)
        assert row["messages"][:3] == plain[first]
        number = first.split()[-1]
        if number == "00":  # nothing to go on with
            assert row.keys() == {"messages"} and not more
            continue
        assert row["loss_on"] == "every" and set(more) == {f"more {number}", f"again {number}"}
        assert [turn["role"] for turn in row["messages"]] == ["system", *["user", "assistant"] * 3]
        for question, turn in zip(more, row["messages"][4::2], strict=True):
            assert question.replace(" ", ", ") in turn["content"]
    assert all(len(asked(row)) <= 2 for row in rows(RowShapes(conversed=1.0, turns=2)))


def test_a_teacher_that_cannot_go_on_is_refused(rows):
    class Silent(Ask):
        def __init__(self):
            super().__init__()
            self.set_lm(DummyLM([{"answer": "yes"}] * 99))

    with pytest.raises(TrainingError, match="follow_ups"):
        rows(RowShapes(conversed=0.5), Silent())
    assert len(rows(RowShapes(demonstrated=0.5), Silent())) == 20


def test_what_the_metric_refuses_has_no_shape_and_is_no_demonstration(rows):
    def even(example, prediction, trace=None):
        return int(example.question.split()[-1]) % 2 == 0

    shaped = rows(RowShapes(demonstrated=1.0), metric=even)
    assert len(shaped) == 10 and all(int(one.split()[-1]) % 2 == 0 for row in shaped for one in asked(row))


def test_a_row_has_one_shape_and_the_seed_draws(rows):
    shapes = RowShapes(described=0.2, demonstrated=0.3, conversed=0.1, tasks=TASKS)
    assert Counter(drawn(shapes, 100).values()) == {"described": 20, "demonstrated": 30, "conversed": 10}
    other = RowShapes(described=0.2, demonstrated=0.3, conversed=0.1, tasks=TASKS, seed=1)
    assert drawn(shapes, 100) == drawn(shapes, 100) != drawn(other, 100)
    assert rows(shapes) == rows(shapes)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"described": 0.7, "conversed": 0.4}, "together at most 1"),
        ({"demonstrated": -0.1}, "0 or more"),
        ({"described": 0.1}, "tasks is empty"),
        ({"demonstrations": 0}, "demonstrations=0"),
        ({"turns": 1}, "turns=1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong, told):
    with pytest.raises(TrainingError, match=told):
        RowShapes(**wrong)
