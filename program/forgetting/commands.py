"""`evergreen forgetting`."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, quiet, require_files


def forgetting(
    runs: Annotated[list[Path], typer.Argument(help="Compile runs, in the order in which they learnt.")],
    skill: Annotated[
        list[Path] | None, typer.Option(help="CUADv1-format test set of what the first run learnt; again for the next.")
    ] = None,
    known: Annotated[
        list[Path] | None, typer.Option(help="Test set of what was known before the first run; again for more.")
    ] = None,
    suite: Annotated[Path, typer.Option(help="Folder of the frozen skills, all of which are scored.")] = Path("suite"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("forgetting"),
    labelled_by: Annotated[str, typer.Option(help="Who labelled new test sets: person or generator.")] = "person",
    no_abilities: Annotated[bool, typer.Option("--no-abilities", help="Leave out what the base could do.")] = False,
    margin: Annotated[float, typer.Option(min=0, help="Points that a skill may lose.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Questions in flight.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    debug: Debug = False,
) -> None:
    """Score runs on every skill ever trained for, and say what was forgotten."""
    from program.runs import read_run

    for run in runs:
        read_run(run)
    require_files(*map(str, [*(skill or ()), *(known or ())]))
    quiet()
    from program.forgetting.run import run_forgetting

    result = run_forgetting(
        runs, skill or (), suite, out, known=known or (), labelled_by=labelled_by, abilities=not no_abilities,
        margin=margin / 100, threads=threads, seed=seed,
    )  # fmt: skip
    for line in result.lines:
        typer.echo(line)
    typer.echo(f"report: {result.path / 'forgetting.html'}   {result.figures['seconds']:.0f} s")
