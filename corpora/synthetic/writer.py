"""Write whole contracts of a drafting house, with gold spans by construction.

Not handled: amendments, multi-party contracts, redactions, scanning errors.
"""

import datetime
import re
from collections.abc import Callable, Iterable
from random import Random

from corpora.cuad import question_text
from corpora.synthetic import values
from corpora.synthetic.house import CATEGORIES, IN_PREAMBLE, Clause, House, load_house
from corpora.types import Contract, Corpus, Label, Question, Span

_ROMAN = "I II III IV V VI VII VIII IX X XI XII".split()
_TOKEN = re.compile(r"\[\[|\]\]\{:[^}]*\}|\]\]|<<|>>|\{[A-Za-z_]+(?::[^}]*)?\}")
# How often a category is in a contract. Those not named: 0.16, so that about two thirds of all questions have no
# answer, as in CUAD.
_PRESENCE = {
    "Document Name": 1.0,
    "Parties": 1.0,
    "Agreement Date": 0.9,
    "Governing Law": 0.85,
    "Effective Date": 0.55,
    "Expiration Date": 0.6,
    "Renewal Term": 0.35,
    "Notice Period To Terminate Renewal": 0.25,
    "Anti-Assignment": 0.6,
    "License Grant": 0.4,
    "Cap On Liability": 0.4,
    "Audit Rights": 0.3,
    "Insurance": 0.3,
    "Termination For Convenience": 0.3,
}


def write_corpus(
    houses: Iterable[str], n_contracts: int, *, seed: int = 0, years: tuple[int, int] = (2008, 2024)
) -> Corpus:
    """`n_contracts` contracts, the houses in turn, each asked all 28 generated categories; same arguments, same corpus.

    Raises CorpusError for a house that does not exist.
    """
    names = tuple(houses)
    contracts, labels = [], []
    for i in range(n_contracts):
        house = load_house(names[i % len(names)])
        rng = Random(f"{seed}/{house.name}/{i}")
        year = rng.randint(*years)
        contract, of_contract = write_contract(house, f"{house.name}-{year}-{seed}-{i:05}", year, rng)
        contracts.append(contract)
        labels.extend(of_contract)
    return Corpus("+".join(names), tuple(contracts), tuple(labels))


def write_contract(house: House, contract_id: str, year: int, rng: Random) -> tuple[Contract, tuple[Label, ...]]:
    """One contract of 4 to 15 thousand characters and its labels, absent categories included."""
    present = {category for category in CATEGORIES if rng.random() < _PRESENCE.get(category, 0.16)}
    parts = _plan(house, present, year, rng)
    numbers = _number(house, parts)
    facts = _draw_facts(house, year, rng)
    page = _Page(house, facts, numbers, rng)

    page.write(house.preamble["with_date" if "Agreement Date" in present else "without_date"])
    page.write("\n\n" + (house.recitals + "\n\n" if house.recitals else "") + "\n\n".join(house.recital_texts))
    for index, (part, clauses) in enumerate(parts, start=1):
        if house.article:
            page.write("\n\n" + _fill(house.article, index, 0, 0, house.titles[part]))
        for clause, text, number in clauses:
            page.write("\n\n" + number + text, clause.category)
    page.write("\n\n" + house.signature)
    for letter, (title, text) in zip("ABCDEF", house.schedules, strict=False):
        head = house.schedule.format(
            letter=letter,
            n="ABCDEF".index(letter) + 1,
            roman=_ROMAN["ABCDEF".index(letter)],
            title=title,
            Title=title,
            TITLE=title.upper(),
        )
        page.write(f"\n\n{head}\n{title}\n\n{text}")
    return Contract(contract_id, "".join(page.pieces)), page.labels(contract_id)


def _plan(house: House, present: set[str], year: int, rng: Random) -> list[tuple[str, list[tuple[Clause, str, str]]]]:
    """The parts in order, each with its paragraphs; numbers are put in by `_number`."""
    chosen = [clause for clause in house.clauses if clause.category in present]
    chosen += [clause for clause in house.boilerplate if year >= clause.since and rng.random() < 0.8]
    parts = []
    for part in house.order:
        clauses = [(clause, rng.choice(clause.texts), "") for clause in chosen if clause.part == part]
        rng.shuffle(clauses)
        if clauses:
            parts.append((part, clauses))
    return parts


def _number(house: House, parts: list) -> dict[str, str]:
    """Number the paragraphs in place; the references by category, and under "" some paragraphs to refer to else."""
    references: dict[str, str] = {}
    count = 0
    for index, (_, clauses) in enumerate(parts, start=1):
        for n, (clause, text, _) in enumerate(clauses, start=1):
            count += 1
            clauses[n - 1] = (clause, text, _fill(house.section, index, n, count, clause.heading))
            references[clause.category or f"\n{count}"] = _fill(house.reference, index, n, count, clause.heading)
    return references


