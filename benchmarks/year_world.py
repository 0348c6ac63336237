"""What comes in during the simulated year of `benchmarks.year`: contracts, questions, labels, test sets.

Contracts are juniper's, from month 4 lindqvist's too, in turn. Five of the 28 categories are asked, labelled and tested
from month 7 on only. Half of all questions have an answer. A share of the labels is wrong, of month 9's all.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import dspy

from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Contract, Corpus, Label, Span
from program.examples import to_examples

MONTHS, SECOND_HOUSE, NEW_CATEGORIES, POISONED = 12, 4, 7, 9
HOUSES = ("juniper", "lindqvist")
LATER = ("Insurance", "Audit Rights", "Cap On Liability", "Governing Law", "Expiration Date")


@dataclass(frozen=True, slots=True)
class Month:
    """Questions of people, by contract; the labels that they give meanwhile; what the gate decides on at its end."""

    asked: list[dspy.Example]
    labels: Corpus
    frozen: Corpus


@dataclass(frozen=True, slots=True)
class Year:
    """The months, the first at 0, and all contracts that are ever asked about or learnt from."""

    months: tuple[Month, ...]
    contracts: tuple[Contract, ...]


def write_year(args: argparse.Namespace) -> Year:
    """The year of `args.seed`; the sizes are options of `benchmarks.year`."""
    rng = Random(args.seed)
    sizes = [(args.arriving, args.first_labelled if month == 1 else args.labelled) for month in range(1, MONTHS + 1)]
    most = sum(map(sum, sizes)) + args.frozen
    houses = [write_corpus([house], most, seed=500 + args.seed) for house in HOUSES]
    pools = [[contract.id for contract in house.contracts] for house in houses]
    whole = Corpus("year", *(sum((getattr(house, name) for house in houses), ()) for name in ("contracts", "labels")))
    tests = [[pool.pop() for _ in range(args.frozen)] for pool in pools]
    months, used = [], []
    for month, (n_asked, n_labelled) in enumerate(sizes[: args.months], 1):
        n_houses = 1 if month < SECOND_HOUSE else len(HOUSES)
        asked, labelled = ([pools[i % n_houses].pop() for i in range(n)] for n in (n_asked, n_labelled))
        used += asked + labelled
        labels = sampled(_open(whole, labelled, month), args.first_labels if month == 1 else args.labels, rng)
        frozen = _open(whole, [name for test in tests[:n_houses] for name in test], month)
        months.append(
            Month(
                to_examples(sampled(_open(whole, asked, month), args.questions, rng)),
                mislabelled(labels, 1.0 if month == POISONED else args.noise, rng),
                sampled(frozen, args.gate, Random(7)),
            )
        )
    return Year(tuple(months), subset(whole, used).contracts)


def sampled(corpus: Corpus, n: int, rng: Random) -> Corpus:
    """The corpus with `n` of its questions, half of them answered as far as there are such, its contracts in turn."""
    found = [label for label in corpus.labels if label.spans]
    absent = [label for label in corpus.labels if not label.spans]
    half = min(len(found), n // 2)
    drawn = rng.sample(found, half) + rng.sample(absent, min(len(absent), half))
    kept = {label.question.id for label in drawn}
    return replace(corpus, labels=tuple(label for label in corpus.labels if label.question.id in kept))


def mislabelled(corpus: Corpus, share: float, rng: Random) -> Corpus:
    """The corpus with a share of its labels wrong: an answer is called absent, an absent one any words of the text."""
    texts = {contract.id: contract.text for contract in corpus.contracts}

    def wrong(label: Label) -> Label:
        if label.spans:
            return replace(label, spans=(), answer=None)
        start = rng.randrange(max(1, len(texts[label.question.contract_id]) - 60))
        return replace(label, spans=(Span(start, start + 40),), answer=None)

    return replace(corpus, labels=tuple(wrong(la) if rng.random() < share else la for la in corpus.labels))


def joined(parts: Sequence[Corpus]) -> Corpus:
    """Several months together; a contract comes once."""
    contracts = {contract.id: contract for part in parts for contract in part.contracts}
    return Corpus("labelled", tuple(contracts.values()), tuple(label for part in parts for label in part.labels))


def _open(whole: Corpus, ids: Sequence[str], month: int) -> Corpus:
    """These contracts in this order, with the labels of the categories that are asked by then."""
    part = subset(whole, ids)
    order = {name: i for i, name in enumerate(ids)}
    labels = [label for label in part.labels if month >= NEW_CATEGORIES or label.question.category not in LATER]
    return replace(
        part,
        contracts=tuple(sorted(part.contracts, key=lambda one: order[one.id])),
        labels=tuple(sorted(labels, key=lambda one: order[one.question.contract_id])),
    )
