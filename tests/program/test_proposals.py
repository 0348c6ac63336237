from dataclasses import replace

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from corpora.labels.store import LabelStore, label_id
from corpora.labels.types import Draft
from corpora.types import Label, Quote, Span
from modules.signatures import NOT_FOUND, WRITE_TASKS
from program.contract_review import ContractReview
from program.label_settings import LabelSettings
from program.proposals import Proposals
from program.self_instruct import human_label

NOTHING = 1.01  # a likeness that nothing has
QUIET = LabelSettings(answered=0, min_similarity=0.6)
UNREADABLE = AdapterParseError("chat", dspy.Signature("question -> answer"), "no", "no")


@pytest.fixture
def store(tmp_path, world):
    with LabelStore.open(tmp_path / "labels.db") as store:
        store.add_contracts(world.corpus.contracts)
        yield store


class Asked(list):
    """Answers every question by `said`, and keeps (program, inputs) of each batch that has any."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def __call__(self, program, inputs):
        if inputs:
            self.append((program, list(inputs)))
        return [self.said(**given) if callable(self.said) else self.said for given in inputs]

    def questions(self):
        return [given for _, inputs in self for given in inputs]


def absent(**_):
    return dspy.Prediction(answer=NOT_FOUND, quotes=(), found=False, readable=True, confidence=0.9)


@pytest.fixture
def propose(world, store, speaking):
    """`propose(settings, said)` is Proposals over the world's contracts, and what they asked; no LM is called."""
    lm = speaking(lambda prompt: pytest.fail("the LM was asked, and not through `ask`"))

    def make(settings, said=absent, *, people=None, round=1, teacher_lm=lm):
        teacher = ContractReview(world.index, 4)
        teacher.set_lm(teacher_lm)
        contracts = {c.id: c for c in world.corpus.contracts if c.id not in {e.contract_id for e in world.val}}
        people = [human_label(example) for example in world.train] if people is None else people
        asked = Asked(said)
        return Proposals(store, teacher, contracts, people, settings, round, asked), asked

    make.lm = lm
    return make


def ids(world):
    return [contract.id for contract in world.unlabelled]


def kept(store, proposals, drafts):
    """What a round leaves behind: the drafts, and that they were asked."""
    store.add([(draft, ()) for draft in drafts.drafts], "synthetic", [(*drafts.unit(d), "kept") for d in drafts.drafts])


def named(label):
    return label.question.contract_id, label.question.category


# -- carried over


def test_labels_are_carried_over_with_their_parents_and_likeness(propose, world):
    proposals, asked = propose(QUIET)
    drafts = proposals.all(ids(world)).drafts
    assert len(drafts) == 4 and asked == []
    people = {label_id(la, world.texts[la.question.contract_id]) for la in map(human_label, world.train)}
    for draft in drafts:
        gold = world.gold[draft.label.question.contract_id, draft.label.question.text]
        assert (draft.label.spans, draft.label.answer) == (gold.spans, gold.answer)
        assert draft.label.question == gold.question
        assert (draft.method, draft.by) == ("project", "projection") and 0.6 <= draft.confidence <= 1
        assert set(draft.parents) <= people and draft.parents == (draft.prompt,)


def test_what_is_known_is_not_carried_over_again(propose, world, store):
    proposals, _ = propose(QUIET)
    first = proposals.all(ids(world))
    kept(store, proposals, first)
    assert propose(QUIET)[0].all(ids(world)).drafts == []
    assert propose(QUIET)[0].all([e.contract_id for e in world.train]).drafts == []


def test_too_little_likeness_carries_nothing_over(propose, world):
    assert propose(replace(QUIET, min_similarity=NOTHING))[0].all(ids(world)).drafts == []


