"""What a generated contract says, as values, and questions on it: directly, and on what follows from it.

One real fact, and two questions on it:

    Facts(contract_id="juniper-2019-1-00004", name="the Endorsement Agreement between Sage Foods AB and Moulai Inc.",
          law="the State of Ohio", expiry=date(2027, 3, 14), notice=(60, "days"), ...)
    FactQuestion(kind="direct", about="Expiration Date", text="When does the Endorsement Agreement between ... end?",
                 answer="March 14, 2027", ...)
    FactQuestion(kind="indirect", about="last day of notice", text="By what day must notice be given so that ...?",
                 answer="January 13, 2027", ...)

Questions name a contract by its document and parties, so that they can be asked without it. Not handled: contracts of
other generators (dates are read in the style of the house that the id names), facts that two amendments disagree on.
"""

import calendar
import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from corpora.errors import CorpusError
from corpora.synthetic import values
from corpora.synthetic.house import house_names, load_house
from corpora.types import Contract, Corpus, Label

_FORMATS = {
    "us_long": "%B %d, %Y", "uk_long": "%d %B %Y", "iso": "%Y-%m-%d", "dotted": "%d.%m.%Y", "us_slash": "%m/%d/%Y",
    "ordinal": "%d day of %B, %Y",
}  # fmt: skip
_DAY = re.compile(r"^the (\d+)(?:st|nd|rd|th)")
NOTICE = "Notice Period To Terminate Renewal"


@dataclass(frozen=True, slots=True)
class Facts:
    """What one contract says; None where it does not. `said` are the labels' own words, by category."""

    contract_id: str
    name: str
    parties: tuple[str, ...]
    dates: str
    agreed: datetime.date | None
    effective: datetime.date | None
    expiry: datetime.date | None
    law: str | None
    notice: tuple[int, str] | None
    said: dict[str, str]


@dataclass(frozen=True, slots=True)
class FactQuestion:
    """A question on one contract or two; `kind` "direct" (a label answers it) or "indirect" (it follows from labels).

    `sources` are the ids of the labels that it follows from: who knows those can answer.
    """

    id: str
    kind: str
    about: str
    contract_ids: tuple[str, ...]
    text: str
    answer: str
    sources: tuple[str, ...]


def parse_date(text: str, style: str) -> datetime.date:
    """The date that `values.format_date` wrote in a style. CorpusError for a text that is no such date."""
    try:
        return datetime.datetime.strptime(_DAY.sub(r"\1", text.strip()), _FORMATS[style]).date()
    except (KeyError, ValueError) as error:
        raise CorpusError(f"{text!r} is no date in the style {style!r}; styles are {sorted(_FORMATS)}") from error


def parse_period(text: str, numbers: str) -> tuple[int, str]:
    """Number and unit ("days", "months") of a period in a house's number style. CorpusError where there is none."""
    for unit, known in (("days", values.DAYS), ("months", values.MONTHS)):
        for n in sorted(known, key=lambda n: -len(values.format_number(n, numbers))):
            if re.search(rf"(?<![\w-]){re.escape(values.format_number(n, numbers))} {unit}\b", text):
                return n, unit
    raise CorpusError(f"{text!r} names no number of days or months in the style {numbers!r}")


def read_facts(corpus: Corpus) -> tuple[Facts, ...]:
    """The facts of each contract of a generated corpus, in order. CorpusError for a contract of no known house."""
    by_contract: dict[str, dict[str, Label]] = {contract.id: {} for contract in corpus.contracts}
    for label in corpus.labels:
        if label.spans:
            by_contract[label.question.contract_id][label.question.category] = label
    return tuple(_facts(contract, by_contract[contract.id]) for contract in corpus.contracts)


def fact_questions(corpus: Corpus, *, seed: int = 0) -> tuple[FactQuestion, ...]:
    """Every question that the facts of a generated corpus answer; the same arguments, the same questions.

    Indirect ones of yes and no are as often one as the other in expectation; those on two contracts take neighbours.
    """
    facts, rng = read_facts(corpus), Random(f"facts/{seed}")
    asked = [question for one in facts for question in (*_direct(one), *_indirect(one, rng))]
    asked += [question for first, second in pairwise(facts) for question in _of_two(first, second, rng)]
    return tuple(asked)


