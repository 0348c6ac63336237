"""The forgetting suite: frozen skills, the matrix and what is read off it, the page."""

import json
import re

import dspy
import numpy as np
import pytest

from corpora.splits import subset
from corpora.types import Passage
from modules.index_files import StoreError
from modules.signatures import NOT_FOUND
from optimizers.errors import TrainingError
from program.contract_review import ContractReview
from program.forgetting.abilities import FORMAT, draw_items, score_items
from program.forgetting.matrix import average_accuracy, backward_transfer, forgetting, forgetting_figures
from program.forgetting.own_questions import own_prompts
from program.forgetting.report import report_lines, write_forgetting_report
from program.forgetting.skills import Mark, SuiteStore, marks_of, marks_then
from program.forgetting.suite import score_suite

R = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.2], [0.6, 0.5, 0.9]])  # rounds x skills
LEARNT = [0, 1, 2]


def test_the_three_numbers_by_hand():
    assert average_accuracy(R) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert backward_transfer(R, LEARNT) == pytest.approx(((0.6 - 0.9) + (0.5 - 0.8)) / 2)
    assert forgetting(R, LEARNT) == pytest.approx((0.3 + 0.3) / 2)
    # Skill 0 rose after it was learnt, then fell; that skill 1 was better before it was learnt does not count.
    better = np.array([[0.5, 0.9], [0.8, 0.5], [0.7, 0.6]])
    assert backward_transfer(better, [0, 1]) == pytest.approx(((0.7 - 0.5) + (0.6 - 0.5)) / 2)
    assert forgetting(better, [0, 1]) == pytest.approx(((0.8 - 0.7) + (0.5 - 0.6)) / 2)
    assert np.isnan(backward_transfer(R[:1, :1], [0])) and np.isnan(forgetting(R[:1, :1], [0]))
    both = np.stack([R, R + 0.05])
    assert backward_transfer(both, LEARNT).shape == (2,)


def marks(scores, n=40, contracts=8):
    """Marks of one round: for each skill, that share of its questions is right."""
    return [
        Mark(skill, f"{skill}/{i}", f"{skill}-{i % contracts}", float(i < share * n), i % 4 == 0, i % 5)
        for skill, share in scores.items() for i in range(n)
    ]  # fmt: skip


def test_figures_hold_the_matrix_with_intervals_and_the_verdicts():
    rounds = [marks({"old": 0.9, "new": 0.1, "judge": 0.8}), marks({"old": 0.5, "new": 0.9, "judge": 0.8})]
    told = forgetting_figures(
        rounds, {"old": 0, "new": 1, "judge": 0}, abilities=("judge",), kl=[(0.2, "a"), (0.4, "b")], resamples=200
    )
    assert [[cell["mean"] for cell in row] for row in told["matrix"]] == [[0.9, 0.1, 0.8], [0.5, 0.9, 0.8]]
    assert all(cell["low"] <= cell["mean"] <= cell["high"] for row in told["matrix"] for cell in row)
    assert told["average_accuracy"]["mean"] == pytest.approx(0.7)  # without the ability
    assert told["backward_transfer"]["mean"] == pytest.approx(-0.4)
    assert told["forgetting"]["mean"] == pytest.approx(0.4)
    assert told["backward_transfer"]["high"] < 0
    assert [(row["skill"], row["kept"]) for row in told["non_inferiority"]] == [
        ("old", False), ("new", True), ("judge", True),
    ]  # fmt: skip
    assert told["kl"]["mean"] == pytest.approx(0.3)
    assert told["abstention"][1]["mean"] == pytest.approx(0.25) and told["answer_words"][0]["mean"] == pytest.approx(2)
    json.dumps(told, allow_nan=False)
    assert "old: -40.0" in "\n".join(report_lines(told)) and "not shown to be kept" in "\n".join(report_lines(told))


def test_a_drop_within_the_margin_but_not_surely_is_not_kept():
    rounds = [marks({"old": 0.9}), marks({"old": 0.875})]  # one question of forty
    (told,) = forgetting_figures(rounds, {"old": 0}, margin=0.03, resamples=400)["non_inferiority"]
    assert told["difference"] == pytest.approx(-0.025) and told["low"] < -0.03 and told["kept"] is False
    (told,) = forgetting_figures(rounds, {"old": 0}, margin=0.2, resamples=400)["non_inferiority"]
    assert told["kept"] is True
    (told,) = forgetting_figures([marks({"old": 0.9}, contracts=1)] * 2, {"old": 0})["non_inferiority"]
    assert told["kept"] is None