def test_what_was_kept_is_carried_over_in_turn_but_people_are_believed_first(propose, world, store):
    law = next(human_label(e) for e in world.train if e.category == "Governing Law" and e.found)
    text = world.texts[law.question.contract_id]
    # The same words, marked otherwise by a model, on the same contract under the same question.
    wrong = Label(law.question, (Span(law.spans[0].start, law.spans[0].start + 20),), text[law.spans[0].start :][:10])
    store.add([(Draft(wrong, "answer", "a model"), ())], "synthetic")
    proposals, _ = propose(QUIET)
    (pattern,) = [p for p in proposals.patterns if p.text == text[law.spans[0].start : law.spans[0].end]]
    assert pattern.parent == label_id(law, text)
    # Without people's, the kept one is what is followed.
    others = [human_label(e) for e in world.train if e.category != "Governing Law"]
    proposals, _ = propose(QUIET, people=others)
    assert "Governing Law" in {p.category for p in proposals.patterns}


# -- answered


def test_the_teacher_is_asked_what_people_asked_of_other_contracts(propose, world):
    proposals, asked = propose(replace(QUIET, answered=99))
    proposed = proposals.all(ids(world))
    answered = [draft for draft in proposed.drafts if draft.method == "answer"]
    carried = {named(draft.label) for draft in proposed.drafts if draft.method == "project"}
    every = {(c.id, category) for c in world.unlabelled for category in {e.category for e in world.train}}
    assert {named(draft.label) for draft in answered} == every - carried and len(answered) == len(every) - 4
    for draft in answered:
        assert draft.label.question == world.gold[draft.label.question.contract_id, draft.label.question.text].question
        assert draft.label == Label(draft.label.question, ()) and draft.confidence == 0.9
        assert draft.by == propose.lm.model and len(draft.prompt) == 16
    assert len(propose(replace(QUIET, answered=3))[0].all(ids(world)).drafts) == 4 + 3


def test_a_found_answer_is_a_label_of_its_quotes(propose, world):
    text = world.unlabelled[0].text

    def found(question, contract_id):
        return dspy.Prediction(
            answer="so", quotes=(Quote(text[40:50], contract_id, 40, 50), Quote(text[3:9], contract_id, 3, 9)),
            found=True, readable=True, confidence=0.5,
        )  # fmt: skip

    proposals, _ = propose(replace(QUIET, answered=99), found)
    answered = [draft for draft in proposals.all([world.unlabelled[0].id]).drafts if draft.method == "answer"]
    assert answered and {draft.label.spans for draft in answered} == {(Span(3, 9), Span(40, 50))}


def test_nothing_is_asked_twice_of_one_model_under_one_prompt(propose, world, store, speaking):
    settings = replace(QUIET, answered=5)
    proposals, asked = propose(settings)
    kept(store, proposals, proposals.all(ids(world)))
    proposals, more = propose(settings, round=2)
    kept(store, proposals, proposals.all(ids(world)))
    pairs = [(given["contract_id"], given["question"]) for given in asked.questions() + more.questions()]
    assert len(pairs) == len(set(pairs)) == 10
    # What is labelled is settled: another model is asked of the rest alone.
    proposals, rest = propose(replace(QUIET, answered=99), teacher_lm=speaking(lambda prompt: None))
    proposals.all(ids(world))
    assert len(rest.questions()) == 4 and not set(pairs) & {(q["contract_id"], q["question"]) for q in rest.questions()}


def test_what_was_asked_and_dropped_is_asked_of_another_model_or_prompt_only(propose, world, store, speaking):
    settings = replace(QUIET, answered=99)
    proposals, asked = propose(settings)
    proposed = proposals.all(ids(world))
    units = [proposed.unit(draft) for draft in proposed.drafts if draft.method == "answer"]
    store.add((), "synthetic", [(*unit, "verbatim: x") for unit in units])
    proposals, again = propose(settings)
    proposals.all(ids(world))
    assert asked.questions() and again.questions() == []
    proposals, by_other = propose(settings, teacher_lm=speaking(lambda prompt: None))
    proposals.all(ids(world))
    assert len(by_other.questions()) == len(asked.questions())
    proposals, otherwise = propose(settings)
    predict = proposals.teacher.reviewer.predict
    predict.signature = predict.signature.with_instructions("Answer like a pirate.")
    proposals.all(ids(world))
    assert len(otherwise.questions()) == len(asked.questions())


