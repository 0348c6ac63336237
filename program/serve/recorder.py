"""What a program said, with the prompt that it said it to: read off DSPy's callbacks while it runs."""

import time
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from corpora.types import Passage, Quote
from program.feedback.types import Said, Shown


class Recorder(BaseCallback):
    """Keeps the fields that the last predictor of a call was given, and the text that its LM wrote."""

    def __init__(self) -> None:
        self.predictor: dspy.Predict | None = None
        self.inputs: dict[str, Any] = {}
        self.completion = ""

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A predictor begins; other modules are passed over."""
        if isinstance(instance, dspy.Predict):
            given = inputs.get("kwargs", inputs)
            self.predictor, self.completion = instance, ""
            self.inputs = {name: given[name] for name in instance.signature.input_fields if name in given}

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """An LM has spoken, in a text or, with log probabilities, in a mapping that has one."""
        if exception is None and isinstance(outputs, list) and outputs:
            first = outputs[0]
            self.completion = str(first.get("text") or "") if isinstance(first, dict) else str(first)


def said_by(program: dspy.Module, *, question: str, contract_id: str, release: str, sample: str = "") -> Said:
    """What the program says to the question; raises whatever it raises."""
    recorder, began = Recorder(), time.perf_counter()
    # Without history: a server would keep every prompt it ever made.
    with dspy.context(callbacks=[*dspy.settings.callbacks, recorder], trace=[], disable_history=True):
        prediction = program(question=question, contract_id=contract_id)
    seconds = time.perf_counter() - began
    predictors = program.predictors()
    found = bool(prediction.found)
    return Said(
        answer=str(prediction.answer),
        found=found,
        quotes=tuple(Quote(q.text, q.contract_id, q.start, q.end) for q in prediction.quotes) if found else (),
        confidence=getattr(prediction, "confidence", None),
        p_answered=getattr(prediction, "p_answered", None),
        release=release,
        passages=tuple(map(_shown, getattr(prediction, "passages", None) or ())),
        inputs=tuple((name, str(value)) for name, value in recorder.inputs.items()),
        predictor=next((i for i, each in enumerate(predictors) if each is recorder.predictor), 0),
        completion=recorder.completion,
        readable=bool(getattr(prediction, "readable", True)),
        sample=sample,
        latency_s=seconds,
    )


def _shown(passage: Passage) -> Shown:
    return Shown(passage.id, passage.contract_id, passage.start, passage.end)
