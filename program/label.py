"""Label unlabelled contracts: propose, filter, keep; leaves a folder with the labels and how they came about.

    labels.db          the label store: every label with its history, all that was tried
    labels.json        the same labels, with provenance; labels.cuad.json: as a CUADv1-format corpus to train on
    label_report.html  yield of each filter, precision against gold where there is any, diversity, time and calls

Killed at any moment, the same command goes on: what was asked is not asked again.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.labels.formats import write_labels
from corpora.labels.store import LabelStore
from corpora.splits import distinct, split_in_two, subset
from corpora.types import Contract, Corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from program.asking import remote
from program.compile import build_adapter, build_lm
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.evaluate_run import load_compiled, read_compiled
from program.examples import to_examples
from program.label_figures import label_figures
from program.label_precision import gold_labels
from program.label_report import report_lines, write_label_report
from program.label_settings import LabelSettings
from program.run_retrieval import read_retrieval
from program.self_instruct import SelfInstruct
from program.unlabelled import read_unlabelled

Say = Callable[[str], None]
_PROBED = 8
# An answer takes about so many tokens: what a dry run reckons the price by.
_ANSWER_TOKENS = 120


@dataclass(frozen=True, slots=True)
class LabelResult:
    """Where the folder stands, the report's figures, and the report's lines for a terminal."""

    path: Path
    figures: dict[str, Any]
    lines: list[str]


def label(
    corpus: Path | str,
    unlabelled: Path | str,
    out: Path | str,
    *,
    run: Path | None = None,
    lm: str = "evergreen-base",
    labeller: str | None = None,
    settings: LabelSettings | None = None,
    gold: Path | None = None,
    threads: int = 32,
    progress: bool = True,
    say: Say | None = None,
) -> LabelResult:
    """Label the contracts of `unlabelled` after people's labels in `corpus`, and leave the folder `out`.

    `run` is a compile run whose program labels (else an uncompiled one on the local LM `lm`), `labeller` a litellm
    model in its LM's place. A quarter of the labelled contracts is kept to fit confidences on. `gold` is a
    CUADv1-format file with labels of the unlabelled contracts, for the report alone. Raises CorpusError, RunError,
    ModelError and LabelingError.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    out, settings = Path(out).absolute(), settings or LabelSettings()
    began = time.perf_counter()
    people, choosing, contracts = read_sides(corpus, unlabelled)
    given = people.contracts + choosing.contracts + contracts
    answers = None if gold is None else read_gold(gold, given, contracts)
    out.mkdir(parents=True, exist_ok=True)
    with LabelStore.open(out / "labels.db") as store, program_on(given, out, run, lm, progress) as program:
        labels = SelfInstruct(store, settings, remote(labeller), threads, progress)
        train, val = to_examples(people), to_examples(choosing)
        say(f"labelling {len(contracts)} contracts after {len(train)} labels, confidences fitted on {len(val)}")
        labels.make(program, train, contracts, val, 1)
        records, of_store = list(store.records("synthetic")), {c.id: c for c in store.contracts()}
        write_labels(list(store.records()), list(of_store.values()), out / "labels.json")
        write_cuad(store.training(), out / "labels.cuad.json")
        seconds = time.perf_counter() - began
        figures = label_figures(
            labels.reports, records, of_store, n_human=len(train), seconds=seconds, gold=answers, seed=settings.seed
        )
        figures["settings"] = asdict(settings) | {"labeller": labeller, "run": run and str(run), "lm": lm}
        write_label_report(out, figures)
    return LabelResult(out, figures, report_lines(figures))