@pytest.mark.parametrize(
    "said, why",
    [
        (dspy.lm15.TimeoutError("slow"), "call failed: TimeoutError"),
        (UNREADABLE, "unreadable"),
        (dspy.Prediction(answer="", quotes=(), found=True, readable=False, confidence=0.0), "unreadable"),
        (dspy.Prediction(answer="I cannot say", quotes=(), found=True, readable=True, confidence=0.0), "no quote"),
    ],
)
def test_what_is_no_answer_is_no_draft(propose, world, said, why):
    proposals, asked = propose(replace(QUIET, answered=99), said)
    proposed = proposals.all(ids(world))
    assert {draft.method for draft in proposed.drafts} == {"project"}
    assert len(proposed.failed) == len(asked.questions()) > 0
    assert all(unit[-1].startswith(why) and unit[2] == "answer" for unit in proposed.failed)


def test_a_teacher_without_an_lm_of_its_own_labels_by_the_configured_one(propose, world, speaking):
    lm = speaking(lambda prompt: None)
    with dspy.context(lm=lm):
        proposals, _ = propose(replace(QUIET, answered=1), teacher_lm=None)
        assert proposals.all(ids(world)).drafts[-1].by == lm.model


# -- written, and reworded


def written(passage):
    quote = Quote(passage.text[:30], passage.contract_id, passage.start, passage.start + 30)
    return dspy.Prediction(question="What does it begin with?", answer="this", quotes=(quote,))


def test_questions_are_written_about_passages_half_of_them_after_demonstrations(propose, world, store):
    settings = replace(QUIET, written=6, demonstrations=2, min_similarity=NOTHING)
    proposals, asked = propose(settings, written)
    proposed = proposals.all(ids(world))
    assert [len(program.predict.demos) for program, _ in asked] == [0, 2]
    assert [len(inputs) for _, inputs in asked] == [3, 3]
    people = {example.question for example in world.train}
    assert {demo.question for demo in asked[1][0].predict.demos} <= people
    assert {p.contract_id for given in asked.questions() for p in given.values()} <= set(ids(world))
    for draft, given in zip(proposed.drafts, asked.questions(), strict=True):
        assert proposed.unit(draft)[1] == given["passage"].text and draft.method == "write"
        assert draft.label.question.category == draft.label.question.text == "What does it begin with?"
    kept(store, proposals, proposed)
    proposals, more = propose(replace(settings, demonstrations=0), written)
    proposals.all(ids(world))
    before = {given["passage"].id for given in asked[0][1]}
    assert more.questions() and not before & {given["passage"].id for given in more.questions()}


def test_the_task_of_writing_is_put_in_several_wordings(propose, world):
    proposals, asked = propose(replace(QUIET, written=9, descriptions=4, min_similarity=NOTHING), written)
    proposals.all(ids(world))
    assert [program.predict.signature.instructions for program, _ in asked] == [t for t in WRITE_TASKS for _ in (0, 1)]
    assert [len(inputs) for _, inputs in asked] == [2] + 7 * [1]
    passages = [given["passage"].id for given in asked.questions()]
    assert len(passages) == len(set(passages)) == 9


def test_a_conversation_about_a_passage_goes_on_to_other_questions(propose, world, store):
    def another(passage, before=()):
        first = written(passage)
        return first.copy(question=f"{first.question} ({len(before)})") if len(before) < 2 else UNREADABLE

    settings = replace(QUIET, written=2, demonstrations=0, follow_ups=3, min_similarity=NOTHING)
    proposals, asked = propose(settings, another)
    proposed = proposals.all(ids(world))
    first, second, third = (given.get("before", ()) for _, (given,) in asked[:3])
    assert (len(first), len(second), len(third)) == (0, 1, 2)
    assert second[0]["question"] == "What does it begin with? (0)" and second[0]["answer"] == "this"
    assert len(asked) == 6  # what was not said is not gone on from
    assert len({given["passage"].id for _, (given,) in asked}) == 2
    assert len(proposed.drafts) == 4 and len({proposed.unit(draft) for draft in proposed.drafts}) == 4
    assert len(proposed.failed) == 2


