"""Plots of a report as inline SVG: no files, no scripts, and colours that follow the page's light or dark theme."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib wants fixed colours; these two stand for the page's own and are replaced in the SVG.
_INK, _FAINT = "#010203", "#040506"
STAGE_COLOURS = ("#8b939e", "#3b7dd8", "#2a9d6f", "#d9822b", "#9b5fc0", "#c94f6d")
_WIDTH_IN = 4.7
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # "$" in a name is a dollar
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _FAINT,
    "grid.color": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def stage_colour(index: int) -> str:
    """The colour of the stage at `index`, the same in every plot and table."""
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


def score_plot(
    labels: Sequence[str],
    stages: Sequence[Mapping[str, Sequence[float | None]]],
    title: str,
    width_in: float = _WIDTH_IN,
) -> str:
    """Dots with whiskers, one line a score and one dot a stage from top to bottom, as SVG text.

    Each of `stages` has "mean", "low", "high": lists of shares 0–1 in the order of `labels`, None where not known.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "scores"}):
        row_height = 0.2 + 0.1 * len(stages)
        figure = Figure(figsize=(width_in, 0.6 + row_height * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        for i, stage in enumerate(stages):
            shift = (i - (len(stages) - 1) / 2) * 0.62 / max(len(stages), 1)
            for y, (mean, low, high) in enumerate(zip(stage["mean"], stage["low"], stage["high"], strict=True)):
                if mean is None:
                    continue
                axes.plot(100 * mean, y + shift, "o", color=stage_colour(i), markersize=5)
                if low is not None and high is not None:
                    axes.plot([100 * low, 100 * high], [y + shift] * 2, color=stage_colour(i), linewidth=1.6)
        axes.set(xlim=(-2, 102), ylim=(len(labels) - 0.5, -0.5), xlabel="percent, with 95% intervals")
        axes.set_yticks(range(len(labels)), labels)
        _grid(axes, "both")
        return _svg(figure, title)


def bar_plot(
    labels: Sequence[str],
    parts: Sequence[tuple[str, Sequence[int]]],
    notes: Sequence[str],
    title: str,
    width_in: float = _WIDTH_IN,
) -> str:
    """Horizontal bars from top to bottom, one a label, and a note behind each, as SVG text.

    `parts` are the (colour, counts) that a bar is put together from, left to right, counts in the order of `labels`.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(width_in, 0.3 + 0.27 * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        ends = [0] * len(labels)
        for colour, counts in parts:
            axes.barh(range(len(labels)), counts, left=ends, height=0.62, color=colour)
            ends = [end + n for end, n in zip(ends, counts, strict=True)]
        longest = max(1, *ends)
        for y, (end, note) in enumerate(zip(ends, notes, strict=True)):
            axes.text(end + 0.02 * longest, y, note, va="center", fontsize=9)
        axes.set(xlim=(0, 1.25 * longest), ylim=(len(labels) - 0.5, -0.5))
        axes.set_yticks(range(len(labels)), labels)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        return _svg(figure, title)


def loss_plot(curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Training loss by step, one line a training job, as SVG text."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "loss"}):
        figure = Figure(figsize=(_WIDTH_IN, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items(), start=1):
            mark = "o" if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), marker=mark, color=stage_colour(i), linewidth=1.6, label=name)
        axes.set(xlabel="step", ylabel="loss")
        if all(loss >= 0 for points in curves.values() for _, loss in points):  # a policy's loss may be negative
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        _grid(axes, "y")
        return _svg(figure, title)


def reliability_plot(tables: Mapping[int, Sequence[Mapping[str, float]]], title: str) -> str:
    """Dots of stated probability against how often it came true, by the stage's number, larger where n is, as SVG text.

    Rows of a table as `program.summary.reliability_table` makes them.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "reliability"}):
        figure = Figure(figsize=(_WIDTH_IN, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=_FAINT, linewidth=1)
        for i, table in tables.items():
            n = sum(row["n"] for row in table)
            x, y = ([100 * row[key] for row in table] for key in ("stated", "came_true"))
            axes.plot(x, y, color=stage_colour(i), linewidth=1)
            axes.scatter(x, y, s=[12 + 240 * row["n"] / n for row in table], color=stage_colour(i), alpha=0.8)
        axes.set(xlim=(-4, 104), ylim=(-4, 104), xlabel="stated, percent", ylabel="answered, percent")
        axes.set_aspect("equal")
        _grid(axes, "both")
        return _svg(figure, title)


def _grid(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _svg(figure: Figure, title: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace('<g id="', '<g class="')  # "axes_1" and the like would be twice in a page with two plots
    # "sans-serif" in matplotlib is a list of fonts; the page's own font is wanted.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escaped}" ', 1)
