"""Training rows in other shapes than the prompt that is served: another task description, demonstrations, more turns.

    tune = InstructTune(metric=teaches, shapes=RowShapes(described=0.1, conversed=0.1, tasks=REVIEW_TASKS), ...)

A conversation begins with the served prompt, goes on with other questions about what was shown there, and says that
every answer of it is learnt:

    {"messages": [system, passages and question, answer, question, answer], "loss_on": "every"}

Not handled: several shapes in one row, and programs of several predictors in a conversation (its first alone goes on).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import dspy

from optimizers.errors import TrainingError

KINDS = ("described", "demonstrated", "conversed")
Step = tuple[Any, Mapping[str, Any], Mapping[str, Any]]  # a predictor, what it was asked with, what it said
FollowUps = Callable[[dspy.Example, dspy.Prediction], Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]]


@dataclass(frozen=True, slots=True)
class RowShapes:
    """Which shares of the rows are rendered in which other shape; all others are the very prompts that are served.

    `described`: one of `tasks` stands in the place of the instructions. `demonstrated`: up to `demonstrations` other
    rows stand before the question, in the place of the program's own. `conversed`: up to `turns` - 1 more questions
    follow, which the teacher's `follow_ups(example, prediction)` gives as (inputs, outputs); a row without any stays as
    it is served. A row has one shape at most; `seed` draws. Raises TrainingError for shares and numbers that cannot be.
    """

    described: float = 0.0
    demonstrated: float = 0.0
    conversed: float = 0.0
    tasks: tuple[str, ...] = ()
    demonstrations: int = 1
    turns: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in KINDS}
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            raise TrainingError(f"the shares of rows are {shares}; each must be 0 or more, and together at most 1")
        if self.described and not self.tasks:
            raise TrainingError(f"described is {self.described} and tasks is empty; give other wordings of the task")
        if self.demonstrations < 1 or self.turns < 2:
            raise TrainingError(
                f"demonstrations={self.demonstrations!r} must be 1 or more, turns={self.turns!r} 2 or more"
            )


def drawn(shapes: RowShapes, n: int) -> dict[int, str]:
    """The shape of each of `n` rows, by its place, that is not to be as it is served."""
    rng = Random(f"{shapes.seed}/{n}")
    places = rng.sample(range(n), n)
    chosen: dict[int, str] = {}
    for kind in KINDS:
        for place in places[len(chosen) : len(chosen) + math.floor(getattr(shapes, kind) * n + 0.5)]:
            chosen[place] = kind
    return chosen


def shaped(
    shapes: RowShapes,
    chosen: Mapping[int, str],
    items: Sequence[Mapping[str, Any]],
    adapter: dspy.Adapter,
    follow_ups: FollowUps | None,
    *,
    exclude_demos: bool,
) -> list[dict[str, Any]]:
    """A row for each step in the traces of the `chosen` items, in its shape.

    `items` are those of DSPy's bootstrap_trace_data, of which the others are demonstrations. Raises TrainingError where
    a conversation is to be and `follow_ups` is None.
    """
    if follow_ups is None and "conversed" in chosen.values():
        raise TrainingError(
            f"conversed is {shapes.conversed}, and the teacher has no method follow_ups(example, prediction); give one "
            "that has, or leave conversations out"
        )
    rows = []
    for place, kind in sorted(chosen.items()):
        rng = Random(f"{shapes.seed}/{place}")
        for number, (predictor, inputs, outputs) in enumerate(items[place]["trace"]):
            signature, demos = predictor.signature, [] if exclude_demos else predictor.demos
            if kind == "described":
                signature = signature.with_instructions(rng.choice(shapes.tasks))
            elif kind == "demonstrated":
                traces = [item["trace"] for item in items]
                demos = _others(traces, predictor, inputs, shapes.demonstrations, rng)
            row = adapter.format_finetune_data(signature=signature, demos=demos, inputs=inputs, outputs=outputs)
            if kind == "conversed" and number == 0:
                more = list(follow_ups(items[place]["example"], items[place]["prediction"]))
                row = _gone_on(row, signature, rng.sample(more, min(shapes.turns - 1, len(more))), adapter)
            rows.append(row)
    return rows


def _others(
    traces: Sequence[Sequence[Step]], predictor: Any, inputs: Mapping[str, Any], n: int, rng: Random
) -> list[dict[str, Any]]:
    """Up to `n` steps of the same task as demonstrations, no two asked the same, and none what the row is asked."""
    of_task = {
        str(dict(given)): {**given, **{name: said[name] for name in predictor.signature.output_fields}}
        for trace in traces
        for other, given, said in trace
        if other.signature.fields.keys() == predictor.signature.fields.keys()
    }
    of_task.pop(str(dict(inputs)), None)  # people's labels stand among the rows several times
    return rng.sample(list(of_task.values()), min(n, len(of_task)))


def _gone_on(
    row: dict[str, Any],
    signature: type[dspy.Signature],
    more: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    adapter: dspy.Adapter,
) -> dict[str, Any]:
    """The row with further turns, each asked in the adapter's own words; as it is where there are none."""
    turns = []
    for inputs, outputs in more:
        asked = adapter.format_user_message_content(signature, dict(inputs), main_request=True)
        said = adapter.format_assistant_message_content(signature, dict(outputs))
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {**row, "messages": [*row["messages"], *turns], "loss_on": "every"} if turns else row