def test_a_written_question_that_people_ask_has_their_category(propose, world):
    known = world.train[0]

    def like_people(passage):
        return written(passage).copy(question=known.question)

    proposals, _ = propose(replace(QUIET, written=2, min_similarity=NOTHING), like_people)
    assert {d.label.question.category for d in proposals.all(ids(world)).drafts} == {known.category}


@pytest.mark.parametrize(
    "said, why",
    [
        (UNREADABLE, "unreadable"),
        (dspy.Prediction(question=" ", answer="a", quotes=(Quote("x", "c", 0, 1),)), "unreadable"),
        (dspy.Prediction(question="Which law?", answer="Utah", quotes=()), "no quote"),
        (TimeoutError(), "call failed"),
    ],
)
def test_what_is_no_question_is_no_draft(propose, world, said, why):
    proposals, _ = propose(replace(QUIET, written=4, min_similarity=NOTHING), said)
    proposed = proposals.all(ids(world))
    assert proposed.drafts == [] and len(proposed.failed) == 4
    assert all(unit[-1].startswith(why) for unit in proposed.failed)


def test_found_labels_are_asked_in_other_words_and_their_marks_stay(propose, world, store):
    settings = replace(QUIET, reworded=99, min_similarity=NOTHING)
    proposals, asked = propose(settings, lambda question: dspy.Prediction(question=f"Put otherwise: {question}"))
    proposed = proposals.all(ids(world))
    found = {(e.contract_id, e.question): e for e in world.train if e.found}
    assert len(proposed.drafts) == len(asked.questions()) == len(found) > 0
    for draft in proposed.drafts:
        of = found[draft.label.question.contract_id, draft.label.question.text.removeprefix("Put otherwise: ")]
        label = human_label(of)
        assert (draft.label.spans, draft.label.answer) == (label.spans, label.answer)
        assert draft.parents == (label_id(label, world.texts[of.contract_id]),) and draft.confidence is None
        assert draft.method == "paraphrase" and draft.label.question.category == of.category
    kept(store, proposals, proposed)
    proposals, again = propose(replace(settings, reworded=1), asked.said)
    proposals.all(ids(world))
    assert not {given["question"] for given in again.questions()} & {given["question"] for given in asked.questions()}
    proposals, blank = propose(settings, dspy.Prediction(question=""))
    failed = proposals.all(ids(world)).failed
    assert failed and all(unit[-1].startswith("unreadable") for unit in failed)


# -- contradiction


def test_absent_is_contradicted_where_a_labelled_sentences_like_stands(propose, world):
    proposals, _ = propose(replace(QUIET, min_similarity=0.999))  # it need not carry a label to speak against one
    law = [la for la in world.gold.values() if la.question.category == "Governing Law"]
    drafts = [Draft(Label(la.question, ()), "answer", "m") for la in law if la.question.contract_id in ids(world)]
    said = dict(zip((named(d.label)[0] for d in drafts), proposals.contradiction(drafts), strict=True))
    there = {contract_id: bool(world.gold[contract_id, law[0].question.text].spans) for contract_id in said}
    assert set(there.values()) == {True, False}
    assert {key: why is not None for key, why in said.items()} == there
    assert all(why is None or why.startswith("like a labelled sentence: 0.") for why in said.values())
    found = [Draft(la, "answer", "m") for la in law if la.spans and la.question.contract_id in ids(world)]
    assert proposals.contradiction(found) == [None] * len(found)
    other = [replace(d, label=replace(d.label, question=replace(d.label.question, text="Who pays?"))) for d in drafts]
    assert proposals.contradiction(other) == [None] * len(other)