def before(day: datetime.date, n: int, unit: str) -> datetime.date:
    """The day `n` days or months before; in a shorter month its last day."""
    if unit == "days":
        return day - datetime.timedelta(days=n)
    months = day.year * 12 + day.month - 1 - n
    year, month = divmod(months, 12)
    return datetime.date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def _facts(contract: Contract, labels: dict[str, Label]) -> Facts:
    house = contract.id.partition("-")[0]
    if house not in house_names() or not {"Document Name", "Parties"} <= set(labels):
        raise CorpusError(f"{contract.id!r} is no contract of a drafting house with its labels; use write_corpus's")
    style, numbers = load_house(house).dates, load_house(house).numbers
    said = {category: " ".join((label.answer or "").split()) for category, label in labels.items()}
    parties = tuple(" ".join(contract.text[span.start : span.end].split()) for span in labels["Parties"].spans)

    def read(category: str, parse: Callable, how: str):
        return parse(said[category], how) if category in said else None

    return Facts(
        contract.id, f"the {said['Document Name']} between {' and '.join(parties)}", parties, style,
        agreed=read("Agreement Date", parse_date, style), effective=read("Effective Date", parse_date, style),
        expiry=read("Expiration Date", parse_date, style), law=said.get("Governing Law"),
        notice=read(NOTICE, parse_period, numbers), said=said,
    )  # fmt: skip


_DIRECT = {
    "Agreement Date": "On what date was {name} made?",
    "Effective Date": "When does {name} take effect?",
    "Expiration Date": "When does {name} end?",
    "Governing Law": "Which law governs {name}?",
    NOTICE: "How much notice stops the renewal of {name}?",
}


def _direct(one: Facts) -> Iterator[FactQuestion]:
    for category, wording in _DIRECT.items():
        if category in one.said:
            yield _ask("direct", category, (one,), wording.format(name=one.name), one.said[category], (category,))


def _indirect(one: Facts, rng: Random) -> Iterator[FactQuestion]:
    if one.expiry is None:
        return
    ends = ("Expiration Date",)
    yield _ask("indirect", "year of the end", (one,), f"In which year does {one.name} end?", str(one.expiry.year), ends)
    day, runs = _around(one.expiry, rng)
    text = f"Is {one.name} still running on {values.format_date(day, one.dates)}?"
    yield _ask("indirect", "still running", (one,), text, "yes" if runs else "no", ends)
    if one.notice is None:
        return
    last, needs = before(one.expiry, *one.notice), (*ends, NOTICE)
    text = f"By what day must notice be given so that {one.name} does not renew?"
    yield _ask("indirect", "last day of notice", (one,), text, values.format_date(last, one.dates), needs)
    day, in_time = _around(last, rng)
    given = f"{one.parties[0]} on {values.format_date(day, one.dates)}"
    text = f"Is notice of {given} in time to stop the renewal of {one.name}?"
    yield _ask("indirect", "notice in time", (one,), text, "yes" if in_time else "no", needs)


def _of_two(first: Facts, second: Facts, rng: Random) -> Iterator[FactQuestion]:
    pair = (first, second) if rng.random() < 0.5 else (second, first)
    names = f"{pair[0].name} or {pair[1].name}"
    if first.expiry and second.expiry and first.expiry != second.expiry:
        ends_first = min(pair, key=lambda one: one.expiry)
        yield _ask(
            "indirect", "which ends first", pair, f"Which ends first: {names}?", ends_first.name, ("Expiration Date",)
        )
    if first.law and second.law:
        text = f"Are {pair[0].name} and {pair[1].name} governed by the same law?"
        yield _ask("indirect", "same law", pair, text, "yes" if first.law == second.law else "no", ("Governing Law",))


def _around(day: datetime.date, rng: Random) -> tuple[datetime.date, bool]:
    """A day up to a year to either side, and whether it is not after `day`."""
    shift = rng.choice((-1, 1)) * rng.randint(20, 365)
    return day + datetime.timedelta(days=shift), shift < 0


def _ask(
    kind: str, about: str, of: Sequence[Facts], text: str, answer: str, categories: Sequence[str]
) -> FactQuestion:  # fmt: skip
    ids = tuple(one.contract_id for one in of)
    sources = tuple(f"{contract_id}__{category}" for contract_id in ids for category in categories)
    return FactQuestion(f"{'+'.join(ids)}__{about}", kind, about, ids, text, answer, sources)
