"""`evergreen shadow`: what a candidate said beside the live program, and whether it must not go live."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug


def shadow(
    home: Annotated[Path, typer.Argument(help="The home folder that `evergreen serve HOME --shadow ID` served.")],
    release_id: Annotated[str, typer.Argument(help="Id of the release that answered silently.")],
    min_pairs: Annotated[int, typer.Option(min=1, help="Answers of both that are enough to say anything.")] = 100,
    debug: Debug = False,
) -> None:
    """Compare a release that answered silently with the live one: errors, quotes, abstention, agreement, latency."""
    from modules.index_files import read_contracts
    from program.gate.page import name_of, value_text
    from program.gate.shadow_checks import ShadowRules, compare_shadow
    from program.gate.shadow_log import read_pairs
    from program.releases.store import ReleaseStore
    from program.renewal.home import Home
    from program.run_retrieval import read_retrieval

    place = Home(home.absolute())
    release = ReleaseStore.open(place.releases).get(release_id)
    index = read_retrieval(release.path).index
    texts = {one.contract.id: one.contract.text for one in read_contracts(index)}
    pairs = read_pairs(place.shadow / f"{release.id}.jsonl", texts)
    known = [pair for pair in pairs if pair.contract_id is None or pair.contract_id in texts]
    checks = compare_shadow(known, ShadowRules(min_pairs=min_pairs), texts)
    marks = {True: "passed", False: "failed", None: "cannot be told"}
    typer.echo(f"{release.id}: {len(known)} questions answered beside the live program")
    for check in checks:
        typer.echo(f"  {name_of(check)}: {value_text(check)}, {marks[check.passed]}: {check.why}")
    raise typer.Exit(0 if all(check.passed for check in checks) else 1)
