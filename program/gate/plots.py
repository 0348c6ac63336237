"""The gain and every skill as differences with intervals, as inline SVG in the manner of program/plots.py."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from program.gate.types import Check
from program.plots import _FAINT, _INK, _STYLE, _grid, _svg

_WIDTH_IN = 4.7
_NAME_CHARS = 24
_COLOURS = {True: "#2a9d6f", False: "#c94f6d", None: "#8b939e"}


def differences_plot(checks: Sequence[Check], margin: float, title: str) -> str:
    """Candidate minus before, in points with intervals, a line each: full dots passed, hollow ones did not; SVG text.

    `checks` are the gain and the skills, those with a value; the dashed line is how much a skill may lose.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "gate"}):
        figure = Figure(figsize=(_WIDTH_IN, 0.75 + 0.3 * len(checks)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=_INK, linewidth=0.9)
        axes.axvline(-100 * margin, color=_INK, linewidth=0.9, linestyle=(0, (3, 3)))
        for y, check in enumerate(checks):
            colour = _COLOURS[check.passed]
            if check.low is not None and check.high is not None:
                axes.plot([100 * check.low, 100 * check.high], [y, y], color=colour, linewidth=1.8)
            fill = colour if check.passed else "none"
            axes.plot(100 * check.value, y, "o", color=colour, markerfacecolor=fill, markersize=6, markeredgewidth=1.6)
        axes.set(ylim=(len(checks) - 0.5, -0.5), xlabel="change, in percentage points")
        axes.set_yticks(range(len(checks)), [_short(check.about or "gain") for check in checks])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_color(_FAINT)
        _grid(axes, "x")
        return _svg(figure, title)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"
