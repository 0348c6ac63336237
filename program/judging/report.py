"""How far a judge can be trusted, as one HTML page that opens without a network, and as lines for the terminal.

    report = judge_report(judge, judge_cases(corpus, 200, 0), degenerate_cases(corpus, 200, 0), threads=32, seed=0)
    write_judge_report(folder, report)

Questions, answers and reasons on the page are escaped by Jinja; only the plot is inserted as it is.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from modules.degenerate import Guarded
from modules.judge import Judge, JudgeError
from program.judging.agreement import (
    agreement,
    by_kind,
    degenerate_wins,
    human_agreement,
    length_bias,
    position_flips,
    retest,
)
from program.judging.measure import Outcome, ask_judge
from program.judging.trust import MIN_KAPPA, check_judge, judge_identity, judge_name
from program.judging.types import JudgedPair
from program.plots import score_plot
from program.report import interval_text, page_environment
from program.runs import write_json, write_text

WRONG_SHOWN = 12
_WIDTH_IN = 6.8  # the kinds of wrong answers have long names


def judge_report(
    judge: Judge,
    gold: Sequence[JudgedPair],
    degenerate: Sequence[JudgedPair],
    people: Sequence[JudgedPair] = (),
    *,
    threads: int,
    seed: int,
    corpus: str = "",
    min_kappa: float = MIN_KAPPA,
    progress: bool = False,
) -> dict[str, Any]:
    """The figures of a judge, JSON-able: shares 0 to 1 with 95% intervals by contract, None for nothing to measure.

    The judge is measured as it is to be used, behind the guard; the degenerate answers without the guard too. `people`
    are pairs that persons judged. "trusted" says whether `check_judge` lets it train. EvaluationError where more than a
    fifth of the calls fail.
    """
    began = time.perf_counter()
    guarded = judge if isinstance(judge, Guarded) else Guarded(judge)
    told = {"threads": threads, "progress": progress}
    on_gold = ask_judge(guarded, gold, swap=True, retest=True, **told)
    on_people = ask_judge(guarded, people, **told)
    report = {
        "judge": {"name": judge_name(guarded), "identity": judge_identity(guarded)},
        "corpus": corpus,
        "seed": seed,
        "gold": agreement(on_gold, seed),
        "by_kind": by_kind(on_gold, seed),
        "people": agreement(on_people, seed) if people else None,
        "human_human": human_agreement(people, seed) if people else None,
        "position": position_flips(on_gold, seed),
        "retest": retest(on_gold, seed),
        "length": length_bias(on_gold),
        "degenerate": {
            "guarded": degenerate_wins(ask_judge(guarded, degenerate, **told)),
            "unguarded": degenerate_wins(ask_judge(guarded.judge, degenerate, **told)),
        },
        "wrong": [_shown(one) for one in on_gold if one.verdict is not None and not one.right][:WRONG_SHOWN],
        "unread": [one.error for one in on_gold if one.verdict is None][:WRONG_SHOWN],
        "seconds": round(time.perf_counter() - began, 1),
    }
    return report | {"trusted": _trusted(report, min_kappa)}


def write_judge_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Writes judge_report.json and judge_report.html into `folder`, each whole or not at all; the page's path."""
    page = page_environment().get_template("judging/judge_report.html.j2").render(_context(report))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "judge_report.json", report)
    return write_text(folder / "judge_report.html", page)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The figures in about ten lines for the terminal."""
    gold, position, again = report["gold"], report["position"], report["retest"]
    lines = [
        report["judge"]["name"],
        f"against gold (n={gold['n']}, {gold['n_contracts']} contracts): kappa {kappa_text(gold['kappa'])}, "
        f"accuracy, %: {interval_text(gold['accuracy'])}, without ties {interval_text(gold['accuracy_decided'])}; "
        f"{gold['n_ties']} ties, {gold['n_unreadable']} unreadable, {gold['n_failed']} failed",
        *(f"  {row['kind']} (n={row['n']}): {interval_text(row['accuracy'])}" for row in report["by_kind"]),
        f"sides exchanged (n={position['n']}): {interval_text(position['rate'])}% say otherwise",
        f"asked again (n={again['n']}): {interval_text(again['same'])}% say the same; noise of the margin "
        f"{_number(again['noise'], 2)}",
        f"length: the longer won in {report['length']['longer_won']} of {report['length']['n_wrong']} wrong verdicts; "
        f"correlation {_number(report['length']['correlation'], 2)}, gold's "
        f"{_number(report['length']['gold_correlation'], 2)}",
    ]
    for name in ("guarded", "unguarded"):
        bad = report["degenerate"][name]
        lines.append(
            f"degenerate answers, {name}: {bad['wins']} of {bad['n']} won, {bad['ties']} tied, "
            f"{bad['n_unreadable']} unreadable"
        )
    if report["people"]:
        people, among = report["people"], report["human_human"]
        lines.append(
            f"against people (n={people['n']}): kappa {kappa_text(people['kappa'])}; people among themselves "
            f"(n={among['n']}): {kappa_text(among['kappa'])}"
        )
    return [*lines, f"may train: {'yes' if report['trusted']['ok'] else 'no; ' + report['trusted']['why']}"]


def kappa_text(found: Mapping[str, Any] | None) -> str:
    """ "0.84 [0.75, 0.92]"; "–" where nothing was measured."""
    if found is None:
        return "–"
    return f"{found['mean']:.2f}" + ("" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]")


def _trusted(report: Mapping[str, Any], min_kappa: float) -> dict[str, Any]:
    try:
        check_judge(report, min_kappa)
    except JudgeError as error:
        return {"ok": False, "why": str(error), "min_kappa": min_kappa}
    return {"ok": True, "why": "", "min_kappa": min_kappa}


def _shown(outcome: Outcome) -> dict[str, Any]:
    pair, verdict = outcome.pair, outcome.verdict
    return {
        "question": pair.case.question,
        "contract_id": pair.contract_id,
        "kind": pair.kind,
        "a": pair.a.answer,
        "b": pair.b.answer,
        "gold": pair.winner,
        "said": verdict.winner,
        "margin": verdict.margin,
        "stable": verdict.stable,
        "reason": verdict.reason,
        "quote": verdict.quote,
    }


def _context(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in report["by_kind"] if row["accuracy"]]
    column = {key: [row["accuracy"][key] for row in rows] for key in ("mean", "low", "high")}
    labels = [f"{row['kind']}, n={row['n']}" for row in rows]
    plot = score_plot(labels, [column], "Accuracy by what is wrong with the other answer", _WIDTH_IN) if rows else None
    return {
        "report": report,
        "kinds_svg": Markup(plot) if plot else None,
        "kappa": kappa_text,
        "number": _number,
        "degenerate_rows": _degenerate_rows(report["degenerate"]),
    }


def _degenerate_rows(degenerate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Guarded and unguarded side by side, all first, then each kind."""
    both = []
    for name in ("guarded", "unguarded"):
        cell = degenerate[name]
        both.append({"all": cell} | {row["kind"]: row for row in cell["by_kind"]})
    none = {"n": 0, "wins": 0, "ties": 0}
    kinds = list(dict.fromkeys([*both[0], *both[1]]))
    return [{"kind": kind, "guarded": both[0].get(kind, none), "unguarded": both[1].get(kind, none)} for kind in kinds]


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
