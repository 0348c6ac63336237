"""Measure a judge on labelled contracts; leaves judge_report.json and judge_report.html."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.cuad import read_cuad
from modules.judge import Judge
from modules.judge_length import LengthControlled, fit_length_control, length_difference
from program.feedback.store import FeedbackStore
from program.judging.cases import cases_for
from program.judging.kinds import make_judge
from program.judging.measure import ask_judge
from program.judging.people import people_pairs
from program.judging.report import judge_report, report_lines, write_judge_report
from program.judging.trust import MIN_KAPPA
from program.judging.types import JudgedPair
from program.label import program_on

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """Where the report stands, its figures, and its lines for a terminal."""

    path: Path
    report: dict[str, Any]
    lines: list[str]


def run_judge(
    run: Path | None,
    corpus: Path | str,
    out: Path | str,
    *,
    judge: str = "likelihood",
    n: int = 200,
    n_degenerate: int = 200,
    seed: int = 0,
    max_contracts: int | None = None,
    length_control: bool = False,
    feedback: Path | str | None = None,
    people: Sequence[JudgedPair] = (),
    min_kappa: float = MIN_KAPPA,
    threads: int = 32,
    progress: bool = True,
    say: Say | None = None,
) -> JudgeResult:
    """Hold a judge against the labels of `corpus`, over the passages that a run's program retrieves, and report.

    `run` is a compile run whose LM judges (None: the bundled base as it comes). `judge` is one of JUDGES, or a litellm
    model that compares pairs. Beside gold it is held against `people`, and the choices of the store `feedback`. With
    `length_control` the effect of length is fitted on pairs of half the contracts and measured on the other half.
    Raises CorpusError, RunError, ModelError, StoreError and EvaluationError.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    labelled, out = read_cuad(corpus, max_contracts=max_contracts), Path(out).absolute()
    if feedback is not None:
        with FeedbackStore.open(feedback) as store:
            people = [*people, *people_pairs(store)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        with program_on(labelled.contracts, Path(scratch), run, "evergreen-base", progress) as program:
            gold, bad = cases_for(program, labelled, n, n_degenerate, seed)
            one = make_judge(judge, program)
            if length_control:
                one, gold = _controlled(one, gold, threads, say)
            say(f"asking {judge} about {len(gold)} pairs with gold, {len(people)} of people, {len(bad)} degenerate")
            report = judge_report(
                one, gold, bad, people, threads=threads, seed=seed, corpus=Path(corpus).name, min_kappa=min_kappa,
                progress=progress,
            )  # fmt: skip
    write_judge_report(out, report)
    return JudgeResult(out, report, report_lines(report))


def _controlled(judge: Judge, gold: list[JudgedPair], threads: int, say: Say) -> tuple[Judge, list[JudgedPair]]:
    """The judge with length taken out, fitted on every other contract, and the pairs of the rest."""
    fitting = set(sorted({pair.contract_id for pair in gold})[::2])
    pairs = [pair for pair in gold if pair.contract_id in fitting]
    known = [o for o in ask_judge(judge, pairs, threads=threads) if o.verdict and o.verdict.margin is not None]
    control = fit_length_control(
        [o.verdict.margin for o in known],
        [length_difference(o.pair.a, o.pair.b) for o in known],
        [{"A": 1, "B": -1}.get(o.pair.winner, 0) for o in known],
    )
    say(f"length adds {control.slope:+.2f} to a margin ({len(known)} pairs of {len(fitting)} contracts)")
    return LengthControlled(judge, control), [pair for pair in gold if pair.contract_id not in fitting]
