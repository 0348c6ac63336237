"""Contracts without labels: read, and kept apart from those that a program is chosen or scored on."""

import tempfile
from pathlib import Path

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.labels.store import LabelStore
from corpora.splits import Split
from corpora.types import Contract
from program.library import open_library


def read_unlabelled(path: Path | str) -> tuple[Contract, ...]:
    """Contracts of a CUADv1-format file, whose labels are not looked at, or of a library of `evergreen index`."""
    path = Path(path)
    if path.is_dir():
        index = open_library(path)
        try:
            contracts = tuple(index.contract(key) for key in index.contract_ids)
        finally:
            index.close()
    else:
        contracts = read_cuad(path).contracts
    if not contracts:
        raise CorpusError(f"{path} holds no contract; give contracts to label")
    return contracts


def refuse_overlap(unlabelled: tuple[Contract, ...], split: Split) -> None:
    """CorpusError, by name, for unlabelled contracts that (nearly) are among those chosen or scored on."""
    with tempfile.TemporaryDirectory() as scratch, LabelStore.open(Path(scratch) / "sides.db") as store:
        if unlabelled:
            store.hold_out(split.val.contracts, "val")
            store.hold_out(split.test.contracts, "test")
            store.refuse_overlap(unlabelled)
