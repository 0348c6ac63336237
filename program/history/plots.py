"""The plots of the history page as inline SVG, in the manner of program/plots.py. Whatever is empty is not drawn."""

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from scipy.stats import binomtest

from program.history.types import DriftCheck, FeedbackMonth, ReleaseFact, RenewalFact, SkillFact, TrafficDay
from program.history.words import one_line
from program.plots import _FAINT, _INK, _STYLE, _WIDTH_IN, _grid, _svg, stage_colour

GOOD, BAD, ODD, QUIET = "#2a9d6f", "#c94f6d", "#d9822b", "#8b939e"
# Stands for the page's own background, as _INK does for its ink.
_GROUND = "#070809"
_TICKS = 9
_BY_WEEK_FROM = 100
_NAME_CHARS = 18


def score_history_plot(releases: Sequence[ReleaseFact], live: str | None, title: str) -> str:
    """Exact match of each release with its interval, as SVG text.

    Full dots went live (the largest is), hollow ones never did; the line joins those that went live on one test set.
    """
    with _figure(2.5, title) as (figure, axes):
        for x, release in enumerate(releases):
            colour = GOOD if release.went_live else QUIET
            if release.score is None:
                continue
            if release.score.low is not None and release.score.high is not None:
                axes.plot([x, x], [100 * release.score.low, 100 * release.score.high], color=colour, linewidth=1.6)
            fill, size = (colour if release.went_live else _GROUND), (9 if release.id == live else 6)
            axes.plot(x, 100 * release.score.mean, "o", color=colour, markerfacecolor=fill, markersize=size, zorder=3)
        for test_set in dict.fromkeys(release.test_sha256 for release in releases):
            served = [
                (x, 100 * one.score.mean) for x, one in enumerate(releases)
                if one.went_live and one.score is not None and one.test_sha256 == test_set
            ]  # fmt: skip
            if len(served) > 1:
                axes.plot(*zip(*served, strict=True), color=GOOD, linewidth=1, alpha=0.5, zorder=1)
        for x in changes_of_test(releases):
            axes.axvline(x - 0.5, color=_INK, linewidth=0.9, linestyle=(0, (3, 3)))
        _ticks(axes, [release.id.partition("-")[0] for release in releases])
        axes.set(ylabel="exact match, percent", xlim=(-0.6, len(releases) - 0.4))
        _grid(axes, "y")
        return _drawn(figure, title)


def changes_of_test(releases: Sequence[ReleaseFact]) -> list[int]:
    """The places of releases that were scored on another test set than the one before them."""
    return [i for i in range(1, len(releases)) if releases[i].test_sha256 != releases[i - 1].test_sha256]


def skill_history_plot(skills: Sequence[SkillFact], renewals: Sequence[RenewalFact], title: str) -> str:
    """Each skill's change against its score at the time, a line a skill over the candidates, as SVG text.

    Points with intervals, in percentage points; hollow ones were not shown to be kept.
    """
    with _figure(2.6, title) as (figure, axes):
        axes.axhline(0, color=_INK, linewidth=0.9)
        for i, skill in enumerate(skills):
            checks = [
                (x, one) for x, renewal in enumerate(renewals) for one in renewal.skills if one.name == skill.name
            ]
            drawn, colour = [(x, one) for x, one in checks if one.difference is not None], stage_colour(i + 1)
            shift = (i - (len(skills) - 1) / 2) * min(0.12, 0.6 / max(len(skills), 1))
            at = [x + shift for x, _ in drawn]
            axes.plot(at, [100 * one.difference.mean for _, one in drawn], color=colour, linewidth=1.4,
                      label=one_line(skill.name, _NAME_CHARS))  # fmt: skip
            for x, (_, one) in zip(at, drawn, strict=True):
                found = one.difference
                if found.low is not None and found.high is not None:
                    axes.plot([x, x], [100 * found.low, 100 * found.high], color=colour, linewidth=0.9)
                fill = colour if one.passed else _GROUND
                axes.plot(x, 100 * found.mean, "o", color=colour, markerfacecolor=fill, markersize=5, zorder=3)
        _ticks(axes, [renewal.id for renewal in renewals])
        axes.set(ylabel="change, points", xlabel="renewal", xlim=(-0.6, len(renewals) - 0.4))
        figure.legend(frameon=False, loc="outside upper left", ncols=2, fontsize=9)
        _grid(axes, "y")
        return _drawn(figure, title)


