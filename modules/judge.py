"""What a judge is asked and says, and what the bundled base was trained for: a verdict behind a quote, and likelihood.

The likelihood needs no comparing: a model that can answer can judge with it. Both are asked over the same passages.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import dspy

from corpora.types import Passage
from modules.signatures import CompareAnswers, ReviewPassages, list_candidates, number_passages

Score = Callable[[list[dict[str, str]], list[str]], list[float]]
_LETTER = re.compile(r"\[([AB])\]\s*$")


class JudgeError(ValueError):
    """A verdict that cannot be read. It is never counted for either side."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question and the passages that answers are judged by; `reference` is the gold answer, None where none is."""

    question: str
    passages: tuple[Passage, ...]
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer as a review says it: `NOT_FOUND` for absence; `quotes` as the reviewer gave them, maybe none."""

    answer: str
    quotes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """How good one candidate is: `score` in [0, 1], why in a sentence, and words of the passages ("" where none bear).

    `points` are (point, verdict) pairs of a judge that takes an answer apart; empty for the others.
    """

    score: float
    reason: str
    quote: str
    points: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two candidates is better: `winner` "A", "B" or "tie".

    `margin` is above 0 for A, in nats or as a difference of scores (the judge says which), None where the judge gives
    none. `stable` is False where the judge said otherwise with the two exchanged; `winner` is then "tie".
    """

    winner: str
    margin: float | None
    stable: bool
    reason: str
    quote: str


class Judge(Protocol):
    """What grades one candidate and compares two; both raise JudgeError where a verdict cannot be read."""

    def grade(self, case: Case, candidate: Candidate) -> Grade: ...

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict: ...


class Compare(dspy.Module):
    """Quotes the passages, then copies the better of two answers with its letter; one predictor, `predict`."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(CompareAnswers)

    def forward(self, question: str, passages: Sequence[Passage], answer_a: str, answer_b: str) -> dspy.Prediction:
        """`Prediction(better, quotes)` with `better` "A" or "B"; JudgeError where the verdict names neither."""
        said = self.predict(
            passages=number_passages([p.text for p in passages]),
            question=question,
            candidates=list_candidates(answer_a, answer_b),
        )
        return dspy.Prediction(better=read_verdict(said.better), quotes=said.quotes)


def read_verdict(said: str) -> str:
    """The letter at the end of a verdict; JudgeError where there is none."""
    match = _LETTER.search(said or "")
    if not match:
        raise JudgeError(f"the verdict {said!r} does not end in [A] or [B]; ask again or leave the pair out")
    return match.group(1)


def likelihood_margin(
    score: Score,
    adapter: dspy.ChatAdapter,
    question: str,
    passages: Sequence[Passage],
    quotes: str,
    answers: tuple[str, str],
) -> float:
    """log P(first answer) − log P(second), in nats, each under the reviewer's prompt and behind the same quotes.

    `score(messages, completions)` gives the log probability of each completion (a local LM's `engine.score`);
    `quotes` is the reviewer's own `quotes` field for the question. Above 0 the first answer is the better one.
    """
    inputs = {"passages": number_passages([p.text for p in passages]), "question": question}
    messages = adapter.format(ReviewPassages, demos=[], inputs=inputs)
    completions = [
        adapter.format_assistant_message_content(ReviewPassages, {"quotes": quotes, "answer": answer})
        for answer in answers
    ]
    first, second = score(messages, completions)
    return first - second
