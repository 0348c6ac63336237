"""`evergreen judge`."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, quiet, require_files, text_of


def judge(
    corpus: Annotated[Path, typer.Option(help="Labelled contracts to hold the judge against, CUADv1-format JSON.")],
    run: Annotated[
        Path | None, typer.Argument(help="A compile run whose LM judges; default: the bundled base.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("judge"),
    judge: Annotated[
        str, typer.Option(help="likelihood, pairwise, points, compare, or a litellm model that compares pairs.")
    ] = "likelihood",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs with gold.")] = 200,
    length_control: Annotated[bool, typer.Option("--length-control", help="Take out what length adds.")] = False,
    feedback: Annotated[
        Path | None, typer.Option(help="A feedback store, whose choices it is held against too.")
    ] = None,
    max_contracts: Annotated[int | None, typer.Option(help="Read only so many contracts.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    debug: Debug = False,
) -> None:
    """Measure a judge: agreement with gold and people, flips, length bias, degenerate answers."""
    require_files(str(corpus), text_of(feedback))
    quiet()
    from program.judging.run import run_judge

    result = run_judge(
        run, corpus, out, judge=judge, n=pairs, seed=seed, max_contracts=max_contracts, threads=threads,
        length_control=length_control, feedback=feedback,
    )  # fmt: skip
    for line in result.lines:
        typer.echo(line)
    typer.echo(f"report: {result.path / 'judge_report.html'}")
