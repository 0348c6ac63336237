"""Which of two answers is better: by a verdict that follows a quote, and by the likelihood of each answer.

The likelihood needs no comparing: a model that can answer can judge with it. Both are asked over the same passages.
"""

import re
from collections.abc import Callable, Sequence

import dspy

from corpora.types import Passage
from modules.signatures import CompareAnswers, ReviewPassages, list_candidates, number_passages

Score = Callable[[list[dict[str, str]], list[str]], list[float]]
_LETTER = re.compile(r"\[([AB])\]\s*$")


class JudgeError(ValueError):
    """A verdict that cannot be read. It is never counted for either side."""


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
