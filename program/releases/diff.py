"""What is different between two releases: prompts, config, weights, scores, and the answers that changed.

Works on runs too. Scores are compared on the questions that both were scored on, with the same text and right answer.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from program.intervals import paired_interval
from program.releases.cards import prompts_of, text_environment
from program.report import choose_questions
from program.runs import Run, read_run
from program.summary import Row, summarize

ANSWERS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class CategoryChange:
    """Exact match of one category in both, 0 to 1; `low` and `high` bound the difference, None from one contract."""

    category: str
    n: int
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """From `before` to `after`: unified diffs by predictor, (before, after) by config key, by predictor its adapters.

    `scores` are rows as of `summary.json`'s comparisons, `answers` (before, after) score rows: turned right, turned
    wrong, otherwise changed; `n_other` questions were scored in one of the two alone, or asked differently.
    """

    before: str
    after: str
    prompts: dict[str, str]
    config: dict[str, tuple[Any, Any]]
    weights: dict[str, tuple[str | None, str | None]]
    scores: tuple[dict[str, Any], ...]
    categories: tuple[CategoryChange, ...]
    answers: tuple[tuple[Row, Row], ...]
    n_shared: int
    n_other: int


def diff(before: Path, after: Path) -> ReleaseDiff:
    """Compare two releases or runs by their folders; RunError where one is none."""
    runs = read_run(before), read_run(after)
    pairs, n_other = _pairs(*(_kept_rows(run) for run in runs))
    names = (before.name, after.name) if before.name != after.name else (str(before), str(after))
    scored = [pair for pair in pairs if all(row["error"] is None for row in pair)]
    return ReleaseDiff(
        *names,
        prompts=_prompts(before, after),
        config=_changed(*(run.config for run in runs)),
        weights=_changed(*(_weights(folder) for folder in (before, after))),
        scores=_scores(pairs),
        categories=_categories(scored),
        answers=_answers(scored),
        n_shared=len(pairs),
        n_other=n_other,
    )


def render(found: ReleaseDiff) -> str:
    """The differences as text."""
    return text_environment().get_template("diff.txt.j2").render(diff=found)


def _kept_rows(run: Run) -> list[Row]:
    """The score rows of the stage that was kept, which is what answers."""
    return [row for row in run.rows if row["stage"] == run.summary.get("chosen")]


def _pairs(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[tuple[Row, Row]], int]:
    earlier = {row["question_id"]: row for row in before}
    asked = ("question", "gold_answer", "contract_id")
    pairs = [
        (earlier[row["question_id"]], row)
        for row in after
        if row["question_id"] in earlier and all(earlier[row["question_id"]][key] == row[key] for key in asked)
    ]
    return pairs, len({row["question_id"] for row in (*before, *after)}) - len(pairs)


def _prompts(before: Path, after: Path) -> dict[str, str]:
    old, new = ({name: _prompt_lines(told) for name, told in prompts_of(f).items()} for f in (before, after))
    changed = {}
    for name in sorted(old.keys() | new.keys()):
        lines = difflib.unified_diff(old.get(name, []), new.get(name, []), before.name, after.name, lineterm="", n=1)
        if text := "\n".join(lines):
            changed[name] = text
    return changed


def _prompt_lines(told: Mapping[str, Any]) -> list[str]:
    demos = (json.dumps(demo, ensure_ascii=False, indent=1, sort_keys=True).split("\n") for demo in told["demos"])
    return [*told["instructions"].split("\n"), *(line for demo in demos for line in demo)]


def _weights(folder: Path) -> dict[str, str | None]:
    told = json.loads((folder / "program" / "local_lm.json").read_text(encoding="utf-8"))
    # An adapter's name means one set of weights for ever.
    uses = {f"adapter of {name}": call["adapter"] for name, call in told["predictors"].items()}
    return {"base": f"{told.get('base')} {str(told.get('digest'))[:16]}"} | uses


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _scores(pairs: Sequence[tuple[Row, Row]]) -> tuple[dict[str, Any], ...]:
    rows = [
        dict(row) | {"stage": stage} for i, stage in enumerate(("before", "after")) for row in (p[i] for p in pairs)
    ]
    return tuple(row for row in summarize(rows)["comparisons"] if row["difference"] is not None)


def _categories(scored: Sequence[tuple[Row, Row]]) -> tuple[CategoryChange, ...]:
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for pair in scored:
        groups.setdefault(pair[0]["category"], []).append(pair)
    return tuple(_category(name, groups[name]) for name in sorted(groups))


def _category(name: str, pairs: Sequence[tuple[Row, Row]]) -> CategoryChange:
    before, after = ([pair[side]["exact_match"] for pair in pairs] for side in (0, 1))
    found = paired_interval(before, after, [pair[0]["contract_id"] for pair in pairs])
    bounds = (None if math.isnan(bound) else bound for bound in (found.low, found.high))
    return CategoryChange(
        name, len(pairs), sum(before) / len(pairs), sum(after) / len(pairs), found.difference, *bounds
    )


def _answers(scored: Sequence[tuple[Row, Row]]) -> tuple[tuple[Row, Row], ...]:
    pairs = choose_questions(*([pair[side] for pair in scored] for side in (0, 1)), limit=ANSWERS_SHOWN)
    told = ("answer", "found", "exact_match")
    changed = [pair for pair in pairs if any(pair[0][key] != pair[1][key] for key in told)]
    return tuple(sorted(changed, key=lambda pair: pair[0]["exact_match"] - pair[1]["exact_match"] or 2.0))
