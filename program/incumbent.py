"""The program that a compile starts from: a complete run's, on an index of the new contracts (`start_from`).

    incumbent = read_incumbent("runs/mine", say)      # before anything is made
    check_incumbent(config, incumbent)
    folder = incumbent.keep_embedder(run.folder)      # a tuned embedder goes with the new run
    program = load_incumbent(incumbent, index, config, scratch)

Its contracts are `seen`: no score may be made on them again, and a choice only on those that it never learnt from,
which are `chosen`. Runs remember what they were started from, so a program's whole line is looked through, as far as it
is still there.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from corpora.splits import distinct
from corpora.types import Contract
from modules.index_files import read_contracts
from modules.retriever import PassageIndex
from optimizers.local_lm.tuning.adapters import tuner_of
from optimizers.local_lm.tuning.merging import LINEAR
from optimizers.local_lm.tuning.tuners import word_of
from program.config import INHERITED, CompileConfig, ConfigError
from program.contract_review import ContractReview
from program.run_retrieval import RunRetrieval, read_retrieval
from program.runs import Run, RunError, read_run

LEARNT = ("train", "earlier")
SEEN = (*LEARNT, "val")


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A complete run, what it retrieves with, its line (itself first), and contracts that any of these had labels of.

    `chosen` are those of `seen` that none of the line was trained on: they may choose again.
    """

    path: Path
    retrieval: RunRetrieval
    line: tuple[Run, ...]
    seen: tuple[Contract, ...]
    chosen: tuple[Contract, ...]

    @property
    def seal(self) -> Path:
        """The file with the hashes of all of its program's files."""
        return seal_of(self.path)

    def keep_embedder(self, folder: Path) -> Path | None:
        """A copy, in `folder`, of the embedder that was tuned for it; None for the packaged one."""
        if self.retrieval.embedder is None:
            return None
        return Path(shutil.copytree(self.retrieval.embedder, folder / "embedder"))


def read_incumbent(path: str | Path, say: Callable[[str], None]) -> Incumbent:
    """The run in the folder `path`. Raises RunError where it is not complete, StoreError where its index is damaged."""
    from program.evaluate_run import read_compiled  # which imports compile.py, which imports this module

    path = Path(path)
    read_compiled(path)
    line = tuple(_line(path, say))
    seen = tuple(distinct(_seen(line)))
    learnt = {key for run in line for side in LEARNT for key in run.data["splits"].get(side, ())}
    return Incumbent(path, read_retrieval(path), line, seen, tuple(one for one in seen if one.id not in learnt))


def check_incumbent(config: CompileConfig, incumbent: Incumbent) -> None:
    """Raises ConfigError for a config that its weights or its retrieval were not made for."""
    theirs = incumbent.line[0].config
    for name in INHERITED[1:]:  # another base has other weights, which loading tells; the same one may have moved
        if getattr(config, name) != theirs[name]:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, and {incumbent.path}, which is started from, was compiled with "
                f"{theirs[name]!r}; give the same, or leave start_from out"
            )
    for folder in sorted((incumbent.path / "program").glob("adapters/*")):
        word = word_of(tuner_of(folder))
        if ("osf" in config.guards and word != "osf") or ("merge" in config.guards and word not in LINEAR):
            raise ConfigError(
                f"guard is {config.guard!r}, and {incumbent.path} has an adapter of kind {word!r}; osf goes on from "
                f"osf, merge from {', '.join(LINEAR)}: choose another guard"
            )


def load_incumbent(incumbent: Incumbent, index: PassageIndex, config: CompileConfig, scratch: Path) -> ContractReview:
    """Its program on `index`, able to be trained on; `scratch` is where its LM keeps what it makes.

    Raises ModelError where `config.lm` is not the base that it was compiled on.
    """
    from program.evaluate_run import load_compiled

    return load_compiled(incumbent.path, index, incumbent.retrieval.settings, config, scratch)


def seal_of(run: Path) -> Path:
    """The file with the hashes of all files of a run's program."""
    return run / "program" / "COMPLETE"


def seal_sha256(run: Path) -> str:
    """What tells a run's program from another that once stood in its folder."""
    return hashlib.sha256(seal_of(run).read_bytes()).hexdigest()


def _line(path: Path, say: Callable[[str], None]) -> Iterable[Run]:
    """The run, the run it was started from, and so on; a run that is gone or is another by now ends it, and is told."""
    sealed: str | None = None
    place: Path | None = path
    while place is not None:
        try:
            run = read_run(place)
            if sealed is not None and sealed != seal_sha256(place):
                raise RunError(f"{place} is another run by now")
        except (RunError, OSError) as error:
            if place == path:
                raise
            say(f"what earlier programs of {path} learnt from is not known, and may be scored on: {error}")
            return
        yield run
        sealed = run.data["files"].get("start_from", {}).get("sha256")
        place = Path(run.config["start_from"]) if run.config.get("start_from") else None


def _seen(line: Iterable[Run]) -> Iterable[Contract]:
    for run in line:
        ids = {key for side in SEEN for key in run.data["splits"].get(side, ())}
        held = (stored.contract for stored in read_contracts(read_retrieval(run.path).index))
        yield from (contract for contract in held if contract.id in ids)
