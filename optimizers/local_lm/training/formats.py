"""Rows for supervised fine-tuning from DSPy examples: several ways to put the same task, and mixtures of tasks.

A model tuned under one wording answers under that wording. Rows of one example in several formats (with the full task
description, with demonstrations before it, with the fields alone) keep it serviceable under all of them.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import dspy
from datasets import Dataset, interleave_datasets

from optimizers.errors import TrainingError

FORMATS = ("description", "demonstrations", "fields")


def instruction_rows(
    signature: type[dspy.Signature],
    examples: Sequence[dspy.Example],
    adapter: dspy.Adapter,
    *,
    formats: Mapping[str, float],
    demos: Sequence[dspy.Example] = (),
    n_demos: int = 2,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One {"messages"} row an example, its format drawn with the weights of `formats` (of FORMATS).

    "description" is what the adapter writes; "demonstrations" puts up to `n_demos` of `demos` before the question
    (never the example itself); "fields" leaves the system text out. An example's "group" goes with its row. Raises
    TrainingError for an unknown format, or "demonstrations" without any.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise TrainingError(f"instruction formats {unknown} are not known; known are {FORMATS}")
    if formats.get("demonstrations") and not demos:
        raise TrainingError("the 'demonstrations' format needs demos; give some, or leave the format out")
    rng = Random(seed)
    rows = []
    for example in examples:
        chosen = rng.choices(list(formats), weights=list(formats.values()))[0]
        others = [demo for demo in demos if demo is not example]
        shown = rng.sample(others, min(n_demos, len(others))) if chosen == "demonstrations" else []
        inputs = {name: example[name] for name in signature.input_fields}
        outputs = {name: example[name] for name in signature.output_fields}
        messages = adapter.format(signature, demos=shown, inputs=inputs)
        if chosen == "fields":
            messages = [turn for turn in messages if turn["role"] != "system"]
        answer = adapter.format_assistant_message_content(signature, outputs)
        row = {"messages": [*messages, {"role": "assistant", "content": answer}]}
        rows.append(row | ({"group": example["group"]} if "group" in example else {}))
    return rows


def mix_rows(
    tasks: Mapping[str, Sequence[Mapping[str, Any]]], weights: Mapping[str, float], *, n_rows: int, seed: int = 0
) -> list[dict[str, Any]]:
    """`n_rows` rows drawn from several tasks' rows in the stated proportions; a small task comes round again.

    Weights need not sum to one. Raises TrainingError for a task without a weight, or an empty one.
    """
    if set(tasks) != set(weights) or any(weight < 0 for weight in weights.values()) or not sum(weights.values()):
        raise TrainingError(f"each of {sorted(tasks)} needs a weight of 0 or more, not all 0; got {dict(weights)}")
    if empty := [name for name, rows in tasks.items() if not rows and weights[name]]:
        raise TrainingError(f"tasks {empty} have no rows; give some, or weight 0")
    used = [name for name in tasks if weights[name]]
    places = [Dataset.from_dict({"task": [name] * len(tasks[name]), "at": range(len(tasks[name]))}) for name in used]
    total = sum(weights[name] for name in used)
    # Shuffled once each, then dealt in turn, round and round until there are enough.
    endless = interleave_datasets(
        [one.shuffle(seed=seed) for one in places],
        probabilities=[weights[name] / total for name in used],
        seed=seed,
        stopping_strategy="all_exhausted",
    )
    drawn = [endless[i % len(endless)] for i in range(n_rows)]
    return [dict(tasks[row["task"]][row["at"]]) for row in drawn]
