"""A compiled run put to use: scored on another corpus, or asked."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dspy

from corpora.cuad import CATEGORIES, question_text, read_cuad
from modules.embedder import load_embedder
from modules.retrieval_settings import RetrievalSettings
from modules.retriever import PassageIndex
from optimizers.local_lm import load_program
from program.compile import CompileResult, build_adapter, build_lm
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import to_examples
from program.provenance import data_record, version_record
from program.releases.view import view
from program.report import write_report
from program.run_retrieval import read_retrieval
from program.runs import RunError, RunFolder, read_run
from program.summary import summarize


def evaluate_run(
    run: Path, corpus: Path, out: Path, *, max_contracts: int | None = None, overwrite: bool = False, command: str = ""
) -> CompileResult:
    """Score a run's program and its uncompiled base on every question of `corpus`; leaves a run folder at `out`.

    Raises RunError for a run that is not complete, CorpusError for a corpus that cannot be read.
    """
    began = time.perf_counter()
    config, chosen = read_compiled(run)
    labelled = read_cuad(corpus, max_contracts=max_contracts)
    examples = to_examples(labelled)
    rows: list[dict[str, Any]] = []
    scratch_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with RunFolder.start(out, overwrite=overwrite) as folder, scratch_folder as scratch:
        folder.write_json("config.json", asdict(config) | {"run": str(run)})
        folder.write_json("versions.json", version_record(command))
        ids = [contract.id for contract in labelled.contracts]
        folder.write_json("data.json", data_record({"corpus": corpus}, {"test": ids}))
        index = PassageIndex.build(
            labelled.contracts, folder=Path(scratch) / "index", embedder=load_embedder(), max_chars=config.max_chars
        )
        retrieval = read_retrieval(run)
        own = index if retrieval.embedder is None else retrieval.build(labelled.contracts, Path(scratch) / "own")
        try:
            lm = build_lm(config, Path(scratch))
            with dspy.context(lm=lm, adapter=build_adapter()):
                base = ContractReview(index, config.k_passages)
                base.set_lm(lm)
                compiled = load_compiled(run, own, retrieval.settings, config, Path(scratch))
                for stage, program in (("base", base), (chosen, compiled))[chosen == "base" :]:
                    scored = score_program(program, examples, stage, threads=config.threads)
                    folder.append_scores(stage, scored)
                    rows += scored
        finally:
            for one in {index, own}:
                one.close()
        summary = summarize(rows, seed=config.seed) | {"chosen": chosen}
        folder.write_json("summary.json", summary)
        write_report(folder.folder)
        place = folder.finish("complete")
    return CompileResult(place, summary, chosen, time.perf_counter() - began)


def ask_run(run: Path, question: str, contract_id: str | None) -> dspy.Prediction:
    """One answer from a run's program over the run's own contracts; a category's name stands for CUAD's question.

    Raises RunError, and StoreError for a contract that the run's index does not hold.
    """
    with open_run(run) as program:
        known = {category.name.casefold(): category.name for category in CATEGORIES}
        name = known.get(question.strip().casefold())
        return program(question=question_text(name) if name else question, contract_id=contract_id)


@contextmanager
def open_run(run: Path) -> Iterator[ContractReview]:
    """A run's program on the run's own index, ready to be called inside the block; a release is not written to."""
    with view(run) as place:
        config, _ = read_compiled(place)
        retrieval = read_retrieval(place)
        index = retrieval.open()
        try:
            with tempfile.TemporaryDirectory() as scratch:
                program = load_compiled(place, index, retrieval.settings, config, Path(scratch))
                with dspy.context(adapter=build_adapter()):
                    yield program
        finally:
            index.close()


def read_compiled(run: Path) -> tuple[CompileConfig, str]:
    """Config and chosen recipe of a complete compile run; RunError for anything else."""
    known = read_run(run)
    if known.status != "complete" or not (run / "program" / "local_lm.json").is_file():
        raise RunError(
            f"{run} is {known.status} and holds no compiled program; run `evergreen compile` to its end first"
        )
    return CompileConfig(**known.config), json.loads((run / "summary.json").read_text(encoding="utf-8"))["chosen"]


def load_compiled(
    run: Path, index: PassageIndex, settings: RetrievalSettings, config: CompileConfig, scratch: Path
) -> ContractReview:
    """A compile run's program on `index`; `scratch` is where its LM keeps what it makes."""
    program = ContractReview(index, None, settings=settings)
    return load_program(program, run / "program", name_or_path=config.lm, work_dir=scratch)
