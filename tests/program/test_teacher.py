from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune

from corpora.types import Contract, Corpus, Label, Passage, Question, Span
from modules.signatures import NO_QUOTE, NOT_FOUND
from optimizers.instruct import InstructTune
from optimizers.row_shapes import RowShapes
from program.contract_review import ContractReview
from program.examples import sample_examples, to_examples
from program.teacher import LabelTeacher, teaches

TEXT = "Between Alder\nFoods Inc. and Birch Ltd. The laws of Ohio govern."
NAMES = ("Alder\nFoods Inc.", "Birch Ltd.")


def _label(category, quotes=(), answer=None):
    spans = tuple(Span(TEXT.index(quote), TEXT.index(quote) + len(quote)) for quote in quotes)
    return Label(Question(f"c__{category}", "c", category, f"{category}?"), spans, answer)


CORPUS = Corpus(
    "made",
    (Contract("c", TEXT),),
    (_label("Parties", NAMES), _label("Law", ["The laws of Ohio govern."], "Ohio"), _label("Term")),
)
EXAMPLES = to_examples(CORPUS)


def teach(category, *stretches, examples=EXAMPLES):
    """The example of a category, and what its teacher says when these stretches of TEXT were retrieved."""
    passages = [Passage(f"c:{start}", "c", start, end, TEXT[start:end]) for start, end in stretches]
    teacher = LabelTeacher(SimpleNamespace(folder=Path("no index")), examples)
    teacher.retrieve = lambda question, contract_id: dspy.Prediction(passages=passages)
    (example,) = [example for example in EXAMPLES if example.category == category]
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        return example, teacher(**example.inputs())


def test_labels_become_examples():
    parties, law, term = EXAMPLES
    assert (parties.answer, parties.quotes) == ("Alder\nFoods Inc., Birch Ltd.", list(NAMES))
    assert (law.answer, law.found, law.question_id) == ("Ohio", True, "c__Law")
    assert (term.answer, term.quotes, term.found) == (NOT_FOUND, [], False)
    assert set(law.inputs().keys()) == {"question", "contract_id"}


def test_the_teacher_says_the_label():
    example, said = teach("Law", (0, 30), (30, len(TEXT)))
    assert (said.answer, [quote.text for quote in said.quotes]) == ("Ohio", ["The laws of Ohio govern."])
    assert teaches(example, said)
    example, said = teach("Parties", (0, len(TEXT)))
    assert said.answer == "Alder Foods Inc., Birch Ltd." and [quote.text for quote in said.quotes] == list(NAMES)
    assert teaches(example, said)


def test_only_quotes_that_were_retrieved_are_taught():
    example, said = teach("Parties", (24, len(TEXT)))
    assert (said.answer, [quote.text for quote in said.quotes]) == ("Birch Ltd.", ["Birch Ltd."])
    assert said.n_dropped_quotes == 0 and teaches(example, said)


def test_a_trace_whose_gold_was_not_retrieved_is_refused():
    example, said = teach("Law", (0, 30))
    assert (said.answer, said.found) == (NOT_FOUND, False)
    assert not teaches(example, said)


def test_absence_is_taught_and_only_where_it_is_so():
    example, said = teach("Term", (0, 30))
    assert (said.answer, said.found) == (NOT_FOUND, False) and teaches(example, said)
    assert not teaches(example, dspy.Prediction(found=True, readable=True))
    law = EXAMPLES[1]
    assert not teaches(law, dspy.Prediction(found=True, readable=False))  # unreadable counts as found


def test_a_question_without_a_label_is_an_error():
    with pytest.raises(KeyError, match="Law"):
        teach("Law", (0, 30), examples=EXAMPLES[:1])


def test_a_near_miss_is_another_example_and_is_retrieved_without_its_answer():
    law = EXAMPLES[1]
    missed = dspy.Example(law, answer=NOT_FOUND, quotes=[], found=False, without=((40, len(TEXT)),))
    missed = missed.with_inputs("question", "contract_id", "without")
    teacher = LabelTeacher(SimpleNamespace(folder=Path("no index")), [law, missed])
    asked = []

    def retrieve(question, contract_id, without=()):
        asked.append(without)
        end = without[0][0] if without else len(TEXT)
        return dspy.Prediction(passages=[Passage("c:0", "c", 0, end, TEXT[:end])])

    teacher.retrieve = retrieve
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        found, absent = teacher(**law.inputs()), teacher(**missed.inputs())
    assert asked == [(), ((40, len(TEXT)),)]
    assert (found.answer, found.found) == ("Ohio", True) and teaches(law, found)
    assert (absent.answer, absent.found, absent.quotes) == (NOT_FOUND, False, ()) and teaches(missed, absent)
    with pytest.raises(KeyError):
        teacher(law.question, "c", without=((0, 3),))