def _fill(template: str, article: int, n: int, count: int, title: str) -> str:
    return template.format(
        article=article,
        roman=_ROMAN[article - 1],
        letter="ABCDEFGHIJKL"[article - 1],
        n=n,
        count=count,
        title=title.lower(),
        Title=title,
        TITLE=title.upper(),
    )


def _draw_facts(house: House, year: int, rng: Random) -> dict[str, str]:
    """What is one and the same through a contract."""
    signed = datetime.date(year, 1, 1) + datetime.timedelta(days=rng.randrange(365))
    effective = signed + datetime.timedelta(days=rng.choice((0, 1, 5, 14, 17, 30, 45, 60, 90)) + rng.randrange(20))
    expiry = effective + datetime.timedelta(days=365 * rng.randint(1, 10) + rng.randrange(200))
    a, b = rng.choice(house.terms)
    party_a, party_b = values.company(rng), values.company(rng)
    product = values.product(rng)
    return {
        "document": rng.choice(house.documents),
        "agreement_date": values.format_date(signed, house.dates),
        "effective_date": values.format_date(effective, house.dates),
        "expiration_date": values.format_date(expiry, house.dates),
        "date": values.format_date(expiry + datetime.timedelta(days=rng.randrange(300)), house.dates),
        "law": values.jurisdiction(rng), "venue": values.city(rng),
        "party_a": party_a, "party_b": party_b, "PARTY_A": party_a.upper(), "PARTY_B": party_b.upper(),
        "a": a, "b": b, "entity_a": values.entity(rng), "entity_b": values.entity(rng),
        "address_a": values.address(rng), "address_b": values.address(rng),
        "person_a": values.person(rng), "person_b": values.person(rng),
        "title_a": values.job_title(rng), "title_b": values.job_title(rng),
        "product": product, "Product": product.capitalize(), "territory": values.territory(rng),
    }  # fmt: skip


def _draw_value(name: str, house: House, rng: Random) -> str:
    """What is drawn anew for each slot of a clause."""
    makers: dict[str, Callable[[], str]] = {
        "days": lambda: values.format_number(rng.choice(values.DAYS), house.numbers),
        "months": lambda: values.format_number(rng.choice(values.MONTHS), house.numbers),
        "years": lambda: values.format_number(rng.choice(values.YEARS), house.numbers),
        "units": lambda: values.format_number(rng.choice(values.UNITS), house.numbers),
        "pct": lambda: values.format_percent(rng.choice(values.PERCENTS), house.percents),
        "money": lambda: values.format_money(rng.choice(values.AMOUNTS), house.money),
        "third": lambda: values.company(rng),
    }
    return makers[name]()


class _Page:
    """A contract in the writing: text so far, and where gold quotes and answers stand in it."""

    def __init__(self, house: House, facts: dict[str, str], references: dict[str, str], rng: Random):
        self.house, self.facts, self.references, self.rng = house, facts, references, rng
        self.pieces: list[str] = []
        self.length = 0
        self.gold: dict[str, list[tuple[Span, str]]] = {}

    def write(self, template: str, category: str | None = None) -> None:
        """Append a template, its slots filled and its marks taken out and remembered."""
        position, quote_start, answer_piece, answer = 0, 0, 0, ""
        for match in _TOKEN.finditer(template):
            self._append(template[position : match.start()])
            position, token = match.end(), match.group()
            if token == "[[":
                quote_start = self.length
            elif token == "<<":
                answer_piece = len(self.pieces)
            elif token == ">>":
                answer = "".join(self.pieces[answer_piece:])
            elif token.startswith("]]"):
                name = token[4:-1] if len(token) > 2 else category
                if name is None:
                    raise ValueError(f"a gold quote without a category in {self.house.name}: {template[:80]!r}")
                self.gold.setdefault(name, []).append((Span(quote_start, self.length), answer))
            else:
                self._append(self._slot(token[1:-1]))
        self._append(template[position:])

    def _append(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def _slot(self, name: str) -> str:
        if name.startswith("ref:"):
            boilerplate = [number for key, number in self.references.items() if key.startswith("\n")]
            return self.references.get(name[4:]) or self.rng.choice(boilerplate)
        return self.facts[name] if name in self.facts else _draw_value(name, self.house, self.rng)

    def labels(self, contract_id: str) -> tuple[Label, ...]:
        """One label per generated category, in their fixed order."""
        made = []
        for category in CATEGORIES:
            question = Question(f"{contract_id}__{category}", contract_id, category, question_text(category))
            gold = self.gold.get(category, [])
            answer = ", ".join(answer for _, answer in gold) if gold else None
            made.append(Label(question, tuple(span for span, _ in gold), answer))
        return tuple(made)


__all__ = ["CATEGORIES", "IN_PREAMBLE", "write_contract", "write_corpus"]
