"""Every skill over the rounds, as inline SVG in the manner of program/plots.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from program.plots import _STYLE, _grid, _svg, stage_colour

_WIDTH_IN = 6.4


def skills_plot(figures: Mapping[str, Any], title: str, names: Sequence[str] | None = None) -> str:
    """A line a skill over the rounds, percent with 95% intervals, a ring at the round that learnt it, as SVG text.

    `figures` are those of `forgetting_figures`; `names` words for the rounds ("base", "juniper", …).
    """
    rounds = range(figures["n_rounds"])
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDTH_IN, 3.2), layout="constrained")
        axes = figure.add_subplot()
        n = len(figures["skills"])
        for j, name in enumerate(figures["skills"]):
            cells, colour = [figures["matrix"][i][j] for i in rounds], stage_colour(j + 1)
            x = [i + (j - (n - 1) / 2) * 0.05 for i in rounds]
            style = "--" if name in figures["abilities"] else "-"
            axes.plot(
                x,
                [100 * c["mean"] for c in cells],
                style,
                color=colour,
                linewidth=1.6,
                marker="o",
                markersize=4,
                label=name,
            )
            for at, cell in zip(x, cells, strict=True):
                if cell["low"] is not None:
                    axes.plot([at] * 2, [100 * cell["low"], 100 * cell["high"]], color=colour, linewidth=1)
            if (i := figures["learnt"][name]) > 0:
                axes.plot(x[i], 100 * cells[i]["mean"], "o", color="none", markeredgecolor=colour, markersize=11)
        axes.set(ylim=(-2, 102), ylabel="percent right")
        axes.set_xticks(list(rounds), names or [str(i) for i in rounds])
        figure.legend(frameon=False, loc="outside right upper", fontsize=9)
        _grid(axes, "y")
        return _svg(figure, title)
