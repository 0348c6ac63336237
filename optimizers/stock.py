"""What stock DSPy optimizers (3.4) get wrong on programs that carry their own LM, mended from outside, in one place.

    tuner = SteadyFinetune(metric=metric)                             # for dspy.BootstrapFinetune
    search = on_own_lm(dspy.BootstrapFewShotWithRandomSearch(metric=metric, max_bootstrapped_demos=2))
    dspy.BetterTogether(metric=metric, p=search, w=tuner).compile(program, trainset=…, strategy="w -> p")

Each defect is shown on stock code in tests/optimizers/test_stock_workarounds.py; when one of those tests goes red,
DSPy has mended it and its workaround here can go.

Does not handle: SIMBA, Refine and BestOfN on a program with several LMs (they ask `program.get_lm()`, which refuses).
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import dspy
from dspy.teleprompt import BootstrapFinetune
from dspy.teleprompt.teleprompt import Teleprompter
from dspy.utils.exceptions import AdapterParseError

from optimizers.errors import TrainingError

logger = logging.getLogger(__name__)
UNANSWERED = dspy.Prediction()
Optimizer = TypeVar("Optimizer", bound=Teleprompter)


class SteadyFinetune(BootstrapFinetune):
    """BootstrapFinetune that goes on past answers it cannot read, and trains each predictor on its own answers.

    Mends four defects of stock BootstrapFinetune:

    - one unreadable answer (AdapterParseError) ends the whole compile, with or without a metric: its failure score of
      -1 counts as a success, and then its "trace" has no fields to render. Here the example is left out and counted;
    - any other exception ends it with "not enough values to unpack". Here up to `max_failed` (a share of the examples)
      are left out; above that TrainingError names the first, which is its cause;
    - with `multitask=False` predictor i is trained on the i-th call of each trace, whoever made it. Here on its own;
    - the program keeps an instance attribute `forward`; a deep copy that has to fall back on copying attribute by
      attribute then runs the original's predictors, not its own. Here the attribute is gone afterwards.
    """

    def __init__(self, *args: Any, max_failed: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_failed = max_failed
        self._asked = 0
        self._failures: list[Exception] = []
        self._place: dict[int, int] = {}

    def compile(
        self, student: dspy.Module, trainset: list[dspy.Example], teacher: dspy.Module | list[dspy.Module] | None = None
    ) -> dspy.Module:
        """As BootstrapFinetune.compile. Raises TrainingError where too many examples failed."""
        programs = [each or student for each in (teacher if isinstance(teacher, list) else [teacher])]
        self._asked, self._failures = len(trainset) * len(programs), []
        self._place = {id(p): i for program in programs for i, p in enumerate(program.predictors())}
        metric = self.metric
        with ExitStack() as stack:
            for program in {id(program): program for program in programs}.values():
                stack.enter_context(_excused(program, self._failures))
            try:
                self.metric = metric and _excused_metric(metric, self._failures)
                return super().compile(student, trainset=trainset, teacher=teacher)
            finally:
                self.metric = metric

    def _prepare_finetune_data(self, trace_data: list[dict], lm: dspy.LM, pred_ind: int | None = None) -> Any:
        self._check_failures()
        return super()._prepare_finetune_data(trace_data=self.of_predictor(trace_data, pred_ind), lm=lm, pred_ind=None)

    def of_predictor(self, trace_data: list[dict], pred_ind: int | None) -> list[dict]:
        """The traces with this predictor's own calls alone, by its place in `predictors()`; all calls for None."""
        if pred_ind is None:
            return trace_data
        return [
            {**item, "trace": [step for step in item["trace"] if self._place.get(id(step[0])) == pred_ind]}
            for item in trace_data
        ]

    def _check_failures(self) -> None:
        unread = sum(isinstance(err, AdapterParseError) for err in self._failures)
        failed = [err for err in self._failures if not isinstance(err, AdapterParseError)]
        if self._failures:
            told = f"{unread} answers could not be read, {len(failed)} calls failed"
            logger.warning("%s, of %d examples: they are left out of training", told, self._asked)
        if len(failed) > self.max_failed * self._asked:
            raise TrainingError(
                f"{len(failed)} of {self._asked} examples failed while training data were gathered, above the allowed "
                f"share of {self.max_failed:.0%} (max_failed); the first: {type(failed[0]).__name__}: {failed[0]}"
            ) from failed[0]


@contextmanager
def _excused(program: dspy.Module, failures: list[Exception]) -> Iterator[None]:
    """While it lasts, a call of `program` that raises gives UNANSWERED and an empty trace instead."""
    kept = vars(program).get("forward")
    forward = object.__getattribute__(program, "forward")  # a plain look-up would log a warning

    def excused(*args: Any, **kwargs: Any) -> dspy.Prediction:
        try:
            return forward(*args, **kwargs)
        except Exception as err:
            failures.append(err)
            dspy.settings.trace.clear()  # what came before the failure is no whole example
            return UNANSWERED

    program.forward = excused
    try:
        yield
    finally:
        del program.forward
        if kept is not None:
            program.forward = kept


def _excused_metric(metric: Callable, failures: list[Exception]) -> Callable:
    def excused(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> Any:
        if prediction is UNANSWERED:
            return 0.0
        try:
            return metric(example, prediction, trace)
        except Exception as err:
            failures.append(err)
            return 0.0

    return excused


def on_own_lm(optimizer: Optimizer) -> Optimizer:
    """`optimizer`, changed so that its `compile` asks the student's own LM, and gives programs back with it.

    BootstrapFewShot, BootstrapFewShotWithRandomSearch and LabeledFewShot copy the student without its LMs: what
    `program.set_lm(tuned)` set is dropped, and candidates are asked, scored and returned on `dspy.settings.lm`. A
    teacher that is not compiled loses its LM the same way, and that LM answers for it. Works inside BetterTogether
    too. TrainingError for a student or teacher whose predictors have several LMs.
    """
    stock = optimizer.compile

    @functools.wraps(stock)  # BetterTogether reads the signature
    def compile(student: dspy.Module, *args: Any, **kwargs: Any) -> dspy.Module:
        lm = _only_lm(student)
        if lm is None:
            return stock(student, *args, **kwargs)
        teacher, settings = kwargs.get("teacher"), getattr(optimizer, "teacher_settings", None)
        if teacher is not None and settings is not None and "lm" not in settings and (own := _only_lm(teacher)):
            optimizer.teacher_settings = {**settings, "lm": own}
        try:
            with dspy.context(lm=lm):
                best = stock(student, *args, **kwargs)
        finally:
            if settings is not None:
                optimizer.teacher_settings = settings
        for program in [best, *(each["program"] for each in getattr(best, "candidate_programs", []))]:
            for predictor in program.predictors():
                predictor.lm = predictor.lm or lm
        return best

    optimizer.compile = compile
    return optimizer


def _only_lm(program: dspy.Module) -> dspy.BaseLM | None:
    lms = {id(predictor.lm): predictor.lm for predictor in program.predictors()}
    if len(lms) > 1:
        names = sorted(str(getattr(lm, "model", None)) for lm in lms.values())
        raise TrainingError(
            f"the program's predictors have several LMs {names}; this optimizer asks all of them on one"
        )
    return next(iter(lms.values()), None)
