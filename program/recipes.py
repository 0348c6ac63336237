"""Recipes: one letter per optimizer, composed by stock `dspy.BetterTogether` as `"r -> p -> s"`."""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.teleprompt import BetterTogether, BootstrapFewShotWithRandomSearch

from corpora.types import Contract
from modules.signatures import REVIEW_TASKS
from optimizers.distill import SelfDistill
from optimizers.embedder import EmbedderSettings
from optimizers.errors import TrainingError
from optimizers.instruct import InstructTune, SelfLabels
from optimizers.preference import PreferenceTune
from optimizers.preference_pairs import Check
from optimizers.retriever import RetrieverTune, TunableRetrieval
from optimizers.row_shapes import RowShapes
from optimizers.stock import on_own_lm
from program.config import CompileConfig, ConfigError
from program.evaluate import score_program
from program.guarding import check_guard, guarded, recipe_guard, tuner_options
from program.metrics import review_metric
from program.pairs.checks import gold_check
from program.teacher import teaches

if TYPE_CHECKING:  # the judge's report has a page, and pages show the steps of recipes
    from program.pairs.sources import RecipePreferences

STEPS = {
    "p": "prompts: demonstrations chosen by random search",
    "r": "retriever: embedder trained on the labels, ranking fitted",
    "s": "weights: LoRA on the labels, and on those that it writes for unlabelled contracts",
    "a": "alignment: weights again, on what people and a judge prefer",
    "d": "distillation: weights, by what the model itself would say if it had seen the label",
}
PROMPT_CANDIDATES = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """A program after the steps of `recipe` ("" before any), and its score on validation questions, percent."""

    recipe: str
    program: dspy.Module
    validation_score: float


@dataclass(frozen=True, slots=True)
class Questions:
    """What a recipe learns from and chooses on; "r", which asks no language model, takes all labels of both sides.

    "s" labels `unlabelled` contracts, where there are any; its guard replays `earlier` labels, where it does.
    """

    train: list[dspy.Example]
    val: list[dspy.Example]
    all_train: list[dspy.Example]
    all_val: list[dspy.Example]
    unlabelled: tuple[Contract, ...] = ()
    earlier: list[dspy.Example] = field(default_factory=list)


def build_optimizers(
    config: CompileConfig,
    adapter: dspy.Adapter,
    retrieval: TunableRetrieval,
    *,
    labels: SelfLabels | None = None,
    preferences: "RecipePreferences | None" = None,
    check: Check | None = None,
    earlier: Sequence[dspy.Example] = (),
    progress: bool = True,
) -> dict[str, dspy.teleprompt.Teleprompter]:
    """The optimizer of each letter; `check` is what labels say of a preference, `earlier` is what the guard replays.

    Raises ConfigError as check_recipe.
    """
    check_recipe(config)
    # In "s -> p" the search has to ask the weights that "s" has made, and stock would ask the base.
    prompts = on_own_lm(
        BootstrapFewShotWithRandomSearch(
            metric=review_metric,
            max_bootstrapped_demos=1,
            max_labeled_demos=0,
            num_candidate_programs=PROMPT_CANDIDATES,
            num_threads=config.threads,
        )
    )
    weights = InstructTune(
        metric=teaches,
        train_kwargs={
            "epochs": config.sft_epochs, "learning_rate": config.learning_rate, "rank": config.rank,
            "alpha": 2 * config.rank, "seed": config.seed,
            "batch_size": config.batch_size,
        },
        adapter=adapter,
        # The labels go into the weights; demonstrations would double every prompt for what the weights know by then.
        exclude_demos=True,
        num_threads=config.threads,
        labels=labels,
        score=mean_score(config.threads),
        rounds=config.label_rounds,
        seed=config.seed,
        shapes=_shapes(config),
    )  # fmt: skip
    if config.guard != "none":
        weights = guarded(weights, lambda student: recipe_guard(config, student, earlier, adapter))
    retriever = RetrieverTune(retrieval, EmbedderSettings(seed=config.seed, progress=progress))
    again = {
        "score": mean_score(config.threads), "adapter": adapter, "num_threads": config.threads,
        "train_kwargs": tuner_options(config) | {"seed": config.seed, "batch_size": config.batch_size},
    }  # fmt: skip
    alignment = PreferenceTune(
        preferences, method=config.preference_method, rounds=config.preference_rounds, seed=config.seed,
        max_kl=config.preference_max_kl,
        out=None if preferences is None else preferences.folder, check=check, **again,
    )  # fmt: skip
    distillation = SelfDistill(metric=teaches, **again)
    return {"p": prompts, "r": retriever, "s": weights, "a": alignment, "d": distillation}


