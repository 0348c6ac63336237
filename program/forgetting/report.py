"""What a candidate forgot, as forgetting.json and one HTML page that opens without a network.

figures = forgetting_figures(rounds, learnt={"known houses": 0, "juniper": 1}, kl=kl_from_base(base, lm, prompts))
write_forgetting_report(folder, figures, names=("base", "juniper"))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from program.forgetting.plots import skills_plot
from program.report import interval_text, page_environment
from program.runs import write_json, write_text


def write_forgetting_report(folder: Path, figures: Mapping[str, Any], *, names: Sequence[str] | None = None) -> Path:
    """Writes forgetting.json and forgetting.html into `folder`, each whole or not at all; the page's path."""
    names = list(names or (str(i) for i in range(figures["n_rounds"])))
    page = page_environment().get_template("forgetting/forgetting.html.j2").render(
        figures=figures, names=names, lost=[row for row in figures["non_inferiority"] if row["kept"] is not True],
        plot=Markup(skills_plot(figures, "Score on every skill, round by round", names)), number=_number,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "forgetting.json", {**figures, "names": names})
    return write_text(folder / "forgetting.html", page)


def report_lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures in a few lines for the terminal."""
    told = [
        f"{key.replace('_', ' ')} {interval_text(figures[key])}"
        for key in _AVERAGES
        if figures[key]["mean"] is not None
    ]
    for row in figures["non_inferiority"]:
        verdict = {True: "kept", False: "not shown to be kept", None: "too few contracts to tell"}[row["kept"]]
        told.append(
            f"{row['skill']}: {_points(row)} against its time, {verdict} (margin {100 * figures['margin']:.0f})"
        )
    if figures["kl"]:
        told.append(f"KL from the base on the new task {_number(figures['kl'])} nats per token")
    return told


_AVERAGES = ("average_accuracy", "backward_transfer", "forgetting")


def _points(row: Mapping[str, Any]) -> str:
    bounds = "" if row["low"] is None else f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"{100 * row['difference']:+.1f}{bounds} points"


def _number(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if found is None:
        return "–"
    told = f"{found['mean']:.{digits}f}"
    return told if found["low"] is None else f"{told} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
