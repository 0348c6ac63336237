"""What the commands share: options that several have, and what they do before the heavy libraries load."""

from pathlib import Path
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a complete run; the old one is kept as NAME.previous.")
]


def require_files(*paths: str | None, what: str = "CUADv1-format JSON file (`evergreen generate` writes one)") -> None:
    """Refuse a missing file at once: the libraries take seconds to load, and would load only to say so."""
    from corpora.errors import CorpusError

    for path in paths:
        if path is not None and not Path(path).is_file():
            raise CorpusError(f"there is no file {path}; give a {what}")


def quiet() -> None:
    """`program.runlog.quiet`, which loads DSPy and transformers: called when the arguments are known to be good."""
    from program.runlog import quiet as quieten

    quieten()


def text_of(path: Path | None) -> str | None:
    """A path as configs hold it."""
    return None if path is None else str(path)
