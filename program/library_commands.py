"""`evergreen index | adopt`, a function each."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, quiet


def index(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, folders and zips: txt, md, html, pdf, docx, CUADv1 JSON.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the library, made if it is not there.")],
    prune: Annotated[bool, typer.Option("--prune", help="Take out contracts whose files are gone.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Read unchanged failures again.")] = False,
    max_chars: Annotated[int | None, typer.Option(min=1, help="Characters of a passage; 600.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Folder or hub id; default: all-MiniLM-L6-v2.")] = None,
    debug: Debug = False,
) -> None:
    """Index the contracts in your files, and keep the index in step with them."""
    from corpora.files.walk import require_paths
    from program.library_report import report_lines

    require_paths(paths)
    quiet()
    from program.library import index_paths

    options = {"prune": prune, "retry_failed": retry_failed, "max_chars": max_chars, "embedder": embedder}
    report = index_paths(paths, out, **options)
    for line in report_lines(report):
        typer.echo(line)
    raise typer.Exit(report.exit_code)


def adopt(
    library: Annotated[Path, typer.Argument(help="A library that `evergreen index` made.")],
    run: Annotated[Path, typer.Argument(help="A compile run whose recipe tuned the retriever.")],
    debug: Debug = False,
) -> None:
    """Index a library anew with the retriever that a run has tuned; the old index serves until then."""
    quiet()
    from program.library import adopt as adopt_retriever

    n_passages = adopt_retriever(library, run)
    typer.echo(f"{library}: {n_passages} passages by the retriever of {run}")