def _pool(n_found, n_absent):
    return [dspy.Example(n=i, found=i < n_found) for i in range(n_found + n_absent)]


@pytest.mark.parametrize(
    ("n_found", "n_absent", "n", "wanted"),
    [(10, 30, 10, 5), (10, 30, 30, 10), (10, 30, 38, 10), (30, 5, 20, 15), (10, 30, 1, 0), (0, 9, 4, 0), (9, 0, 4, 4)],
)
def test_samples_are_balanced_as_far_as_there_are_such(n_found, n_absent, n, wanted):
    drawn = sample_examples(_pool(n_found, n_absent), n, seed=0)
    assert len({example.n for example in drawn}) == len(drawn) == n
    assert sum(example.found for example in drawn) == wanted


def test_a_sample_depends_on_its_seed_alone_and_none_takes_all():
    pool = _pool(10, 30)
    assert sample_examples(pool, 8, seed=1) == sample_examples(pool, 8, seed=1) != sample_examples(pool, 8, seed=2)
    assert sample_examples(pool, None, seed=1) == sample_examples(pool, 99, seed=1) == pool


def follow_ups(category, *stretches, examples=EXAMPLES):
    """What may be asked after this category's question where these stretches of TEXT were shown, and the answers."""
    example, said = teach(category, *stretches, examples=examples)
    teacher = LabelTeacher(SimpleNamespace(folder=Path("no index")), examples)
    return {asked["question"]: (given["quotes"], given["answer"]) for asked, given in teacher.follow_ups(example, said)}


def test_a_conversation_goes_on_with_what_the_shown_passages_settle():
    law, parties = (
        ("The laws of Ohio govern.", "Ohio"),
        ("Alder Foods Inc.\nBirch Ltd.", "Alder Foods Inc., Birch Ltd."),
    )
    absent = (NO_QUOTE, NOT_FOUND)
    assert follow_ups("Law", (0, len(TEXT))) == {"Parties?": parties, "Term?": absent}
    assert follow_ups("Parties", (0, 40), (40, len(TEXT))) == {"Law?": law, "Term?": absent}
    # Of the parties only one is shown: what the rest of the contract says is not to be said.
    assert follow_ups("Law", (24, len(TEXT))) == {"Term?": absent}


def test_a_conversation_holds_no_more_absent_answers_than_found_ones_and_no_near_miss():
    absent = [EXAMPLES[2].copy(question=f"Absent {i}?") for i in range(4)]
    near = EXAMPLES[1].copy(question="Near?", without=((0, 3),), found=False, answer=NOT_FOUND, quotes=[])
    elsewhere = EXAMPLES[2].copy(question="Elsewhere?", contract_id="d")
    asked = follow_ups("Law", (0, len(TEXT)), examples=[*EXAMPLES[:2], *absent, near, elsewhere])
    assert len(asked) == 2 and "Parties?" in asked and not {"Near?", "Elsewhere?", "Law?"} & set(asked)


def test_rows_of_the_review_go_on_with_answers_that_stand_in_what_was_shown(world, speaking, monkeypatch):
    taken = []

    def note(finetune_dict):
        taken.extend(row for job in finetune_dict.values() for row in job["train_data"])
        return {key: job["lm"] for key, job in finetune_dict.items()}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(note))
    program, teacher = ContractReview(world.index, 4), LabelTeacher(world.index, world.train)
    for one in (program, teacher):
        one.set_lm(speaking(world.say))
    shapes = RowShapes(conversed=1.0, turns=6)
    InstructTune(metric=teaches, shapes=shapes, exclude_demos=True, num_threads=2).compile(
        program, world.train, teacher
    )
    gone_on = [row["messages"] for row in taken if row.get("loss_on") == "every"]
    found = 0
    for _, shown, _, *more in gone_on:
        assert len(more) <= 10 and not any("## passages ##" in turn["content"] for turn in more)
        for turn in more[1::2]:
            quotes, answer = turn["content"].split("## quotes ## ]]\n")[1].split("\n\n[[ ## answer ## ]]\n")
            absent = answer.startswith(NOT_FOUND)
            assert absent == (quotes == NO_QUOTE) and (absent or all(q in shown["content"] for q in quotes.split("\n")))
            found += not absent
    assert len(gone_on) >= 5 and found >= 3
