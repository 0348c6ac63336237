"""From reasons to steps, the cheapest first: what to tune is said by what has changed.

| what is said                                   | steps                                                            |
|---|---|
| no release yet                                 | `first_recipe`                                                   |
| drift of the corpus                            | r: the retriever is tuned and all is indexed anew                |
| drift of the questions                         | p: prompts                                                       |
| drift of the model, or of an unknown kind      | `recipe`: weights                                                |
| new labels, new contracts                      | s, if the recipe has one: they are learnt, or labelled first     |
| enough feedback                                | a, if the recipe has one                                         |
| the schedule, or by hand                       | `recipe`                                                         |

Several together are taken in the order r, p, and then as `recipe` has them, each once. A step `a` without feedback or a
judge is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from program.renewal.config import RenewalConfig
from program.renewal.home import RenewalError
from program.renewal.triggers import Trigger

_BY_CAUSE = {"corpus": ("r",), "questions": ("p",)}
_BY_KIND = {"labels": "s", "contracts": "s", "feedback": "a"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The recipe of a renewal and why, a line each."""

    recipe: str
    reasons: tuple[str, ...]


def make_plan(
    triggers: Sequence[Trigger], config: RenewalConfig, *, cause: str = "none", has_feedback: bool = False
) -> Plan:
    """The steps for these reasons; `cause` is what drift was attributed to. RenewalError where nothing is left."""
    if any(trigger.kind == "first" for trigger in triggers):
        return Plan(config.first_recipe, tuple(trigger.why for trigger in triggers))
    weights = tuple(config.recipe.split(" -> "))
    wanted: set[str] = set()
    for trigger in triggers:
        if trigger.kind == "drift":
            wanted.update(_BY_CAUSE.get(cause, weights))
        elif trigger.kind in _BY_KIND:
            wanted.update({_BY_KIND[trigger.kind]} & set(weights) or weights)
        else:
            wanted.update(weights)
    if not has_feedback and "judge" not in config.compile:
        wanted.discard("a")
    order = dict.fromkeys(("r", "p", *weights))
    steps = [letter for letter in order if letter in wanted]
    if not steps:
        raise RenewalError(
            f"nothing can be done about {[trigger.why for trigger in triggers]} by the recipe {config.recipe!r}: its "
            "step a needs feedback or a judge; give one, or a recipe with an s"
        )
    return Plan(" -> ".join(steps), tuple(trigger.why for trigger in triggers))
