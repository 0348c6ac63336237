"""The checks that are alarms: what may change with a candidate, but not by much, and what may not be there at all.

Each holds its estimate against the bound; the interval is shown beside it. They are no claims of equivalence.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modules.grounding import stands
from program.gate.pairs import Pairs
from program.gate.types import Bound, Check, Evidence, GateError, GateRules, Row
from program.intervals import Interval, mean_interval, ratio_interval
from program.metrics import ratio
from program.summary import is_absent

_FEW_ANSWERS = 20


def bounded(evidence: Evidence, pairs: Pairs, rules: GateRules) -> list[Check]:
    """KL, length, abstention, latency and memory, as far as the rules ask for them; `pairs` must not be empty."""
    checks = []
    if rules.max_kl is not None:
        checks.append(_kl(evidence, rules))
    if rules.max_length_ratio is not None:
        checks.append(_length(pairs, rules))
    if rules.max_abstention_change is not None:
        checks.append(_abstention(pairs, rules))
    if rules.max_latency_ratio is not None:
        seconds = [[row["seconds"] for row in rows] for rows in zip(*pairs.kept, strict=True)]
        checks += latency_checks(*seconds, rules.max_latency_ratio)
    if rules.max_memory_ratio is not None:
        checks.append(_memory(evidence, rules.max_memory_ratio))
    return checks


def ungrounded_quotes(rows: Sequence[Row], texts: Mapping[str, str]) -> Check:
    """The candidate's quotes that do not stand, word for word, where they say: there must be none.

    Every row that did not fail counts, whatever became of the incumbent's call. GateError for a contract without text.
    """
    answered = sorted((row for row in rows if row["error"] is None), key=lambda row: row["question_id"])
    if lacking := sorted({row["contract_id"] for row in answered} - texts.keys()):
        raise GateError(f"there is no text of contract {lacking[0]!r} to look quotes up in; give all test contracts")
    told = [(row, quote) for row in answered for quote in row["quotes"]]
    bad = [
        (row, quote)
        for row, quote in told
        if not stands(texts[row["contract_id"]], quote["text"], quote["start"], quote["end"])
    ]
    why = f"all {len(told)} quotes stand in their contracts word for word"
    if bad:
        row, quote = bad[0]
        why = (
            f"{len(bad)} of {len(told)} quotes do not stand in their contracts; the first, on {row['question_id']}, "
            f"at {quote['start']}-{quote['end']}: “{quote['text'][:120]}”"
        )
    return Check("ungrounded_quotes", not bad, float(len(bad)), None, None, (None, 0.0), why, "count", len(told))


def latency_checks(before: Sequence[float | None], after: Sequence[float | None], bound: float) -> list[Check]:
    """Candidate's over incumbent's seconds a question, at the median and at the 95th percentile.

    Not known where calls were not timed. Both sides should have been timed on the same machine, beside the same work.
    """
    known = [[value for value in side if value is not None] for side in (before, after)]
    checks = []
    for name, share, words in (("latency_p50", 0.5, "the median call"), ("latency_p95", 0.95, "the slowest 5%")):
        old, new = (float(np.quantile(side, share)) if side else math.nan for side in known)
        if not old > 0 or math.isnan(new):
            checks.append(_unknown(name, (None, bound), "the calls of one side were not timed; time both", "ratio"))
            continue
        why = f"{words} takes {new / old:.2f} times as long ({old:.3g} s before, {new:.3g} s after)"
        checks.append(_check(name, new / old, None, (None, bound), why, "ratio", n=len(known[1])))
    return checks


def _kl(evidence: Evidence, rules: GateRules) -> Check:
    bound = (None, rules.max_kl)
    if not evidence.kl:
        why = "KL from the incumbent was not measured; it needs the logits of both, or the rule max_kl=None"
        return _unknown("kl", bound, why, "nats")
    found = mean_interval(*zip(*sorted(evidence.kl), strict=True), level=rules.level, resamples=rules.resamples)
    why = f"{found.mean:.3f} nats a token from the incumbent on its own answers"
    return _check("kl", found.mean, found, bound, why, "nats")


def _length(pairs: Pairs, rules: GateRules) -> Check:
    counts = [(*_words(new), *_words(old), *_gold_words(old)) for old, new in pairs.kept]
    answered = np.sum(counts, axis=0)[[1, 3]]
    if not answered[0]:
        return _unknown("length", rules.max_length_ratio, "the candidate answers no question of the test set", "ratio")
    against, words = 2, "the incumbent's"
    if answered[1] < _FEW_ANSWERS:  # a base that answers next to nothing is no measure of length
        against, words = 4, f"the gold answers' (the incumbent gives {answered[1]:.0f} answers)"

    def of(sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0:2]) / ratio(sums[..., against : against + 2])

    with np.errstate(divide="ignore", invalid="ignore"):
        found = ratio_interval(counts, pairs.contracts, of, level=rules.level, resamples=rules.resamples)
    if math.isnan(found.mean):
        return _unknown(
            "length", rules.max_length_ratio, "no gold answers to hold the answers' length against", "ratio"
        )
    why = f"answers have {found.mean:.2f} times as many words as {words}"
    return _check("length", found.mean, found, rules.max_length_ratio, why, "ratio")


def _abstention(pairs: Pairs, rules: GateRules) -> Check:
    """How much farther from gold's share of absent questions: a base that says "absent" to all may well be left."""
    counts = [(not old["found"], not new["found"], is_absent(old), 1) for old, new in pairs.kept]

    def farther(sums: np.ndarray) -> np.ndarray:
        old, new, gold = (sums[..., i] / sums[..., 3] for i in range(3))
        return np.abs(new - gold) - np.abs(old - gold)

    found = ratio_interval(counts, pairs.contracts, farther, level=rules.level, resamples=rules.resamples)
    old, new, gold = (100 * np.mean([row[i] for row in counts]) for i in range(3))
    why = f"“not in this contract” to {new:.1f}% of the questions ({old:.1f}% before; {gold:.1f}% are absent by gold)"
    return _check("abstention", found.mean, found, (None, rules.max_abstention_change), why, "share")


def _memory(evidence: Evidence, bound: float) -> Check:
    old, new = evidence.incumbent.memory_bytes, evidence.candidate.memory_bytes
    if not old or not new:
        why = "memory was not measured on both sides; measure it, or set the rule max_memory_ratio=None"
        return _unknown("memory", (None, bound), why, "ratio")
    why = f"{new / 2**20:,.0f} MiB, {new / old:.2f} times the incumbent's"
    return _check("memory", new / old, None, (None, bound), why, "ratio")


def _words(row: Row) -> tuple[int, int]:
    return (len(row["answer"].split()), 1) if row["found"] else (0, 0)


def _gold_words(row: Row) -> tuple[int, int]:
    return (0, 0) if is_absent(row) else (len(row["gold_answer"].split()), 1)


def _check(
    name: str, value: float, found: Interval | None, bound: Bound, why: str, unit: str, n: int | None = None
) -> Check:
    low, high = (None, None) if found is None or math.isnan(found.low) else (found.low, found.high)
    least, most = bound
    passed = (least is None or value >= least) and (most is None or value <= most)
    return Check(name, passed, float(value), low, high, bound, why, unit, found.n if found else n)


def _unknown(name: str, bound: Bound, why: str, unit: str) -> Check:
    return Check(name, None, None, None, None, bound, why, unit)
