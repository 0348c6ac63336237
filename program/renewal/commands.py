"""`evergreen init | renew | watch`, a function each; the heavy libraries load when they are asked for."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, quiet

Home = Annotated[Path, typer.Argument(help="The home folder, with evergreen.toml.")]

_TOML = """\
# What the loop learns from and decides on; every key: program/renewal/config.py
corpus = {corpus}
frozen = {frozen}
{contracts}recipe = "s -> a"
every_days = 90
"""


def init(
    home: Home,
    corpus: Annotated[Path, typer.Option(help="People's labels to train and to choose on, CUADv1-format JSON.")],
    frozen: Annotated[Path, typer.Option(help="People's labels that the gate decides on, never trained on.")],
    contracts: Annotated[
        Path | None, typer.Option(help="Contracts without labels: a library of `evergreen index`, or JSON.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make the home folder of a live program; `evergreen renew` then makes its first release."""
    import json

    from program.config import ConfigError
    from program.renewal.config import load_renewal
    from program.renewal.home import FILE_NAME

    path = home / FILE_NAME
    if path.exists():
        raise ConfigError(f"{path} is there already; edit it, or give another folder")
    told = {name: json.dumps(str(file.absolute())) for name, file in (("corpus", corpus), ("frozen", frozen))}
    line = f"contracts = {json.dumps(str(contracts.absolute()))}\n" if contracts else ""
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(_TOML.format(**told, contracts=line), encoding="utf-8")
    load_renewal(home)
    typer.echo(f"{path}   next: evergreen renew {home}")


def renew(
    home: Home,
    why: Annotated[str, typer.Option(help="Renew now, for this reason; without it, only if there is one.")] = "",
    debug: Debug = False,
) -> None:
    """Make a candidate if there is a reason to, and let the gate decide; goes on with one that was interrupted."""
    quiet()
    from program.renewal.renew import renew as renew_home

    outcome = renew_home(home, by_hand=why, say=typer.echo)
    if outcome is None:
        typer.echo("no reason to renew; give one with --why to do it all the same")
        return
    folder = home / "renewals" / outcome["id"]
    page = folder / "gate.html"
    typer.echo(f"{outcome['outcome']}   {page if page.is_file() else folder}")


def watch(
    home: Home,
    once: Annotated[bool, typer.Option("--once", help="Look once, and stop: for a scheduler of your own.")] = False,
    debug: Debug = False,
) -> None:
    """Look for drift, feedback and new contracts every `check_hours`, and renew for a reason, until Ctrl-C."""
    quiet()
    from program.renewal.watch import watch as watch_home

    watch_home(home, say=typer.echo, looks=1 if once else None)
