"""`evergreen forgetting`: runs in the order in which they were made, on every skill that any of them was trained for.

    <suite>/  the frozen skills (skills.py), to be given again with the next run
    <out>/    forgetting.json, forgetting.html (report.py)

Round 0 is the plain base. A skill is frozen with the marks of the run that learnt it, once, and never again; the base's
abilities with the base's. Not handled: runs on different bases.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import dspy

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.splits import nearly_among
from corpora.types import Corpus
from modules.index_files import StoreError
from optimizers.preference_rollouts import rollouts
from program.base_model.train import known_houses
from program.compile import build_adapter
from program.examples import to_examples
from program.forgetting.abilities import ABILITIES, FORMAT, draw_items, score_items
from program.forgetting.costs import TrainingCost, training_cost
from program.forgetting.matrix import forgetting_figures
from program.forgetting.report import report_lines, write_forgetting_report
from program.forgetting.rounds import Round, programs, rounds_of
from program.forgetting.skills import LABELLED_BY, Skill, SuiteStore, marks_then
from program.forgetting.suite import kl_from_base, marks_on, score_suite
from program.incumbent import read_incumbent
from program.runs import RunError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ForgettingResult:
    """Where the page stands, its figures (as forgetting.json), and its lines for a terminal."""

    path: Path
    figures: dict[str, Any]
    lines: list[str]


def run_forgetting(
    runs: Sequence[Path],
    skills: Sequence[Path],
    suite: Path | str,
    out: Path | str,
    *,
    known: Sequence[Path] = (),
    labelled_by: str = "person",
    abilities: bool = True,
    ability_contracts: int = 24,
    kl_prompts: int = 32,
    margin: float = 0.02,
    threads: int = 32,
    seed: int = 0,
    progress: bool = True,
    say: Say | None = None,
) -> ForgettingResult:
    """Score each of `runs`, and the base before them, on every skill; leave the page in `out`, the skills in `suite`.

    `skills` are CUADv1-format test sets, the i-th of what the i-th run learnt; `known` of what was known before the
    first. A skill is named by its file, and frozen in `suite`; those that stand there already are scored too, and held
    against their score at the time; those that none of `runs` learnt count as known before. `margin` is in shares. KL
    from the base to the last run is taken on `kl_prompts` questions of the newest skill. Raises, before anything is
    scored, RunError, CorpusError (also for a test contract that a run learnt from) and StoreError (a test set that is
    not the frozen one); later EvaluationError and LabelingError.
    """
    say, began = say or (lambda line: print(line, file=sys.stderr)), time.perf_counter()
    if labelled_by not in LABELLED_BY:
        raise StoreError(f"labelled_by is {labelled_by!r}; it must be one of {LABELLED_BY}, never a program")
    rounds, store = rounds_of(runs), SuiteStore(suite)
    given = _read_skills(skills, known, rounds, store)
    _refuse_learnt(runs, given, store, say)
    with programs(progress) as build, dspy.context(adapter=build_adapter()):
        there = {skill.name for skill in store.skills()}
        for name in (name for name in given if name not in there):
            corpus, i = given[name]
            say(f"{name}: {len(corpus.labels)} questions, frozen with the score of {rounds[i].name}")
            marks = marks_on(build(rounds[i], corpus), name, corpus, threads)
            store.add(name, corpus, marks, release=rounds[i].release, labelled_by=labelled_by)
        learnt = _learnt(store.skills(), given, rounds)
        newest = max((one for one in store.skills() if one.kind == "review"), key=lambda skill: learnt[skill.name])
        corpus = store.corpus(newest)
        lms = [build(one, corpus).reviewer.predict.lm for one in rounds]
        if abilities:
            _freeze_abilities(store, lms[0], rounds[0].release, ability_contracts, seed, threads)
        chosen = _Chosen(store.folder, abilities)
        marks, costs = [], []
        for i, (one, lm) in enumerate(zip(rounds, lms, strict=True)):
            started = time.perf_counter()
            found, failed = score_suite(chosen, partial(build, one), lm, build_adapter(), threads=threads)
            training = TrainingCost() if one.run is None else training_cost(one.run)
            marks.append(found)
            costs.append(
                {"round": i, "name": one.name, "release": one.release, "scoring_s": time.perf_counter() - started,
                 "marks": len(found), "failed": failed, "training": asdict(training)}
            )  # fmt: skip
            say(_cost_line(costs[-1], len(rounds)))
        kl = _kl(build(rounds[0], corpus), lms, corpus, kl_prompts, threads, seed)
    learnt = _learnt(chosen.skills(), given, rounds)
    figures = forgetting_figures(
        marks, learnt, abilities=[name for name in learnt if name in ABILITIES], margin=margin, kl=kl,
        then={skill.name: marks_then(skill) for skill in chosen.skills()},
    )  # fmt: skip
    frozen = {skill.name: {"release": skill.release, "test_sha256": skill.test_sha256} for skill in chosen.skills()}
    seconds = time.perf_counter() - began
    figures |= {"costs": costs, "kl_skill": newest.name, "frozen": frozen, "seconds": seconds}
    page = write_forgetting_report(Path(out).absolute(), figures, names=[one.name for one in rounds])
    return ForgettingResult(page.parent, figures, report_lines(figures))


class _Chosen(SuiteStore):
    """The store, without the base's abilities if these are not asked for."""

    def __init__(self, folder: Path, abilities: bool) -> None:
        super().__init__(folder)
        self.abilities = abilities

    def skills(self) -> tuple[Skill, ...]:
        """As SuiteStore.skills."""
        found = super().skills()
        return tuple(skill for skill in found if skill.kind == "review" or self.abilities)


