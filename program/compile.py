"""Compile a contract-review program on a corpus, score it before and after each stage, leave one run folder."""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.labels.store import LabelStore
from corpora.splits import Split, distinct, nearly_among, split_corpus, split_in_two, subset
from corpora.types import Contract, Corpus
from modules.embedder import load_embedder
from modules.embedding import embed
from modules.retriever import PassageIndex, StoreError
from optimizers.local_lm import local_lm, save_program
from program.asking import remote
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import sample_examples, to_examples
from program.failpoints import reach
from program.guarding import read_earlier
from program.incumbent import Incumbent, check_incumbent, load_incumbent, read_incumbent
from program.label_settings import label_settings
from program.pairs.sources import recipe_preferences
from program.provenance import data_record, version_record
from program.recipes import PROMPT_CANDIDATES, Questions, Stage, check_recipe, chosen, run_recipe
from program.report import write_report
from program.retrieval_tuning import ReviewRetrieval
from program.run_retrieval import keep_retrieval, to_read
from program.runlog import logged
from program.runs import BudgetError, RunFolder, refuse_if_taken
from program.self_instruct import SelfInstruct
from program.summary import summarize
from program.teacher import LabelTeacher
from program.training_memory import GIB, memory_words, passage_texts, training_memory
from program.unlabelled import keep_apart, read_unlabelled

Say = Callable[[str], None]
_PASSAGES_TIMED = 64


@dataclass(frozen=True, slots=True)
class CompileResult:
    """Where the run stands, its summary (as summary.json), the chosen stage's recipe and the seconds it all took."""

    path: Path
    summary: dict[str, Any]
    recipe: str
    seconds: float


