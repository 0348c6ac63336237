"""What labelling for itself came to, as figures: what was dropped and why, what was kept, and how much of it is right.

Shares are 0–1; None stands for "nothing to measure". Not handled: labels that were taken back (give only records that
stand).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from random import Random
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from corpora.errors import CorpusError
from corpora.labels.rows import folded
from corpora.labels.types import Record
from corpora.types import Contract, Corpus
from program.label_precision import KINDS, gold_precision, kind_of
from program.self_instruct import RoundReport

PAIRS_COMPARED = 500


def label_figures(
    reports: Sequence[RoundReport],
    records: Sequence[Record],
    contracts: Mapping[str, Contract],
    *,
    n_human: int,
    seconds: float,
    price: float | None = None,
    gold: Corpus | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON-able figures of rounds and of the labels that are kept; shares 0–1, seconds, None for nothing to measure.

    `contracts` is contract id -> contract; `seconds` and `price` are of all the rounds, and are set against the labels
    that these kept; `gold` has labels for the same contracts and question texts, and nothing else is taken from it.
    Records that people or feedback gave are left out. CorpusError for a record's contract that is not in `contracts`,
    and for gold with another text of a contract or with two different labels for one question.
    """
    made = [record for record in records if record.source == "synthetic"]
    if missing := sorted({record.draft.label.question.contract_id for record in made} - contracts.keys()):
        raise CorpusError(f"labels are on contracts that were not given: {', '.join(missing[:5])}. Give all contracts.")
    return {
        "n_labels": len(made),
        "n_human": n_human,
        "n_contracts": len({record.draft.label.question.contract_id for record in made}),
        "labels_per_human": _ratio(len(made), n_human),
        "kept": _by_kind(made),
        "rounds": [_round(report) for report in reports],
        "by_method": _by_method(reports, made),
        "by_category": _by_category(made),
        "precision": None if gold is None else gold_precision(made, contracts, gold, seed),
        "diversity": _diversity(made, contracts, seed),
        "cost": _cost(reports, seconds, price),
    }


def _diversity(made: Sequence[Record], contracts: Mapping[str, Contract], seed: int) -> dict[str, Any]:
    labels = [record.draft.label for record in made]
    quotes: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        text = contracts[label.question.contract_id].text
        quotes[label.question.category] += [folded(text[span.start : span.end]) for span in label.spans]
    every = [quote for of_category in quotes.values() for quote in of_category]
    pairs = _pairs([quotes[key] for key in sorted(quotes)], Random(seed))
    score = RougeScorer(["rougeL"], use_stemmer=False).score
    alike = [score(first, second)["rougeL"].fmeasure for first, second in pairs]
    shares = [n / len(labels) for n in Counter(label.question.category for label in labels).values()]
    bits = math.fsum(share * math.log2(1 / share) for share in shares) if shares else None
    return {
        "n_labels": len(labels),
        "n_categories": len(shares),
        "n_questions": len({folded(label.question.text) for label in labels}),
        "n_quotes": len(every),
        "distinct_quotes": _ratio(len(set(every)), len(every)),
        "n_pairs": len(pairs),
        "rouge_l": _ratio(math.fsum(alike), len(alike)),
        "category_bits": bits,
        "even_categories": None if bits is None else 2**bits,
    }


def _pairs(pools: Sequence[Sequence[str]], rng: Random) -> list[Sequence[str]]:
    """All pairs within each pool, or a draw where there are more than PAIRS_COMPARED."""
    pools = [pool for pool in pools if len(pool) > 1]
    n_pairs = [math.comb(len(pool), 2) for pool in pools]
    if sum(n_pairs) <= PAIRS_COMPARED:
        return [pair for pool in pools for pair in combinations(pool, 2)]
    return [rng.sample(pool, 2) for pool in rng.choices(pools, n_pairs, k=PAIRS_COMPARED)]


def _round(report: RoundReport) -> dict[str, Any]:
    reasons: dict[str, dict[str, int]] = defaultdict(dict)
    for name, why, n in report.reasons:
        reasons[name][why] = n
    funnel = [
        {"filter": name, "in": n_in, "out": n_out, "dropped": n_in - n_out, "reasons": reasons[name]}
        for name, n_in, n_out in report.funnel
    ]
    n_proposed, n_kept = sum(report.proposed.values()), sum(report.kept.values())
    calls = asdict(report.tally)
    return {"round": report.round, "n_proposed": n_proposed, "n_kept": n_kept, "funnel": funnel, "calls": calls}


def _by_method(reports: Sequence[RoundReport], made: Sequence[Record]) -> list[dict[str, Any]]:
    """By method and kind: proposed in the rounds, kept in the rounds, and kept in all (earlier rounds' too)."""
    proposed, passed = (sum((Counter(getattr(r, side)) for r in reports), Counter()) for side in ("proposed", "kept"))
    kept = Counter(f"{record.draft.method}, {kind_of(record.draft.label)}" for record in made)
    rows = []
    for key in sorted(proposed | passed | kept):
        method, _, kind = key.rpartition(", ")
        rows.append(
            {"method": method, "kind": kind, "proposed": proposed[key], "passed": passed[key], "kept": kept[key]}
        )
    return rows


def _by_category(made: Sequence[Record]) -> list[dict[str, Any]]:
    """Kept labels of each category, the largest first."""
    groups = defaultdict(list)
    for record in made:
        groups[record.draft.label.question.category].append(record)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [{"category": name} | _by_kind(members) for name, members in ordered]


def _cost(reports: Sequence[RoundReport], seconds: float, price: float | None) -> dict[str, Any]:
    total = {
        name: sum(getattr(report.tally, name) for report in reports)
        for name in ("calls", "again", "failed", "unreadable")
    }
    n_kept = sum(sum(report.kept.values()) for report in reports)
    per_1000 = {
        "seconds_per_1000": _ratio(1000 * seconds, n_kept),
        "calls_per_1000": _ratio(1000 * total["calls"], n_kept),
        "price_per_1000": None if price is None else _ratio(1000 * price, n_kept),
    }
    rates = {"n_kept": n_kept, "seconds": seconds, "labels_per_minute": _ratio(60 * n_kept, seconds), "price": price}
    return total | rates | per_1000


def _by_kind(made: Sequence[Record]) -> dict[str, int]:
    counts = Counter(kind_of(record.draft.label) for record in made)
    return {kind: counts[kind] for kind in KINDS}


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
