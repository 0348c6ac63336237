"""Facts of new contracts put into the weights: rows to learn them from, and questions that show whether they are there.

    questions = fact_questions(corpus)                               # corpora/synthetic/facts.py
    rows = injection_rows(questions, adapter)                        # direct questions only, without any passage
    marks = score_facts(ask_closed_book(lm), questions)              # by kind: direct, indirect
    marks = score_facts(ask_with(ContractReview(index)), questions)  # the same with retrieval

Indirect questions are never among the rows: what follows from a fact is asked of who learnt the fact. Closed book and
with retrieval have one prompt, the reviewer's, with and without passages, so any LM that reviews can be asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from corpora.synthetic.facts import FactQuestion
from modules.reviewer import is_absent
from modules.signatures import ReviewPassages, join_quotes, number_passages
from optimizers.parallel import in_parallel
from program.evaluate import MAX_FAILED_SHARE, EvaluationError
from program.forgetting.skills import Mark
from program.intervals import mean_interval
from program.metrics import exact_match

Ask = Callable[[FactQuestion], str]


def injection_rows(questions: Sequence[FactQuestion], adapter: dspy.Adapter) -> list[dict[str, Any]]:
    """Training rows of method "sft" (a conversation each) that say the direct facts closed book.

    "group" is the contract, so that a validation split keeps one together. Raises ValueError where none is direct.
    """
    direct = [question for question in questions if question.kind == "direct"]
    if not direct:
        raise ValueError(f"none of {len(questions)} questions is direct; facts are learnt from direct ones")
    rows = []
    for question in direct:
        messages = adapter.format(ReviewPassages, [], _closed(question))
        said = adapter.format_assistant_message_content(
            ReviewPassages, {"quotes": join_quotes([question.answer]), "answer": question.answer}
        )
        rows.append(
            {"messages": [*messages, {"role": "assistant", "content": said}], "group": question.contract_ids[0]}
        )
    return rows


def ask_closed_book(lm: dspy.LM) -> Ask:
    """A function of a question to the answer that `lm` gives without any passage; "" where it cannot be read."""
    predict = dspy.Predict(ReviewPassages)
    predict.set_lm(lm)

    def ask(question: FactQuestion) -> str:
        try:
            return predict(**_closed(question)).answer or ""
        except AdapterParseError:
            return ""

    return ask


def ask_with(program: dspy.Module) -> Ask:
    """A function of a question to the answer of a review program, which retrieves from all contracts of its index."""
    return lambda question: program(question=question.text).answer or ""


def score_facts(ask: Ask, questions: Sequence[FactQuestion], *, threads: int = 16) -> list[Mark]:
    """Marks by kind ("direct", "indirect") and by what is asked ("indirect: same law"), a pair of marks a question.

    A question is marked with its first contract. A call that raises is no mark; EvaluationError where those are above
    a fifth.
    """

    def call(question: FactQuestion) -> tuple[str | None, Exception | None]:
        try:
            return ask(question), None
        except Exception as error:  # whatever it was: counted below, never scored
            return None, error

    said = in_parallel(call, questions, threads=threads, progress=False)
    failed = [error for _, error in said if error is not None]
    if len(failed) > MAX_FAILED_SHARE * len(questions):
        raise EvaluationError(
            f"{len(failed)} of {len(questions)} questions on facts failed (limit {MAX_FAILED_SHARE:.0%}); the first: "
            f"{type(failed[0]).__name__}: {failed[0]}"
        ) from failed[0]
    marks = []
    for question, (answer, _) in zip(questions, said, strict=True):
        if answer is not None:
            told = (question.id, question.contract_ids[0], float(exact_match(answer, question.answer)))
            told += (is_absent(answer), len(answer.split()))
            marks += [Mark(name, *told) for name in (question.kind, f"{question.kind}: {question.about}")]
    return marks


def fact_figures(marks: Sequence[Mark]) -> dict[str, Mapping[str, Any]]:
    """Share right by kind and by what is asked, with 95% intervals over contracts."""
    by_skill: dict[str, list[Mark]] = {}
    for mark in marks:
        by_skill.setdefault(mark.skill, []).append(mark)
    found = {
        name: mean_interval([m.right for m in some], [m.contract_id for m in some]) for name, some in by_skill.items()
    }
    return {name: {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n} for name, one in found.items()}


def _closed(question: FactQuestion) -> dict[str, str]:
    return {"passages": number_passages([]), "question": question.text}
