"""Facts in the weights: rows that hold no indirect question, and scores closed book and with retrieval."""

import dspy
import pytest

from corpora.synthetic import write_corpus
from corpora.synthetic.facts import fact_questions
from modules.signatures import NOT_FOUND
from program.evaluate import EvaluationError
from program.forgetting.injection import ask_closed_book, ask_with, fact_figures, injection_rows, score_facts

QUESTIONS = fact_questions(write_corpus(["juniper"], 6, seed=4))
ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


def test_rows_say_the_direct_facts_without_passages_and_nothing_indirect():
    rows = injection_rows(QUESTIONS, ADAPTER)
    direct = [question for question in QUESTIONS if question.kind == "direct"]
    assert len(rows) == len(direct)
    for row, question in zip(rows, direct, strict=True):
        *prompt, said = row["messages"]
        assert question.text in prompt[-1]["content"] and "[1]" not in prompt[-1]["content"]
        assert (
            ADAPTER.parse(dspy.Signature("passages, question -> quotes, answer"), said["content"])["answer"]
            == question.answer
        )
        assert row["group"] == question.contract_ids[0]
    told = "\n".join(row["messages"][-2]["content"] for row in rows)
    assert not any(question.text in told for question in QUESTIONS if question.kind == "indirect")
    with pytest.raises(ValueError, match="is direct"):
        injection_rows([question for question in QUESTIONS if question.kind == "indirect"], ADAPTER)


def test_gold_is_all_right_and_silence_all_wrong(speaking):
    gold = {question.text: question.answer for question in QUESTIONS}

    def say(prompt):
        return f"[[ ## quotes ## ]]\nnone\n\n[[ ## answer ## ]]\n{next(a for q, a in gold.items() if q in prompt)}"

    told = fact_figures(score_facts(ask_closed_book(speaking(say)), QUESTIONS, threads=2))
    assert told["direct"]["mean"] == told["indirect"]["mean"] == 1.0
    assert {"direct: Expiration Date", "indirect: same law"} <= set(told)
    empty = score_facts(ask_closed_book(speaking(lambda prompt: "nothing to read")), QUESTIONS, threads=2)
    assert not any(mark.right for mark in empty)
    absent = score_facts(lambda question: NOT_FOUND, QUESTIONS)
    assert all(mark.abstained and not mark.right for mark in absent)


def test_with_retrieval_the_program_is_asked_over_all_contracts():
    asked = []

    def program(question, contract_id=None):
        asked.append((question, contract_id))
        return dspy.Prediction(answer="yes")

    marks = score_facts(ask_with(program), QUESTIONS, threads=1)
    assert asked == [(question.text, None) for question in QUESTIONS]
    assert {mark.right for mark in marks if mark.skill == "indirect: still running"} <= {0.0, 1.0}


def test_failed_calls_are_no_marks_and_many_are_an_error():
    fails = iter([True] + [False] * 999)

    def ask(question):
        if next(fails):
            raise ConnectionError("down")
        return question.answer

    marks = score_facts(ask, QUESTIONS, threads=1)
    assert len(marks) == 2 * (len(QUESTIONS) - 1) and all(mark.right for mark in marks)

    def down(question):
        raise ConnectionError("down")

    with pytest.raises(EvaluationError, match="questions on facts failed"):
        score_facts(down, QUESTIONS, threads=1)
