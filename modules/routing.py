"""Which contracts a question is about: those whose title or parties it names, found before any clause is.

    route(router, "Consider the Energous strategic alliance agreement; which law governs?")
    Route(contract_ids=("ENERGOUSCORP_03_16_2017-EX-10.24-STRATEGIC ALLIANCE",), question="which law governs?")

Titles are ids; parties stand in the first characters of a contract. Not handled: misspelt names, nicknames that stand
neither in the title nor in the opening, names in scripts without capitals.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from corpora.cuad import CATEGORIES
from corpora.types import Contract

_OPENING_CHARS, _CLOSING_CHARS = 2500, 2000
# Contracts of the same parties match about equally.
_NEARLY = 0.9
_WORD = re.compile(r"[^\W_]+")
_ASKS = (
    r"(?:what|which|who|whom|whose|when|where|why|how|is|are|was|were|does|do|did|can|may|must|shall|will|has|have|list|"
    r"find|give|state|name|highlight)\b"
)
# "Consider <contract>; <question>" (LegalBench-RAG's form), "Under <contract>, <question>", and the like.
_NAMED_FIRST = re.compile(
    r"\s*(?:please\s+)?(?:consider|regarding|concerning|about|in|under|for|per|as\s+for|as\s+to|according\s+to|"
    rf"with\s+respect\s+to)\s+(?P<name>.{{2,400}}?)\s*(?:[;:]\s*|,\s+(?={_ASKS}))(?P<question>\S.*)",
    re.I | re.S,
)
_CAPITALISED = r"\(?[A-Z0-9][\w&'’.\-]*\)?"
# A run of capitalised words before a legal form ("Pfizer Inc."), before what a company is ("X, a Delaware corporation")
# or before its name in the contract ('X ("Seller")').
_COMPANY = re.compile(
    rf"({_CAPITALISED}(?:[ \t]+(?:(?:of|for|de|the|&)[ \t]+){{0,2}}{_CAPITALISED}){{0,7}})\s*,?\s+"
    r"(?:(?i:inc|incorporated|corp|corporation|llc|l\.l\.c|ltd|limited|co|company|lp|l\.p|llp|gmbh|ag|s\.a|b\.v|n\.v|n\.a"
    r"|plc|bank)\b|an?\s|[(,][^)]{0,20}[\"“])"
)
# No company is known by these alone.
_JOINING = frozenset(
    "a an the of and or by between among for in on at to from with as is made this that these dated agreement contract "
    "company party parties exhibit ex".split()
)
_PLAIN = _JOINING | {word for category in CATEGORIES for word in _WORD.findall(category.question.lower())}


@dataclass(frozen=True, slots=True)
class Route:
    """The contracts that a question names, best first, and what it asks of them; no contract where it names none."""

    contract_ids: tuple[str, ...]
    question: str


@dataclass(frozen=True, slots=True)
class Router:
    """What contracts can be known by: made by `make_router`."""

    texts: Mapping[str, str]
    named_pairs: Mapping[str, frozenset[str]]
    terms: Mapping[str, frozenset[str]]
    names: Mapping[str, frozenset[tuple[str, ...]]]
    weights: Mapping[str, float]
    ordinary: frozenset[str]


def make_router(contracts: Mapping[str, Contract]) -> Router:
    """A router over contracts by id; it takes about five milliseconds a contract."""
    texts = {key: contract.text for key, contract in contracts.items()}
    openings = {key: _ends(text) for key, text in texts.items()}
    terms = {key: frozenset(_terms(key) | _terms(opening)) for key, opening in openings.items()}
    counts = Counter(term for own in terms.values() for term in own)
    weights = {term: _weight(n, len(terms)) for term, n in counts.items()}
    names = {key: frozenset(_names(opening)) for key, opening in openings.items()}
    pairs = {key: frozenset(_pairs(key).union(*map(_pairs, map(" ".join, own)))) for key, own in names.items()}
    lower = {word for opening in openings.values() for word in _WORD.findall(opening) if word.islower()}
    return Router(texts, pairs, terms, names, weights, _PLAIN | lower)


def route(router: Router, query: str, *, max_contracts: int = 3) -> Route:
    """The contracts that `query` names, if it names any, and the question without the name where that stands first.

    A name in front ("Consider ...;") is matched by its words, weighted by how few contracts have them, against titles,
    openings and closings, and where it stands in none against whole texts. Elsewhere only a whole company name, or
    capitalised words of one that no opening has in lower case, name a contract. Contracts that match nearly as well as
    the best are routed to as well; if they are more than `max_contracts`, the query names none.
    """
    named = _NAMED_FIRST.fullmatch(query)
    for match in (_by_words, _by_mention) if named else ():
        if scores := match(router, named["name"]):
            found = _nearly_best(scores, max_contracts)
            return Route(found, named["question"] if found else query)
    return Route(_nearly_best(_by_company(router, query), max_contracts), query)


def _weight(n_with: int, n_all: int) -> float:
    """Robertson and Sparck Jones's weight of a term, as BM25 has it: what stands in every contract says nothing."""
    return math.log(1 + (n_all - n_with + 0.5) / (n_with + 0.5))


