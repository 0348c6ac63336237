"""Contracts without labels: read, and kept apart from those that a program is chosen or scored on."""

from pathlib import Path

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.labels.store import LabelStore
from corpora.splits import Split, distinct
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


def keep_apart(path: Path, unlabelled: tuple[Contract, ...], split: Split) -> Path:
    """Make the label store `path`: its sides are those of the split, and `unlabelled` contracts may be trained on.

    CorpusError, by name, for those of them that (nearly) are among the contracts chosen or scored on. The search for
    these is made here, once: whoever labels with the store looks them up.
    """
    with LabelStore.open(path) as store:
        store.hold_out(split.val.contracts, "val")
        store.hold_out(split.test.contracts, "test")
        store.add_contracts(distinct(split.train.contracts + unlabelled))
        store.refuse_overlap(unlabelled)
    return path
