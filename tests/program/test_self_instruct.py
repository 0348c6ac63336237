import functools
import math
import re
from collections import Counter
from dataclasses import replace

import dspy
import pytest

from corpora.errors import CorpusError
from corpora.labels.store import LabelStore
from corpora.labels.types import Draft
from corpora.types import Contract, Label, Span
from modules.grounding import locate
from modules.label_filters import apply_filters
from modules.signatures import NOT_FOUND
from program import self_instruct
from program.asking import LabelingError
from program.config import ConfigError
from program.contract_review import ContractReview
from program.examples import to_examples
from program.label_settings import FILTERS, LabelSettings, label_settings
from program.proposals import Proposed
from program.self_instruct import SelfInstruct, human_label, near_miss, only
from program.teacher import teaches

_PLAUSIBLE = functools.cache(self_instruct.plausible)
SLOW = dspy.lm15.TimeoutError("nobody answered in 60 s")
# Without the quotas and without the novelty of questions, which are those of people; confidence as it comes.
OPEN = LabelSettings(filters=("verbatim", "plausible", "contradiction"))


@pytest.fixture(autouse=True)
def _one_language_model(monkeypatch):
    """The filter of wording reads its model once, not for every round."""
    monkeypatch.setattr(self_instruct, "plausible", _PLAUSIBLE)


@pytest.fixture
def labels(tmp_path):
    """`labels(settings)` is a SelfInstruct whose store is this test's."""
    opened = []

    def make(settings=OPEN, lm=None, name="labels", threads=4):
        opened.append(LabelStore.open(tmp_path / f"{name}.db"))
        return SelfInstruct(opened[-1], settings, lm, threads, progress=False)

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def review(world, speaking):
    """`review(say)` is the program on an LM that says `say(prompt)`; its engine is `.lm.engine`."""

    def make(say=world.say, index=world.index):
        program = ContractReview(index, 4)
        program.set_lm(speaking(say))
        return program

    return make


def speaker(program):
    return program.get_lm()._engine_spec


def make(labels, program, world, *, unlabelled=None, valset=None, trainset=None, round=1):
    return labels.make(
        program, trainset or world.train, world.unlabelled if unlabelled is None else unlabelled, valset or world.val,
        round,
    )  # fmt: skip


def synthetic(labels):
    return list(labels.store.records("synthetic"))


def asked_of(prompts, world):
    """How often each question of the world was put, by its text in a prompt."""
    texts = {question for _, question in world.gold}
    return Counter(text for prompt in prompts for text in texts if text in prompt)


def test_personal_data_is_masked_when_a_label_is_kept(labels, world):
    labels = labels(LabelSettings(pii="mask"))
    labels.store.add_contracts(world.corpus.contracts)
    (first, *_) = (draft for draft in _drafts(world) if draft.label.spans)
    told = replace(first, label=replace(first.label, answer="ask jane.doe@example.com"))
    proposed = Proposed()
    proposed.add((first.label.question.contract_id, "q", "answer", "m", ""), told)
    labels._keep(apply_filters([told], {}), proposed)
    (record,) = synthetic(labels)
    assert record.draft.label.answer == "ask [EMAIL]" and record.draft.label.spans == first.label.spans


# -- a whole round


def test_a_round_labels_what_gold_says_and_leaves_it_in_the_store(labels, review, world):
    labels, program = labels(), review()
    demos, lm = list(program.reviewer.predict.demos), program.get_lm()
    examples = make(labels, program, world)
    made = synthetic(labels)
    assert len(made) == 3 * 6 and {record.draft.method for record in made} == {"project", "answer"}
    found = [record.draft.label for record in made if record.draft.label.spans]
    # The teacher says what stands in the passages; here it misses nothing but what retrieval does not bring it.
    gold = {key: label for key, label in world.gold.items() if key[0] in {c.id for c in world.unlabelled}}
    assert len(found) >= 5
    assert all(gold[la.question.contract_id, la.question.text].spans == la.spans for la in found)
    assert all(record.trail == (("verbatim", ""), ("plausible", ""), ("contradiction", "")) for record in made)
    humans = list(labels.store.records("human"))
    assert len(humans) == len(world.train) and {c.id for c in labels.store.contracts("val")} == {
        example.contract_id for example in world.val
    }
    assert {(e.contract_id, e.question) for e in examples} == {
        (r.draft.label.question.contract_id, r.draft.label.question.text) for r in made
    }
    (report,) = labels.reports
    assert report.round == 1 and sum(report.proposed.values()) == 18 == sum(report.kept.values())
    assert report.funnel == (("verbatim", 18, 18), ("plausible", 18, 18), ("contradiction", 18, 18))
    assert report.tally.calls == len(speaker(program).prompts) == 14 and report.reasons == ()
    assert program.get_lm() is lm and program.reviewer.predict.demos == demos


