"""What was asked, what was answered, and what people said of it: frozen data. Offsets count in `Contract.text`.

One real row of each:

    Asked(id="a1...", question="Which law governs?", contract_id="acme-2019", category=None, contract_sha256="9f...",
          at="2026-11-22T09:14:03.120551Z")
    Answered(id="5c...", asked_id="a1...", question="Which law governs?", contract_id="acme-2019", category=None,
             answer="Ohio", found=True, quotes=(Quote("the State of Ohio", "acme-2019", 5120, 5137),), confidence=0.42,
             p_answered=0.97, release="runs/mine", passages=(Shown("acme-2019:5100-5300", "acme-2019", 5100, 5300),),
             inputs=(("passages", "[1] This Agreement ..."), ("question", "Which law governs?")), latency_s=0.8, ...)
    Rating(id="77...", answer_id="5c...", thumbs="down", stars=2, comment="the wrong state", by="3e1f...", at="...")

An id is a hash of the row that it names, a random part in it: asking the same twice is two rows, and a row that was
changed in a file is found out. `by` is a pseudonym, a salted hash of the name that was given; "" where none was.
`at` is when, in UTC; the clock may be wrong, and the order of rows is that in which they came.
"""

from dataclasses import dataclass

from corpora.types import Quote

THUMBS = ("up", "down")
SIDES = ("left", "right")
CHOSEN = (*SIDES, "tie")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question put to a contract; `category` is CUAD's name where it asks for one of its categories."""

    id: str
    question: str
    contract_id: str
    category: str | None
    contract_sha256: str
    at: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A passage that the program read: its id, and where it stands in its contract."""

    id: str
    contract_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Said:
    """What a program said to a question, before it is recorded: what `Answered` says of it.

    `inputs` are the fields that the answering predictor was given, (name, value) each: with its signature and
    demonstrations they rebuild the very prompt. `predictor` is its number among the program's `predictors()`, and
    `completion` the raw text that the LM wrote, "" where it is not known. `sample` is "" for the program as it serves,
    or how it was drawn ("temperature 0.7, rollout 1"). `samples_agree` is the share of further samples that said the
    same, where some were drawn. `readable` is False where the completion could not be read as fields.
    """

    answer: str
    found: bool
    quotes: tuple[Quote, ...] = ()
    confidence: float | None = None
    p_answered: float | None = None
    release: str = ""
    passages: tuple[Shown, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    predictor: int = 0
    completion: str = ""
    readable: bool = True
    sample: str = ""
    samples_agree: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Said):
    """What was said, recorded, with the question that it answers (the fields of `Asked`); made by name only."""

    id: str
    asked_id: str
    question: str
    contract_id: str
    category: str | None
    contract_sha256: str
    at: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Two answers to one question, laid side by side without a word of where each comes from."""

    id: str
    asked_id: str
    left_id: str
    right_id: str
    at: str


@dataclass(frozen=True, slots=True)
class Rating:
    """What somebody thinks of an answer: `thumbs` "up" or "down", `stars` 1 to 5, a comment; one of them at least."""

    id: str
    answer_id: str
    thumbs: str | None
    stars: int | None
    comment: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Correction:
    """What the answer should have been.

    `found` False: the contract has no answer, and there are no `spans`. `answer` None: the spans' texts are the answer.
    """

    id: str
    answer_id: str
    found: bool
    answer: str | None
    spans: tuple[Quote, ...]
    comment: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of two candidates is better: `chosen` "left", "right" or "tie"; the ids say what stood on which side."""

    id: str
    candidates_id: str
    left_id: str
    right_id: str
    chosen: str
    comment: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Somebody was shown an answer and would not judge it."""

    id: str
    answer_id: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A person took back all that was said so far: the events of these ids are no longer read, nor exported."""

    id: str
    by: str
    event_ids: tuple[str, ...]
    at: str


Event = Rating | Correction | Choice | Skip


@dataclass(frozen=True, slots=True)
class Review:
    """A contract reviewed by one release: its recorded answers, in the order of the categories."""

    contract_id: str
    release: str
    answers: tuple[Answered, ...]
