"""Passages and a question in; a short answer with verbatim quotes out, or "not in this contract"."""

import math
from collections.abc import Sequence

import dspy
from dspy.utils.exceptions import AdapterParseError

from corpora.types import Passage, Quote
from modules.grounding import locate
from modules.signatures import NO_QUOTE, NOT_FOUND, ReviewPassages, number_passages


class Reviewer(dspy.Module):
    """Reads passages for the answer to one question; one predictor, `predict`, for optimizers to move."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(ReviewPassages)

    def forward(self, question: str, passages: Sequence[Passage], **call: object) -> dspy.Prediction:
        """`Prediction(answer, quotes, found, confidence, readable, n_dropped_quotes)`.

        `quotes` is a tuple of `Quote` with offsets into the contract; a quote that is not in the passages is dropped
        and
        counted. `confidence` is the probability of the least certain token of the completion, in [0, 1], None where the
        LM gives no log probabilities. An answer without any quote has confidence 0. A completion that cannot be read is
        `readable=False` with the answer "": wrong, and never "not in this contract". `call` goes to `dspy.Predict`.
        """
        # In the contract's order: the rank carries nothing once the passages are chosen, and clauses read on.
        passages = sorted(passages, key=lambda p: (p.contract_id, p.start))
        try:
            said = self.predict(passages=number_passages([p.text for p in passages]), question=question, **call)
        except AdapterParseError:
            return dspy.Prediction(answer="", quotes=(), found=True, confidence=0.0, readable=False, n_dropped_quotes=0)
        answer = " ".join((said.answer or "").split())
        confidence = least_certain(said)
        if is_absent(answer):
            return dspy.Prediction(
                answer=NOT_FOUND, quotes=(), found=False, confidence=confidence, readable=True, n_dropped_quotes=0
            )
        quotes, n_dropped = ground(said.quotes or "", answer, passages)
        return dspy.Prediction(
            answer=answer, quotes=quotes, found=True, confidence=confidence if quotes else 0.0, readable=True,
            n_dropped_quotes=n_dropped,
        )  # fmt: skip


def is_absent(answer: str) -> bool:
    """Whether an answer says "not in this contract", give or take case and a full stop."""
    return answer.strip().rstrip(".").casefold() == NOT_FOUND


def ground(said: str, answer: str, passages: Sequence[Passage]) -> tuple[tuple[Quote, ...], int]:
    """The quotes (one a line of `said`) that stand in the passages, and how many do not.

    Where none does, the answer itself is the quote if it stands there.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip() and line.strip() != NO_QUOTE]
    places = [locate(line, passages) for line in lines]
    kept = tuple(dict.fromkeys(place for place in places if place))
    if not kept and answer:
        place = locate(answer, passages)
        kept = (place,) if place else ()
    return kept, sum(place is None for place in places)


def least_certain(said: dspy.Prediction) -> float | None:
    """Probability of the completion's least certain token, in [0, 1]; None where there are no log probabilities."""
    logprobs = getattr(said, "logprobs", None)
    content = getattr(logprobs, "content", logprobs) if not isinstance(logprobs, dict) else logprobs.get("content")
    values = [token["logprob"] if isinstance(token, dict) else token.logprob for token in content or []]
    return math.exp(min(values)) if values else None
