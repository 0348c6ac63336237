"""`evergreen feedback`."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, require_files, text_of


def feedback(
    store: Annotated[Path, typer.Argument(help="The feedback store that `evergreen serve` keeps.")],
    export: Annotated[Path | None, typer.Option(help="Write all of it to this .json or .csv file.")] = None,
    take: Annotated[Path | None, typer.Option("--import", help="Take in a .json file that was exported.")] = None,
    withdraw: Annotated[str | None, typer.Option(help="A name, all of whose feedback is no longer used.")] = None,
    debug: Debug = False,
) -> None:
    """Say how much feedback there is; export it, take in another's, or withdraw a person's."""
    from program.feedback.run import manage

    require_files(str(store), text_of(take), what="feedback store, or a file exported from one")
    for line in manage(store, export=export, take=take, withdraw=withdraw):
        typer.echo(line)