def estimate(
    corpus: Path | str,
    unlabelled: Path | str,
    *,
    run: Path | None = None,
    lm: str = "evergreen-base",
    labeller: str | None = None,
    settings: LabelSettings | None = None,
    threads: int = 32,
) -> str:
    """What `label` would take: calls at most; minutes for a local LM, by a few calls timed now; the price of another's.

    Nothing is written, and no call goes to `labeller`.
    """
    settings = settings or LabelSettings()
    people, choosing, contracts = read_sides(corpus, unlabelled)
    asked = {label.question.text for label in people.labels}
    answered = min(settings.answered, len(asked) * len(contracts))
    written = settings.written * (1 + settings.follow_ups)
    checks = settings.samples * (answered + written) if "agreement" in settings.filters else 0
    checks += written + settings.reworded if "round trip" in settings.filters else 0
    checks += answered + written + settings.reworded if "judge" in settings.filters else 0
    checks += len(choosing.labels) if "confidence" in settings.filters and answered else 0
    calls = answered + written + settings.reworded + checks
    told = f"{len(contracts)} contracts, {len(asked)} questions: at most {calls} calls ({answered} answers, "
    told += f"{written} questions written, {settings.reworded} reworded, {checks} for checks)"
    with tempfile.TemporaryDirectory() as scratch:
        probe = subset(people, [people.contracts[0].id])
        with program_on(probe.contracts, Path(scratch), run, lm, False) as program:
            examples = to_examples(probe)[:_PROBED]
            if labeller is not None:
                passages = program.retrieve(question=examples[0].question, contract_id=examples[0].contract_id).passages
                prompt = sum(len(passage.text) for passage in passages) // 4 + 300
                return f"{told}; {_price(labeller, calls, prompt)}"
            score_program(program, examples[:2], "warm-up", threads=2, progress=False)
            began = time.perf_counter()
            score_program(program, examples, "probe", threads=threads, progress=False)
            per_call_s = (time.perf_counter() - began) / len(examples)
    return f"{told}; roughly {calls * per_call_s / 60:.0f} min here ({per_call_s:.2f} s a call)"


def read_sides(corpus: Path | str, unlabelled: Path | str) -> tuple[Corpus, Corpus, tuple[Contract, ...]]:
    """People's labels to learn from, those of other contracts to fit confidences on, and the unlabelled contracts."""
    return *split_in_two(read_cuad(corpus), fractions=(0.5, 0.25, 0.25)), read_unlabelled(unlabelled)


def read_gold(path: Path | str, given: tuple[Contract, ...], unlabelled: tuple[Contract, ...]) -> Corpus:
    """Labels that labelling does not see; CorpusError where they can judge none of `unlabelled`, or not `given`."""
    gold = read_cuad(path)
    judged = {contract_id for contract_id, _ in gold_labels(gold, {contract.id: contract for contract in given})}
    if not judged & {contract.id for contract in unlabelled}:
        raise CorpusError(
            f"the gold {path} has {len(gold.labels)} labels and none of a contract that is to be labelled, such as "
            f"{unlabelled[0].id!r}; give the labels of those, or leave it out"
        )
    return gold


@contextmanager
def program_on(
    contracts: tuple[Contract, ...], out: Path, run: Path | None, lm: str, progress: bool
) -> Iterator[ContractReview]:
    """The program that labels, on an index of these contracts in `out`."""
    given = distinct(contracts)
    config = CompileConfig(corpus="-", lm=lm) if run is None else read_compiled(run)[0]
    retrieval = None if run is None else read_retrieval(run)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        model = build_lm(config, Path(scratch))
        if retrieval is None:
            index = PassageIndex.build(
                given, folder=out / "index", embedder=load_embedder(), max_chars=config.max_chars, progress=progress
            )
        else:
            index = retrieval.build(given, out / "index")
        try:
            with dspy.context(lm=model, adapter=build_adapter()):
                if retrieval is None:
                    program = ContractReview(index, config.k_passages)
                    program.set_lm(model)
                else:
                    program = load_compiled(run, index, retrieval.settings, config, Path(scratch))
                yield program
        finally:
            index.close()


def _price(model: str, calls: int, prompt_tokens: int) -> str:
    import litellm  # it asks the network for prices as soon as it is imported

    try:
        asked, said = litellm.cost_per_token(
            model, prompt_tokens=calls * prompt_tokens, completion_tokens=calls * _ANSWER_TOKENS
        )
    except Exception:  # litellm raises what it likes for a model that it has no price of
        return f"about {calls * (prompt_tokens + _ANSWER_TOKENS):,} tokens of {model}, of which no price is known"
    return (
        f"about {calls * (prompt_tokens + _ANSWER_TOKENS):,} tokens of {model}, ${asked + said:.2f} by litellm's list"
    )
