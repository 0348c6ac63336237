"""The files of a passage index beside its vectors: what it was built with, its contracts, and the writers' lock.

`index.json`, `.lock` and `contracts/<hash of the id>.json`. A contract is in the index once its file says `complete`;
`places` (start, page, paragraph) are there for contracts that were read from files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from corpora.types import Contract, Passage, Place

LOCK_TIMEOUT_S = 60.0
_FORMAT = 1


class StoreError(RuntimeError):
    """An index is absent, damaged, locked or asked for what it does not hold."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A contract as it is indexed, and its cut."""

    contract: Contract
    passages: tuple[Passage, ...]


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold the folder against other writers; StoreError if one of them holds it for `LOCK_TIMEOUT_S`."""
    try:
        with FileLock(folder / name, timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise StoreError(
            f"another process has been writing to the index in {folder} for {LOCK_TIMEOUT_S:.0f} s. Wait for it to end."
        ) from error


def read_about(folder: Path) -> dict[str, Any]:
    """`index.json`: format, max_chars, probe (one sentence's vector) and generation (new with every write)."""
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"there is no index in {folder}. Build one with PassageIndex.build.") from error
    except ValueError as error:
        raise StoreError(f"{folder / 'index.json'} is damaged. Delete the folder and build the index again.") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise StoreError(f"the index in {folder} is not of format {_FORMAT}. Delete the folder and build it again.")
    return about


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Replace `index.json`."""
    _write_json(folder / "index.json", about | {"format": _FORMAT})


def read_retrieval(folder: Path) -> dict[str, Any]:
    """`retrieval.json`, the fitted numbers of retrieval; {} where there is none, StoreError where it is damaged."""
    path = folder / "retrieval.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Correct or delete it.") from error
    if not isinstance(settings, dict):
        raise StoreError(f"{path} holds a {type(settings).__name__}, not keys and values. Correct or delete it.")
    return settings


def write_retrieval(folder: Path, settings: dict[str, Any]) -> None:
    """Replace `retrieval.json`."""
    _write_json(folder / "retrieval.json", settings)


def write_contract(folder: Path, stored: Stored, *, complete: bool) -> None:
    """Replace the contract's file; `complete=False` while its vectors are being written."""
    cuts = [[passage.start, passage.end, passage.heading] for passage in stored.passages]
    row = {"id": stored.contract.id, "complete": complete, "text": stored.contract.text, "passages": cuts}
    if stored.contract.places:
        row["places"] = [[place.start, place.page, place.paragraph] for place in stored.contract.places]
    _write_json(_contract_path(folder, stored.contract.id), row)


def delete_contract(folder: Path, contract_id: str) -> None:
    """Delete the contract's file, if there is one."""
    _contract_path(folder, contract_id).unlink(missing_ok=True)


def delete_incomplete(folder: Path) -> None:
    """Delete what a writer that was killed has left: contracts' files that are not complete, and half-written ones."""
    for path in (folder / "contracts").iterdir():
        if path.suffix == ".partial" or not json.loads(path.read_text(encoding="utf-8"))["complete"]:
            path.unlink()


def read_contracts(folder: Path) -> Iterator[Stored]:
    """The contracts whose files are complete; StoreError for a file that cannot be read."""
    for path in sorted((folder / "contracts").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if row["complete"]:
                places = tuple(Place(*place) for place in row.get("places", ()))
                contract = Contract(row["id"], row["text"], places)
                yield Stored(contract, tuple(_passage(contract, *cut) for cut in row["passages"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error!r}). Delete {folder} and build the index again.") from error


def _contract_path(folder: Path, contract_id: str) -> Path:
    # Ids are titles with slashes, spaces and commas: no file names.
    return folder / "contracts" / f"{hashlib.sha256(contract_id.encode()).hexdigest()[:32]}.json"


def _passage(contract: Contract, start: int, end: int, heading: str) -> Passage:
    return Passage(f"{contract.id}:{start}-{end}", contract.id, start, end, contract.text[start:end], heading)


def _write_json(path: Path, value: Any) -> None:
    """Write beside, flush to the disk, put in place: a file is as it was or as it is meant."""
    beside = path.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
