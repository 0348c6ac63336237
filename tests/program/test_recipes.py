from dataclasses import replace

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune
from dspy.teleprompt.teleprompt import Teleprompter
from dspy.utils import DummyLM

from modules.signatures import NOT_FOUND, REVIEW_TASKS
from optimizers.errors import TrainingError
from optimizers.instruct import InstructTune
from optimizers.row_shapes import KINDS
from program import recipes
from program.config import CompileConfig, ConfigError
from program.recipes import Questions, Stage, build_optimizers, chosen, run_recipe

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
CONFIG = CompileConfig("c.json", recipe="p -> s", threads=1)


class Skilled(dspy.Module):
    """Answers as many questions right as its skill says, without asking an LM."""

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.predict.lm = dspy.LM("openai/never-asked", api_key="none")
        self.skill = 1

    def forward(self, question):
        right = int(question) < self.skill
        return dspy.Prediction(answer="yes" if right else NOT_FOUND, found=right)


class Raise(Teleprompter):
    """Adds to the skill."""

    def __init__(self, by):
        super().__init__()
        self.by, self.teachers = by, []

    def compile(self, student, trainset, teacher=None, valset=None):
        better = student.deepcopy()
        better.skill += self.by
        self.teachers.append(teacher)
        return better


class Fail(Teleprompter):
    def compile(self, student, trainset, teacher=None, valset=None):
        raise MemoryError("no room for the weights")


def _run(monkeypatch, **steps):
    examples = [dspy.Example(question=str(i), answer="yes").with_inputs("question") for i in range(8)]
    monkeypatch.setattr(recipes, "build_optimizers", lambda *_, **__: {"r": Raise(0), **steps})
    questions = Questions(examples, examples, all_train=examples * 2, all_val=examples * 3)
    return run_recipe(Skilled(), CONFIG, ADAPTER, questions=questions, teacher=Skilled(), retrieval=None)


def test_rows_are_varied_only_where_the_config_says():
    assert build_optimizers(CONFIG, ADAPTER, None)["s"].shapes is None
    shapes = build_optimizers(replace(CONFIG, varied_rows=0.3, seed=4), ADAPTER, None)["s"].shapes
    assert [round(getattr(shapes, kind), 6) for kind in KINDS] == [0.1] * 3
    assert shapes.tasks == REVIEW_TASKS and shapes.seed == 4
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="varied_rows"):
            replace(CONFIG, varied_rows=wrong)


def test_the_stages_come_in_order_with_their_validation_scores(monkeypatch):
    prompts, weights = Raise(3), Raise(-2)
    stages = _run(monkeypatch, p=prompts, s=weights)
    assert [(stage.recipe, stage.validation_score) for stage in stages] == [("", 12.5), ("p", 50.0), ("p -> s", 25.0)]
    assert [stage.program.skill for stage in stages] == [1, 4, 2]
    assert chosen(stages).recipe == "p"
    # The labels teach the weights; demonstrations are the program's own traces.
    assert prompts.teachers == [None] and isinstance(weights.teachers[0], Skilled)


@pytest.mark.parametrize("failing", ["p", "s"])
def test_a_step_that_fails_stops_the_recipe(monkeypatch, failing):
    with pytest.raises(TrainingError, match="no room for the weights") as caught:
        _run(monkeypatch, **({"p": Raise(3), "s": Raise(1)} | {failing: Fail()}))
    assert isinstance(caught.value.__cause__, MemoryError)


def test_of_equals_the_earliest_is_chosen():
    stages = [Stage("", None, 40.0), Stage("p", None, 60.0), Stage("p -> s", None, 60.0)]
    assert chosen(stages).recipe == "p"


def test_an_unknown_step_is_refused():
    with pytest.raises(ConfigError, match=r"\['q'\]"):
        build_optimizers(CompileConfig("c.json", recipe="p -> q"), ADAPTER, None)
    assert set(build_optimizers(CONFIG, ADAPTER, None)) == set(recipes.STEPS)


class Ask(dspy.Module):
    def __init__(self, wording="Answer."):
        super().__init__()
        self.predict = dspy.Predict(dspy.Signature("question -> answer", wording))

    def forward(self, question):
        return self.predict(question=question)


def _rows(monkeypatch, exclude_demos):
    """The training rows of a student with its own wording and a demonstration, taught by a teacher without them."""
    taken = []

    def keep(finetune_dict):
        taken.extend(row for job in finetune_dict.values() for row in job["train_data"])
        return {key: dspy.LM("openai/tuned", api_key="none") for key in finetune_dict}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(keep))
    student, teacher = Ask("Answer like a pirate."), Ask()
    student.set_lm(dspy.LM("openai/never-asked", api_key="none"))
    student.predict.demos = [dspy.Example(question="Where is the gold?", answer="Arr.")]
    teacher.set_lm(DummyLM([{"answer": "Aye."}]))
    tuner = InstructTune(adapter=ADAPTER, exclude_demos=exclude_demos, num_threads=1)
    trainset = [dspy.Example(question="Ahoy?").with_inputs("question")]
    with dspy.context(adapter=ADAPTER):
        tuned = tuner.compile(student, trainset=trainset, teacher=teacher)
    (row,) = taken
    return row["messages"], tuned


def test_rows_are_rendered_with_the_students_wording_and_demonstrations(monkeypatch):
    messages, tuned = _rows(monkeypatch, exclude_demos=False)
    assert "Answer like a pirate." in messages[0]["content"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert "Where is the gold?" in messages[1]["content"] and "Aye." in messages[-1]["content"]
    assert tuned.predict.demos


def test_rows_and_student_go_without_demonstrations_where_they_are_excluded(monkeypatch):
    messages, tuned = _rows(monkeypatch, exclude_demos=True)
    assert "Answer like a pirate." in messages[0]["content"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"] and not tuned.predict.demos


def test_prompts_are_searched_on_the_programs_own_weights():
    tuned, base = DummyLM([{"answer": "yes"}] * 99), DummyLM([{"answer": "no"}] * 99)
    student = dspy.Predict("question -> answer")
    student.lm = tuned
    examples = [dspy.Example(question=str(i), answer="yes", found=True).with_inputs("question") for i in range(4)]
    prompts = build_optimizers(CONFIG, ADAPTER, None)["p"]
    prompts.metric = lambda example, prediction, trace=None: prediction.answer == example.answer
    with dspy.context(lm=base, adapter=ADAPTER):
        best = prompts.compile(student, trainset=examples, valset=examples)
    assert best.lm is tuned and tuned.history and not base.history
