"""The nouns of the project: frozen data, no behaviour. All offsets are half-open, in characters of `Contract.text`.

One real row (generated corpus):

    Contract(id="ashgrove-2019-0007", text="SUPPLY AGREEMENT\n\nThis Supply Agreement ...")
    Question(id="ashgrove-2019-0007__Governing Law", contract_id="ashgrove-2019-0007",
             category="Governing Law", text='Highlight the parts (if any) ... "Governing Law" ...')
    Label(question=..., spans=(Span(5120, 5201),), answer="the laws of the State of Ohio")
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` (included) to `end` (excluded) of a contract's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a paragraph of a file begins: at `start` in the text; `paragraph` of `page`, both counted from 1.

    `page` is None where the file has no pages of its own; paragraphs are then counted through the whole file.
    """

    start: int
    page: int | None
    paragraph: int


@dataclass(frozen=True, slots=True)
class Contract:
    """One contract: `id` is unique in its corpus, `text` is what every offset counts in.

    `places` are the paragraphs of the file it was read from, by `start`; empty where it came from no such file.
    """

    id: str
    text: str
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of one contract: `text == contract.text[start:end]`; `heading` is "" where there is none."""

    id: str
    contract_id: str
    start: int
    end: int
    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """Words of a contract, verbatim: `text == contract.text[start:end]`."""

    text: str
    contract_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question put to one contract; `category` is CUAD's name for it, or the question's own text."""

    id: str
    contract_id: str
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """What a person (or the generator) says answers a question.

    `spans` in document order; empty means "not in this contract". `answer` is the short answer where the
    corpus gives one; None means that the spans' texts, joined by ", ", are the answer.
    """

    question: Question
    spans: tuple[Span, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Contracts and their labels; every label's contract is among `contracts`."""

    name: str
    contracts: tuple[Contract, ...]
    labels: tuple[Label, ...]
