"""Lessons in turn: what each starts from, what its guard may replay, what is scored and what it cost."""

import json

import dspy
import pytest

from optimizers.errors import TrainingError
from optimizers.local_lm import local_lm
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.forgetting import sequence
from program.forgetting.sequence import Lesson, learn_in_turn

QUIET = {"progress": False, "max_steps": 1, "rank": 2, "batch_size": 2}


@pytest.fixture
def setting(world, tiny_model, tmp_path):
    """A program on a random model, and three skills that share the labels of five contracts."""
    program = ContractReview(world.index, 1)
    program.set_lm(local_lm(tiny_model(), work_dir=tmp_path, max_tokens=8))
    absent = [example for example in world.train if not example.found]
    lessons = [Lesson(name, absent[i : i + 2], world.val[i : i + 2]) for i, name in enumerate(("old", "a", "b"))]
    with dspy.context(adapter=build_adapter()):
        yield program, lessons


def _parent(lm):
    engine = lm.engine
    told = (engine.adapters_dir / engine.adapter_of(lm.model) / "training.json").read_text()
    return json.loads(told)["parent"]


def test_each_lesson_goes_on_from_the_last_and_its_guard_knows_all_before(setting, monkeypatch):
    program, lessons = setting
    given = []
    stock = sequence.review_guard

    def noted(word, program, earlier, *args, **options):
        given.append((program, list(earlier)))
        return stock(word, program, earlier, *args, **options)

    monkeypatch.setattr(sequence, "review_guard", noted)
    done = learn_in_turn(
        program, lessons[0], lessons[1:], "replay_labels", build_adapter(), QUIET, threads=2, share=0.3
    )
    assert done.learnt == {"old": 0, "a": 1, "b": 2}
    assert [len(earlier) for _, earlier in given] == [2, 4]
    assert [each for each, _ in given] == done.programs[:2] and done.programs[0] is program
    lms = [each.reviewer.predict.lm for each in done.programs]
    assert lms[0].engine.adapter_of(lms[0].model) is None
    assert [_parent(lm) for lm in lms[1:]] == [None, lms[1].engine.adapter_of(lms[1].model)]
    asked = {(lesson.name, example.question_id) for lesson in lessons for example in lesson.test}
    assert all({(mark.skill, mark.question_id) for mark in marks} == asked for marks in done.rounds)
    assert len(done.rounds) == 3 and len(done.seconds) == 2
    assert [(cost.steps, cost.rows) for cost in done.costs] == [(1, 3), (1, 3)]  # two of the lesson's, one replayed


def test_a_guard_that_is_not_known_is_refused_before_training(setting):
    program, lessons = setting
    with pytest.raises(TrainingError, match="'ewc' is not known"):
        learn_in_turn(program, lessons[0], lessons[1:], "ewc", build_adapter(), QUIET, threads=2)
    assert not list(program.reviewer.predict.lm.engine.adapters_dir.glob("*"))
