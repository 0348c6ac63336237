"""From curated preferences to training rows, under the prompts that the program is served with."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from optimizers.errors import TrainingError
from optimizers.finetuning import serving_prompt
from optimizers.preference_pairs import Curated
from optimizers.preference_types import Preference

PAIRED = ("dpo", "orpo", "cpo")


def preference_rows(
    program: dspy.Module, preferences: Sequence[Preference], method: str, adapter: dspy.Adapter
) -> list[dict[str, Any]]:
    """Training rows (training/rows.py) under the prompts that `program` is served with; KTO has one for each answer."""
    rows = []
    for one in preferences:
        row = {"prompt": serving_prompt(program, one, adapter), "group": one.group}
        if method == "kto":
            said = [(one.chosen, True), (one.rejected, False)]
            rows += [{**row, "completion": text, "label": good} for text, good in said if text is not None]
        else:
            rows.append({**row, "chosen": one.chosen, "rejected": one.rejected})
    return rows


def fitting(
    preferences: Sequence[Preference], method: str, *, anchors: bool = False
) -> tuple[list[Preference], dict[str, int]]:
    """Those that the method can learn from, and how many it cannot: a thumb alone is no pair.

    With `anchors`, what is good by itself is learnt by the likelihood term, as a pair with itself (training/rows.py).
    """
    if method not in PAIRED:
        return list(preferences), {}
    fit = [one for one in preferences if one.chosen is not None and (anchors or one.rejected is not None)]
    unpaired = len(preferences) - len(fit)
    return fit, {"unpaired (use kto)": unpaired} if unpaired else {}


def anchored(curated: Curated, anchors: float) -> Curated:
    """With at most `anchors` answers that are good by themselves for each pair: the rest would drown the pairs."""
    pairs = sum(one.preference.rejected is not None for one in curated.kept)
    room, why = anchors * pairs, "more good answers than anchors" if pairs else "unpaired (use kto)"
    kept = []
    for one in curated.kept:
        if one.preference.rejected is None:
            room -= 1
        if one.preference.rejected is not None or room >= 0:
            kept.append(one)
    above = len(curated.kept) - len(kept)
    dropped = curated.dropped | ({why: above} if above else {})
    return Curated(curated.given, tuple(kept), dropped)


def balance(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """KTO's weights, so that good and bad answers weigh the same however many there are (Ethayarajh et al. 2024, 8)."""
    good = sum(row["label"] for row in rows)
    bad = len(rows) - good
    if not good or not bad:
        raise TrainingError(f"KTO needs good and bad answers, and got {good} good and {bad} bad; give some of both")
    return {"desirable_weight": max(1.0, bad / good), "undesirable_weight": max(1.0, good / bad)}


def lm_of(program: dspy.Module, one: Preference) -> dspy.LM:
    predictors = program.predictors()
    if not 0 <= one.predictor < len(predictors):
        raise TrainingError(
            f"a preference is about predictor {one.predictor}, and the program has {len(predictors)}; it was said of "
            "another program: leave it out"
        )
    return predictors[one.predictor].lm
