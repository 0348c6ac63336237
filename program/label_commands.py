"""`evergreen label`."""

from pathlib import Path
from typing import Annotated

import typer

from program.options import Debug, quiet, require_files, text_of


def label(
    corpus: Annotated[Path, typer.Option(help="People's labels, CUADv1-format JSON.")],
    unlabelled: Annotated[Path, typer.Option(help="Contracts to label: CUADv1-format JSON or a library.")],
    out: Annotated[Path, typer.Option(help="Folder of the labels; with it again, goes on.")] = Path("labels"),
    run: Annotated[Path | None, typer.Option(help="A compile run whose program labels; default: the plain LM.")] = None,
    lm: Annotated[str, typer.Option(help="evergreen-base, a model folder, or a hub id.")] = "evergreen-base",
    labeller: Annotated[str | None, typer.Option(help="A litellm model in the LM's place.")] = None,
    answered: Annotated[int, typer.Option(min=0, help="Known questions to put to unlabelled contracts.")] = 600,
    written: Annotated[int, typer.Option(min=0, help="Questions to write about passages.")] = 0,
    descriptions: Annotated[int, typer.Option(min=1, help="Wordings of the task to write under, in turn.")] = 1,
    follow_ups: Annotated[int, typer.Option(min=0, help="More questions in each such conversation.")] = 0,
    reworded: Annotated[int, typer.Option(min=0, help="Labels to ask in other words.")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="Sampled answers that have to agree; 0: none are asked.")] = 0,
    judge: Annotated[bool, typer.Option("--judge", help="An LM checks faithfulness and answerability.")] = False,
    pii: Annotated[
        str, typer.Option(help="Labels with personal data: keep, drop, or mask it in question and answer.")
    ] = "keep",
    gold: Annotated[Path | None, typer.Option(help="Labels of the unlabelled contracts, for the report alone.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Questions in flight.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Write labels for unlabelled contracts after people's, and keep those that pass every filter."""
    require_files(str(corpus), text_of(gold), *([] if unlabelled.is_dir() else [str(unlabelled)]))
    quiet()
    from program.label import estimate
    from program.label import label as label_contracts
    from program.label_settings import FILTERS, LabelSettings

    chosen = {"agreement": samples > 0, "judge": judge}
    settings = LabelSettings(
        answered=answered, written=written, descriptions=descriptions, follow_ups=follow_ups, reworded=reworded,
        samples=max(1, samples), pii=pii, seed=seed,
        filters=tuple(name for name in FILTERS if chosen.get(name, True)),
    )  # fmt: skip
    given = {"run": run, "lm": lm, "labeller": labeller, "settings": settings, "threads": threads}
    if dry_run:
        typer.echo(estimate(corpus, unlabelled, **given))
        return
    result = label_contracts(corpus, unlabelled, out, gold=gold, **given)
    for line in result.lines:
        typer.echo(line)
    typer.echo(f"labels: {result.path / 'labels.cuad.json'}   report: {result.path / 'label_report.html'}")
