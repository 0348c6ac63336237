"""Modules that write labels: a question about a passage, and a question in other words; their prompts compile too.

What answers a known question on an unlabelled contract is the reviewing program itself, and what carries a label over
to near-identical wording is `modules.projection`; neither needs a module of its own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from corpora.types import Contract, Label, Passage, Question, Span
from modules.grounding import locate
from modules.reviewer import ground
from modules.signatures import WRITE_TASKS, CheckLabel, RewordQuestion, WriteQuestion, going_on, join_quotes


class WriteLabel(dspy.Module):
    """Writes a question that a passage answers, with quotes and short answer; one predictor, `predict`.

    `task` is how it is asked to, one of WRITE_TASKS or your own. Demonstrations on the predictor are people's labels;
    `demonstrations` makes them.
    """

    def __init__(self, task: str = WRITE_TASKS[0]) -> None:
        super().__init__()
        self.predict = dspy.Predict(WriteQuestion.with_instructions(task))

    def forward(self, passage: Passage, before: Sequence[Mapping[str, Any]] = (), **call: object) -> dspy.Prediction:
        """`Prediction(question, answer, quotes)`; `quotes` as of `Reviewer`. AdapterParseError for what cannot be read.

        `before` are earlier turns about the passage (what `turn` makes of a prediction): the conversation goes on, to
        ask something else. `call` goes to `dspy.Predict`.
        """
        shown = " ".join(passage.text.split())
        if before:
            turns = [{"passage": shown, **turn} for turn in before]
            call = {**call, "signature": going_on(self.predict.signature), "history": dspy.History(messages=turns)}
        said = self.predict(passage=shown, **call)
        answer = " ".join((said.answer or "").split())
        quotes, _ = ground(said.quotes or "", answer, [passage])
        return dspy.Prediction(question=" ".join((said.question or "").split()), answer=answer, quotes=quotes)


def turn(written: dspy.Prediction) -> dict[str, str]:
    """What `WriteLabel` said, as an earlier turn of the conversation that it goes on with."""
    quotes = join_quotes([quote.text for quote in written.quotes])
    return {"question": written.question, "quotes": quotes, "answer": written.answer}


class Reword(dspy.Module):
    """Asks the same in other words; one predictor, `predict`."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(RewordQuestion)

    def forward(self, question: str, **call: object) -> dspy.Prediction:
        """`Prediction(question)`. AdapterParseError for what cannot be read; `call` goes to `dspy.Predict`."""
        said = self.predict(question=question, **call)
        return dspy.Prediction(question=" ".join((said.reworded or "").split()))


class Check(dspy.Module):
    """Judges whether quotes answer a question, and whether the answer keeps to them; one predictor, `predict`."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(CheckLabel)

    def forward(self, question: str, quotes: Sequence[str], answer: str, **call: object) -> dspy.Prediction:
        """`Prediction(faithful, answerable)`, bool both. AdapterParseError for a verdict that cannot be read."""
        said = self.predict(question=question, quotes=join_quotes(list(quotes)), answer=answer, **call)
        return dspy.Prediction(faithful=bool(said.faithful), answerable=bool(said.answerable))


def demonstrations(labels: Sequence[Label], contracts: dict[str, Contract], passages: Sequence[Passage]) -> list:
    """People's labels as demonstrations of `WriteLabel`, each on the first of `passages` that holds all its quotes.

    Labels without spans, and those that no passage holds, are left out.
    """
    made = []
    for label in labels:
        text = contracts[label.question.contract_id].text
        quotes = [text[span.start : span.end] for span in label.spans]
        own = [p for p in passages if p.contract_id == label.question.contract_id]
        passage = next((p for p in own if quotes and all(locate(quote, [p]) for quote in quotes)), None)
        if passage is not None:
            answer = label.answer or ", ".join(quotes)
            made.append(
                dspy.Example(
                    passage=" ".join(passage.text.split()), question=label.question.text,
                    quotes=join_quotes(quotes), answer=" ".join(answer.split()),
                ).with_inputs("passage")
            )  # fmt: skip
    return made


def label_of(question: Question, prediction: dspy.Prediction) -> Label:
    """The label that a prediction is of `question`: its quotes' places in document order, and its answer.

    A prediction of "not in this contract" (`found` False) is a label without spans.
    """
    if not prediction.get("found", True):
        return Label(question, ())
    spans = sorted({(quote.start, quote.end) for quote in prediction.quotes})
    return Label(question, tuple(Span(*span) for span in spans), prediction.answer)


def prompt_version(program: dspy.Module) -> str:
    """A hash of the instructions, fields and demonstrations of all predictors: what a label was made under."""
    told = [
        (name, predictor.signature.instructions, sorted(predictor.signature.fields), [dict(d) for d in predictor.demos])
        for name, predictor in program.named_predictors()
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
