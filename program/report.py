"""A run as one HTML page that opens without a network, and as a table for the terminal.

Everything on the page comes from the run's folder. Contract text is escaped by Jinja; only the plots are
inserted as they are. Not handled: more than one run on a page.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from program.plots import loss_plot, reliability_plot, score_plot, stage_colour
from program.recipes import STEPS
from program.runs import Run, RunError, read_run, write_text
from program.summary import SCORES, Row, summarize

LABELS = {score.name: score.label for score in SCORES}
LOWER_IS_BETTER = frozenset(score.name for score in SCORES if score.lower_is_better)
QUESTIONS_SHOWN = 10


def write_report(run_folder: str | Path) -> Path:
    """Writes report.html into a run folder, finished or not, and returns its path; RunError where it is no run.

    The summary is taken from summary.json, or made from the score rows where that is not written yet.
    """
    run = read_run(run_folder)
    summary = run.summary or summarize(run.rows)
    page = page_environment().get_template("report.html.j2").render(_context(run, summary))
    return write_text(run.path / "report.html", page)


def terminal_table(summary: Mapping[str, Any], width: int = 120) -> str:
    """The scores of each stage with their 95% intervals as plain text, at most `width` columns; percent."""
    stages = summary["stages"]
    if not stages:
        kept = ": no step was better on the validation questions, and the program stays as it was"
        return f"no stage has been scored{kept if summary.get('chosen') == 'base' else ' yet'}\n"
    table = Table("score, %")
    for stage in stages:
        table.add_column(f"{stage['stage']}\nn={stage['n_scored']}, {stage['n_contracts']} contracts", justify="right")
    for score in SCORES:
        label = score.label + (" (lower is better)" if score.lower_is_better else "")
        table.add_row(label, *(interval_text(stage["scores"][score.name]) for stage in stages))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def choose_questions(
    before: Sequence[Row], after: Sequence[Row], limit: int = QUESTIONS_SHOWN
) -> list[tuple[Row, Row]]:
    """Up to `limit` (before, after) pairs: gains and losses half and half, then other changed answers, then unchanged.

    Within each kind the order is that of the SHA-256 of the question id: fixed, and blind to what the rows say.
    """
    earlier = {row["question_id"]: row for row in before if row["error"] is None}
    pairs = [(earlier[row["question_id"]], row) for row in after if not row["error"] and row["question_id"] in earlier]
    pairs.sort(key=lambda pair: hashlib.sha256(pair[0]["question_id"].encode()).digest())
    kinds: dict[str, list[tuple[Row, Row]]] = {"gain": [], "loss": [], "changed": [], "same": []}
    for pair in pairs:
        kinds[_kind(*pair)].append(pair)
    n_losses = min(len(kinds["loss"]), max(limit // 2, limit - len(kinds["gain"])))
    chosen = kinds["gain"][: limit - n_losses] + kinds["loss"][:n_losses] + kinds["changed"] + kinds["same"]
    return chosen[:limit]


def interval_text(found: Mapping[str, Any] | None) -> str:
    """ "62.5 [54.1, 70.2]" in percent; "–" where nothing was measured, without brackets where no spread is known."""
    if found is None:
        return "–"
    mean = f"{100 * found['mean']:.1f}"
    return mean if found["low"] is None else f"{mean} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def page_environment() -> Environment:
    """Jinja over this folder's templates: all is escaped, a name not given raises, shares have filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"interval": interval_text, "percent": _percent, "points": _points, "p": _p_value}
    return environment


def _kind(before: Row, after: Row) -> str:
    if before["exact_match"] != after["exact_match"]:
        return "gain" if after["exact_match"] > before["exact_match"] else "loss"
    same = (before["answer"], before["found"]) == (after["answer"], after["found"])
    return "same" if same else "changed"