def _shapes(config: CompileConfig) -> RowShapes | None:
    third = config.varied_rows / 3
    if not third:
        return None
    return RowShapes(described=third, demonstrated=third, conversed=third, tasks=REVIEW_TASKS, seed=config.seed)


def mean_score(threads: int) -> Callable[[dspy.Module, list[dspy.Example]], float]:
    """A function of a program and examples to the share of right answers, failed calls left out. EvaluationError."""

    def score(program: dspy.Module, examples: list[dspy.Example]) -> float:
        rows = score_program(program, examples, "validation", threads=threads, progress=False)
        return statistics.fmean(row["exact_match"] for row in rows if not row["error"])

    return score


def check_recipe(config: CompileConfig) -> None:
    """Raises ConfigError for a letter of the recipe that is not in STEPS, or that has nothing to learn from."""
    letters = config.recipe.split(" -> ")
    unknown = [letter for letter in letters if letter not in STEPS]
    if unknown:
        raise ConfigError(f"recipe {config.recipe!r} has unknown steps {unknown}; known are {STEPS}")
    if "a" in letters and config.feedback is None and config.judge is None:
        raise ConfigError(
            f"recipe {config.recipe!r} has a step a, which learns from preferences; give --feedback, the store that "
            "`evergreen serve` keeps, or --judge, or both"
        )
    if config.feedback is not None and not Path(config.feedback).is_file():  # opening it would make it anew, empty
        raise ConfigError(f"there is no feedback store {config.feedback}; give the file that `evergreen serve` keeps")
    check_guard(config)


def run_recipe(
    program: dspy.Module,
    config: CompileConfig,
    adapter: dspy.Adapter,
    *,
    questions: Questions,
    teacher: dspy.Module,
    retrieval: TunableRetrieval,
    labels: SelfLabels | None = None,
    preferences: "RecipePreferences | None" = None,
    progress: bool = True,
) -> list[Stage]:
    """Compile by the recipe; the stages in order, the uncompiled program first.

    Raises TrainingError where a step failed: BetterTogether would log that and return the best so far.
    """
    check = None
    if "a" in config.recipe.split(" -> "):  # people who disagree with labels beyond chance are left out
        check = gold_check(program, questions.all_train, adapter)
    optimizers = build_optimizers(
        config, adapter, retrieval, labels=labels, preferences=preferences, check=check, earlier=questions.earlier,
        progress=progress,
    )  # fmt: skip
    together = BetterTogether(metric=review_metric, **optimizers)
    given: dict[str, dict[str, Any]] = {
        "p": {"teacher": None},
        "r": {"trainset": questions.all_train, "valset": questions.all_val},
        # Only where there is something to label: an "s" of somebody's own may not know the word.
        "s": {"teacher": teacher} | ({"unlabelled": questions.unlabelled} if questions.unlabelled else {}),
        "d": {"teacher": teacher},
    }
    watch = _FailureLog()
    logger = logging.getLogger("dspy.teleprompt.bettertogether")
    logger.addHandler(watch)
    try:
        best = together.compile(
            program,
            trainset=questions.train,
            valset=questions.val,
            num_threads=config.threads,
            max_errors=len(questions.val),
            seed=config.seed,
            strategy=config.recipe,
            optimizer_compile_args={letter: given[letter] for letter in given if letter in optimizers},
        )
    finally:
        logger.removeHandler(watch)
    if best.flag_compilation_error_occurred:
        raise TrainingError(f"recipe {config.recipe!r} stopped: {watch.cause or 'see the log'}") from watch.cause
    stages = [Stage(c["strategy"] or "", c["program"], c["score"]) for c in best.candidate_programs]
    return sorted(stages, key=lambda stage: len(stage.recipe))


def chosen(stages: list[Stage]) -> Stage:
    """The stage with the best validation score, the earliest of equals, as BetterTogether chooses."""
    return max(stages, key=lambda stage: (stage.validation_score, -stages.index(stage)))


class _FailureLog(logging.Handler):
    """Keeps the exception that BetterTogether logs and swallows."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.cause: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.cause = record.exc_info[1]
