"""From score rows (see `program/runs.py`) to the numbers of a report: scores, intervals, changes, categories.

Every score is a statistic of per-question counts summed over contracts, so intervals and paired changes come from one
bootstrap (`program/intervals.py`). Rows with an error are failed calls: counted, never scored. Comparisons
take the questions that both stages scored. Numbers are shares 0–1 and seconds; None stands for "nothing to measure".
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modules.signatures import NOT_FOUND
from program import metrics
from program.intervals import Interval, PairedInterval, Statistic, mcnemar, paired_ratio_interval, ratio_interval

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """One score: its per-question counts, the statistic of their sums, and the questions (by gold) that it covers."""

    name: str
    label: str
    counts: Callable[[Row], tuple[float, ...]]
    statistic: Statistic = metrics.ratio
    covers: Callable[[Row], bool] = lambda row: True
    lower_is_better: bool = False
    of_failed_too: bool = False


def is_absent(row: Row) -> bool:
    """Whether the gold says that the contract does not hold the answer."""
    return row["gold_answer"] == NOT_FOUND


def has_answer(row: Row) -> bool:
    """Whether the gold gives an answer."""
    return not is_absent(row)


def _exact(row: Row) -> tuple[float, ...]:
    return float(row["exact_match"]), 1.0


def _cuad(row: Row) -> tuple[float, ...]:
    predicted = [quote["text"] for quote in row["quotes"]] if row["found"] else []
    return metrics.cuad_match(predicted, row["gold_quotes"], parties=row["category"] == "Parties")


def _absence(row: Row) -> tuple[float, ...]:
    return metrics.absence_match(row["found"], has_answer(row))


SCORES: tuple[Score, ...] = (
    Score("exact_match", "Exact match, all questions", _exact),
    Score("exact_match_answerable", "Exact match, answerable", _exact, covers=has_answer),
    Score("exact_match_absent", "Exact match, absent", _exact, covers=is_absent),
    Score("token_f1", "Token F1, answerable", lambda row: (float(row["token_f1"]), 1.0), covers=has_answer),
    Score("cuad_precision", "Quotes: CUAD precision", _cuad, metrics.precision),
    Score("cuad_recall", "Quotes: CUAD recall", _cuad, metrics.recall),
    Score("cuad_f1", "Quotes: CUAD F1", _cuad, metrics.f1),
    Score("absence_precision", "“Not in this contract”: precision", _absence, metrics.precision),
    Score("absence_recall", "“Not in this contract”: recall", _absence, metrics.recall),
    Score(
        "false_absence_rate",
        "False “not in this contract”",
        lambda row: (float(not row["found"]), 1.0),
        covers=has_answer,
        lower_is_better=True,
    ),
    Score(
        "failed_calls",
        "Failed calls",
        lambda row: (float(row["error"] is not None), 1.0),
        lower_is_better=True,
        of_failed_too=True,
    ),
)


def score_row(stage: str, example: Any, prediction: Any, *, seconds: float, error: str | None = None) -> dict[str, Any]:
    """The score row of one question; with `error` the prediction (None will do) is not read and nothing is scored.

    `example` has question, contract_id, question_id, category, answer, quotes; `prediction` answer, quotes, found,
    confidence, and p_answered where its retrieval tells. `exact_match` is `metrics.review_correct`; `token_f1` reads
    "not found" as the agreed answer of absence.
    """
    gold = {"gold_answer": example.answer, "gold_quotes": list(example.quotes)}
    asked = {key: example[key] for key in ("contract_id", "question_id", "category", "question")}
    row = {"stage": stage, **asked, **gold, "error": error, "seconds": seconds}
    if error is not None:
        nothing = {
            "answer": "",
            "quotes": [],
            "found": False,
            "confidence": None,
            "p_answered": None,
            "exact_match": None,
            "token_f1": None,
        }
        return row | nothing
    answer = prediction.answer if prediction.found else NOT_FOUND
    return row | {
        "answer": prediction.answer,
        "quotes": [{"text": quote.text, "start": quote.start, "end": quote.end} for quote in prediction.quotes],
        "found": prediction.found,
        "confidence": prediction.confidence,
        "p_answered": getattr(prediction, "p_answered", None),
        "exact_match": float(metrics.review_correct(prediction.answer, prediction.found, example.answer)),
        "token_f1": metrics.token_f1(answer, example.answer),
    }


def summarize(rows: Sequence[Row], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The JSON-able summary of a run: `stages` in order, `comparisons` with the stage before and the first one.

    A question twice in one stage raises ValueError; no rows give empty lists.
    """
    by_stage: dict[str, dict[str, Row]] = {}
    for row in rows:
        stage = by_stage.setdefault(row["stage"], {})
        if row["question_id"] in stage:
            raise ValueError(f"question {row['question_id']!r} is twice in stage {row['stage']!r}; score each once")
        stage[row["question_id"]] = row
    names = list(by_stage)
    pairs = dict.fromkeys(
        (later, earlier) for i, later in enumerate(names) if i for earlier in (names[i - 1], names[0])
    )
    return {
        "stages": [_stage_summary(name, list(by_stage[name].values()), resamples, seed) for name in names],
        "comparisons": [
            _comparison(score, earlier, later, by_stage, resamples, seed)
            for later, earlier in pairs
            for score in SCORES
        ],
    }


