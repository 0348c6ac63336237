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


def fitting(curated: Curated, method: str) -> Curated:
    """Without what the method cannot learn from: a thumb alone is no pair."""
    if method not in PAIRED:
        return curated
    pairs = tuple(one for one in curated.kept if None not in (one.preference.chosen, one.preference.rejected))
    unpaired = len(curated.kept) - len(pairs)
    return Curated(curated.given, pairs, curated.dropped | ({"unpaired (use kto)": unpaired} if unpaired else {}))


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
