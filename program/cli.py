"""The command line: `evergreen compile | evaluate | ask | serve | renew | ...`, a function each, or in its own room."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from program import label_commands, library_commands
from program.feedback import commands as feedback_commands
from program.forgetting import commands as forgetting_commands
from program.gate import commands as gate_commands
from program.history import commands as history_commands
from program.judging import commands as judging_commands
from program.options import Debug, Overwrite, quiet, require_files, text_of
from program.releases.commands import releases_app
from program.renewal import commands as renewal_commands

# Set before any library reads them: nothing here may reach for a hub, a tokenizer fork or a telemetry host.
for _name, _value in {
    "TOKENIZERS_PARALLELISM": "false",
    "ANONYMIZED_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}.items():
    os.environ.setdefault(_name, _value)

_STOPPED_RUN = "stopped; a run keeps the stages it had scored, marked partial, and an earlier complete run stays"
_STOPPED = {
    **dict.fromkeys(("compile", "evaluate", "demo"), _STOPPED_RUN),
    "index": "stopped; what is indexed stays, and the same command goes on from there",
    "renew": "stopped; the stages that ended stay, and the same command goes on from there",
    "watch": "stopped; a renewal that had begun is gone on with the next time",
    "forgetting": "stopped; the skills that are frozen stay, and the same command goes on from there",
    "label": "stopped; the labels of whole rounds stay, and the same command goes on from there",
}

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Contract review that compiles its own prompts and weights."
)


@app.command()
def compile(
    corpus: Annotated[Path | None, typer.Option(help="Labelled contracts, CUADv1-format JSON.")] = None,
    test: Annotated[Path | None, typer.Option(help="Contracts to score on; default: a fifth of the corpus.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON with any of the config's keys.")] = None,
    lm: Annotated[str | None, typer.Option(help="evergreen-base, a model folder, or a hub id.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Of r retriever, p prompts, s labels, a preferences, d distillation.")
    ] = None,
    max_contracts: Annotated[int | None, typer.Option(help="Read only so many contracts of the corpus.")] = None,
    max_train_questions: Annotated[int | None, typer.Option(help="Questions to train on.")] = None,
    max_val_questions: Annotated[int | None, typer.Option(help="Questions to choose on.")] = None,
    quantize: Annotated[str | None, typer.Option(help="auto, nf4 (4-bit base, QLoRA) or none.")] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Contracts for step s to label and learn from: CUADv1-format JSON or a library.")
    ] = None,
    labeller: Annotated[str | None, typer.Option(help="A litellm model that labels them; default: the LM.")] = None,
    feedback: Annotated[Path | None, typer.Option(help="For step a: the store that `evergreen serve` keeps.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="For step a: likelihood, compare, pairwise, points, or a litellm model.")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="A complete run, whose program is compiled on; default: the plain base.")
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="Of step s, against forgetting: replay_self, replay_labels, kl, osf, low_rate or merge, or several, "
            "as in replay_labels+kl."
        ),
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option(help="Labels to replay, CUADv1-format JSON; default: those of --start-from.")
    ] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    threads: Annotated[int | None, typer.Option(help="Questions in flight.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Compile prompts and weights on a corpus, and score before and after."""
    from program.config import load_config

    given = {
        "corpus": text_of(corpus), "test_corpus": text_of(test), "out": out, "lm": lm, "recipe": recipe, "seed": seed,
        "max_contracts": max_contracts, "max_train_questions": max_train_questions,
        "max_val_questions": max_val_questions, "quantize": quantize, "threads": threads,
        "unlabelled": text_of(unlabelled), "labeller": labeller, "feedback": text_of(feedback), "judge": judge,
        "start_from": text_of(start_from), "guard": guard, "earlier": text_of(earlier),
    }  # fmt: skip
    resolved = load_config(config, given)
    require_files(resolved.corpus, resolved.test_corpus, resolved.earlier)
    quiet()
    from program.compile import compile as run_compile

    _show(run_compile(resolved, overwrite=overwrite, command=_command()))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder that `evergreen compile` left.")],
    corpus: Annotated[Path, typer.Option(help="Labelled contracts, CUADv1-format JSON; the run need not know them.")],
    out: Annotated[str | None, typer.Option(help="Folder of this evaluation; default: RUN-on-CORPUS.")] = None,
    max_contracts: Annotated[int | None, typer.Option(help="Read only so many contracts.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Score a compiled program, beside its uncompiled base, on contracts it has never seen."""
    compiled = _run(run)
    require_files(str(corpus))
    quiet()
    from program.evaluate_run import evaluate_run

    place = Path(out) if out else run.absolute().with_name(f"{run.absolute().name}-on-{corpus.stem}")
    _show(evaluate_run(compiled, corpus, place, max_contracts=max_contracts, overwrite=overwrite, command=_command()))


@app.command()
def ask(
    run: Annotated[Path, typer.Argument(help="A run of `evergreen compile`, a release, or a home folder.")],
    question: Annotated[str, typer.Argument(help="A question, or one of CUAD's category names.")],
    contract: Annotated[str | None, typer.Option(help="Id of one contract of the run's index; default: all.")] = None,
    debug: Debug = False,
) -> None:
    """Ask a compiled program about the contracts of its run."""
    place = _run(run)
    quiet()
    from program.evaluate_run import ask_run

    answer = ask_run(place, question, contract)
    confidence = "unknown" if answer.confidence is None else f"{answer.confidence:.2f}"
    typer.echo(f"{answer.answer}    (confidence {confidence})")
    for quote in answer.quotes:
        typer.echo(f'  "{quote.text}"\n    {quote.contract_id}, characters {quote.start} to {quote.end}')


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(help="A run of `evergreen compile`, a release, or a home folder.")],
    library: Annotated[
        Path | None, typer.Option(help="A library whose contracts are asked; default: the run's.")
    ] = None,
    rival: Annotated[Path | None, typer.Option(help="Another run, whose answers are laid beside, blind.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="A run, or of a home folder a release's id, that is asked the same silently.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Where feedback is kept; default: feedback.db beside RUN.")] = None,
    host: Annotated[str, typer.Option(help="Any address but a loopback one needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
    token: Annotated[str | None, typer.Option(help="At least 16 characters; or set EVERGREEN_TOKEN.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Questions in flight.")] = 8,
    trace_inputs: Annotated[str, typer.Option(help="Of questions and answers, keep the full text or a hash.")] = "full",
    no_traces: Annotated[bool, typer.Option("--no-traces", help="Keep no record of what was answered.")] = False,
    debug: Debug = False,
) -> None:
    """Open the page where reviewers ask, rate, correct and choose; Ctrl-C ends it."""
    _run(run)
    quiet()
    from program.config import ConfigError
    from program.releases.store import ReleaseStore
    from program.renewal.home import Home, is_home
    from program.serve.run import serve as serve_run
    from program.traces.policy import TracePolicy

    policy = None if no_traces else TracePolicy(inputs=trace_inputs)
    if shadow is not None and trace_inputs != "full":
        raise ConfigError("shadow mode keeps questions and answers; leave --shadow or --trace-inputs out")
    if is_home(run):
        if shadow is not None:
            shadow = str(ReleaseStore.open(Home(run.absolute()).releases).verify(shadow).path)
        run, store = Home(run.absolute()).releases, store or Home(run.absolute()).feedback
    serve_run(
        run, host=host, port=port, token=token, store=store, library=library, rival=rival, shadow=shadow,
        threads=threads, trace_policy=policy,
    )  # fmt: skip


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="The CUADv1-format JSON file to write.")],
    house: Annotated[list[str] | None, typer.Option(help="Drafting house, again for more; default: all.")] = None,
    contracts: Annotated[int, typer.Option(min=1, help="How many contracts.")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    debug: Debug = False,
) -> None:
    """Write contracts with labels, all of them invented."""
    from corpora.cuad import write_cuad
    from corpora.synthetic import house_names, write_corpus

    corpus = write_corpus(house or house_names(), contracts, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_cuad(corpus, out)
    found = sum(bool(label.spans) for label in corpus.labels)
    typer.echo(f"{out}: {len(corpus.contracts)} contracts, {len(corpus.labels)} questions, {found} with an answer")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of contracts, samples and training.")] = 0,
    house: Annotated[
        str,
        typer.Option(help="The drafting house to learn; the base has not seen " + "greyfriars, juniper, lindqvist."),
    ] = "juniper",
    out: Annotated[str, typer.Option(help="Folder of the run.")] = "runs/demo",
    debug: Debug = False,
) -> None:
    """See a program get better: contracts of a house the base has not seen, compiled and scored in minutes."""
    from corpora.synthetic import load_house

    load_house(house)
    quiet()
    from program.demo import run_demo

    _show(run_demo(Path(out), house=house, seed=seed, command=_command()))


for _each in (
    feedback_commands.feedback, judging_commands.judge, forgetting_commands.forgetting, label_commands.label,
    library_commands.index, library_commands.adopt, renewal_commands.init, renewal_commands.renew,
    renewal_commands.watch, gate_commands.shadow, history_commands.status, history_commands.history,
    history_commands.doctor,
):  # fmt: skip
    app.command()(_each)
app.add_typer(releases_app, name="releases")


def main() -> None:
    """Entry point: exit code 2 for wrong use, 1 for a failure, 130 for Ctrl-C; one line says what to do."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except (KeyboardInterrupt, SystemExit) as leaving:
        # Typer turns Ctrl-C into an exit of its own, without a word.
        if isinstance(leaving, SystemExit) and leaving.code != 130:
            raise
        _leave(_STOPPED.get("".join(sys.argv[1:2]), "stopped"), 130)
    except Exception as error:
        if debug:
            raise
        from corpora.errors import CorpusError
        from program.config import ConfigError

        _leave(_said(error), 2 if isinstance(error, ConfigError | CorpusError) else 1)


def _run(path: Path) -> Path:
    """The complete run that is meant by a run, a release, a folder of releases or a home folder; RunError."""
    from program.releases.view import resolve
    from program.renewal.home import Home, is_home
    from program.runs import read_run

    place = resolve(Home(path.absolute()).releases if is_home(path) else path)
    read_run(place)
    return place


def _said(error: Exception) -> str:
    """What an error and its notes say; of an error that is not the project's own, its type and how to see more."""
    notes = [note for each in (error, error.__cause__) for note in getattr(each, "__notes__", [])]
    if type(error).__module__.partition(".")[0] in ("corpora", "modules", "optimizers", "program"):
        return " ".join([str(error), *notes])
    return " ".join([f"{type(error).__name__}: {error}; run again with --debug to see where", *notes])


def _show(result: object) -> None:
    from program.report import terminal_table

    typer.echo(terminal_table(result.summary))
    for row in result.summary["comparisons"]:
        if row["against"] == "base" and row["score"] == "exact_match" and row["difference"] is not None:
            bounds = "no interval from one contract"
            if row["low"] is not None:
                bounds = f"95% [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            typer.echo(f"{row['stage']}: {100 * row['difference']:+.1f} points of exact match over the base, {bounds}")
    typer.echo(f"kept: {result.recipe or 'base'}   report: {result.path / 'report.html'}   {result.seconds:.0f} s")


def _leave(line: str, code: int) -> None:
    sys.stderr.write(f"evergreen: {' '.join(line.split())}\n")
    raise SystemExit(code)


def _command() -> str:
    return shlex.join(["evergreen", *sys.argv[1:]])


if __name__ == "__main__":
    main()
