"""Demonstrations for self-distillation: what each predictor was to say, and the prompt of a teacher who has seen it.

A label is a demonstration: a teacher that answers with labels (or the examples' own fields) is run once, and its trace
gives every predictor's inputs, in the very prompt it is served with, and its gold outputs.

Does not handle: programs that call one predictor several times for one example (refused).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils import DummyLM

from optimizers.errors import TrainingError
from optimizers.parallel import in_parallel

Message = Mapping[str, Any]
Template = Callable[[Sequence[Message], str], list[Message]]
Metric = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What predictor number `predictor` is asked with for one example, and what it was to say, by field."""

    example: dspy.Example
    predictor: int
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """`given` examples' demonstrations; `failed` calls of the teacher, and traces that the `metric` refused."""

    given: int
    shown: tuple[Demonstration, ...]
    failed: int = 0
    refused: int = 0


def as_turns(prompt: Sequence[Message], answer: str) -> list[Message]:
    """The teacher's prompt: the question answered as demonstrated, and asked again. DSPy's own form of a demonstration,
    so it suits every model that knows DSPy's prompts; it takes the question's tokens twice."""
    return [*prompt, {"role": "assistant", "content": answer}, prompt[-1]]


def in_question(prompt: Sequence[Message], answer: str) -> list[Message]:
    """The teacher's prompt: the demonstration behind the question, in the words of SDFT (Shenfeld et al. 2026,
    section 3), for models that follow instructions."""
    told = (
        f"{prompt[-1]['content']}\n\nThis is an example for a response to the question:\n{answer}\n\n"
        "Now answer with a response of your own, including the thinking process."
    )
    return [*prompt[:-1], {**prompt[-1], "content": told}]


def answer_text(student: dspy.Module, shown: Demonstration, adapter: dspy.Adapter) -> str:
    """The demonstrated outputs as a model writes them."""
    return adapter.format_assistant_message_content(
        student.predictors()[shown.predictor].signature, dict(shown.outputs)
    )


def demonstrate(
    student: dspy.Module,
    examples: Sequence[dspy.Example],
    teacher: dspy.Module | None,
    adapter: dspy.Adapter,
    *,
    metric: Metric | None = None,
    max_failed: float = 0.1,
    threads: int = 8,
) -> Demonstrations:
    """What each predictor of the student was to say for each example.

    `teacher` answers each example with its label; a method `follow` of it is given the student first. None: the
    student itself, its LMs replaced by the example's own fields. Traces for which `metric(example, prediction)` is
    false are left out and counted. TrainingError above a share of `max_failed` failures, naming the first.
    """
    if teacher is not None:
        _follow(teacher, student)

    def run(example: dspy.Example) -> tuple[list[Demonstration] | None | Exception]:
        try:
            with dspy.context(adapter=adapter, trace=[]):
                program = teacher if teacher is not None else _answering(student, example, adapter)
                prediction = program(**example.inputs())
                trace = list(dspy.settings.trace)
                if metric is not None and not metric(example, prediction):
                    return (None,)
                return (_read(student, program, example, trace),)
        except Exception as err:  # whatever it was: counted below, never a demonstration
            return (err,)

    done = [result for (result,) in in_parallel(run, examples, threads=threads, progress=False)]
    failures = [result for result in done if isinstance(result, Exception)]
    if len(failures) > max_failed * len(done):
        raise TrainingError(
            f"{len(failures)} of {len(done)} examples gave no demonstration (limit {max_failed:.0%}, max_failed); the "
            f"first: {type(failures[0]).__name__}: {failures[0]}"
        ) from failures[0]
    kept = [shown for result in done if isinstance(result, list) for shown in result]
    return Demonstrations(len(done), tuple(kept), len(failures), sum(result is None for result in done))


class Demonstrated(dspy.Module):
    """The program as its own teacher: asked for an example of `shown`, its predictors see that example's demonstration.

    An LM is asked with `template(prompt, answer)` in the place of each prompt. Raises TrainingError for an example
    without a demonstration, and for a predictor without one.
    """

    def __init__(
        self, program: dspy.Module, shown: Sequence[Demonstration], adapter: dspy.Adapter, template: Template
    ) -> None:
        super().__init__()
        self.program, self.adapter, self.template = program.deepcopy(), adapter, template
        for predictor in self.program.predictors():  # a class of its own for each, to tell them apart by
            predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions)
        self.answers: dict[str, dict[int, str]] = {}
        for one in shown:
            self.answers.setdefault(_key(one.example.inputs()), {})[one.predictor] = answer_text(program, one, adapter)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """As the program's."""
        if (answers := self.answers.get(_key(inputs))) is None:
            raise TrainingError(f"there is no demonstration for {inputs}")
        adapter, place = copy.copy(self.adapter), {id(p.signature): i for i, p in enumerate(self.program.predictors())}
        plain = adapter.format

        def demonstrated(signature: type[dspy.Signature], demos: list, inputs: dict) -> list[Message]:
            answer = answers.get(place.get(id(signature), -1))
            if answer is None:
                raise TrainingError(f"predictor {signature.__name__} has no demonstration for this example")
            return self.template(plain(signature, demos, inputs), answer)

        adapter.format = demonstrated
        if hasattr(adapter, "use_json_adapter_fallback"):
            adapter.use_json_adapter_fallback = False  # it would ask again without the demonstration
        with dspy.context(adapter=adapter):
            return self.program(**inputs)


def _follow(teacher: dspy.Module, student: dspy.Module) -> None:
    """The teacher's prompts become the student's: what it is asked with is what the student is asked with."""
    if hasattr(teacher, "follow"):
        teacher.follow(student)
    theirs, own = teacher.predictors(), student.predictors()
    if len(theirs) != len(own):
        raise TrainingError(f"the teacher has {len(theirs)} predictors and the student {len(own)}; give a like program")
    for predictor, model in zip(theirs, own, strict=True):
        predictor.signature, predictor.demos = model.signature, model.demos


def _answering(student: dspy.Module, example: dspy.Example, adapter: dspy.Adapter) -> dspy.Module:
    """A copy of the student whose LMs say what the example's fields say."""
    program = student.deepcopy()
    for predictor in program.predictors():
        names = list(predictor.signature.output_fields)
        if missing := [name for name in names if name not in example]:
            raise TrainingError(
                f"the examples have no {missing}, which {predictor.signature.__name__} is to say; add these fields, or "
                "give a teacher, a program that answers each example with its label"
            )
        predictor.lm = DummyLM([{name: example[name] for name in names}], adapter=adapter)
    return program


def _read(student: dspy.Module, program: dspy.Module, example: dspy.Example, trace: list) -> list[Demonstration]:
    place = {id(predictor): i for i, predictor in enumerate(program.predictors())}
    shown: dict[int, Demonstration] = {}
    for predictor, inputs, said in trace:
        if (i := place.get(id(predictor))) is None:
            continue
        signature = student.predictors()[i].signature
        if i in shown:
            raise TrainingError(f"{signature.__name__} is called more than once for one example; that is not handled")
        asked = {name: inputs[name] for name in signature.input_fields if name in inputs}
        shown[i] = Demonstration(example, i, asked, {name: said[name] for name in signature.output_fields})
    if not shown:
        raise TrainingError("the teacher answered without asking any predictor; there is nothing to demonstrate")
    return [shown[i] for i in sorted(shown)]


def _key(inputs: Mapping[str, Any]) -> str:
    return repr(sorted(dict(inputs).items()))
