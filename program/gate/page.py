"""A decision as decision.json and one HTML page that opens without a network, and as lines for the terminal.

    write_decision(folder, decision, evidence)
    earlier = read_decisions(folder.parent)

Questions, answers and names on the page are escaped by Jinja; only the plot is inserted as it is.
"""

from pathlib import Path

from markupsafe import Markup

from program.failpoints import reach
from program.gate.plots import differences_plot
from program.gate.types import Check, Decision, Evidence, GateError, from_json, to_json
from program.report import choose_questions, page_environment
from program.runs import write_text

NAMES = {
    "questions": "Enough questions",
    "decisions": "Uses of the test set",
    "gain": "Gain on the test set",
    "mcnemar": "The same by McNemar's test",
    "skill": "Skill",
    "failed_calls": "Failed calls",
    "ungrounded_quotes": "Quotes that stand nowhere",
    "kl": "KL from the incumbent",
    "length": "Length of answers",
    "abstention": "Abstention, away from gold",
    "latency_p50": "Latency, median",
    "latency_p95": "Latency, 95th percentile",
    "memory": "Memory",
    "shadow_pairs": "Shadow: answers compared",
    "shadow_errors": "Shadow: failed calls",
    "shadow_agreement": "Shadow: same answer",
    "shadow_abstention": "Shadow: abstention, change",
    "shadow_ungrounded_quotes": "Shadow: quotes that stand nowhere",
    "shadow_latency_p50": "Shadow: latency, median",
    "shadow_latency_p95": "Shadow: latency, 95th percentile",
    "shadow_judge": "Shadow: preferred by the judge",
}
WORDS = {
    "promote": "Promote: shown to be better, and nothing lost.",
    "refuse": "Refuse: the live program stays.",
    "undecided": "Undecided: the live program stays until more is known.",
}
CHANGED_SHOWN = 10
_FORMATS = {"p": ".2g", "count": ",.0f", "nats": ".3f", "ratio": ".2f"}
_SIGNED = ("gain", "skill", "abstention", "shadow_abstention", "shadow_judge")


def write_decision(folder: Path, decision: Decision, evidence: Evidence) -> Path:
    """Writes decision.json and gate.html into `folder`, each whole or not at all; the page's path.

    The changed answers are shown only where the gain was looked at: until then nobody should know them.
    """
    drawn = [check for check in decision.checks if check.name in ("gain", "skill") and check.value is not None]
    title = "Gain and skills with their intervals"
    plot = Markup(differences_plot(drawn, decision.rules.margin, title)) if drawn else None
    pairs = []
    if decision.looked:
        both = choose_questions(evidence.incumbent.rows, evidence.candidate.rows, limit=CHANGED_SHOWN)
        pairs = [(old, new) for old, new in both if (old["answer"], old["found"]) != (new["answer"], new["found"])]
    page = page_environment().get_template("gate/gate.html.j2").render(
        decision=decision, words=WORDS[decision.verdict], name_of=name_of, value=value_text, bound=bound_text,
        interval=interval_text, plot=plot, pairs=pairs, n_drawn=len(drawn),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "decision.json", to_json(decision))
    reach("gate.decided")
    return write_text(folder / "gate.html", page)


def read_decision(path: Path) -> Decision:
    """The decision in a decision.json; GateError where it is damaged."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except GateError as error:
        raise GateError(f"{path}: {error}") from error


def read_decisions(root: Path) -> list[Decision]:
    """Every decision in the folders of `root`, each in its own. Damaged ones raise: they count uses of a test set."""
    return [read_decision(path) for path in sorted(root.glob("*/decision.json"))]


def decision_lines(decision: Decision) -> list[str]:
    """The decision in a few lines for the terminal."""
    lines = [f"{decision.candidate} against {decision.incumbent}: {WORDS[decision.verdict]}", *decision.reasons]
    marks = {True: "passed", False: "failed", None: "cannot be told"}
    return lines + [
        f"  {name_of(check)}: {value_text(check)}{interval_text(check) and ' ' + interval_text(check)}"
        f" (bound {bound_text(check)}), {marks[check.passed]}"
        for check in decision.checks
    ]


def name_of(check: Check) -> str:
    """A check's name in words."""
    return " ".join(filter(None, (NAMES.get(check.name, check.name), check.about)))


def value_text(check: Check) -> str:
    """The value in its unit; "–" where there is none."""
    return "–" if check.value is None else _number(check, check.value) + _unit(check)


def interval_text(check: Check) -> str:
    """ "[-1.1, +1.8]", or nothing."""
    if check.low is None or check.high is None:
        return ""
    return f"[{_number(check, check.low)}, {_number(check, check.high)}]"


def bound_text(check: Check) -> str:
    """What must hold, in words: of the whole interval for the gain, skills and preferences, of the value for others."""
    style = ",.0f" if check.unit == "count" else ".3g"
    low, high = (None if end is None else f"{_scaled(check, end):{style}}".replace("-", "−") for end in check.bound)
    if check.name in ("gain", "skill", "shadow_judge"):
        return f"interval above {low}"
    if check.unit == "p":
        return f"p below {high}"
    if low is None and high is None:
        return "any"
    if low is not None and high is not None:
        return f"{low} to {high}{_unit(check)}"
    return f"at least {low}{_unit(check)}" if high is None else f"at most {high}{_unit(check)}"


def _scaled(check: Check, value: float) -> float:
    return 100 * value if check.unit == "share" else value


def _number(check: Check, value: float) -> str:
    if check.unit == "share":
        sign = "+" if check.name in _SIGNED else ""
        return f"{100 * value + 0.0:{sign}.1f}".replace("-", "−")
    return f"{value:{_FORMATS[check.unit]}}"


def _unit(check: Check) -> str:
    signed = check.name in _SIGNED
    return {"share": " points" if signed else "%", "ratio": "×", "nats": " nats/token"}.get(check.unit, "")
