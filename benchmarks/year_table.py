"""The table and the plot of `benchmarks.year`, from the folders of its runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.year_world import NEW_CATEGORIES, POISONED, SECOND_HOUSE
from program.intervals import mean_interval, paired_interval

_DAY_S = 86_400
CHANGES = ((SECOND_HOUSE, "second house"), (NEW_CATEGORIES, "new categories"))


def read_arm(folder: Path, arm: str) -> list[dict[str, Any]]:
    """What was kept of each month of an arm, in order; contracts and questions are named by run and month."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / arm).glob("month-*.json"))]
    for one in told:
        for row in [*one["rows"], *one.get("before", ())]:
            row["contract_id"] = f"{folder}/{row['contract_id']}"
            row["question_id"] = f"{folder}/{one['month']}/{row['question_id']}"
    return told


def show(folders: Sequence[Path], arms: Mapping[str, str], begin_s: float) -> None:
    """Months, their sum, Evergreen against each arm, promotions, alarms, the poisoned batch, and costs."""
    months = {arm: [one for folder in folders for one in read_arm(folder, arm)] for arm in arms}
    months = {arm: told for arm, told in months.items() if told}
    numbers = sorted({one["month"] for told in months.values() for one in told})
    print(f"\n| arm | {' | '.join(map(str, numbers))} | all months | CPU s |\n|---|{'---|' * (len(numbers) + 2)}")
    for arm, told in months.items():
        by_month = [_rows(one for one in told if one["month"] == number) for number in numbers]
        cells = " | ".join(f"{100 * _mean(rows):.0f}" if rows else "" for rows in by_month)
        rows = _rows(told)
        found = mean_interval([row["exact_match"] for row in rows], [row["contract_id"] for row in rows])
        spent = sum(one["seconds"] for one in told)
        bounds = f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        print(f"| {arms[arm]} | {cells} | {bounds} | {spent:.0f} |")
    if "evergreen" not in months:
        return
    print()
    mine = _rows(months["evergreen"])
    for arm in (arm for arm in months if arm != "evergreen"):
        print(f"Evergreen against {arms[arm]}: {_difference(_rows(months[arm]), mine)}")
    if "scratch" in months:
        spent = {arm: sum(one["seconds"] for one in months[arm]) for arm in ("evergreen", "scratch")}
        print(f"cost against monthly retraining: {spent['evergreen'] / spent['scratch']:.2f} times")
    for folder in folders:
        _show_loop(folder, begin_s)


def _show_loop(folder: Path, begin_s: float) -> None:
    """What the loop of one run decided, and when."""
    print(f"\n{folder.name}:")
    told = [one for one in read_arm(folder, "evergreen") if "before" in one]
    for live in dict.fromkeys(one["live"] for one in told):
        months = [one for one in told if one["live"] == live]
        change = _difference(_rows([{"rows": row["before"]} for row in months]), _rows(months))
        which = f"months {months[0]['month']} to {months[-1]['month']}"
        print(f"promoted at the end of month {months[0]['month'] - 1}: {change}, on the questions of {which}")
    loop = folder / "home.json"
    if not loop.is_file():
        return
    told = json.loads(loop.read_text(encoding="utf-8"))
    for one in told["renewals"]:
        apart = f"; {len(one['quarantine'])} contracts into quarantine" if one.get("quarantine") else ""
        why = f"{'; '.join(one.get('reasons', ()))}: {one.get('why')}{apart}"
        print(f"renewal {one['id']}, end of month {one['month']}: {one.get('outcome')}, {why}")
    checks = [(one["at"] - begin_s) / _DAY_S for one in told["drift"]]
    alarms = [((one["at"] - begin_s) / _DAY_S, one) for one in told["drift"] if one["alarm"]]
    print(f"drift checks on days {[round(day) for day in checks]}")
    for day, one in alarms:
        behind = [(day - 30 * (month - 1), what) for month, what in CHANGES if 0 < day - 30 * (month - 1) <= 90]
        why = f"{behind[-1][0]:.0f} days behind the {behind[-1][1]}" if behind else "FALSE"
        print(f"alarm on day {day:.0f} ({one['cause']}): {why}")


def plot(folder: Path, arms: Mapping[str, str]) -> None:
    """Scores month by month, a line an arm, in year.svg of the folder."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for arm, name in arms.items():
        told = read_arm(folder, arm)
        axes.plot([one["month"] for one in told], [100 * _mean(_rows([one])) for one in told], marker="o", label=name)
    for month, what in (*CHANGES, (POISONED, "wrong labels")):
        axes.axvline(month, color="0.8", zorder=0)
        axes.annotate(what, (month, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    axes.set_xlabel("month")
    axes.set_ylabel("exact match, %")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(folder / "year.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _rows(months: Any) -> list[dict[str, Any]]:
    """Rows of calls that did not fail."""
    return [row for one in months for row in one["rows"] if row["error"] is None]


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["exact_match"] for row in rows) / len(rows)


def _difference(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> str:
    """Points that `after` is above `before` on the questions that both were asked, with the interval."""
    known = {row["question_id"]: row for row in after}
    both = [(row, known[row["question_id"]]) for row in before if row["question_id"] in known]
    sides = ([pair[side]["exact_match"] for pair in both] for side in (0, 1))
    found = paired_interval(*sides, [row["contract_id"] for row, _ in both])
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}], n={found.n}"