def reliability_table(stated: Sequence[tuple[float, float]], bins: int) -> list[dict[str, Any]]:
    """(probability, whether it came true) pairs in equal bins of 0–1 (1.0 in the last): n, mean stated, share true."""
    binned: dict[int, list[tuple[float, float]]] = {}
    for pair in stated:
        binned.setdefault(min(int(pair[0] * bins), bins - 1), []).append(pair)
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "n": len(members),
            "stated": statistics.fmean(p for p, _ in members),
            "came_true": statistics.fmean(true for _, true in members),
        }
        for i, members in sorted(binned.items())
    ]


def calibration_error(table: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean gap between stated and true, weighted by n (ECE; Guo et al. 2017); None for an empty table."""
    gaps = [(cell["n"], abs(cell["stated"] - cell["came_true"])) for cell in table]
    return sum(n * gap for n, gap in gaps) / sum(n for n, _ in gaps) if gaps else None


def _reliability(name: str, true: Callable[[Row], float], rows: Sequence[Row], bins: int) -> dict[str, Any]:
    """The table of a stated probability and its calibration error, of the rows that state one."""
    stated = [(row[name], true(row)) for row in rows if row["error"] is None and row[name] is not None]
    table = reliability_table(stated, bins)
    return {"table": table, "calibration_error": calibration_error(table)}


def _stage_summary(name: str, rows: list[Row], resamples: int, seed: int) -> dict[str, Any]:
    scored = [row for row in rows if row["error"] is None]
    return {
        "stage": name,
        "n_questions": len(rows),
        "n_scored": len(scored),
        "n_failed": len(rows) - len(scored),
        "n_contracts": len({row["contract_id"] for row in rows}),
        "scores": {score.name: _interval(score, rows, resamples, seed) for score in SCORES},
        "categories": _categories(scored),
        "confidence": _reliability("confidence", lambda row: row["exact_match"], rows, bins=5),
        "p_answered": _reliability("p_answered", lambda row: float(has_answer(row)), rows, bins=10),
        "seconds": _seconds([row["seconds"] for row in rows if row["seconds"] is not None]),
    }


def _interval(score: Score, rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any] | None:
    kept = [row for row in rows if (score.of_failed_too or row["error"] is None) and score.covers(row)]
    if not kept:
        return None
    counts, clusters = [score.counts(row) for row in kept], [row["contract_id"] for row in kept]
    found = ratio_interval(counts, clusters, score.statistic, resamples=resamples, seed=seed)
    return None if math.isnan(found.mean) else _plain(found)


def _comparison(
    score: Score, earlier: str, later: str, by_stage: Mapping[str, Mapping[str, Row]], resamples: int, seed: int
) -> dict[str, Any]:
    pairs = [(by_stage[earlier][i], row) for i, row in by_stage[later].items() if i in by_stage[earlier]]
    kept = [
        pair
        for pair in pairs
        if (score.of_failed_too or all(row["error"] is None for row in pair)) and score.covers(pair[0])
    ]
    result = {"stage": later, "against": earlier, "score": score.name, "n": len(kept), "difference": None}
    if not kept:
        return result
    before, after = ([score.counts(pair[side]) for pair in kept] for side in (0, 1))
    clusters = [row["contract_id"] for row, _ in kept]
    result |= _plain(paired_ratio_interval(before, after, clusters, score.statistic, resamples=resamples, seed=seed))
    if score.counts is _exact:
        result["mcnemar"] = asdict(mcnemar(*([bool(pair[side]["exact_match"]) for pair in kept] for side in (0, 1))))
    return result


def _categories(scored: Sequence[Row]) -> list[dict[str, Any]]:
    groups: dict[str, list[float]] = {}
    for row in scored:
        groups.setdefault(row["category"], []).append(row["exact_match"])
    return [{"category": k, "n": len(v), "exact_match": statistics.fmean(v)} for k, v in sorted(groups.items())]


def _seconds(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    slow = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {"total": math.fsum(seconds), "median": statistics.median(seconds), "p95": slow}


def _plain(found: Interval | PairedInterval) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(found).items()}
