"""What labelling for itself came to, as one HTML page that opens without a network, and as lines for the terminal.

    figures = label_figures(labels.reports, list(store.records("synthetic")), contracts, n_human=40, seconds=312.0)
    write_label_report(folder, figures)

Names of categories and whatever else stands on the page are escaped by Jinja; only the plots are inserted as they are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from program.label_precision import KINDS
from program.plots import bar_plot, score_plot, stage_colour
from program.report import interval_text, page_environment
from program.runs import write_json, write_text

ROWS_PLOTTED = 45
COLOURS = {"found": stage_colour(1), "absent": stage_colour(0), "stays": stage_colour(1), "goes": stage_colour(0)}
_LABEL_CHARS = 42
_WIDTH_IN = 6.8  # names of categories are long


def write_label_report(folder: Path, figures: Mapping[str, Any]) -> Path:
    """Writes label_report.json and label_report.html into `folder`, each whole or not at all; the page's path.

    `figures` are those of `label_figures`, just made or read back from the JSON; what they hold under "settings", if
    anything, is shown too.
    """
    page = page_environment().get_template("label_report.html.j2").render(_context(figures))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "label_report.json", figures)
    return write_text(folder / "label_report.html", page)


def report_lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures in about ten lines for the terminal, one of them for each round."""
    return [
        _kept_line(figures),
        *([_round_line(one) for one in figures["rounds"]] or ["no round was run"]),
        *_precision_lines(figures["precision"]),
        *_diversity_lines(figures["diversity"]),
        *_cost_lines(figures["cost"]),
    ]


def _kept_line(figures: Mapping[str, Any]) -> str:
    if not figures["n_labels"]:
        return "no label was kept"
    counts = Counter()
    for row in figures["by_method"]:
        counts[row["method"]] += row["kept"]
    methods = ", ".join(f"{method} {n:,}" for method, n in counts.most_common() if n)
    per_human = figures["labels_per_human"]
    people = "" if per_human is None else f", {per_human:.1f} for each of people's {figures['n_human']:,}"
    kinds = ", ".join(f"{figures['kept'][kind]:,} {kind}" for kind in KINDS)
    return f"{figures['n_labels']:,} labels kept ({kinds}) on {figures['n_contracts']:,} contracts{people}; {methods}"


def _round_line(one: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{step['filter']} -{step['dropped']:,}" for step in one["funnel"] if step["dropped"])
    return f"round {one['round']}: {one['n_proposed']:,} proposed, {one['n_kept']:,} kept ({dropped or 'none dropped'})"


def _precision_lines(precision: Mapping[str, Any] | None) -> list[str]:
    if precision is None:
        return ["precision: not known, no gold was given"]
    no_gold = f"labels without gold: {precision['n_no_gold']:,}"
    if not precision["n_gold"]:
        return [f"precision: not known, {no_gold}"]
    kinds = (f"{kind} {interval_text(precision[kind]['right'])} (n={precision[kind]['n']:,})" for kind in KINDS)
    found = precision["found"]
    return [
        f"precision, %: {interval_text(precision['overall']['right'])} (n={precision['n_gold']:,}); "
        f"{', '.join(kinds)}; {no_gold}",
        f"found ones, %: by answer {interval_text(found['answer'])}, by spans {interval_text(found['span'])}",
    ]


def _diversity_lines(diversity: Mapping[str, Any]) -> list[str]:
    if not diversity["n_labels"]:
        return []
    return [
        f"{diversity['n_categories']:,} categories (as even as {diversity['even_categories']:.1f}), "
        f"{diversity['n_questions']:,} questions; distinct quotes {_number(diversity['distinct_quotes'], 2)} of 1, "
        f"ROUGE-L of two quotes of a category {_number(diversity['rouge_l'], 2)}"
    ]


def _cost_lines(cost: Mapping[str, Any]) -> list[str]:
    price = "" if cost["price"] is None else f", price {_number(cost['price_per_1000'], 2)}"
    return [
        f"{cost['calls']:,} calls, {cost['again']:,} of them again; {cost['failed']:,} failed, "
        f"{cost['unreadable']:,} unreadable",
        f"{cost['seconds']:,.0f} s, {_number(cost['labels_per_minute'], 1)} labels a minute; a thousand labels: "
        f"{_number(cost['seconds_per_1000'])} s, {_number(cost['calls_per_1000'])} calls{price}",
    ]


def _context(figures: Mapping[str, Any]) -> dict[str, Any]:
    precision, funnel = figures["precision"], _summed_funnel(figures["rounds"])
    by_category, judged = figures["by_category"], precision["by_category"] if precision else []
    return {
        "figures": figures,
        "precision": precision,
        "precision_rows": _precision_rows(precision) if precision else [],
        "funnel_svg": Markup(_funnel_svg(funnel)) if funnel else None,
        "precision_svg": Markup(_precision_svg(judged)) if judged else None,
        "categories_svg": Markup(_categories_svg(by_category)) if by_category else None,
        "rows_plotted": ROWS_PLOTTED,
        "n_not_shown": sum(row["found"] + row["absent"] for row in by_category[ROWS_PLOTTED:]),
        "colours": COLOURS,
        "number": _number,
    }


def _summed_funnel(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """in and out of each filter over all rounds, in the order in which they first stand."""
    steps: dict[str, dict[str, int]] = {}
    for step in (step for one in rounds for step in one["funnel"]):
        total = steps.setdefault(step["filter"], {"in": 0, "out": 0})
        total["in"] += step["in"]
        total["out"] += step["out"]
    return steps


def _precision_rows(precision: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    named = [("all", precision["overall"]), *((kind, precision[kind]) for kind in KINDS)]
    return named + [(f"by “{row['method']}”", row) for row in precision["by_method"]]


def _funnel_svg(funnel: Mapping[str, Mapping[str, int]]) -> str:
    stays, goes = [step["out"] for step in funnel.values()], [step["in"] - step["out"] for step in funnel.values()]
    notes = [f"{step['out']:,} of {step['in']:,}" for step in funnel.values()]
    parts = [(COLOURS["stays"], stays), (COLOURS["goes"], goes)]
    return bar_plot(list(map(_short, funnel)), parts, notes, "Drafts that pass each filter", _WIDTH_IN)


def _precision_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = rows[:ROWS_PLOTTED]
    column = {key: [row["right"][key] for row in shown] for key in ("mean", "low", "high")}
    labels = [f"{_short(row['category'])}, n={row['n']}" for row in shown]
    return score_plot(labels, [column], "Share of kept labels that are right, with 95% intervals", _WIDTH_IN)


def _categories_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = rows[:ROWS_PLOTTED]
    parts = [(COLOURS[kind], [row[kind] for row in shown]) for kind in KINDS]
    notes = [f"{row['found']:,} + {row['absent']:,}" for row in shown]
    return bar_plot([_short(row["category"]) for row in shown], parts, notes, "Kept labels of each category", _WIDTH_IN)


def _short(text: str) -> str:
    """One line of a plot: white space folded, cut in mid-word if need be."""
    folded = " ".join(text.split())
    return folded if len(folded) <= _LABEL_CHARS else f"{folded[: _LABEL_CHARS - 1]}…"


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
