"""Which index, embedder and numbers a run's program retrieves with: `retrieval.json` in the run.

    {"index": "retriever/3f2a91c0/index", "embedder": "retriever/3f2a91c0/embedder", "settings": {"k": 4, ...},
     "cut": {"max_chars": 600, "overlap_chars": 0, "embed_headings": false}}

Paths are below the run; an embedder of null is the packaged one.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpora.types import Contract
from modules.embedder import load_embedder
from modules.retrieval_settings import RetrievalSettings, settings_from
from modules.retrieve import Retrieve
from modules.retriever import Embedder, PassageIndex
from program.releases.view import view
from program.runs import RunError, RunFolder

FILE_NAME = "retrieval.json"


@dataclass(frozen=True, slots=True)
class RunRetrieval:
    """What `retrieval.json` says, its paths made whole."""

    index: Path
    embedder: Path | None
    settings: RetrievalSettings
    cut: dict[str, Any]

    def open(self) -> PassageIndex:
        """The run's own index; StoreError, EmbedderError."""
        return PassageIndex.open(self.index, self.embed_with())

    def build(self, contracts: Iterable[Contract], folder: Path) -> PassageIndex:
        """Other contracts, cut and embedded as the run's are."""
        return PassageIndex.build(contracts, folder=folder, embedder=self.embed_with(), **self.cut)

    def embed_with(self) -> Embedder:
        """The run's own embedder, loaded; EmbedderError."""
        return load_embedder(None if self.embedder is None else str(self.embedder))


@contextmanager
def to_read(run: Path, embedder: Embedder) -> Iterator[PassageIndex]:
    """The index that a run or release retrieves from, on a copy of its files: whoever has it open is not disturbed.

    Raises StoreError where it is damaged, or `embedder` is not its own.
    """
    with view(run) as place, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        index = read_retrieval(place).index
        for path in index.rglob("*"):
            if path.is_file() and path.name != ".lock":
                target = Path(scratch) / path.relative_to(index)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        opened = PassageIndex.open(scratch, embedder)
        try:
            yield opened
        finally:
            opened.close()


def keep_retrieval(run: RunFolder, retrieve: Retrieve) -> None:
    """Write what `retrieve`, whose index stands in the run's folder, uses now."""
    index = retrieve.index
    beside = index.folder.parent / "embedder"
    root = run.folder.resolve()
    run.write_json(
        FILE_NAME,
        {
            "index": str(index.folder.relative_to(root)),
            "embedder": str(beside.relative_to(root)) if beside.is_dir() else None,
            "settings": asdict(retrieve.settings),
            "cut": index.cut,
        },
    )


def read_retrieval(run: Path) -> RunRetrieval:
    """What the run in folder `run` retrieves with; RunError where it does not say."""
    if not (run / FILE_NAME).is_file():
        raise RunError(f"{run} has no {FILE_NAME}: an older version compiled it. Compile it again.")
    told = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))
    embedder = run / told["embedder"] if told["embedder"] else None
    return RunRetrieval(run / told["index"], embedder, settings_from(told["settings"]), told["cut"])
