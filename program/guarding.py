"""Step `s` under a guard against forgetting: what the guards of optimizers/guards.py need, from a config and its runs.

    earlier = read_earlier(config, incumbent, corpus_now)            # for the replays: labels that were learnt before
    tune = guarded(InstructTune(...), lambda student: recipe_guard(config, student, examples, adapter))

Rows of earlier labels are laid into the prompts that the student is served with when it is trained, so that a step
before it may have moved its wording or its retrieval.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.splits import distinct, nearly_among, subset
from corpora.types import Corpus
from optimizers.distill_demonstrations import answer_text, demonstrate
from optimizers.finetuning import serving_prompt
from optimizers.guards import Guard, guard_from, guard_optimizer
from optimizers.instruct import InstructTune
from program.config import CompileConfig, ConfigError
from program.contract_review import ContractReview
from program.examples import sample_examples, to_examples
from program.incumbent import Incumbent
from program.runs import Run
from program.teacher import LabelTeacher, teaches

logger = logging.getLogger(__name__)
REPLAYS = {"replay_self", "replay_labels"}
BESIDE_REPLAY = 0.3  # the weight of `kl` then: at 1 less of the new is learnt (benchmarks/LOG.md)


def check_guard(config: CompileConfig) -> None:
    """Raises ConfigError for a guard that has no step to guard, or nothing to replay."""
    if config.guard != "none" and "s" not in config.recipe.split(" -> "):
        raise ConfigError(f"guard is {config.guard!r} and recipe {config.recipe!r} has no step s; guards are around s")
    if REPLAYS.intersection(config.guards) and config.earlier is None and config.start_from is None:
        raise ConfigError(
            f"guard {config.guard!r} replays what was learnt before; give --start-from, the run that learnt it, or "
            "--earlier, its labels"
        )
    if config.earlier is not None and REPLAYS.isdisjoint(config.guards):
        raise ConfigError(f"earlier is given, and guard {config.guard!r} replays nothing; use one of {sorted(REPLAYS)}")


def read_earlier(config: CompileConfig, incumbent: Incumbent | None, now: Corpus) -> Corpus | None:
    """Labels learnt before, of contracts that are not (nearly) among those of `now`; None for a guard that needs none.

    They are those of `config.earlier`, or of the training contracts of the run started from and its whole line; as many
    are drawn, and their contracts alone given, as questions are trained on. Raises ConfigError where a corpus of these
    is not what it was, CorpusError where nothing is left.
    """
    if REPLAYS.isdisjoint(config.guards):
        return None
    if config.earlier is not None:
        parts = [read_cuad(config.earlier)]
    else:
        parts = [part for run in incumbent.line for part in _learnt(run)]
    contracts = distinct(contract for part in parts for contract in part.contracts)
    labels = {label.question.id: label for part in parts for label in part.labels}
    whole = Corpus("earlier", tuple(contracts), tuple(labels.values()))
    like = nearly_among(contracts, now.contracts)
    left = subset(whole, [contract.id for contract in contracts if contract.id not in like])
    if not left.labels:
        raise CorpusError(
            f"guard {config.guard!r}: of {len(contracts)} contracts learnt from before none is left that is not "
            f"(nearly) in {config.corpus} too; what stands there is learnt again anyway, so leave the guard out"
        )
    drawn = {one.question_id for one in sample_examples(to_examples(left), config.max_train_questions, config.seed)}
    kept = tuple(label for label in left.labels if label.question.id in drawn)
    return subset(replace(left, labels=kept), {label.question.contract_id for label in kept})


def tuner_options(config: CompileConfig) -> dict[str, Any]:
    """What the adapters of all steps are made with: OSF, whose weights have no rank, goes on as OSF."""
    return {"tuner": "osf"} if "osf" in config.guards else {"rank": config.rank, "alpha": 2 * config.rank}


def _learnt(run: Run) -> list[Corpus]:
    """The labels that one run was trained on, read from where they stood then."""
    parts = []
    for key, side in (("corpus", "train"), ("earlier", "earlier")):
        if (path := run.config.get(key)) is None:
            continue
        told = run.data["files"][key]["sha256"]
        if not Path(path).is_file() or hashlib.sha256(Path(path).read_bytes()).hexdigest() != told:
            raise ConfigError(
                f"the labels that {run.path} learnt from are no longer in {path} as they were; give the file with them "
                "as --earlier"
            )
        parts.append(subset(read_cuad(path), run.data["splits"].get(side, ())))
    return parts


def guarded(tune: InstructTune, make: Callable[[dspy.Module], Guard]) -> InstructTune:
    """`tune`, changed so that each compile is guarded by what `make` gives for its student; told in the log."""
    stock, plain = tune.compile, tune.finetune_lms

    @functools.wraps(stock)  # BetterTogether reads the signature
    def compile(student: dspy.Module, *args: Any, **kwargs: Any) -> dspy.Module:
        tune.finetune_lms = plain
        guard_optimizer(tune, make(student))
        tuned = stock(student, *args, **kwargs)
        for one in tune.guarded:
            logger.info("guarded: %s", one)
        return tuned

    tune.compile = compile
    return tune


def recipe_guard(
    config: CompileConfig, student: ContractReview, earlier: Sequence[dspy.Example], adapter: dspy.Adapter
) -> Guard:
    """The guard that the config names, for this student; the replays' rows are of `earlier` examples.

    Merging keeps to twice the config's rank, so that adapters do not grow from one renewal to the next.
    """
    own: dict[str, dict[str, Any]] = {
        "replay_self": {"seed": config.seed},
        "replay_labels": {"seed": config.seed, "share": config.replay_share},
        "kl": {"beta": config.kl_beta or (1.0 if REPLAYS.isdisjoint(config.guards) else BESIDE_REPLAY)},
        "low_rate": {"seed": config.seed},
        "merge": {"rank": 2 * config.rank},
    }
    options = {key: value for word in config.guards for key, value in own.get(word, {}).items()}
    plain = student.deepcopy()
    for predictor in plain.predictors():
        predictor.demos = []  # as step s serves it
    return review_guard(config.guard, plain, earlier, adapter, threads=config.threads, **options)


def review_guard(
    word: str,
    program: ContractReview,
    earlier: Sequence[dspy.Example],
    adapter: dspy.Adapter,
    *,
    threads: int = 16,
    **options: Any,
) -> Guard:
    """As `guard_from`, which is told what to replay: these earlier labels, or their prompts, as `program` is asked."""
    replayed, told = REPLAYS.intersection(word.split("+")), {}
    rows = label_rows(program, earlier, adapter, threads=threads) if replayed else []
    if "replay_labels" in replayed:
        told["earlier"] = rows
    if "replay_self" in replayed:
        told["prompts"] = [row["messages"][:-1] for row in rows]
    return guard_from(word, **told, **options)


def label_rows(
    program: ContractReview, examples: Sequence[dspy.Example], adapter: dspy.Adapter, *, threads: int = 16
) -> list[dict[str, Any]]:
    """Labels as rows of method "sft" under the program's own prompts; "group" is the contract.

    Labels whose quotes the program does not retrieve are left out, as step s leaves them out. Raises TrainingError
    where a tenth of the examples fail.
    """
    teacher = LabelTeacher(program.retrieve.index, examples)
    shown = demonstrate(program, examples, teacher, adapter, metric=teaches, threads=threads).shown
    return [
        {
            "messages": [
                *serving_prompt(program, one, adapter),
                {"role": "assistant", "content": answer_text(program, one, adapter)},
            ],
            "group": one.example.contract_id,
        }
        for one in shown
    ]
