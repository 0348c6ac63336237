"""The facts as one HTML page that opens without a network: what is live, how good it is, what is alarming; then how.

Everything but the plots is escaped by Jinja, and the plots escape their own text. Links to the gates' pages are
relative: move the page and the home folder together.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from program.history import plots, words
from program.history.notices import notices
from program.history.types import Facts, ReleaseFact, RenewalFact, SkillCheck
from program.report import page_environment
from program.runs import write_text

FILE_NAME = "history.html"
# Of a matrix: what fits on a page.
_CANDIDATES_SHOWN = 6
_ROWS_SHOWN = 12


def write_history(facts: Facts, home: Path, out: Path | None = None) -> Path:
    """Writes the page to `out`, or history.html in the home folder, whole or not at all; its path."""
    out = (home / FILE_NAME) if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_text(out, render(facts, home, out))


def render(facts: Facts, home: Path, out: Path) -> str:
    """The page as text, to stand at `out`."""
    live = next((one for one in facts.releases if facts.live and one.id == facts.live.id), None)
    context = {
        "facts": facts,
        "live": live,
        "notices": notices(facts),
        "w": words,
        "link": _link(home, out),
        "skill_rows": _skill_rows(facts),
        "candidates": _candidates(facts)[-_CANDIDATES_SHOWN:],
        "alarms": [check for check in facts.drift if check.began][::-1],
        "other_test": _other_test(facts.releases),
        "rows_shown": _ROWS_SHOWN,
        "total": _totals(facts),
    }
    return page_environment().get_template("history/history.html.j2").render(context | _plots(facts))


def _plots(facts: Facts) -> dict[str, Markup | None]:
    scored = [one for one in facts.releases if one.score is not None]
    checked = _candidates(facts)
    timed = [one for one in facts.renewals if one.seconds]
    live = facts.live.id if facts.live else None
    drawn: dict[str, tuple[object, Callable[[], str]]] = {
        "score_svg": (
            scored,
            lambda: plots.score_history_plot(scored, live, "Exact match of each release with its 95% interval"),
        ),
        "skill_svg": (
            checked and facts.skills,
            lambda: plots.skill_history_plot(facts.skills, checked, "Each skill against its score at the time"),
        ),
        "drift_svg": (
            any(one.signals for one in facts.drift),
            lambda: plots.drift_plot(facts.drift, "Signals of drift over time, with alarms"),
        ),
        "feedback_svg": (facts.feedback, lambda: plots.feedback_plot(facts.feedback, "Feedback by month")),
        "traffic_svg": (
            facts.traffic,
            lambda: plots.traffic_plot(facts.traffic, "Questions, absent answers and median latency by day"),
        ),
        "cost_svg": (timed, lambda: plots.cost_plot(timed, "Minutes of each renewal by stage")),
    }
    return {name: Markup(draw()) if there else None for name, (there, draw) in drawn.items()}


def _link(home: Path, out: Path) -> Callable[[str], str]:
    def link(page: str) -> str:
        relative = os.path.relpath(home.absolute() / page, out.absolute().parent)
        return quote(Path(relative).as_posix())

    return link


def _candidates(facts: Facts) -> list[RenewalFact]:
    return [one for one in facts.renewals if one.skills]


def _skill_rows(facts: Facts) -> list[dict[str, Any]]:
    """One row a skill: its score at the time, and what each of the last candidates made of it (None: not asked)."""
    shown = _candidates(facts)[-_CANDIDATES_SHOWN:]
    rows = []
    for skill in facts.skills:
        cells: list[SkillCheck | None] = [
            next((check for check in renewal.skills if check.name == skill.name), None) for renewal in shown
        ]
        rows.append({"skill": skill, "cells": cells})
    return rows


def _other_test(releases: Sequence[ReleaseFact]) -> list[str]:
    scored = [one for one in releases if one.score is not None]
    return [scored[i].id for i in plots.changes_of_test(scored)]


def _totals(facts: Facts) -> dict[str, int]:
    keys = ("n", "n_errors", "n_abstained", "n_quotes", "n_ungrounded", "n_shadow")
    return {key: sum(getattr(one, key) for one in facts.traffic) for key in keys}
