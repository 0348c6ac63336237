"""`evergreen status`, `evergreen history` and `evergreen doctor`: what an owner asks of a home folder."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from program.config import ConfigError
from program.options import Debug
from program.renewal.home import Home

Folder = Annotated[Path, typer.Argument(help="The home folder: the one with evergreen.toml.")]


def status(home: Folder = Path("."), debug: Debug = False) -> None:
    """Say in ten lines what is live, how good it is, and what is alarming."""
    from program.history.facts import gather
    from program.history.status import status_lines

    for line in status_lines(gather(_home(home))):
        typer.echo(line)


def history(
    home: Folder = Path("."),
    out: Annotated[
        Path | None, typer.Option(help="The page to write; default: history.html in the home folder.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the history page: scores over releases, skills, drift, feedback, traffic, cost, renewals."""
    _quiet()
    from program.history.facts import gather
    from program.history.page import write_history

    place = _home(home)
    typer.echo(f"history: {write_history(gather(place), place.path, out)}")


def doctor(home: Folder = Path("."), debug: Debug = False) -> None:
    """Check machine, versions, models, index, stores, releases, renewals, config and clock; change nothing."""
    _quiet()
    from transformers.utils import logging as transformers_logging

    from program.history.doctor import examine, finding_lines

    transformers_logging.disable_progress_bar()  # of loading the embedder

    findings = examine(Home(home.absolute()))
    for line in finding_lines(findings):
        typer.echo(line)
    raise typer.Exit(1 if any(one.level == "error" for one in findings) else 0)


def _quiet() -> None:
    for name in ("transformers", "bitsandbytes", "chromadb", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _home(path: Path) -> Home:
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}; give the home folder, the one with evergreen.toml")
    return Home(path.absolute())
