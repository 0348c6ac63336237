"""A label with its history: who or what made it, from which labels, and what it has passed.

One real row:

    Record(draft=Draft(Label(Question(...), (Span(5120, 5201),), "the State of Ohio"), method="project",
                       by="projection", parents=("3f9c...",), confidence=0.97),
           source="synthetic", id="b1d4...", trail=(("verbatim", ""), ("round trip", "rank 1")), at="...")
"""

from dataclasses import dataclass

from corpora.types import Label

SOURCES = ("human", "synthetic", "feedback")


@dataclass(frozen=True, slots=True)
class Draft:
    """A label that something or somebody proposes.

    `method` is how it was made ("human", "answer", "write", "project", "paraphrase"), `by` the model or the person,
    `prompt` a hash of the instructions and demonstrations that it was made with, `parents` the ids of the labels that
    it follows, `confidence` in [0, 1] where there is one.
    """

    label: Label
    method: str
    by: str
    prompt: str = ""
    parents: tuple[str, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A draft that was kept: `trail` is (filter, what it noted) of all that it passed, `at` when, in UTC."""

    draft: Draft
    source: str
    id: str
    trail: tuple[tuple[str, str], ...] = ()
    at: str = ""
