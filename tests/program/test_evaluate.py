import threading

import dspy
import pytest

from program.evaluate import EvaluationError, score_program


def _examples(n):
    return [
        dspy.Example(
            question=f"{i}?", contract_id="c", question_id=f"c__{i}", category="k", answer="yes", quotes=["yes"]
        ).with_inputs("question", "contract_id")
        for i in range(n)
    ]


def _program(n_failing, calls=None):
    def ask(question, contract_id):
        if calls is not None:
            calls.append(question)
        if int(question[:-1]) < n_failing:
            raise TimeoutError("no answer")
        return dspy.Prediction(answer="yes", quotes=(), found=True, confidence=0.5)

    return ask


def test_every_call_is_a_row_and_a_failed_one_has_no_score():
    calls = []
    rows = score_program(_program(2, calls), _examples(10), "base", threads=3, progress=False)
    assert [row["question_id"] for row in rows] == [f"c__{i}" for i in range(10)]
    assert sorted(calls) == sorted(row["question"] for row in rows)  # none was sent twice
    assert [row["error"] for row in rows] == ["TimeoutError: no answer"] * 2 + [None] * 8
    assert [row["exact_match"] for row in rows] == [None] * 2 + [1.0] * 8
    assert all(row["stage"] == "base" and row["seconds"] >= 0 for row in rows)


def test_more_than_a_fifth_failed_is_no_score():
    with pytest.raises(EvaluationError, match=r"'base': 3 of 10 calls failed \(limit 20%\).*TimeoutError: no answer"):
        score_program(_program(3), _examples(10), "base", threads=2, progress=False)


def test_questions_are_asked_at_the_same_time():
    together = threading.Barrier(2, timeout=20)

    def ask(question, contract_id):
        together.wait()
        return dspy.Prediction(answer="no", quotes=(), found=True, confidence=None)

    rows = score_program(ask, _examples(2), "p", threads=2, progress=False)
    assert [(row["error"], row["exact_match"]) for row in rows] == [(None, 0.0)] * 2
