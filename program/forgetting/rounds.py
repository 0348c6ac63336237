"""The rounds of a forgetting suite: the plain base, then runs in the order in which they learnt, each as a program.

with programs() as build:
    program = build(rounds_of([Path("runs/one"), Path("runs/two")])[2], corpus)
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.types import Corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from program.compile import build_lm
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.evaluate_run import load_compiled, read_compiled
from program.incumbent import seal_sha256
from program.run_retrieval import read_retrieval
from program.runs import RunError

_CUT = {"overlap_chars": 0, "embed_headings": False}  # of the plain base


@dataclass(frozen=True, slots=True)
class Round:
    """A round's program: `name` for people, `release` says which program it was; `run` is None for the plain base."""

    name: str
    release: str
    config: CompileConfig
    run: Path | None


def rounds_of(runs: Sequence[Path]) -> list[Round]:
    """The base of these runs, and they. Raises RunError for none, one twice, one not complete, or several bases."""
    if not runs:
        raise RunError("no run is given; name complete runs of `evergreen compile`, in the order in which they learnt")
    if len({str(run) for run in runs}) < len(runs):
        raise RunError(f"a run stands twice among {[str(run) for run in runs]}; each is one round")
    configs = [read_compiled(run)[0] for run in runs]
    bases = {json.loads((run / "program" / "local_lm.json").read_text(encoding="utf-8"))["digest"] for run in runs}
    if len(bases) > 1:
        raise RunError(f"the runs were compiled on {len(bases)} bases; forgetting is measured along one: give its runs")
    base = Round("base", f"base {bases.copy().pop()[:8]}", configs[0], None)
    return [base, *(Round(run.name, _release(run), config, run) for run, config in zip(runs, configs, strict=True))]


def _release(run: Path) -> str:
    """A run's name, and what tells its program from another that once stood there."""
    return f"{run.name} {seal_sha256(run)[:8]}"


class Programs:
    """`build(round, corpus)` is a round's program on an index of the corpus; each index is built once."""

    def __init__(self, scratch: Path, progress: bool) -> None:
        self.scratch, self.progress = scratch, progress
        self.indexes: dict[Any, PassageIndex] = {}

    def __call__(self, one: Round, corpus: Corpus) -> ContractReview:
        if one.run is None:
            index = self._index(corpus, None, _CUT | {"max_chars": one.config.max_chars})
            program = ContractReview(index, one.config.k_passages)
            program.set_lm(build_lm(one.config, self.scratch))
            return program
        retrieval = read_retrieval(one.run)
        index = self._index(corpus, retrieval.embedder, retrieval.cut)
        return load_compiled(one.run, index, retrieval.settings, one.config, self.scratch)

    def _index(self, corpus: Corpus, embedder: Path | None, cut: dict[str, Any]) -> PassageIndex:
        key = (embedder, frozenset(cut.items()), corpus.contracts)
        if key not in self.indexes:
            self.indexes[key] = PassageIndex.build(
                corpus.contracts, folder=self.scratch / "indexes" / str(len(self.indexes)), progress=self.progress,
                embedder=load_embedder() if embedder is None else load_embedder(str(embedder)), **cut,
            )  # fmt: skip
        return self.indexes[key]


@contextmanager
def programs(progress: bool = True) -> Iterator[Programs]:
    """Programs over indexes that are there as long as the block lasts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        made = Programs(Path(scratch), progress)
        try:
            yield made
        finally:
            for index in made.indexes.values():
                index.close()
