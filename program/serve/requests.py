"""What the server is asked, field by field; anything else is refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from program.feedback.rows import MAX_COMMENT_CHARS, MAX_QUESTION_CHARS

_Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_ContractId = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_Text = Annotated[str, StringConstraints(max_length=MAX_COMMENT_CHARS)]
_Name = Annotated[str, StringConstraints(max_length=200)]
_MAX_SPANS = 200


class _Request(BaseModel):
    # Strict: "5" is no number, and true no 1.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Question(_Request):
    """A question to a contract, or the name of one of the categories."""

    question: Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUESTION_CHARS)]
    contract_id: _ContractId


class RatingGiven(_Request):
    """What somebody thinks of an answer."""

    answer_id: _Id
    thumbs: Literal["up", "down"] | None = None
    stars: Annotated[int, Field(ge=1, le=5)] | None = None
    comment: _Text = ""
    by: _Name = ""


class SpanGiven(_Request):
    """Characters (code points) of the contract, half-open."""

    start: int
    end: int


class CorrectionGiven(_Request):
    """What an answer should have been."""

    answer_id: _Id
    found: bool
    answer: _Text | None = None
    spans: Annotated[list[SpanGiven], Field(max_length=_MAX_SPANS)] = []
    comment: _Text = ""
    by: _Name = ""


class ChoiceGiven(_Request):
    """Which of two candidates is better."""

    candidates_id: _Id
    chosen: Literal["left", "right", "tie"]
    comment: _Text = ""
    by: _Name = ""


class SkipGiven(_Request):
    """An answer that somebody would not judge."""

    answer_id: _Id
    by: _Name = ""


class ReviewAsked(_Request):
    """A contract to review whole."""

    contract_id: _ContractId
