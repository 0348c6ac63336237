"""What the base could do before any skill: keep the chat format, abstain, judge a pair, write a question.

Items are drawn once and frozen as plain data (`SuiteStore.add_ability`): the task, the inputs and what is right. They
are the same jobs that program/base_model/evaluate.py measures on the bundled base; any other LM is asked the same.

One real item: {"id": "abstain-0003", "ability": "abstain", "task": "review", "contract_id": "kestrel-…",
"inputs": {"passages": "[1] …", "question": "…"}, "gold": {"answer": "not in this contract"}}
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.judge import JudgeError, read_verdict
from modules.reviewer import is_absent
from modules.signatures import (
    NOT_FOUND,
    CompareAnswers,
    ReviewPassages,
    WriteQuestion,
    list_candidates,
    number_passages,
)
from program.asking import Tally, ask_all
from program.base_model import rows
from program.forgetting.skills import Mark
from program.metrics import exact_match

TASKS = {"review": ReviewPassages, "compare": CompareAnswers, "write": WriteQuestion}
ABILITIES = ("chat format", "abstain", "judge", "write a question")
FORMAT = "chat format"


def draw_items(
    houses: tuple[str, ...], n_contracts: int, *, seed: int = 0, per_contract: int = 2
) -> list[dict[str, Any]]:
    """Items of the three abilities on new contracts of these houses; the same arguments, the same items."""
    rng, items = Random(f"abilities/{seed}"), []
    sheets = [rows.draw_sheet(houses, rng) for _ in range(n_contracts)]
    for i, sheet in enumerate(sheets):
        other = sheets[i - 1]
        for _ in range(per_contract):
            items += [_absent(sheet, rng), _pair(sheet, other, rng), _passage(sheet, rng)]
    kept = [item for item in items if item is not None]
    return [{"id": f"{item['ability']}-{i:04}", **item} for i, item in enumerate(kept)]


def score_items(
    lm: dspy.LM, items: Sequence[dict[str, Any]], adapter: dspy.Adapter, *, threads: int = 16
) -> tuple[list[Mark], Tally]:
    """Marks of each item, and of all of them once more for the chat format (readable or not); and what failed.

    An answer that cannot be read is wrong. Raises LabelingError where too many calls fail.
    """
    marks, tally = [], Tally()
    with dspy.context(adapter=adapter):
        for task, signature in TASKS.items():
            some = [item for item in items if item["task"] == task]
            program = dspy.Predict(signature)
            program.set_lm(lm)
            said = ask_all(program, [item["inputs"] for item in some], tally, threads=threads, retries=0)
            for item, answer in zip(some, said, strict=True):
                readable = not isinstance(answer, AdapterParseError)
                if readable and isinstance(answer, Exception):
                    continue  # a failed call: in the tally, and no mark
                right = readable and _right(item, answer)
                marks.append(Mark(item["ability"], item["id"], item["contract_id"], float(right)))
                marks.append(Mark(FORMAT, item["id"], item["contract_id"], float(readable)))
    return marks, tally


def _right(item: dict[str, Any], said: dspy.Prediction) -> bool:
    gold = item["gold"]
    if item["ability"] == "abstain":
        return is_absent(said.answer or "")
    if item["ability"] == "judge":
        try:
            return read_verdict(said.better) == gold["letter"]
        except JudgeError:
            return False
    wanted = gold["answers"].get(said.question)
    return wanted is not None and exact_match(said.answer or "", wanted)


def _absent(sheet: rows.Sheet, rng: Random) -> dict[str, Any]:
    index = rng.choice([i for i, label in enumerate(sheet.labels) if not label.spans])
    passages = rows.retrieve(sheet, index, 4, rng)
    inputs = {"passages": number_passages([p.text for p in passages]), "question": sheet.labels[index].question.text}
    return _item("abstain", "review", sheet, inputs, {"answer": NOT_FOUND})


def _pair(sheet: rows.Sheet, other: rows.Sheet, rng: Random) -> dict[str, Any] | None:
    index = rng.choice([i for i, label in enumerate(sheet.labels) if label.spans])
    label, passages = sheet.labels[index], rows.retrieve(sheet, index, 3, rng, force=1.0)
    if not rows.covered(label, passages):
        return None
    right = rows.gold(sheet, label)[1]
    wrong, letter = rows.wrong_answer(sheet, other, label, right, rng), rng.choice("AB")
    inputs = {
        "passages": number_passages([p.text for p in passages]),
        "question": label.question.text,
        "candidates": list_candidates(*((right, wrong) if letter == "A" else (wrong, right))),
    }
    return _item("judge", "compare", sheet, inputs, {"letter": letter})


def _passage(sheet: rows.Sheet, rng: Random) -> dict[str, Any] | None:
    found = [label for label in sheet.labels if label.spans]
    held = [
        (p, {one.question.text: rows.gold(sheet, one)[1] for one in found if rows.covered(one, [p])})
        for p in sheet.passages
    ]
    held = [(passage, answers) for passage, answers in held if answers]
    if not held:
        return None
    passage, answers = rng.choice(held)
    return _item("write a question", "write", sheet, {"passage": " ".join(passage.text.split())}, {"answers": answers})


def _item(ability: str, task: str, sheet: rows.Sheet, inputs: dict[str, str], gold: dict[str, Any]) -> dict[str, Any]:
    return {"ability": ability, "task": task, "contract_id": sheet.contract.id, "inputs": inputs, "gold": gold}