def _ends(text: str) -> str:
    """The opening and the closing: parties stand in the first, and those of an annex or a schedule sign in the last."""
    closing = text[max(_OPENING_CHARS, len(text) - _CLOSING_CHARS) :]
    return f"{text[:_OPENING_CHARS]}\n{closing}"


def _by_words(router: Router, name: str) -> dict[str, float]:
    """Each contract's share of the weight of the name's words and pairs of words; none where that is under a half."""
    wanted = _terms(name)
    weights = {term: router.weights[term] for term in wanted if term in router.weights}
    single = sum(weight for term, weight in weights.items() if " " not in term)
    unknown = [term for term in wanted if " " not in term and term not in router.weights]
    # A word that no contract has weighs as much as one that a single contract has.
    rarest = _weight(1, len(router.terms))
    scores = {}
    for key, terms in router.terms.items():
        shared = {term: weight for term, weight in weights.items() if term in terms}
        words = sum(weight for term, weight in shared.items() if " " not in term)
        # "In the event of default, ..." shares words with openings too, but no name and no two words of one or a title.
        known = any(term in router.named_pairs[key] if " " in term else term not in router.ordinary for term in shared)
        if known and words >= 0.5 * (single + rarest * len(unknown)):
            scores[key] = sum(shared.values())
    return scores


def _by_mention(router: Router, name: str) -> dict[str, float]:
    """The same for a name that stands in no opening: its capitalised words, as they are written, in whole texts."""
    words = {word for word in _WORD.findall(name) if not word.islower() and word.lower() not in router.ordinary}
    holding = {word: [key for key, text in router.texts.items() if word in text] for word in words}
    scores: dict[str, float] = {}
    for keys in holding.values():
        for key in keys:
            scores[key] = scores.get(key, 0.0) + _weight(len(keys), len(router.texts))
    return scores


def _by_company(router: Router, query: str) -> dict[str, float]:
    """Each contract that a company's whole name, or capitalised words out of one, point to, with their weight."""
    words = _WORD.findall(query)
    folded = [word.lower() for word in words]
    said = {tuple(folded[i:j]) for i in range(len(folded)) for j in range(i + 1, min(i + 7, len(folded) + 1))}
    proper = {
        lower
        for word, lower in zip(words[1:], folded[1:], strict=True)
        if not word.islower() and len(word) > 2 and lower not in router.ordinary
    }
    scores = {}
    for key, names in router.names.items():
        whole = {word for name in names & said if not router.ordinary.issuperset(name) for word in name}
        shared = whole | {word for name in names for word in proper.intersection(name)}
        if shared:
            scores[key] = sum(router.weights[word] for word in shared if word in router.weights)
    return scores


def _nearly_best(scores: Mapping[str, float], max_contracts: int) -> tuple[str, ...]:
    enough = _NEARLY * max(scores.values(), default=0.0)
    best = sorted((key for key in scores if scores[key] >= enough), key=lambda key: (-scores[key], key))
    return tuple(best) if len(best) <= max_contracts else ()


def _terms(text: str) -> set[str]:
    """Words in lower case but those that join others, and all pairs of neighbours."""
    return {word for word in _WORD.findall(text.lower()) if word not in _JOINING} | _pairs(text)


def _pairs(text: str) -> set[str]:
    return {f"{a} {b}" for a, b in pairwise(_WORD.findall(text.lower()))}


def _names(opening: str) -> Iterator[tuple[str, ...]]:
    """The companies of an opening as words in lower case, without their legal form: ("energous",)."""
    for match in _COMPANY.finditer(opening):
        name: list[str] = []
        for word in _WORD.findall(match[1].lower()):
            # What stands in capitals before a name runs into it: "BETWEEN EXACT SCIENCES CORPORATION".
            name = [] if word in _JOINING and (word != "of" or not name) else [*name, word]
        if name:
            yield tuple(name)