def test_failed_questions_are_left_out_of_all_rounds_and_counted_never_scored():
    rounds = [marks({"old": 0.5}), marks({"old": 0.5})[1:]]  # the first, right, failed in the second round
    told = forgetting_figures(rounds, {"old": 0}, resamples=50)
    assert told["n_left_out"] == 1
    assert told["matrix"][0][0]["mean"] == told["matrix"][1][0]["mean"] == pytest.approx(19 / 39)
    with pytest.raises(ValueError, match="no question of"):
        forgetting_figures([marks({"old": 0.5}), marks({"new": 0.5})], {"old": 0})
    with pytest.raises(ValueError, match="were learnt in rounds"):
        forgetting_figures(rounds, {"old": 2})


def test_the_comparison_is_with_the_frozen_score_where_there_is_one():
    rounds = [marks({"old": 0.5}), marks({"old": 0.5})]
    (told,) = forgetting_figures(rounds, {"old": 0}, then={"old": marks({"old": 0.9})})["non_inferiority"]
    assert told["difference"] == pytest.approx(-0.4)


def test_the_page_shows_every_skill_and_what_was_lost(tmp_path):
    rounds = [marks({"old & gold": 0.9, "new": 0.1}), marks({"old & gold": 0.4, "new": 0.9})]
    told = forgetting_figures(rounds, {"old & gold": 0, "new": 1}, resamples=100)
    page = write_forgetting_report(tmp_path, told, names=("base", "juniper")).read_text()
    assert (
        "<svg" in page
        and "old &amp; gold" in page
        and "Not shown to be kept within 2.0 points: old &amp; gold." in page
    )
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert json.loads((tmp_path / "forgetting.json").read_text())["names"] == ["base", "juniper"]


# --- the store


@pytest.fixture
def frozen(tmp_path, world):
    corpus = subset(world.corpus, [example.contract_id for example in world.val])
    ids = [label.question for label in corpus.labels]
    given = [Mark("juniper", one.id, one.contract_id, float(i % 2)) for i, one in enumerate(ids)]
    store = SuiteStore(tmp_path / "suite")
    return store, corpus, given, store.add("juniper", corpus, given, release="r1", labelled_by="person")


def test_a_skill_comes_back_with_its_test_set_and_its_score_at_the_time(frozen):
    store, corpus, given, skill = frozen
    assert store.skills() == (skill,)
    assert skill.score == pytest.approx(np.mean([mark.right for mark in given]))
    assert marks_then(skill) == given
    assert set(store.corpus(skill).labels) == set(corpus.labels)
    assert store.add("juniper", corpus, given, release="r2", labelled_by="person").release == "r1"


def test_another_test_set_under_the_name_is_refused(frozen, world):
    store, corpus, given, _ = frozen
    other = subset(world.corpus, [example.contract_id for example in world.train])
    theirs = [Mark("juniper", one.question.id, one.question.contract_id, 1.0) for one in other.labels]
    with pytest.raises(StoreError, match="frozen since release 'r1' with another test set"):
        store.add("juniper", other, theirs, release="r2", labelled_by="person")
    assert len(store.skills()) == 1 and set(store.corpus(store.skills()[0]).labels) == set(corpus.labels)


@pytest.mark.parametrize(
    ("name", "was", "told"),
    [("test.json", "juniper", "not the frozen one"), ("skill.json", '"r1"', "not as it was written")],
)
def test_what_was_changed_since_is_refused(frozen, name, was, told):
    store, *_ = frozen
    (path,) = store.folder.glob(f"*/{name}")
    path.write_text(path.read_text().replace(was, was.upper(), 1))
    with pytest.raises(StoreError, match=told):
        store.skills()


def test_labels_of_a_program_and_missing_marks_are_refused(frozen):
    store, corpus, given, _ = frozen
    with pytest.raises(StoreError, match="never by a program"):
        store.add("mine", corpus, given, release="r1", labelled_by="synthetic")
    with pytest.raises(StoreError, match="score each question once"):
        store.add("mine", corpus, given[1:], release="r1", labelled_by="person")
    assert not list(store.folder.glob("mine*"))


# --- abilities and the whole suite