def compile(
    config: CompileConfig,
    *,
    overwrite: bool = False,
    progress: bool = True,
    command: str = "",
    say: Say | None = None,
    max_minutes: float | None = None,
    max_memory_gib: float | None = None,
) -> CompileResult:
    """Run `config.recipe` on `config.corpus` and leave a run folder at `config.out` (files: `program/runs.py`).

    It starts from the plain base, or from the program of the run `config.start_from`, which is the stage "base" then.
    Scores (`score_stages`) are taken on contracts that neither the optimizers nor the choice between stages has seen.
    `say` gets a line at each turn (default: standard error). Raises ConfigError, LabelingError, CorpusError,
    ModelError, TrainingError, RunError, EvaluationError, and BudgetError where the estimate is above `max_minutes`, or
    above `max_memory_gib` of the memory that is trained in: the GPU's where there is CUDA, else the machine's.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    began = time.perf_counter()
    check_recipe(config)
    labelling = label_settings(config.label_settings, seed=config.seed)
    refuse_if_taken(Path(config.out).absolute(), overwrite)
    incumbent = None if config.start_from is None else read_incumbent(config.start_from, say)
    if incumbent is not None:
        check_incumbent(config, incumbent)
    split = read_split(config, say, *((incumbent.seen, incumbent.chosen) if incumbent else ()))
    earlier = read_earlier(config, incumbent, _joined(split))
    known = {contract.id for contract in incumbent.seen} if incumbent else set()
    questions = _questions(config, split, earlier, known)
    test = to_examples(split.test)
    # What cannot be removed from the scratch folder must not hide the error that the run ended with.
    scratch_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with (
        scratch_folder as scratch,
        nullcontext(_apart(Path(scratch), questions, split)) as apart,
        nullcontext(build_lm(config, Path(scratch))) as lm,  # first: a model that cannot be loaded leaves no run behind
        RunFolder.start(config.out, overwrite=overwrite) as run,
        recipe_preferences(config, split, run.folder, build_adapter()) as preferences,
    ):
        run.write_json("config.json", asdict(config))
        run.write_json("versions.json", version_record(command))
        run.write_json("data.json", _data(config, split, incumbent, earlier))
        contracts = _joined(split).contracts + questions.unlabelled + (earlier.contracts if earlier else ())
        index = _index(config, run, incumbent, contracts, progress, say)
        reach("train.indexed")
        retrieval = ReviewRetrieval(run.folder / "retriever", seed=config.seed, progress=progress)
        store = LabelStore.open(shutil.move(apart, run.folder / "labels.db")) if apart else None
        try:
            # Truncated completions of a weak model would fill the terminal with one warning each.
            with logged(run.folder / "compile.log"), dspy.context(lm=lm, adapter=build_adapter()):
                if incumbent is None:
                    program = ContractReview(index, config.k_passages)
                    program.set_lm(lm)
                else:
                    program = load_incumbent(incumbent, index, config, Path(scratch))
                brought = set(Path(scratch).rglob("training.json"))
                minutes, told = estimate(program, config, questions, test)
                say(told)
                if max_minutes is not None and minutes > max_minutes:
                    raise BudgetError(
                        f"about {minutes:.0f} minutes are estimated, and {max_minutes:g} are allowed; raise "
                        "max_minutes, or give a shorter recipe or fewer questions"
                    )
                _check_memory(program, config, questions, max_memory_gib, say)
                rows = []

                def take_score(stage: dspy.Module, name: str) -> None:
                    scored = score_program(stage, test, name, threads=config.threads, progress=progress)
                    run.append_scores(name, scored)
                    rows.extend(scored)
                    reach("train.scored")

                if config.score_stages == "all":  # what cannot be asked fails before anything is trained
                    take_score(program, "base")
                teacher = LabelTeacher(index, questions.train + questions.val, config.k_passages)
                teacher.set_lm(lm)
                labels = None
                if store is not None:
                    labels = SelfInstruct(store, labelling, remote(config.labeller), config.threads, progress)
                n_train, n_val = len(questions.train), len(questions.val)
                say(f"compiling {config.recipe!r} on {n_train} questions, choosing on {n_val}")
                stages = run_recipe(
                    program, config, build_adapter(),
                    questions=questions, teacher=teacher, retrieval=retrieval, labels=labels,
                    preferences=preferences, progress=progress,
                )  # fmt: skip
                reach("train.tuned")
                for told in labels.reports if labels else ():
                    proposed, kept = sum(told.proposed.values()), sum(told.kept.values())
                    say(f"labelling, round {told.round}: {proposed} proposed, {kept} kept")
                best = chosen(stages)
                if config.score_stages == "all":
                    asked = stages[1:]
                else:
                    asked = [stages[0], best] if best.recipe else []
                for stage in asked:
                    take_score(stage.program, stage.recipe or "base")
                _keep(run, stages, best, set(Path(scratch).rglob("training.json")) - brought)
                if labels is not None:
                    run.write_json("labels.json", [asdict(report) for report in labels.reports])
        finally:
            for one in (index, *retrieval.made, *([store] if store else [])):
                one.close()
        summary = summarize(rows, seed=config.seed) | {"chosen": best.recipe or "base"}
        run.write_json("summary.json", summary)
        write_report(run.folder)  # before the run is called complete: its report is part of it
        place = run.finish("complete")
    return CompileResult(place, summary, best.recipe, time.perf_counter() - began)


def read_split(
    config: CompileConfig, say: Say, seen: Sequence[Contract] = (), chosen: Sequence[Contract] = ()
) -> Split:
    """Train, validation and test contracts; near-duplicates of test contracts are kept out of the other two.

    Contracts that are (nearly) among `seen`, whose labels the program had before, are trained on alone, but those among
    `chosen`, which only chose, choose again: a renewal with few new labels would choose on next to nothing. CorpusError
    for a test corpus that has any of them.
    """
    corpus = read_cuad(config.corpus, max_contracts=config.max_contracts)
    test = None if config.test_corpus is None else read_cuad(config.test_corpus)
    if test is not None:
        if known := sorted(nearly_among(test.contracts, seen) if seen else ()):
            raise CorpusError(
                f"{len(known)} of {len(test.contracts)} test contracts, {known[0]!r} first, are (nearly) among those "
                "that the program started from has learnt from; give --test others, or a score would be of memory"
            )
        corpus = _without_likes(corpus, test, say)
    apart = {contract.id for contract in chosen}
    learnt = nearly_among(corpus.contracts, [one for one in seen if one.id not in apart])
    again = nearly_among(corpus.contracts, chosen) - learnt
    new = subset(corpus, [one.id for one in corpus.contracts if one.id not in learnt | again])
    split = _new_split(new, test, config, spare=bool(again))
    if not learnt | again:
        return split
    say(
        f"{len(learnt)} contracts were learnt from by the program started from: they are trained on, and not scored "
        f"on; {len(again)} chose, and choose again"
    )
    sides = ((split.train, learnt), (split.val, again))
    train, val = (
        subset(corpus, [*(one.id for one in side.contracts), *known], name=side.name) for side, known in sides
    )
    return Split(train, val, split.test)


def _new_split(new: Corpus, test: Corpus | None, config: CompileConfig, *, spare: bool) -> Split:
    """Contracts that nothing learnt from yet; with others to choose on (`spare`), a few are all trained on."""
    if test is None:
        share = 0.2 if config.val_share is None else config.val_share
        return split_corpus(new, fractions=(0.8 - share, share, 0.2), seed=config.seed)
    if spare and len(new.contracts) < 4:
        return Split(subset(new, [one.id for one in new.contracts]), subset(new, []), test)
    share = 0.25 if config.val_share is None else config.val_share
    fractions = (0.8 * (1 - share), share, 0.2 * (1 - share))
    return Split(*split_in_two(new, fractions=fractions, seed=config.seed), test)


def _without_likes(corpus: Corpus, test: Corpus, say: Say) -> Corpus:
    like = nearly_among(corpus.contracts, test.contracts)
    keep = [contract.id for contract in corpus.contracts if contract.id not in like]
    if len(keep) < len(corpus.contracts):
        n_left_out = len(corpus.contracts) - len(keep)
        say(f"{n_left_out} contracts are (nearly) in the test corpus too and are left out of training")
    if len(keep) < 3:
        raise CorpusError(
            f"{corpus.name}: {len(keep)} contracts are left to train on, at least 3 are needed; give a larger --corpus"
        )
    return subset(corpus, keep)


def build_lm(config: CompileConfig, work_dir: Path) -> dspy.LM:
    """The local LM of a config, with log probabilities, its adapters under `work_dir`."""
    return local_lm(config.lm, work_dir=work_dir, quantize=config.quantize, max_tokens=config.max_tokens, logprobs=True)


def build_adapter() -> dspy.ChatAdapter:
    """The chat format that everything is asked in; no JSON retry, which would double calls and hide format failures."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)


