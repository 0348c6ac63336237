"""A drafting house: one family of wording, read from `houses/NAME.toml` and checked when it is read."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from corpora.errors import CorpusError

CATEGORIES = (
    "Document Name",
    "Parties",
    "Agreement Date",
    "Effective Date",
    "Expiration Date",
    "Renewal Term",
    "Notice Period To Terminate Renewal",
    "Governing Law",
    "Most Favored Nation",
    "Non-Compete",
    "Exclusivity",
    "No-Solicit Of Employees",
    "Termination For Convenience",
    "Rofr/Rofo/Rofn",
    "Change Of Control",
    "Anti-Assignment",
    "Revenue/Profit Sharing",
    "Price Restrictions",
    "Minimum Commitment",
    "License Grant",
    "Source Code Escrow",
    "Post-Termination Services",
    "Audit Rights",
    "Cap On Liability",
    "Liquidated Damages",
    "Warranty Duration",
    "Insurance",
    "Covenant Not To Sue",
)
IN_PREAMBLE = ("Document Name", "Parties", "Agreement Date")
PARTS = ("definitions", "commercial", "ip", "restrictions", "term", "liability", "general")
_GOLD = re.compile(r"\[\[(.*?)\]\](?:\{:([^}]*)\})?", re.S)


@dataclass(frozen=True, slots=True)
class Clause:
    """One paragraph a house can write; `category` is None for boilerplate, `since` the first year it is used."""

    part: str
    heading: str
    texts: tuple[str, ...]
    category: str | None = None
    since: int = 0


@dataclass(frozen=True, slots=True)
class House:
    """Wording, order and number/date style of one family of drafters; fields as in `houses/ashgrove.toml`."""

    name: str
    numbers: str
    dates: str
    money: str
    percents: str
    article: str
    section: str
    reference: str
    terms: tuple[tuple[str, str], ...]
    documents: tuple[str, ...]
    order: tuple[str, ...]
    titles: dict[str, str]
    recitals: str
    schedule: str
    preamble: dict[str, str]
    recital_texts: tuple[str, ...]
    signature: str
    clauses: tuple[Clause, ...]
    boilerplate: tuple[Clause, ...]
    schedules: tuple[tuple[str, str], ...]


def house_names() -> tuple[str, ...]:
    """The names of all houses that ship with the package, sorted."""
    folder = resources.files("corpora.synthetic") / "houses"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


@cache
def load_house(name: str) -> House:
    """Read and check one house; CorpusError names the clause and the rule that it breaks."""
    source = resources.files("corpora.synthetic") / "houses" / f"{name}.toml"
    if not source.is_file():
        raise CorpusError(f"no drafting house {name!r}; there are: {', '.join(house_names())}")
    raw = tomllib.loads(source.read_text(encoding="utf-8"))
    missing = sorted(set(CATEGORIES) - set(IN_PREAMBLE) - set(raw["clauses"]))
    if missing:
        raise CorpusError(f"house {name!r} has no clause for {missing}; write one in houses/{name}.toml")
    unknown = sorted(set(raw["clauses"]) - set(CATEGORIES))
    if unknown:
        raise CorpusError(
            f"house {name!r} has clauses for {unknown}, which nobody is asked; spell them as in CATEGORIES"
        )
    clauses = tuple(
        Clause(clause["part"], clause["heading"], tuple(clause["texts"]), category)
        for category, clause in raw["clauses"].items()
    )
    house = House(
        **{
            key: raw[key]
            for key in ("name", "numbers", "dates", "money", "percents", "article", "section", "reference")
        },
        terms=tuple((a, b) for a, b in raw["terms"]),
        documents=tuple(raw["documents"]),
        order=tuple(raw["order"]),
        titles=raw["titles"],
        recitals=raw.get("recitals", ""),
        schedule=raw["schedule"],
        preamble=raw["preamble"],
        recital_texts=tuple(raw["recital"]["texts"]),
        signature=raw["signature"]["text"],
        clauses=clauses,
        boilerplate=tuple(
            Clause(entry["part"], entry["heading"], (entry["text"],), since=entry.get("since", 0))
            for entry in raw["boilerplate"]
        ),
        schedules=tuple((entry["title"], entry["text"]) for entry in raw["schedules"]),
    )
    _check(house)
    return house


def _check(house: House) -> None:
    def refuse(what: str, rule: str) -> None:
        raise CorpusError(f"house {house.name!r}, {what}: {rule}; mend houses/{house.name}.toml")

    if sorted(house.order) != sorted(PARTS):
        refuse("order", f"must name each of {PARTS} once, not {house.order}")
    for clause in house.clauses + house.boilerplate:
        if clause.part not in PARTS:
            refuse(clause.heading, f"part {clause.part!r} is not one of {PARTS}")
    for clause in house.clauses:
        for text in clause.texts:
            gold = _GOLD.findall(text)
            if not gold or any(quote.count("<<") != 1 or quote.count(">>") != 1 for quote, _ in gold):
                refuse(f"clause {clause.category!r}", f"each wording needs [[one <<answer>> in a quote]], got {text!r}")
    for clause in house.boilerplate:
        if "[[" in clause.texts[0] or "<<" in clause.texts[0]:
            refuse(f"boilerplate {clause.heading!r}", "boilerplate answers nothing, so it has no [[ ]] or << >>")
    for key, needed in (
        ("with_date", {"Document Name", "Parties", "Agreement Date"}),
        ("without_date", {"Document Name", "Parties"}),
    ):
        found = {category for _, category in _GOLD.findall(house.preamble[key])}
        if found != needed:
            refuse(f"preamble {key}", f"must mark {sorted(needed)}, marks {sorted(found)}")