def _read_skills(
    skills: Sequence[Path], known: Sequence[Path], rounds: Sequence[Round], store: SuiteStore
) -> dict[str, tuple[Corpus, int]]:
    """Each skill's test set and the round that learnt it, 0 for what was known before; those of the store checked."""
    if len(skills) >= len(rounds):
        raise RunError(
            f"{len(skills)} skills are given and {len(rounds) - 1} runs; the i-th skill is what the i-th run learnt: "
            "give what was known before the first run as known"
        )
    frozen = {skill.name: skill for skill in store.skills()}
    if not skills and not known and not any(skill.kind == "review" for skill in frozen.values()):
        raise StoreError(f"no skill is given, and {store.folder} holds none; give the test set of what the run learnt")
    placed = [(path, 0) for path in known] + [(path, i) for i, path in enumerate(skills, start=1)]
    found: dict[str, tuple[Corpus, int]] = {}
    for path, i in placed:
        name = path.stem
        if name in found or name in ABILITIES:
            raise StoreError(f"a skill is named by its file, and {name!r} is taken; give {path} another name")
        corpus = read_cuad(path)
        to_examples(corpus)  # refuses one without questions
        if name in frozen and frozen[name].test_sha256 != _digest(corpus):
            raise StoreError(
                f"{path} is not the test set that skill {name!r} was frozen with in {store.folder}; scores on two sets "
                "cannot be compared: give it another name, or the file as it was"
            )
        found[name] = corpus, i
    return found


def _refuse_learnt(runs: Sequence[Path], given: dict[str, tuple[Corpus, int]], store: SuiteStore, say: Say) -> None:
    """CorpusError where a run, or one that it was started from, learnt from a test contract."""
    tests = {name: corpus for name, (corpus, _) in given.items()}
    tests |= {skill.name: store.corpus(skill) for skill in store.skills() if skill.kind == "review"}
    for run in runs:
        seen = read_incumbent(run, say).seen
        for name, corpus in tests.items():
            if known := sorted(nearly_among(corpus.contracts, seen)):
                raise CorpusError(
                    f"{run} learnt from {len(known)} contracts of skill {name!r}, {known[0]!r} first, or from "
                    "near-duplicates of them; test on others, or compile without them"
                )


def _digest(corpus: Corpus) -> str:
    """What the store would call this test set."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "test.json"
        write_cuad(corpus, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _learnt(skills: Sequence[Skill], given: dict[str, tuple[Corpus, int]], rounds: Sequence[Round]) -> dict[str, int]:
    """The round that learnt each skill: as given, else that of its release, else 0; known first, abilities last."""
    by_release = {one.release: i for i, one in enumerate(rounds)}
    rows = [
        (skill.kind, given[skill.name][1] if skill.name in given else by_release.get(skill.release, 0), skill.name)
        for skill in skills
    ]
    order = sorted(rows, key=lambda row: (row[0] == "ability", row[1]))
    return {name: i for _, i, name in order}


def _freeze_abilities(store: SuiteStore, lm: dspy.LM, release: str, n: int, seed: int, threads: int) -> None:
    """The abilities of the base, drawn and scored once, unless they are there."""
    if {skill.name for skill in store.skills()} >= set(ABILITIES):
        return
    items = draw_items(known_houses(), n, seed=seed)
    marks, _ = score_items(lm, items, build_adapter(), threads=threads)
    for name in ABILITIES:
        own = [item for item in items if name in (FORMAT, item["ability"])]
        store.add_ability(name, own, [mark for mark in marks if mark.skill == name], release=release)


def _kl(
    program: dspy.Module, lms: Sequence[dspy.LM], corpus: Corpus, n: int, threads: int, seed: int
) -> list[tuple[float, str]]:
    """KL from the first LM to the last on `n` questions of the corpus, asked as the base's `program` asks them."""
    examples = to_examples(corpus)
    drawn = Random(seed).sample(examples, min(n, len(examples)))
    runs = rollouts(program, drawn, temperature=None, threads=threads)
    prompts = [(list(run.calls[0].messages), run.example.contract_id) for (run,) in runs if run.calls]
    return kl_from_base(lms[0], lms[-1], prompts, seed=seed)


def _cost_line(cost: dict[str, Any], n_rounds: int) -> str:
    training = cost["training"]
    told = (
        f"round {cost['round']} of {n_rounds - 1}, {cost['name']}: {cost['marks']} marks in {cost['scoring_s']:.0f} s"
    )
    told += f", {cost['failed']} failed" if cost["failed"] else ""
    if training["steps"]:
        told += f"; it had trained {training['tokens']} tokens in {training['seconds']:.0f} s"
    return told