def _context(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    stages = summary["stages"]
    first, last = (stages[0]["stage"], stages[-1]["stage"]) if stages else ("", "")
    rows = {stage["stage"]: [row for row in run.rows if row["stage"] == stage["stage"]] for stage in stages}
    pairs = choose_questions(rows[first], rows[last]) if len(stages) > 1 else []
    curves = _loss_curves(run.path)
    return {
        "run": run,
        "name": run.path.name if not run.path.name.startswith(".") else run.path.name[1:].removesuffix(".partial"),
        "stages": stages,
        "chosen": summary.get("chosen"),
        "steps": _step_words(run),
        "colours": {stage["stage"]: stage_colour(i) for i, stage in enumerate(stages)},
        "scores": SCORES,
        "labels": LABELS,
        "comparisons": _grouped(summary["comparisons"]),
        "one_contract": any(stage["n_contracts"] == 1 for stage in stages),
        "score_svg": Markup(_score_svg(stages)) if stages else None,
        "reliability_svg": Markup(_reliability_svg(stages)) if any(s["p_answered"]["table"] for s in stages) else None,
        "loss_svg": Markup(loss_plot(curves, "Training loss by step")) if curves else None,
        "categories": _categories(stages),
        "pairs": [(_kind(*pair), *pair) for pair in pairs],
        "n_kinds": _count_kinds(rows[first], rows[last]) if len(stages) > 1 else {},
        "errors": [row for row in run.rows if row["error"] is not None][:5],
    }


def _grouped(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in comparisons:
        groups.setdefault((row["stage"], row["against"]), []).append(row | {"verdict": _verdict(row)})
    return [{"stage": later, "against": earlier, "rows": rows} for (later, earlier), rows in groups.items()]


def _verdict(row: Mapping[str, Any]) -> str:
    """Better or worse only where the whole interval lies on one side of 0."""
    if row["difference"] is None or row["low"] is None or row["low"] <= 0 <= row["high"]:
        return "unclear"
    return "better" if (row["low"] > 0) != (row["score"] in LOWER_IS_BETTER) else "worse"


def _categories(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a category, the largest first: n of the last stage, and first and last exact match (None: not asked)."""
    if not stages:
        return []
    first, last = ({cell["category"]: cell for cell in stage["categories"]} for stage in (stages[0], stages[-1]))
    rows = [
        {
            "category": name,
            "n": last.get(name, first.get(name))["n"],
            "before": first[name]["exact_match"] if name in first else None,
            "after": last[name]["exact_match"] if name in last else None,
        }
        for name in sorted(first | last)
    ]
    return sorted(rows, key=lambda row: (-row["n"], row["category"]))


def _count_kinds(before: Sequence[Row], after: Sequence[Row]) -> dict[str, int]:
    kinds = [_kind(*pair) for pair in choose_questions(before, after, limit=len(after))]
    return {kind: kinds.count(kind) for kind in ("gain", "loss", "changed", "same")}


def _score_svg(stages: Sequence[Mapping[str, Any]]) -> str:
    columns = []
    for stage in stages:
        found = [stage["scores"][score.name] or {"mean": None, "low": None, "high": None} for score in SCORES]
        columns.append({key: [cell[key] for cell in found] for key in ("mean", "low", "high")})
    labels = [score.label + (" ↓" if score.lower_is_better else "") for score in SCORES]
    return score_plot(labels, columns, "Scores of each stage with 95% intervals")


def _reliability_svg(stages: Sequence[Mapping[str, Any]]) -> str:
    tables = {i: stage["p_answered"]["table"] for i, stage in enumerate(stages)}
    return reliability_plot(tables, "Stated probability of an answer and how often there is one")


def _loss_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The (step, loss) points of each training/ADAPTER/training.json of a run, by adapter."""
    curves = {}
    # Not the whole folder: program/adapters/ holds copies of these files.
    for path in sorted((folder / "training").glob("*/training.json")):
        try:
            history = json.loads(path.read_text(encoding="utf-8"))["history"]
            points = [(float(row["step"]), float(row["loss"])) for row in history]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} has no 'history' of {{step, loss}} rows ({error!r}); remove it or train again"
            ) from error
        if points:
            curves[path.parent.name] = points
    return curves


def _step_words(run: Run) -> dict[str, str]:
    """What each letter of the run's recipe stands for, in the recipe's order; a letter not known here is left out."""
    letters = str(run.config.get("recipe", "")).split(" -> ")
    return {letter: STEPS[letter] for letter in letters if letter in STEPS}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
