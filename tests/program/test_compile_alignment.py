"""Whole runs whose recipe has a step `a` or `d`: what they learn from, what they leave behind, what they refuse."""

import json
from dataclasses import replace
from types import SimpleNamespace

import dspy
import pytest

from corpora.synthetic import write_corpus
from corpora.types import Contract, Corpus, Passage
from modules.judge import Grade, JudgeError, Verdict
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, number_passages
from optimizers.errors import TrainingError
from program import compile as compile_module
from program.compile import build_adapter, compile, read_split
from program.config import ConfigError
from program.examples import to_examples
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.pairs import sources
from program.pairs.contrast import Contrasted
from program.pairs.from_feedback import FeedbackPreferences
from program.pairs.sources import RecipePreferences, contracts_apart, recipe_preferences
from program.pairs.texts import review_text


@pytest.fixture
def setting(tmp_path, small_corpus, tiny_model, small_config):
    """A config, its split, and a store in which every contract's answer was corrected once."""
    small_corpus(tmp_path / "c.json", n_contracts=8)
    config = small_config(
        tmp_path / "c.json", tiny_model(), tmp_path / "run", recipe="a", feedback=str(tmp_path / "feedback.db")
    )
    split = read_split(config, print)
    with FeedbackStore.open(config.feedback) as store:
        for contract in (*split.train.contracts, *split.val.contracts, *split.test.contracts):
            _corrected(store, contract)
    return config, split


def _corrected(store: FeedbackStore, contract: Contract) -> None:
    quote = " ".join(contract.text[:40].split())
    inputs = (("passages", number_passages([contract.text[:200]])), ("question", "What is it?"))
    text = review_text(build_adapter(), Reviewer().predict.signature, [], NOT_FOUND)
    answered = store.answer(
        store.ask("What is it?", contract), Said(NOT_FOUND, False, inputs=inputs, completion=text, release="r")
    )
    store.correct(answered.id, found=True, answer=quote, by="Ada")


def test_what_is_learnt_is_about_training_contracts_alone_and_is_left_with_the_run(setting, monkeypatch):
    config, split = setting
    monkeypatch.setattr(compile_module, "chosen", lambda stages: stages[-1])
    result = compile(config, progress=False, say=lambda line: None)
    assert result.recipe == "a"
    kept = [json.loads(line) for line in (result.path / "preferences.jsonl").read_text().splitlines()]
    assert {one["group"] for one in kept} == {contract.id for contract in split.train.contracts}
    assert {one["source"] for one in kept} == {"edit"}
    assert [stage["recipe"] for stage in json.loads((result.path / "stages.json").read_text())] == ["base", "a"]


def test_contracts_that_are_nearly_held_out_are_apart(setting, tmp_path):
    config, split = setting
    held_out = Corpus("held out", split.test.contracts, ())
    restated = replace(split.test.contracts[0], id="restated", text=split.test.contracts[0].text + " Signed.")
    with FeedbackStore.open(config.feedback) as store:
        _corrected(store, restated)
        apart = contracts_apart(store, held_out)
    assert apart == {"restated", *(contract.id for contract in split.test.contracts)}
    with recipe_preferences(config, split, tmp_path, build_adapter()) as preferences:
        program = dspy.Module()
        program.reviewer = Reviewer()
        groups = {one.group for one in preferences.make(program, [], [], 1)}
    assert groups == {contract.id for contract in split.train.contracts}


def test_good_answers_are_contrasted_where_the_config_says_so(setting, tmp_path):
    config, split = setting
    with recipe_preferences(config, split, tmp_path, build_adapter()) as preferences:
        assert isinstance(preferences.feedback, FeedbackPreferences)
    config = replace(config, preference_contrast=3)
    with recipe_preferences(config, split, tmp_path, build_adapter()) as preferences:
        assert (preferences.feedback.samples, preferences.feedback.threads) == (3, config.threads)
        assert isinstance(preferences.feedback, Contrasted)
    for wrong in ({"preference_contrast": -1}, {"preference_max_kl": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replace(config, **wrong)


class Judge:
    """Knows, or never knows, the gold answers of the contracts it is measured on."""

    def __init__(self, corpus: Corpus, right: bool) -> None:
        self.gold = {(e.contract_id, e.question, " ".join(e.answer.split())) for e in to_examples(corpus)}
        self.right = right

    def grade(self, case, candidate):
        return Grade(1.0, "", "")

    def compare(self, case, a, b):
        contract_id = case.passages[0].contract_id
        known = [(contract_id, case.question, each.answer) in self.gold for each in (a, b)]
        winner = "tie" if known[0] == known[1] else "A" if known[0] == self.right else "B"
        return Verdict(winner, None, True, "", "")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """`measured(right, **given)` are preferences by a judge, of a program that always retrieves the opening."""
    choosing = write_corpus(["juniper"], 6, seed=4)
    program = dspy.Module()
    program.reviewer = Reviewer()
    texts = {contract.id: contract.text for contract in choosing.contracts}

    def opening(contract_id, **_):
        return dspy.Prediction(passages=[Passage("p", contract_id, 0, 200, texts[contract_id][:200])])

    program.retrieve = opening

    def make(right: bool, **given):
        monkeypatch.setattr(sources, "make_judge", lambda name, program: Judge(choosing, right))
        monkeypatch.setattr(sources.JudgedRollouts, "make", lambda self, *_: [f"by {type(self.judge).__name__}"])
        return RecipePreferences(choosing, tmp_path, judge="likelihood", **given).make(program, [], [], 1)

    return make


def test_a_judge_is_measured_before_it_makes_pairs(measured, tmp_path, caplog):
    with pytest.raises(JudgeError, match="may train nothing"):
        measured(False)
    assert json.loads((tmp_path / "judge" / "judge_report.json").read_text())["trusted"] is not True
    assert measured(True) == ["by TrustedJudge"]
    feedback = SimpleNamespace(make=lambda *_: [SimpleNamespace(group="a"), SimpleNamespace(group="b")])
    said = measured(False, feedback=feedback, apart=frozenset(["b"]))
    assert [one.group for one in said] == ["a"] and "the judge makes no pairs" in caplog.text


def test_labels_too_few_to_measure_a_judge_on_end_a_run_without_feedback(setting):
    config, _ = setting
    with pytest.raises(TrainingError, match="gave no wrong answer"):
        compile(replace(config, feedback=None, judge="likelihood"), progress=False, say=lambda line: None)


def test_a_step_without_anything_to_learn_from_is_refused_before_anything_is_made(setting, tmp_path):
    config, _ = setting
    with pytest.raises(ConfigError, match="step a, which learns from preferences"):
        compile(replace(config, feedback=None), progress=False)
    with pytest.raises(ConfigError, match="there is no feedback store"):
        compile(replace(config, feedback=str(tmp_path / "none.db")), progress=False)
    assert not (tmp_path / "none.db").exists() and not (tmp_path / "run").exists()


def test_distillation_that_would_not_pay_leaves_the_program_as_it_was(setting):
    config, _ = setting
    result = compile(replace(config, recipe="d", feedback=None), progress=False, say=lambda line: None)
    stages = json.loads((result.path / "stages.json").read_text())
    assert [stage["recipe"] for stage in stages] == ["base", "d"]
    assert stages[0]["validation_score"] == stages[1]["validation_score"]