def estimate(program: ContractReview, config: CompileConfig, questions: Questions, test: list) -> tuple[float, str]:
    """Minutes to expect, and these with calls and rows in words, from as many calls timed now as are in flight at once.

    A training row counts as two calls an epoch (measured on the bundled model and a CPU: benchmarks/LOG.md). Tuning the
    retriever counts, by a guess, as embedding all passages twice and each passage with an answer twenty times.
    """
    probe = test[:: max(1, len(test) // config.threads)][: config.threads]
    index = program.retrieve.index
    program = program.deepcopy()
    program.set_lm(program.get_lm().copy(cache=False))  # else these calls' scores would be timed as cache hits
    score_program(program, probe[:2], "warm-up", threads=2, progress=False)
    began = time.perf_counter()
    score_program(program, probe, "probe", threads=config.threads, progress=False)
    per_call_s = (time.perf_counter() - began) / len(probe)
    steps = config.recipe.split(" -> ")
    scoring = (len(steps) + 1) * len(questions.val)
    scoring += (len(steps) + 1 if config.score_stages == "all" else 2) * len(test)
    prompts = steps.count("p") * (PROMPT_CANDIDATES + 2) * len(questions.val)
    # Distillation says each answer anew; a judge is measured on 400 pairs, and asked of several samples a question.
    rows = (steps.count("s") + 3 * steps.count("d")) * len(questions.train)
    for guard, share in (("replay_self", 0.2), ("replay_labels", config.replay_share)):
        if guard in config.guards:
            rows += round(steps.count("s") * len(questions.train) * share / (1 - share))
    scoring += steps.count("a") * (800 if config.judge else 0)
    if questions.unlabelled:
        # Each round labels, scores on the validation questions, after each epoch too, and trains on at most max_rows
        # labels, as many near misses, and people's.
        settings, rounds = label_settings(config.label_settings), steps.count("s") * config.label_rounds
        scoring += rounds * (settings.answered + (2 + math.ceil(config.sft_epochs)) * len(questions.val))
        rows += rounds * (2 * settings.max_rows + len(questions.train))
    seconds = per_call_s * (scoring + prompts + 2 * rows * config.sft_epochs)
    if "r" in steps:
        learnt = sum(bool(example.spans) for example in questions.all_train)
        seconds += steps.count("r") * _embedding_s(index) * (2 * index.n_passages + 20 * learnt)
    return seconds / 60, (
        f"about {scoring + prompts} calls and {rows} training rows x {config.sft_epochs:g} epochs: roughly "
        f"{seconds / 60:.0f} min here ({per_call_s:.2f} s a call at {config.threads} threads)"
    )


def _embedding_s(index: PassageIndex) -> float:
    """Seconds that a passage takes to embed, by a few of them, timed now."""
    texts = passage_texts(index)[:_PASSAGES_TIMED]
    began = time.perf_counter()
    embed(index.embedder, texts)
    return (time.perf_counter() - began) / len(texts)


def _check_memory(
    program: ContractReview, config: CompileConfig, questions: Questions, max_memory_gib: float | None, say: Say
) -> None:
    """Say what training will take of memory; BudgetError where that is more than it may be."""
    need = training_memory(program, config, questions.train, build_adapter())
    if need is None:
        return
    say(f"about {memory_words(need)}")
    gib = (need.weights_bytes + need.training_bytes) / GIB
    if max_memory_gib is not None and gib > max_memory_gib:
        raise BudgetError(
            f"about {gib:.2g} GiB of memory are estimated on {need.device}, and {max_memory_gib:g} are allowed; raise "
            "max_memory_gib, or give a smaller batch_size or rank, shorter passages, or quantize = 'nf4'"
        )


def _index(
    config: CompileConfig,
    run: RunFolder,
    incumbent: Incumbent | None,
    contracts: tuple[Contract, ...],
    progress: bool,
    say: Say,
) -> PassageIndex:
    """All contracts that the run looks at, cut and embedded as those of the program that it starts from were.

    It stands beside the index of that program, which goes on serving; what is there in the same words is not embedded
    again.
    """
    cut = {"max_chars": config.max_chars} if incumbent is None else incumbent.retrieval.cut
    own = None if incumbent is None else incumbent.keep_embedder(run.folder)
    embedder = load_embedder() if own is None else load_embedder(str(own))
    with ExitStack() as stack:
        like = None
        if incumbent is not None:
            try:
                like = stack.enter_context(to_read(incumbent.path, embedder))
            except StoreError as error:  # the contracts are there: nothing is lost but the time
                say(f"all is embedded anew, since no vectors can be taken over: {error}")
        return PassageIndex.build(
            distinct(contracts), folder=run.folder / "index", embedder=embedder, like=like, progress=progress, **cut
        )


def _joined(split: Split) -> Corpus:
    return Corpus("all", split.train.contracts + split.val.contracts + split.test.contracts, ())


def _questions(config: CompileConfig, split: Split, earlier: Corpus | None, known: set[str]) -> Questions:
    """What to learn from and to choose on; labels of `known` contracts, learnt before, fill up what new ones leave."""
    train, val = to_examples(split.train), to_examples(split.val)
    most = config.max_train_questions
    new = sample_examples([one for one in train if one.contract_id not in known], most, config.seed)
    left = None if most is None else most - len(new)
    again = sample_examples([one for one in train if one.contract_id in known], left, config.seed)
    return Questions(
        new + again,
        sample_examples(val, config.max_val_questions, config.seed),
        all_train=train,
        all_val=val,
        unlabelled=() if config.unlabelled is None else read_unlabelled(config.unlabelled),
        earlier=to_examples(earlier) if earlier else [],
    )


def _apart(folder: Path, questions: Questions, split: Split) -> Path | None:
    """A label store that holds out what is chosen and scored on; None where there is nothing to label."""
    return keep_apart(folder / "labels.db", questions.unlabelled, split) if questions.unlabelled else None


def _data(config: CompileConfig, split: Split, incumbent: Incumbent | None, earlier: Corpus | None) -> dict[str, Any]:
    given = {"corpus": config.corpus, "test_corpus": config.test_corpus, "earlier": config.earlier}
    files = {name: path for name, path in given.items() if path is not None}
    files |= {"start_from": incumbent.seal} if incumbent else {}
    sides = {"train": split.train, "val": split.val, "test": split.test} | ({"earlier": earlier} if earlier else {})
    return data_record(files, {name: [c.id for c in side.contracts] for name, side in sides.items()})


def _keep(run: RunFolder, stages: list[Stage], best: Stage, logs: set[Path]) -> None:
    """Save the chosen program, what it retrieves with, every stage's validation score and the run's training logs."""
    save_program(best.program, run.folder / "program")
    reach("train.save.program")
    keep_retrieval(run, best.program.retrieve)
    reach("train.save.retrieval")
    run.write_json(
        "stages.json", [{"recipe": s.recipe or "base", "validation_score": s.validation_score} for s in stages]
    )
    for log in sorted(logs):
        if "history" not in json.loads(log.read_text(encoding="utf-8")):
            continue  # of two adapters averaged, which was no training
        target = run.folder / "training" / log.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, target / "training.json")
    reach("train.save.logs")