def drift_plot(checks: Sequence[DriftCheck], title: str) -> str:
    """A line a signal over the checks: dots where it was unusual, larger where it moved; alarms as vertical lines."""
    signals = list(dict.fromkeys(name for check in checks for name in check.signals))
    with _figure(0.9 + 0.23 * len(signals), title) as (figure, axes):
        at = date2num([datetime.fromisoformat(check.at) for check in checks])
        for y, name in enumerate(signals):
            tested = [x for x, check in zip(at, checks, strict=True) if name in check.signals]
            axes.plot([tested[0], tested[-1]], [y, y], color=_FAINT, linewidth=1.2, zorder=1)
            for rows, colour, size in (("suspect", ODD, 3.5), ("moved", BAD, 6)):
                x = [x for x, check in zip(at, checks, strict=True) if name in getattr(check, rows)]
                axes.plot(x, [y] * len(x), "o", color=colour, markersize=size, markeredgewidth=0, zorder=3)
        for x, check in zip(at, checks, strict=True):
            if check.began:
                axes.axvline(x, color=BAD, linewidth=1)
        axes.set_yticks(range(len(signals)), [one_line(name.replace("_", " "), _NAME_CHARS) for name in signals])
        axes.set_ylim(len(signals) - 0.5, -0.5)
        _dates(axes, at)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        return _drawn(figure, title)


def feedback_plot(months: Sequence[FeedbackMonth], title: str) -> str:
    """Above, the share of thumbs up by month with its 95% interval (Wilson); below, how much was said, as SVG text."""
    with _figure(3.1, title, rows=(1, 1)) as (figure, (above, below)):
        thumbs = [(x, one.n_up, one.n_up + one.n_down) for x, one in enumerate(months) if one.n_up + one.n_down]
        for x, n_up, n in thumbs:
            bounds = binomtest(n_up, n).proportion_ci(method="wilson")
            above.plot([x, x], [100 * bounds.low, 100 * bounds.high], color=stage_colour(1), linewidth=1.4)
        above.plot([x for x, _, _ in thumbs], [100 * up / n for _, up, n in thumbs], "o-", color=stage_colour(1),
                   linewidth=1, markersize=5)  # fmt: skip
        above.set(ylim=(-4, 104), ylabel="thumbs up, %")
        bottom = [0] * len(months)
        for i, (key, label) in enumerate((("n_ratings", "ratings"), ("n_corrections", "corrections"),
                                          ("n_choices", "choices")), start=1):  # fmt: skip
            counts = [getattr(one, key) for one in months]
            below.bar(range(len(months)), counts, 0.62, bottom=bottom, color=stage_colour(i), label=label)
            bottom = [low + n for low, n in zip(bottom, counts, strict=True)]
        below.set_ylabel("events")
        figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize=9)
        for axes in (above, below):
            axes.set_xlim(-0.6, len(months) - 0.4)
            _ticks(axes, _month_names(months) if axes is below else [""] * len(months))
            _grid(axes, "y")
        return _drawn(figure, title)


def traffic_plot(days: Sequence[TrafficDay], title: str) -> str:
    """Questions (failed ones on top), share of "not in this contract" in 7 days, and median latency, as SVG text."""
    with _figure(4.0, title, rows=(1.2, 1, 1)) as (figure, (asked, absent, slow)):
        at = date2num([date.fromisoformat(one.day) for one in days])
        width = 7 if at[-1] - at[0] >= _BY_WEEK_FROM else 1
        bars = Counter[float](), Counter[float]()
        for x, one in zip(at, days, strict=True):
            start = x - (width - 1) + (at[-1] - x) % width  # weeks end with the last day
            bars[0][start] += one.n - one.n_errors
            bars[1][start] += one.n_errors
        starts = sorted(bars[0])
        for which, colour, bottom in ((0, stage_colour(1), None), (1, BAD, [bars[0][x] for x in starts])):
            heights = [bars[which][x] for x in starts]
            asked.bar(starts, heights, 0.85 * width, bottom=bottom, align="edge", color=colour)
        asked.set_ylabel("per week" if width == 7 else "per day")
        absent.plot(at, [_absent_of_week(days, i) for i in range(len(days))], color=stage_colour(1), linewidth=1.4)
        absent.set(ylabel="absent, %", ylim=(-4, 104))
        known = [(x, one.latency_s) for x, one in zip(at, days, strict=True) if one.latency_s is not None]
        slow.plot([x for x, _ in known], [value for _, value in known], ".", color=stage_colour(1), markersize=3.5)
        slow.set(ylabel="median, s")
        slow.set_ylim(bottom=0)
        for axes in (asked, absent, slow):
            _dates(axes, at)
            _grid(axes, "y")
            if axes is not slow:
                axes.tick_params(labelbottom=False)
                axes.xaxis.get_offset_text().set_visible(False)
        figure.align_ylabels([asked, absent, slow])
        return _drawn(figure, title)