def test_a_second_make_with_the_same_model_asks_nothing_twice(labels, review, world):
    settings = replace(OPEN, answered=8, filters=(*OPEN.filters, "confidence", "round trip"))
    labels, program = labels(settings), review()
    for round in (1, 2, 3):
        make(labels, program, world, round=round)
    whole = [p for p in speaker(program).prompts if any(c in p for c in asked_of([p], world))]
    by_val = Counter(whole)
    val_prompts = {
        _prompt(program, example.question, example.contract_id) for example in world.val
    }  # thresholds are fitted anew in each round that has answers to filter
    assert max(n for prompt, n in by_val.items() if prompt not in val_prompts) == 1
    kept = synthetic(labels)
    n_calls = len(speaker(program).prompts)
    make(labels, program, world, round=4)
    assert len(speaker(program).prompts) == n_calls and synthetic(labels) == kept
    assert labels.reports[-1].tally.calls == 0


def _prompt(program, question, contract_id):
    """The last turn that the program puts to its LM for this question."""
    before = len(speaker(program).prompts)
    program(question=question, contract_id=contract_id)
    return speaker(program).prompts.pop(before)


def test_killed_before_the_store_it_asks_again_and_keeps_nothing_twice(labels, review, world, monkeypatch):
    labels, program = labels(), review()
    add = LabelStore.add

    def killed(store, drafts, source, asked=()):
        if source == "synthetic":
            raise KeyboardInterrupt
        return add(store, drafts, source, asked)

    monkeypatch.setattr(LabelStore, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        make(labels, program, world)
    assert synthetic(labels) == [] and not any(labels.store.dropped_counts().values())
    n_calls = len(speaker(program).prompts)
    monkeypatch.undo()
    make(labels, program, world)
    assert len(speaker(program).prompts) == 2 * n_calls
    made = synthetic(labels)
    assert len(made) == 18 == len({record.id for record in made})
    assert len(list(labels.store.records("human"))) == len(world.train)


def test_the_given_teacher_labels_and_the_program_stays_as_it_is(labels, review, world, speaking):
    lm, program = speaking(world.say), review(lambda prompt: pytest.fail("the program itself was asked"))
    own = program.get_lm()
    labels = labels(lm=lm)
    make(labels, program, world)
    assert {record.draft.by for record in synthetic(labels)} == {lm.model, "projection"}
    assert program.get_lm() is own


# -- what goes wrong in calls


def test_garbage_and_refusals_are_counted_and_never_stored(labels, review, world):
    said = ["{", "I'm sorry, but I cannot do that.", "\x00", '{"answer": "Oh', world.completion(quotes="none")]

    def say(prompt):
        return said[len(prompt) % len(said)]

    labels = labels()
    make(labels, review(say), world)
    assert {record.draft.method for record in synthetic(labels)} == {"project"}
    tally = labels.reports[0].tally
    assert (tally.calls, tally.again, tally.unreadable, tally.failed) == (14 + 3, 3, 14, 0)
    assert labels.store.dropped_counts() == {"unreadable": 14}
    n_calls = len(speaker(program := review(say)).prompts)
    make(labels, program, world)  # another model
    assert len(speaker(program).prompts) == n_calls + 14 + 3


def test_an_answer_that_quotes_nothing_is_not_taken_for_absence(labels, review, world):
    said = world.completion(quotes="none", answer="I'm sorry, I cannot say.")
    labels = labels(replace(OPEN, filters=()))
    examples = make(labels, review(lambda prompt: (said, -0.1)), world)
    assert {record.draft.method for record in synthetic(labels)} == {"project"}
    assert labels.store.dropped_counts() == {"no quote": 14}
    assert all(example.found for example in examples if not example.question_id.endswith("__without"))


@pytest.mark.parametrize("threads", [1, 8])
def test_calls_that_time_out_are_tried_again_and_never_a_label(labels, review, world, threads):
    calls = []

    def say(prompt):
        calls.append(prompt)
        return SLOW if len(calls) % 10 == 0 else world.say(prompt)

    labels = labels(threads=threads)
    make(labels, review(say), world)
    tally = labels.reports[0].tally
    assert tally.again == 1 and tally.failed == 0 and tally.calls == len(calls) == 15
    assert len(synthetic(labels)) == 18


def test_what_failed_for_good_is_no_label_and_is_asked_again_the_next_time(labels, review, world):
    up = []

    def say(prompt):
        return world.say(prompt) if up or '"Insurance"' not in prompt else SLOW

    labels, program = labels(), review(say)
    make(labels, program, world)
    insured = [r for r in synthetic(labels) if r.draft.label.question.category == "Insurance"]
    assert insured == [] and labels.reports[0].tally.failed == 3 and len(synthetic(labels)) == 15
    assert labels.store.dropped_counts() == {}  # a failure of the machinery is no verdict on the unit
    up.append(True)
    make(labels, program, world)
    assert len(synthetic(labels)) == 18 and labels.reports[1].tally.calls == 3


def test_a_draft_whose_check_failed_is_asked_about_again_too(labels, review, world):
    up = []

    def say(prompt):
        checking = "faithful" in prompt or "answerable" in prompt
        if not checking:
            return world.say(prompt)
        return world.completion(faithful="True", answerable="True") if up or "Insurance" not in prompt else SLOW

    labels, program = labels(replace(OPEN, filters=("verbatim", "judge"))), review(say)
    make(labels, program, world)
    assert len(synthetic(labels)) == 15 and ("judge", "call failed", 3) in labels.reports[0].reasons
    up.append(True)
    make(labels, program, world)
    assert len(synthetic(labels)) == 18


def test_above_the_limit_nothing_of_the_round_is_kept(labels, review, world):
    labels = labels()
    with pytest.raises(LabelingError, match="14 of 14 calls failed.*nobody answered"):
        make(labels, review(lambda prompt: SLOW), world)
    assert synthetic(labels) == [] and labels.reports == []


# -- contracts that are held out


def _amended(contract, contract_id):
    words = contract.text.split(" ")
    words[50:53] = ["as", "amended", "hereby"]
    return Contract(contract_id, " ".join(words))


def test_contracts_to_choose_on_are_not_labelled(labels, review, world, make_index):
    labels, val = labels(), world.index.contract(world.val[0].contract_id)
    restated = _amended(val, "restated")
    program = review(index=make_index([*world.corpus.contracts, restated]))
    with pytest.raises(CorpusError, match=re.escape(f"'{val.id}' (held out for val)")):
        make(labels, program, world, unlabelled=[*world.unlabelled, val])
    with pytest.raises(CorpusError, match="'restated'.*near-duplicate of.*held out for val"):
        make(labels, program, world, unlabelled=[*world.unlabelled, restated])
    assert speaker(program).prompts == [] and synthetic(labels) == []


def test_contracts_to_score_on_are_not_labelled(labels, review, world, make_index):
    labels, restated = labels(), _amended(world.unlabelled[1], "restated")
    program = review(index=make_index([*world.corpus.contracts, restated]))
    labels.store.hold_out([world.unlabelled[1]], "test")
    with pytest.raises(CorpusError, match=re.escape(f"1 of 3 contracts are held out: '{world.unlabelled[1].id}'")):
        make(labels, program, world)
    with pytest.raises(CorpusError, match="'restated'.*held out for test"):
        make(labels, program, world, unlabelled=[restated])
    assert speaker(program).prompts == [] and synthetic(labels) == []


def test_contracts_that_are_labelled_cannot_be_chosen_on_later(labels, review, world):
    labels, program = labels(), review()
    make(labels, program, world)
    later = to_examples_of(world, world.unlabelled[0].id)
    with pytest.raises(CorpusError, match="synthetic labels train on"):
        make(labels, program, world, unlabelled=world.unlabelled[1:], valset=later)


def to_examples_of(world, contract_id):
    contracts = tuple(c for c in world.corpus.contracts if c.id == contract_id)
    own = tuple(la for la in world.corpus.labels if la.question.contract_id == contract_id)
    return to_examples(replace(world.corpus, contracts=contracts, labels=own))


def test_a_contract_on_both_sides_of_peoples_labels_is_refused(labels, review, world):
    program = review()
    with pytest.raises(CorpusError, match=f"trainset and valset both ask of .*{world.val[0].contract_id}"):
        make(labels(), program, world, trainset=[*world.train, world.val[0]])
    assert speaker(program).prompts == []


# -- the rows to train on


def _found(world):
    held = {example.contract_id for example in world.val}
    return [la for la in world.corpus.labels if la.spans and la.question.contract_id not in held]


def test_a_near_miss_never_shows_its_answer(labels, review, world):
    labels, student = labels(), review(lambda prompt: pytest.fail("asked"))
    contracts = {contract.id: contract for contract in world.corpus.contracts}
    missed = [(la, near_miss(la, contracts[la.question.contract_id])) for la in _found(world)]
    missed = [(la, example) for la, example in missed if example is not None]
    assert len(missed) >= 8
    teacher, n_retrieved = labels.teacher(student, [example for _, example in missed]), 0
    for label, example in missed:
        text = contracts[label.question.contract_id].text
        quotes = [text[span.start : span.end] for span in label.spans]
        shown = teacher.retrieve(**example.inputs()).passages
        assert shown and not any(locate(quote, shown) for quote in quotes)
        said = teacher(**example.inputs())
        assert (said.answer, said.found, said.quotes) == (NOT_FOUND, False, ()) and teaches(example, said)
        assert (example.answer, example.found, example.spans) == (NOT_FOUND, False, [])
        prompt = " ".join(passage.text for passage in shown)
        assert not any(" ".join(quote.split()) in " ".join(prompt.split()) for quote in quotes)
        whole = teacher.retrieve(question=example.question, contract_id=example.contract_id).passages
        n_retrieved += all(locate(quote, whole) for quote in quotes)
    assert n_retrieved >= 5  # the quotes would be there, were they not left out


def test_a_quote_that_stands_elsewhere_too_makes_no_near_miss(world):
    text = "Made between ACME  Inc. and Birch. Acme sells.\n\nSigned for Acme\nInc. by its president."
    label = world.corpus.labels[0]
    once, twice = Span(text.index("Birch"), text.index("Birch") + 5), Span(13, 23)
    assert text[twice.start : twice.end] == "ACME  Inc."
    assert near_miss(replace(label, spans=(twice,)), Contract("c", text)) is None
    assert near_miss(replace(label, spans=(twice, once)), Contract("c", text)) is None
    missed = near_miss(replace(label, spans=(once,)), Contract("c", text))
    assert missed["without"] == ((0, text.index(" Acme sells")),) and missed.inputs()["without"] == missed["without"]


def test_a_near_miss_leaves_out_the_whole_sentences_of_every_quote(world):
    text = "One is here. Two are there and there. Three is a sentence. Four is one."
    spans = (Span(text.index("are"), text.index("there")), Span(text.index("is a"), text.index("Four") + 2))
    missed = near_miss(replace(world.corpus.labels[0], spans=spans), Contract("c", text))
    kept = [i for i in range(len(text)) if not any(start <= i < end for start, end in missed["without"])]
    assert "".join(text[i] for i in kept).split() == ["One", "is", "here."]


def keep(labels, world, drafts):
    """Store drafts as if a round had kept them; the contracts and labels to ask `rows` for."""
    labels.store.add_contracts(world.corpus.contracts)
    labels.store.add([(draft, ()) for draft in drafts], "synthetic")
    return [human_label(e) for e in world.train], {c.id: c for c in world.corpus.contracts}


def _drafts(world, confidence=0.9):
    """A draft for every question on every unlabelled contract, by gold."""
    ids = {contract.id for contract in world.unlabelled}
    return [
        Draft(label, "answer", "m", confidence=confidence)
        for label in world.corpus.labels
        if label.question.contract_id in ids
    ]


def _parts(examples):
    """Labels, and near misses."""
    missed = [example for example in examples if example.get("without")]
    return [example for example in examples if not example.get("without")], missed


def test_rows_are_a_draw_of_the_kept_labels(labels, world):
    labels = labels(replace(OPEN, max_rows=7, near_misses=0.0))
    people, contracts = keep(labels, world, _drafts(world))
    rows = labels.rows(people, contracts, 1)
    assert len(rows) == 7 and rows == labels.rows(people, contracts, 1) != labels.rows(people, contracts, 2)
    keys = {(e.contract_id, e.question) for e in rows}
    assert len(keys) == 7 and all(e.answer == _gold_answer(world, e) for e in rows)
    labels.settings = replace(labels.settings, max_rows=99)
    assert len(labels.rows(people, contracts, 1)) == 18
    labels.settings = replace(labels.settings, max_rows=0)
    assert labels.rows(people, contracts, 1) == []


def _gold_answer(world, example):
    label = world.gold[example.contract_id, example.question]
    return label.answer if label.spans else NOT_FOUND


def test_near_misses_fill_up_what_is_absent(labels, world):
    labels = labels(replace(OPEN, near_misses=0.0))
    found = [draft for draft in _drafts(world) if draft.label.spans]
    people, contracts = keep(labels, world, found)
    n = len(found)
    for share, expected in ((0.0, 0), (0.5, (n + 1) // 2), (1.0, n), (9.0, n)):
        labels.settings = replace(labels.settings, near_misses=share)
        plain, missed = _parts(labels.rows(people, contracts, 1))
        assert len(plain) == n and len(missed) == expected
        assert len({(e.contract_id, e.question) for e in missed}) == len(missed)
        assert all(not e.found and e.answer == NOT_FOUND for e in missed)
    labels.store.add([(draft, ()) for draft in _drafts(world) if not draft.label.spans], "synthetic")
    labels.settings = replace(labels.settings, near_misses=1.0)
    assert _parts(labels.rows(people, contracts, 1))[1] == []  # there are more absent ones than found


def test_what_is_hard_is_drawn_more_often(labels, world):
    labels = labels(replace(OPEN, max_rows=6, near_misses=0.0))
    drafts = _drafts(world)
    even = [replace(draft, confidence=0.5 if i % 3 == 0 else 1.0) for i, draft in enumerate(drafts)]
    people, contracts = keep(labels, world, even)
    hard = {(d.label.question.contract_id, d.label.question.text) for d in even[::3]}
    drawn = [(e.contract_id, e.question) for round in range(20) for e in labels.rows(people, contracts, round)]
    assert sum(key in hard for key in drawn) > 0.7 * len(drawn)  # a third of them, ten times as likely


def test_people_stand_before_the_program(labels, world):
    labels = labels(replace(OPEN, near_misses=0.0))
    mine = human_label(next(e for e in world.train if e.found))
    other = Draft(Label(mine.question, ()), "answer", "m", confidence=0.9)
    people, contracts = keep(labels, world, [other, *_drafts(world)[:2]])
    rows = labels.rows(people, contracts, 1)
    assert len(rows) == 2
    assert (mine.question.contract_id, mine.question.text) not in {(e.contract_id, e.question) for e in rows}


def test_rows_hold_no_contract_of_the_validation_side_and_nothing_that_was_taken_back(labels, review, world):
    labels = labels()
    rows = make(labels, review(), world)
    assert {e.contract_id for e in rows} == {contract.id for contract in world.unlabelled}
    first = synthetic(labels)[0]
    labels.store.retract(first.id, "a person", "wrong")
    people, contracts = [human_label(e) for e in world.train], {c.id: c for c in world.corpus.contracts}
    plain, _ = _parts(labels.rows(people, contracts, 1))
    question = first.draft.label.question
    assert len(plain) == 17
    assert (question.contract_id, question.text) not in {(e.contract_id, e.question) for e in plain}


def test_labels_of_an_earlier_set_are_trained_on_where_its_contracts_are_indexed(labels, review, world, make_index):
    labels, first = labels(LabelSettings()), world.unlabelled[0]
    make(labels, review(), world, unlabelled=[first])
    assert synthetic(labels)
    rows = make(labels, review(), world, unlabelled=world.unlabelled[1:])
    assert first.id in {e.contract_id for e in rows}
    program = review(index=make_index([c for c in world.corpus.contracts if c != first]))
    rows = make(labels, program, world, unlabelled=world.unlabelled[1:])
    assert rows and first.id not in {e.contract_id for e in rows}


# -- filters


def test_filters_are_those_of_the_settings_in_their_order(labels, review, world):
    for filters in (("plausible", "verbatim"), ("quota", "contradiction", "verbatim"), ()):
        one = labels(replace(OPEN, filters=filters, per_contract=2), name="-".join(filters) or "none")
        make(one, review(), world)
        assert tuple(name for name, _, _ in one.reports[0].funnel) == filters
        kept = Counter(record.draft.label.question.contract_id for record in synthetic(one))
        assert max(kept.values()) == (2 if "quota" in filters else 6)
        assert all(tuple(name for name, _ in r.trail) == filters for r in synthetic(one))


def test_every_filter_runs(labels, review, world):
    def say(prompt):
        if "faithful" in prompt:
            return world.completion(faithful="True", answerable="True")
        return world.say(prompt)

    labels = labels(replace(LabelSettings(filters=FILTERS, samples=2), precision=0.1))
    make(labels, review(say), world)
    assert tuple(name for name, _, _ in labels.reports[0].funnel) == FILTERS


def test_absence_is_dropped_where_a_labelled_sentences_like_stands(labels, review, world):
    """With a likeness that carries nothing over, what a blind teacher calls absent is contradicted."""
    blind = world.completion(quotes="none", answer=NOT_FOUND), -0.1
    settings = replace(OPEN, min_similarity=0.999)
    one = labels(settings)
    make(one, review(lambda prompt: blind), world)
    dropped = {(n, k): count for n, k, count in one.reports[0].reasons}
    assert dropped == {("contradiction", "like a labelled sentence"): 3}
    absent = [r.draft.label for r in synthetic(one) if not r.draft.label.spans]
    wrong = [la for la in absent if world.gold[la.question.contract_id, la.question.text].spans]
    assert len(wrong) == 2  # of wordings that no person's label has
    without = labels(replace(settings, filters=("verbatim", "plausible")), name="without")
    make(without, review(lambda prompt: blind), world)
    assert len(synthetic(without)) == len(synthetic(one)) + 3


def test_confidence_thresholds_are_fitted_on_validation_answers_alone(labels, review, world, monkeypatch):
    seen = []
    fit = self_instruct.fit_confidence

    def noted(confidences, right, precision):
        seen.append((list(confidences), list(right), precision))
        return fit(confidences, right, precision)

    monkeypatch.setattr(self_instruct, "fit_confidence", noted)
    labels = labels(replace(OPEN, filters=("verbatim", "confidence"), precision=0.8))

    def say(prompt):
        said, _ = world.say(prompt)
        return said, math.log(0.6 if "quotes ## ]]\nnone" in said else 0.7)

    make(labels, review(say), world)
    (found, right_found, precision), (absent, right_absent, _) = seen
    assert precision == 0.8 and len(found) + len(absent) == len(world.val)
    assert found == pytest.approx([0.7] * len(found)) and absent == pytest.approx([0.6] * len(absent))
    assert all(right_found)  # what is quoted is gold
    assert sum(right_absent) == sum(not e.found for e in world.val)


def test_answers_below_the_threshold_of_their_kind_are_dropped(labels, review, world):
    """A teacher that finds nothing, and is less sure of it about what is to be found on the validation side."""
    val_found = {e.question for e in world.val if e.found}

    def blind(prompt):
        said = world.completion(quotes="none", answer=NOT_FOUND)
        return said, math.log(0.3 if any(question in prompt for question in val_found) else 0.8)

    filters = ("verbatim", "confidence")
    one = labels(replace(OPEN, filters=filters, precision=1.0, min_similarity=1.01))
    make(one, review(blind), world)
    kept = {r.draft.label.question.text for r in synthetic(one)}
    assert kept and not kept & val_found
    assert {k for n, k, _ in one.reports[0].reasons if n == "confidence"} == {"low confidence"}
    assert all(record.draft.confidence == pytest.approx(0.8) for record in synthetic(one))


def test_no_threshold_that_is_right_often_enough_keeps_no_answer(labels, review, world):
    wrong = world.completion(quotes="We", answer="We"), -0.1
    labels = labels(replace(OPEN, filters=("confidence",)))
    make(labels, review(lambda prompt: wrong), world)
    assert {record.draft.method for record in synthetic(labels)} == {"project"}


def test_validation_calls_that_fail_are_no_answers_and_end_it_above_the_limit(labels, review, world, monkeypatch):
    seen = []
    fit = self_instruct.fit_confidence
    monkeypatch.setattr(self_instruct, "fit_confidence", lambda *args: seen.append(len(args[0])) or fit(*args))

    def failing(categories):
        def say(prompt):
            some = [e for e in world.val if e.category in categories and e.question in prompt]
            of_val = any(_stem(world, e) in prompt for e in some)
            return SLOW if of_val else world.say(prompt)

        return say

    settings = replace(OPEN, filters=("confidence",))
    one = labels(settings)
    make(one, review(failing({"Insurance"})), world)
    assert one.reports[0].tally.failed == 2 and sum(seen) == len(world.val) - 2
    with pytest.raises(LabelingError):
        make(labels(settings, name="other"), review(failing({e.category for e in world.val})), world)


def _stem(world, example):
    """A stretch of the example's contract that stands in its prompts: its opening."""
    return " ".join(world.texts[example.contract_id].split())[:60]


def test_only_sends_each_draft_to_its_own_filter(world):
    drafts = [replace(draft, method=m) for draft, m in zip(_drafts(world), ("a", "b", "c", "a"), strict=False)]
    first, second = (lambda some: ["first" for _ in some]), (lambda some: [f"second of {len(some)}" for _ in some])
    assert only(("a",), first)(drafts) == ["first", None, None, "first"]
    assert only(("a",), first, ("b", "c"), second)(drafts) == ["first", "second of 2", "second of 2", "first"]
    assert only(("x",), lambda some: pytest.fail("called for nothing"))(drafts) == [None] * 4
    with pytest.raises(ValueError):
        only(("a",), lambda some: [None])(drafts)


# -- settings, and the teacher of a training


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"filters": ("verbatim", "vibes")}, r"\['vibes'\]"), ({"answered": -1}, "answered is -1"),
        ({"written": -1}, "written is -1"), ({"reworded": -1}, "reworded is -1"), ({"max_rows": -1}, "max_rows is -1"),
        ({"near_misses": -0.1}, "near_misses is -0.1"), ({"pii": "hide"}, "pii is 'hide'"),
        ({"filters": ("agreement",), "samples": 0}, "samples is 0"), ({"copies": 0}, "copies is 0"),
        ({"descriptions": 0}, "descriptions is 0"), ({"descriptions": 5}, "descriptions is 5"),
        ({"follow_ups": -1}, "follow_ups is -1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong, told):
    with pytest.raises(LabelingError, match=told):
        LabelSettings(**wrong)
    assert LabelSettings(samples=0).filters  # which does not ask for agreement


def test_a_table_of_settings_is_read_and_one_that_is_none_is_refused():
    told = label_settings({"answered": 0, "filters": ["verbatim", "quota"]}, seed=3)
    assert told == LabelSettings(answered=0, filters=("verbatim", "quota"), seed=3)
    assert label_settings({"seed": 4}, seed=3).seed == 4
    with pytest.raises(ConfigError, match="'answred'; did you mean 'answered'"):
        label_settings({"answred": 0})
    with pytest.raises(LabelingError, match="of another type"):
        label_settings({"answered": "none"})


def test_human_labels_are_those_of_the_examples(world):
    for example in world.train:
        label, gold = human_label(example), world.gold[example.contract_id, example.question]
        assert label.question == gold.question and label.spans == gold.spans
        assert label.answer == (gold.answer if gold.spans else None)


def test_the_teacher_answers_labels_and_near_misses_under_the_students_lm(labels, review, world):
    labels, program = labels(replace(OPEN, near_misses=9.0)), review()
    examples = world.train + make(labels, program, world)
    n_calls = len(speaker(program).prompts)
    teacher = labels.teacher(program, examples)
    assert teacher.get_lm() is program.get_lm()
    said = [(example, teacher(**example.inputs())) for example in examples]
    right = [example for example, prediction in said if teaches(example, prediction)]
    assert len(right) >= 0.8 * len(examples) and {bool(e.get("without")) for e in right} == {True, False}
    assert len(speaker(program).prompts) == n_calls  # the labels answer, not the LM
