"""What an alarm comes from, and what to do about it, cheapest first.

| passages, retrieval | questions, categories, words | confidence, abstention, judge | ratings | cause | plan |
|---|---|---|---|---|---|
| still | still | still | still | none | |
| moved | still | any | any | corpus | re-index, re-tune weights if answers moved |
| any | moved | any | any | questions | re-index if passages moved, recompile prompts, re-tune if answers moved |
| still | still | worse | any | model | re-tune weights |
| still | still | still, judge not asked | fell | model | re-tune weights |
| still | still | still, judge asked | fell | reviewers/unknown | read comments |
| still | still | other than before, not worse | still | reviewers/unknown | read comments |

Questions come first where both moved, since other questions are shown other passages; that the corpus moved as well
cannot be told from these signals, and re-indexing is cheap. "Moved" is what was unusual in the check that alarmed
(`DriftReport.suspect`), a looser bound than the alarm's: what carried the alarm is rarely all that moved. A fall in
answers whose inputs moved is taken for their consequence; weights come last in the plan.
"""

from dataclasses import dataclass
from typing import Literal

from program.drift.types import DriftReport, SignalResult

Kind = Literal["none", "corpus", "questions", "model", "reviewers/unknown"]
REMEDIES: dict[str, str] = {
    "corpus": "re-index",
    "questions": "recompile prompts",
    "model": "re-tune weights",
    "reviewers/unknown": "read what reviewers wrote, and have a sample judged",
}
_CHEAPEST_FIRST = ("reviewers/unknown", "corpus", "questions", "model")
_GROUPS = {
    "question_embedding": "questions",
    "category_mix": "questions",
    "oov_share": "questions",
    "passage_embedding": "corpus",
    "retrieval_score": "corpus",
    "p_answered": "corpus",
    "confidence": "model",
    "abstention": "model",
    "judge_score": "model",
    "ratings": "ratings",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """The likeliest cause, its reasons in words, and remedies in the order in which to try them."""

    kind: Kind
    reasons: tuple[str, ...]
    plan: tuple[str, ...]


def attribute(report: DriftReport) -> Cause:
    """The cause of a report's alarm by the module's table; "none" for a report without an alarm."""
    if not report.alarm:
        return Cause("none", (), ())
    unusual = [one for one in report.signals if one.name in {*report.suspect, *report.moved}]
    groups = {_GROUPS[one.name] for one in unusual}
    fell = [one for one in unusual if _GROUPS[one.name] in ("model", "ratings") and _worse(one)]
    reasons = [f"{one.name}: {one.about}" for one in unusual]
    kinds = [kind for kind in ("questions", "corpus") if kind in groups]
    if kinds:
        if len(kinds) == 2:
            reasons.append("other questions are shown other passages, so the questions come first")
        # Inputs explain a fall; what their remedies leave of it is for the weights.
        return _cause(kinds[0], [*kinds, *["model"] * bool(fell)], reasons)
    reasons.append("questions and passages are as they were")
    tested = {one.name for one in report.signals}
    only_ratings = {one.name for one in fell} == {"ratings"}
    if fell and not (only_ratings and "judge_score" in tested):
        return _cause("model", ["model"], reasons)
    if fell:
        reasons.append("the judge finds the answers as good as they were")
    return _cause("reviewers/unknown", ["reviewers/unknown"], reasons)


def _worse(one: SignalResult) -> bool:
    # An answer withheld more often, and one given where it was withheld, are both a model that changed.
    return one.name == "abstention" or one.effect < 0


def _cause(kind: Kind, kinds: list[str], reasons: list[str]) -> Cause:
    return Cause(kind, tuple(reasons), tuple(REMEDIES[one] for one in _CHEAPEST_FIRST if one in kinds))
