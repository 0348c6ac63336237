"""`evergreen releases add | list | show | diff | promote | rollback | verify | collect`, a function each."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug
from program.releases.store import ReleaseStore
from program.releases.types import Release, ReleaseError

releases_app = typer.Typer(no_args_is_help=True, help="Keep compiled programs, and say which one is live.")
Root = Annotated[Path, typer.Option(help="Folder of the releases.")]
Id = Annotated[str, typer.Argument(help="Id of a release, or how the only one begins: 0007.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept.")]
_DAY_S = 86_400.0


@releases_app.command()
def add(
    run: Annotated[Path, typer.Argument(help="A run folder that `evergreen compile` left.")],
    root: Root = Path("releases"),
    parent: Annotated[list[str] | None, typer.Option(help="A release it was compiled from, again for more.")] = None,
    debug: Debug = False,
) -> None:
    """Make a release of a run; it is not live until it is promoted."""
    release = ReleaseStore.open(root).add(run, parents=tuple(parent or ()))
    typer.echo(f"{release.id}    {release.path}")


@releases_app.command(name="list")
def list_(root: Root = Path("releases"), debug: Debug = False) -> None:
    """List the releases, the newest last, with the score of each."""
    store = ReleaseStore.open(root)
    live = store.live()
    found = store.list()
    for release in found:
        mark = "live" if live is not None and release.id == live.id else ""
        typer.echo(
            f"{release.id}  {mark:4}  {release.created}  {_score(release)}  {release.manifest['scores']['stage']}"
        )
    if not found:
        typer.echo(f"no releases in {root}; `evergreen releases add RUN` makes one")


@releases_app.command()
def show(
    release_id: Annotated[str | None, typer.Argument(help="Id of a release; default: the live one.")] = None,
    root: Root = Path("releases"),
    debug: Debug = False,
) -> None:
    """Show a release's model card, and when it was live."""
    store = ReleaseStore.open(root)
    release = store.live() if release_id is None else store.get(release_id)
    if release is None:
        raise ReleaseError(f"no release in {root} is live; name one, or promote one")
    typer.echo((release.path / "MODEL_CARD.md").read_text(encoding="utf-8").partition("\n---\n")[2].strip())
    typer.echo("\n## History\n")
    for event in store.history():
        if release.id in (event.id, event.before):
            by = f"{event.by}, decision {event.decision}" if event.decision else event.by
            typer.echo(f"{event.at}  {event.event} {event.before or 'nothing'} -> {event.id}: {event.reason} ({by})")


@releases_app.command()
def diff(
    before: Id,
    after: Annotated[str | None, typer.Argument(help="Another; default: the live one.")] = None,
    root: Root = Path("releases"),
    debug: Debug = False,
) -> None:
    """Compare two releases: prompts, config, weights, scores by category, ten changed answers."""
    store = ReleaseStore.open(root)
    other = store.live() if after is None else store.get(after)
    if other is None:
        raise ReleaseError(f"no release in {root} is live; name two")
    from program.releases.diff import diff as compare
    from program.releases.diff import render

    typer.echo(render(compare(store.get(before).path, other.path)))


@releases_app.command()
def promote(release_id: Id, reason: Reason, root: Root = Path("releases"), debug: Debug = False) -> None:
    """Make a release the live one, by hand: no gate is asked."""
    release = ReleaseStore.open(root).promote(release_id, reason)
    typer.echo(f"{release.id} is live")


@releases_app.command()
def rollback(
    reason: Reason,
    to: Annotated[str | None, typer.Option(help="A release; default: the one that was live before.")] = None,
    root: Root = Path("releases"),
    debug: Debug = False,
) -> None:
    """Make an earlier release live again."""
    release = ReleaseStore.open(root).rollback(to, reason)
    typer.echo(f"{release.id} is live")


@releases_app.command()
def verify(
    release_id: Annotated[str | None, typer.Argument(help="Id of a release; default: all.")] = None,
    root: Root = Path("releases"),
    debug: Debug = False,
) -> None:
    """Read every file of a release, or of all, and say whether it is as it was made."""
    store = ReleaseStore.open(root)
    broken = []
    for name in store.names() if release_id is None else [store.get(release_id).id]:
        try:
            store.verify(name)
            typer.echo(f"{name}  whole")
        except ReleaseError as error:
            broken.append(name)
            typer.echo(f"{name}  BROKEN  {error}")
    if broken:
        raise ReleaseError(f"{len(broken)} of these releases are broken: {', '.join(broken)}")


@releases_app.command()
def collect(
    root: Root = Path("releases"),
    keep: Annotated[int, typer.Option(min=1, help="How many rollbacks must stay possible.")] = 5,
    younger_days: Annotated[float, typer.Option(min=0, help="Keep whatever is younger.")] = 30.0,
    debug: Debug = False,
) -> None:
    """Remove releases that are neither live, nor near to be again, nor ancestors of those, nor young."""
    gone = ReleaseStore.open(root).collect(keep, younger_s=younger_days * _DAY_S)
    typer.echo(f"removed {', '.join(gone) or 'none'}")


def _score(release: Release) -> str:
    found = release.manifest["scores"].get("scores", {}).get("exact_match")
    return "  -  " if found is None else f"{100 * found['mean']:5.1f}"
