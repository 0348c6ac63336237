"""Reviews as the texts that a model writes, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from corpora.types import Passage
from modules.judge import Candidate, Case
from modules.reviewer import is_absent
from modules.signatures import NO_QUOTE, NOT_FOUND, join_quotes
from optimizers.errors import TrainingError

FIELDS = {"quotes", "answer"}


def review_text(adapter: dspy.Adapter, signature: type[dspy.Signature], quotes: Sequence[str], answer: str) -> str:
    """What a model would write that quotes and answers so. TrainingError for a signature with other output fields."""
    if set(signature.output_fields) != FIELDS:
        raise TrainingError(
            f"no answer can be written for output fields {sorted(signature.output_fields)}, only for {sorted(FIELDS)}; "
            "leave the corrections of this predictor out"
        )
    told = {"quotes": join_quotes(list(quotes)), "answer": " ".join(answer.split())}
    return adapter.format_assistant_message_content(signature, told)


def read_review(adapter: dspy.Adapter, signature: type[dspy.Signature], text: str) -> Candidate | None:
    """The answer and quotes of what a model wrote; None where it cannot be read."""
    try:
        fields = adapter.parse(signature, text)
    except AdapterParseError:
        return None
    answer = " ".join(str(fields.get("answer") or "").split())
    lines = (" ".join(line.split()) for line in str(fields.get("quotes") or "").splitlines())
    quotes = tuple(line for line in lines if line and line != NO_QUOTE)
    return Candidate(NOT_FOUND, ()) if is_absent(answer) else Candidate(answer, quotes)


def shown_case(inputs: Mapping[str, Any]) -> Case:
    """The case that a prompt shows: its numbered passages as one."""
    text = str(inputs["passages"])
    return Case(str(inputs["question"]), (Passage("shown", "shown", 0, len(text), text),))