def cost_plot(renewals: Sequence[RenewalFact], title: str) -> str:
    """Minutes of each renewal, by stage from bottom to top, as SVG text."""
    stages = list(dict.fromkeys(name for renewal in renewals for name in renewal.seconds))
    # The candidate is where the time goes; what is short of a hundredth of all is one part.
    total = sum(sum(renewal.seconds.values()) for renewal in renewals)
    large = [name for name in stages if sum(one.seconds.get(name, 0) for one in renewals) >= total / 100]
    with _figure(2.4, title) as (figure, axes):
        bottom = [0.0] * len(renewals)
        for i, name in enumerate(large, start=1):
            minutes = [one.seconds.get(name, 0) / 60 for one in renewals]
            label = one_line(name, _NAME_CHARS)
            axes.bar(range(len(renewals)), minutes, 0.62, bottom=bottom, color=stage_colour(i), label=label)
            bottom = [low + more for low, more in zip(bottom, minutes, strict=True)]
        rest = [sum(one.seconds.values()) / 60 - low for one, low in zip(renewals, bottom, strict=True)]
        if len(large) < len(stages):
            axes.bar(range(len(renewals)), rest, 0.62, bottom=bottom, color=QUIET, label="other stages")
        _ticks(axes, [one.id for one in renewals])
        axes.set(ylabel="minutes", xlabel="renewal", xlim=(-0.6, len(renewals) - 0.4))
        figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize=9)
        _grid(axes, "y")
        return _drawn(figure, title)


class _figure:
    """A figure of the page's width in the page's style; `rows` are the heights of several axes, one below the other."""

    def __init__(self, height_in: float, salt: str, rows: Sequence[float] = ()) -> None:
        self._style = matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt})
        self._height_in, self._rows = height_in, rows

    def __enter__(self) -> tuple[Figure, Axes | Sequence[Axes]]:
        self._style.__enter__()
        figure = Figure(figsize=(_WIDTH_IN, self._height_in), layout="constrained")
        if not self._rows:
            return figure, figure.add_subplot()
        return figure, figure.subplots(len(self._rows), 1, height_ratios=self._rows)

    def __exit__(self, *error: object) -> None:
        self._style.__exit__(*error)


def _ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names on the x axis, as many as there is room for, the last always."""
    step = -(-len(names) // _TICKS)
    shown = range(len(names) - 1, -1, -step) if names else ()
    axes.set_xticks(list(shown), [names[i] for i in shown])


def _month_names(months: Sequence[FeedbackMonth]) -> list[str]:
    """ "Sep", the first and every January with its year below."""
    times = [date.fromisoformat(f"{one.month}-01") for one in months]
    return [f"{at:%b}\n{at.year}" if i == 0 or at.month == 1 else f"{at:%b}" for i, at in enumerate(times)]


def _absent_of_week(days: Sequence[TrafficDay], last: int) -> float:
    """Percent of the answers of the 7 days up to that one; nan, which leaves a gap, where there are none."""
    first = (date.fromisoformat(days[last].day) - timedelta(days=6)).isoformat()
    week = [one for one in days[max(0, last - 6) : last + 1] if one.day >= first]
    n = sum(one.n - one.n_errors for one in week)
    return 100 * sum(one.n_abstained for one in week) / n if n else float("nan")


def _drawn(figure: Figure, title: str) -> str:
    return _svg(figure, title).replace(_GROUND, "var(--ground)")


def _dates(axes: Axes, at: Sequence[float]) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlim(min(at) - 1, max(at) + 1)
