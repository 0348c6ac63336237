"""New contracts in the live index where a renewal made nothing better: the live program, on an index that has them too.

    told = refresh(home, config, folder, live)     # {"release": "0004-77b1c0de", "contracts": 21}, or {}

The release is a new one with the live one's prompts, weights and numbers, byte for byte, so that no gate is asked.
What the drift watch compares with goes over to it, if it is collected by then. Contracts that the library has in other
words than the index are replaced, but for those with labels, which stay as they were labelled; what has left the
library stays.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora.splits import distinct
from corpora.types import Contract
from modules.index_files import read_contracts
from modules.retriever import PassageIndex
from program.failpoints import reach
from program.releases.store import ReleaseStore
from program.releases.types import CARDS, MANIFEST, Release
from program.renewal.config import RenewalConfig
from program.renewal.home import Home
from program.renewal.inputs import contracts_of, hashes_of
from program.run_retrieval import read_retrieval, to_read
from program.runs import RunFolder, is_complete, read_run

NAME = "refreshed"


def refresh(home: Home, config: RenewalConfig, folder: Path, live: str) -> dict[str, Any]:
    """Make the release and make it live: its id, and how many contracts are new in it; {} where none is, or another
    release is live by now. ReleaseError, StoreError, CorpusError."""
    releases, run = ReleaseStore.open(home.releases), folder / NAME
    now = releases.live()
    if now is None or (now.id != live and now.manifest["lineage"].get("renewal") != folder.name):
        return {}
    release = releases.get(live)
    contracts, new = _with_new(release, contracts_of(config))
    if not new:
        return {}
    if not is_complete(run):
        _rebuilt(release, contracts, run)
    made = releases.add(run, parents=[live], lineage={"renewal": folder.name, "refreshes": live})
    _carry(home.drift, live, made.id)
    reach("refresh.carried")
    releases.promote(made.id, f"{new} new contracts in the index of {live}; its program as it is", by="renewal")
    return {"release": made.id, "contracts": new}


def _with_new(live: Release, library: Sequence[Contract]) -> tuple[list[Contract], int]:
    """What the index is to hold, and how many of these texts it does not hold yet."""
    held = [stored.contract for stored in read_contracts(read_retrieval(live.path).index)]
    labelled = {name for side in read_run(live.path).data.get("splits", {}).values() for name in side}
    brought = {contract.id: contract for contract in library if contract.id not in labelled}
    kept = [contract for contract in held if contract.id not in brought]
    missing = hashes_of(brought.values()) - hashes_of(held)
    return distinct([*kept, *brought.values()]), len(missing)


def _rebuilt(live: Release, contracts: Sequence[Contract], run: Path) -> None:
    """A complete run in `run`: the live release's files, and an index of these contracts in the place of its own."""
    retrieval = read_retrieval(live.path)
    place = retrieval.index.relative_to(live.path)
    with RunFolder.start(run, overwrite=True) as made:
        for name in live.manifest["files"]:
            if name not in (MANIFEST, "STATUS", *CARDS) and not Path(name).is_relative_to(place):
                target = made.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(live.path / name, target)
        embedder = retrieval.embed_with()
        with to_read(live.path, embedder) as like:
            PassageIndex.build(
                contracts, folder=made.folder / place, embedder=embedder, like=like, progress=False, **retrieval.cut
            ).close()
        made.finish("complete")


def _carry(drift: Path, before: str, after: str) -> None:
    """What the drift watch has collected of a release, for the one that goes on in its place."""
    for name in ("reference.npz", "state.json"):
        if (drift / before / name).is_file() and not (drift / after / name).exists():
            (drift / after).mkdir(parents=True, exist_ok=True)
            beside = drift / after / f".{name}.partial"
            shutil.copyfile(drift / before / name, beside)
            beside.replace(drift / after / name)
