"""What preference tuning learns from: one noun, frozen.

One real row: of two answers to one question, the person's correction (chosen) and what the program had said.

    Preference(predictor=0, inputs={"passages": "[1] This Agreement ...", "question": "Which law governs?"},
               chosen="[[ ## quotes ## ]]\\nlaws of the State of Ohio\\n\\n[[ ## answer ## ]]\\nOhio\\n\\n[[ ## completed ## ]]",
               rejected="[[ ## quotes ## ]]\\nnone\\n\\n[[ ## answer ## ]]\\nnot in this contract\\n\\n[[ ## completed ## ]]",
               group="ashgrove-2019-0007", question="Which law governs?", source="edit", by="3f1c", margin=None)
"""  # noqa: E501

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCES = ("edit", "choice", "rating", "thumb", "judge", "gold")


@dataclass(frozen=True, slots=True)
class Preference:
    """That one answer of a predictor is better than another, under inputs that it was or will be asked with.

    `predictor` is its place in `program.predictors()`; `inputs` are its input fields, so that the optimizer renders the
    very prompt that the program is served with. `chosen` and `rejected` are whole assistant texts as a model writes
    them; one of the two may be None (unpaired: an answer that is good, or bad, by itself). `group` is the contract's
    id, `question` what was asked, `source` one of SOURCES, `by` who preferred it (a pseudonym; None for a judge),
    `margin` by how much in the source's own units (None where it has none).
    """

    predictor: int
    inputs: Mapping[str, Any]
    chosen: str | None
    rejected: str | None
    group: str
    question: str
    source: str
    by: str | None = None
    margin: float | None = None
