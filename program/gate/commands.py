"""`evergreen shadow`: what a candidate said beside the live program, and whether it must not go live."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug


def shadow(
    home: Annotated[Path, typer.Argument(help="The home folder that `evergreen serve` served.")],
    release_id: Annotated[str, typer.Argument(help="Id of the release that answered silently.")],
    min_pairs: Annotated[int, typer.Option(min=1, help="Answers of both that are enough to say anything.")] = 100,
    debug: Debug = False,
) -> None:
    """Compare a release that answered silently with the live one: errors, quotes, abstention, agreement, latency."""
    from program.gate.page import name_of, value_text
    from program.gate.shadow_checks import ShadowRules
    from program.releases.store import ReleaseStore
    from program.renewal.home import Home
    from program.renewal.shadowing import shadow_checks

    place = Home(home.absolute())
    release = ReleaseStore.open(place.releases).get(release_id)
    n, checks = shadow_checks(place, release, ShadowRules(min_pairs=min_pairs))
    marks = {True: "passed", False: "failed", None: "cannot be told"}
    typer.echo(f"{release.id}: {n} questions answered beside the live program")
    for check in checks:
        typer.echo(f"  {name_of(check)}: {value_text(check)}, {marks[check.passed]}: {check.why}")
    raise typer.Exit(0 if all(check.passed for check in checks) else 1)
