"""One adapter per skill, and who picks among them: the zoo that a single guarded model has to beat.

zoo = SkillZoo(program, {"ashgrove": lm_a, "juniper": lm_b}, route=known(skill_of_contract, "contract_id"))
zoo = SkillZoo(program, lms, route=nearest_centroid(embed, texts_by_skill, text_of=lambda given: given["question"]))
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from optimizers.errors import ModelError

Route = Callable[[Mapping[str, Any]], str]


class SkillZoo(dspy.Module):
    """A copy of one program for each skill, on that skill's LM; `route` names the skill of a call's inputs."""

    def __init__(self, program: dspy.Module, lms: Mapping[str, dspy.LM], route: Route) -> None:
        super().__init__()
        if not lms:
            raise ModelError("a zoo needs at least one skill's LM")
        self.experts = {}
        for skill, lm in lms.items():
            self.experts[skill] = program.deepcopy()
            self.experts[skill].set_lm(lm)
        self.route = route

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The chosen expert's prediction, `skill` beside it. ModelError for a skill without an expert."""
        skill = self.route(inputs)
        if skill not in self.experts:
            raise ModelError(f"inputs were routed to skill {skill!r}; there are {sorted(self.experts)}")
        prediction = self.experts[skill](**inputs)
        prediction.skill = skill
        return prediction


def known(skill_of: Mapping[Any, str], field: str) -> Route:
    """The oracle: the skill that somebody wrote down for the value of an input `field`. ModelError where nobody did."""

    def route(inputs: Mapping[str, Any]) -> str:
        if inputs[field] not in skill_of:
            raise ModelError(f"nobody said what skill {field}={inputs[field]!r} is of; add it, or route by likeness")
        return skill_of[inputs[field]]

    return route


def nearest_centroid(
    embed: Callable[[Sequence[str]], ArrayLike],
    texts_by_skill: Mapping[str, Sequence[str]],
    text_of: Callable[[Mapping[str, Any]], str],
) -> Route:
    """The skill whose texts' mean direction is nearest to the text of the inputs.

    `embed` gives one vector a text (N x D), for instance a sentence embedder's `encode`; `text_of` says what of the
    inputs is read: the question, or passages retrieved for it. Raises ModelError for a skill without texts.
    """
    if empty := [skill for skill, texts in texts_by_skill.items() if not texts]:
        raise ModelError(f"skills {empty} have no texts to know them by; give some of their training questions")
    skills = [skill for skill, texts in texts_by_skill.items() for _ in texts]
    vectors = normalize(embed([text for texts in texts_by_skill.values() for text in texts]))
    if len(texts_by_skill) == 1:
        return lambda inputs: skills[0]
    nearest = NearestCentroid().fit(vectors, skills)
    return lambda inputs: str(nearest.predict(normalize(embed([text_of(inputs)])))[0])