def test_items_are_the_same_again_and_gold_is_right_and_garbage_wrong(speaking):
    items = draw_items(("ashgrove", "kestrel"), 3, seed=1)
    assert items == draw_items(("ashgrove", "kestrel"), 3, seed=1) != draw_items(("ashgrove", "kestrel"), 3, seed=2)
    assert {item["ability"] for item in items} == {"abstain", "judge", "write a question"}
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)

    def scores(say):
        lm = speaking(say)
        found, tally = score_items(lm, items, adapter, threads=2)
        return {name: np.mean([m.right for m in found if m.skill == name]) for name in {m.skill for m in found}}, tally

    told, _ = scores(lambda prompt: gold_of(items, prompt))
    assert told == {"abstain": 1.0, "judge": 1.0, "write a question": 1.0, FORMAT: 1.0}
    told, _ = scores(lambda prompt: "no fields at all")
    assert set(told.values()) == {0.0}
    told, _ = scores(lambda prompt: answers(quotes="none", answer="yes", better="yes", question="why?"))
    assert (told["abstain"], told["judge"], told["write a question"], told[FORMAT]) == (0.0, 0.0, 0.0, 1.0)


def test_a_failed_call_is_no_mark(speaking):
    items = [item for item in draw_items(("ashgrove",), 3) if item["task"] == "review"]
    fails = iter([True] + [False] * 99)
    lm = speaking(lambda prompt: dspy.lm15.ServerError("down") if next(fails) else gold_of(items, prompt))
    found, tally = score_items(lm, items, dspy.ChatAdapter(use_json_adapter_fallback=False), threads=1)
    assert tally.failed == 1 and len(found) == 2 * (len(items) - 1) and all(mark.right for mark in found)


def answers(**fields):
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()), "[[ ## completed ## ]]"])


def gold_of(items, prompt):
    fits = [one for one in items if all(value in prompt for value in one["inputs"].values())]
    item = max(fits, key=lambda one: len(one["inputs"]))  # a comparison holds what a review of the same asks
    if item["task"] == "review":
        return answers(quotes="none", answer=NOT_FOUND)
    if item["task"] == "compare":
        letter = item["gold"]["letter"]
        line = next(line for line in item["inputs"]["candidates"].splitlines() if line.endswith(f"[{letter}]"))
        return answers(quotes="x", better=line)
    question, answer = next(iter(item["gold"]["answers"].items()))
    return answers(question=question, quotes="x", answer=answer)


def test_the_whole_suite_is_scored_on_the_frozen_sets(frozen, world, speaking):
    store, corpus, _, skill = frozen
    items = [item for item in draw_items(("ashgrove",), 2) if item["ability"] == "abstain"]
    store.add_ability("abstain", items, [Mark("abstain", i["id"], i["contract_id"], 1.0) for i in items], release="r0")
    lm = speaking(lambda prompt: world.say(prompt)[0])

    def build(given):
        assert set(given.labels) == set(corpus.labels)
        program = ContractReview(world.index)
        program.set_lm(lm)
        return program

    found, failed = score_suite(store, build, lm, dspy.ChatAdapter(use_json_adapter_fallback=False), threads=2)
    assert failed == 0 and {mark.skill for mark in found} == {"juniper", "abstain"}
    assert len(found) == len(skill.question_ids) + len(items)
    assert np.mean([mark.right for mark in found if mark.skill == "juniper"]) > 0.5
    assert all(mark.abstained is not None for mark in found if mark.skill == "juniper")


def test_marks_of_score_rows_leave_out_failed_calls():
    row = {
        "question_id": "q",
        "contract_id": "c",
        "exact_match": 1.0,
        "found": True,
        "answer": "two words",
        "error": None,
    }
    failed = row | {"exact_match": None, "error": "ServerError: down"}
    assert marks_of("s", [row, failed]) == [Mark("s", "q", "c", 1.0, False, 2)]


def test_prompts_for_replay_hold_the_incumbents_own_questions(world, speaking):
    passages = [Passage(str(i), "c", 0, 9, f"passage  {i}") for i in range(3)]
    said = {"passage 0": answers(question="why\nnought?", quotes="x", answer="y"), "passage 1": "unreadable"}
    empty = answers(question="", quotes="", answer="")
    lm = speaking(lambda prompt: next((text for key, text in said.items() if key in prompt), empty))
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    (prompt,) = own_prompts(passages, adapter, threads=1)(lm)
    assert "why nought?" in prompt[-1]["content"] and "[1] passage 0" in prompt[-1]["content"]
    with pytest.raises(TrainingError, match="no readable question about 1 passages"):
        own_prompts(passages[1:2], adapter, threads=1)(lm)
