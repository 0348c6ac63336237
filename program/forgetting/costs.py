"""What learning cost, read off the records that trainings leave (training.json)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Wall-clock seconds, optimizer steps, rows, and tokens trained on (each epoch's anew, prompts included)."""

    seconds: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0


def training_cost(run: Path) -> TrainingCost:
    """All trainings of a compile run, those whose weights were not kept too."""
    return cost_of(run.glob("training/*/training.json"))


def cost_of(records: Iterable[Path]) -> TrainingCost:
    """The sum over some trainings' records; an average of adapters was no training, and counts nothing."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    trained = [one for one in told if one.get("history")]
    return TrainingCost(
        seconds=sum(one["seconds"] for one in trained),
        steps=sum(one["history"][-1]["step"] for one in trained),
        rows=sum(one["rows"] for one in trained),
        tokens=sum(one["history"][-1]["tokens"] for one in trained),
    )
