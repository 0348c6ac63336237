"""`manifest.json` of a release: what it holds, byte for byte, and what it was made of.

    {"format": 1, "id": "0007-3fa9c1d2", "created": "2031-05-04T09:12:55+00:00", "content": "3fa9c1d2...",
     "parents": ["0006-9be01f44"], "files": {"STATUS": {"sha256": "...", "bytes": 9}, ...},
     "program": {"base": "evergreen-base:971fb177", "digest": "dccc...", "predictors": {"reviewer.predict": "sft-5ece"},
                 "adapters": {"sft-5ece": "9f0a..."}},
     "index": {"path": "index", "generation": "db35...", "servers": []},
     "lineage": {"files": {"corpus": {...}}, "contracts": {"train": 24, ...}, "labels": null, "feedback": null},
     "scores": {"stage": "r -> p -> s", ...}, "decision": null, "config": {...}, "versions": {...}, "sha256": "..."}

`content` is the hash of the run's files, by which the same run added twice is one release. Vectors are left out of it:
Chroma writes into the files of an index whenever it is opened (into its SQLite file and the spare room of its HNSW
files), so they differ without a change of meaning; they follow from `index/contracts/` and the embedder, which are in
it. They are in `files`, though, and verified: a release's own vectors are never opened, only copies (`view.py`).
`sha256` is the hash of the rest of the manifest.

Left out of a release: `labels.db` (its hash is in the lineage), hidden files, and indexes and embedders that
`retrieval.json` does not name. Not handled: vectors on Chroma servers, which the release can name and not hold.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from program.releases.folders import file_sha256
from program.releases.types import CARDS, MANIFEST, Release, ReleaseError
from program.runs import RunError, read_run, write_json

_FORMAT = 1


def run_files(run: Path) -> list[str]:
    """The files of a complete compile run that a release takes, by path below it; ReleaseError for other runs."""
    try:
        status = read_run(run).status
    except RunError as error:
        raise ReleaseError(f"{run} cannot be released: {error}") from error
    for needed in ("program/local_lm.json", "program/program.json", "retrieval.json", "config.json"):
        if status != "complete" or not (run / needed).is_file():
            raise ReleaseError(
                f"{run} cannot be released: it is {status}, and {needed} is {_there(run / needed)}. Run `evergreen "
                "compile` to its end, or give the run that it left."
            )
    told = json.loads((run / "retrieval.json").read_text(encoding="utf-8"))
    used = [Path(told[key]) for key in ("index", "embedder") if told[key]]
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return sorted(file.as_posix() for file in files if _is_taken(file, used))


def is_vector(name: str, index: str) -> bool:
    """Whether a file of a release is one of Chroma's, in the index at `index`."""
    return name.startswith(f"{index}/chroma/")


def index_of(folder: Path) -> dict[str, Any]:
    """Which index a run or release retrieves from."""
    path = json.loads((folder / "retrieval.json").read_text(encoding="utf-8"))["index"]
    told = json.loads((folder / path / "index.json").read_text(encoding="utf-8"))
    return {"path": path, "generation": told.get("generation"), "servers": list(told.get("servers", ()))}


def content_sha256(hashes: Mapping[str, str]) -> str:
    """One hash of all files' hashes, by name."""
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()).hexdigest()


def describe(
    folder: Path, run: Path, *, lineage: Mapping[str, Any] | None, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the manifest says of the run in `folder`, a copy of `run`; `lineage` and `scores` come on top."""
    read = read_run(folder)
    told = json.loads((folder / "program/local_lm.json").read_text(encoding="utf-8"))
    uses = {name: call["adapter"] for name, call in told["predictors"].items()}
    weights = {each: folder / "program" / "adapters" / each for each in sorted(set(uses.values()) - {None})}
    labels = run / "labels.db"
    own = {
        "files": read.data.get("files", {}),
        "contracts": {split: len(ids) for split, ids in read.data.get("splits", {}).items()},
        "labels": file_sha256(labels) if labels.is_file() else None,
        "feedback": None,
    }
    return {
        "program": {
            "base": told.get("base"),
            "digest": told.get("digest"),
            "predictors": uses,
            "adapters": {name: _adapter_sha256(path) for name, path in weights.items()},
        },
        "index": index_of(folder),
        "lineage": own | dict(lineage or {}),
        "scores": _scores(read.summary) | dict(scores or {}),
        "config": read.config,
        "versions": read.versions,
    }


def write_manifest(folder: Path, told: Mapping[str, Any]) -> None:
    """Write `told`, with the format and its own hash."""
    whole = dict(told) | {"format": _FORMAT}
    write_json(folder / MANIFEST, whole | {"sha256": _own_sha256(whole)})


def read_release(folder: Path) -> Release:
    """The release in `folder`; ReleaseError where its manifest is missing, damaged or of another release."""
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        sound = told["format"] == _FORMAT and told.pop("sha256") == _own_sha256(told) and told["id"] == folder.name
        if sound:
            return Release(told["id"], folder, tuple(told["parents"]), told["created"], told)
    except OSError as error:
        raise ReleaseError(f"release {folder.name} is broken: {path} cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"release {folder.name} is broken: {path} is damaged ({error!r})") from error
    raise ReleaseError(f"release {folder.name} is broken: {path} is not as it was written, or not of this release")


def verify(release: Release) -> None:
    """ReleaseError that names the first file of a release which is not as it was when the release was made."""
    for name, told in release.manifest["files"].items():
        path, why = release.path / name, ""
        try:
            if path.stat().st_size != told["bytes"]:
                why = f"has {path.stat().st_size} bytes instead of {told['bytes']}"
            elif file_sha256(path) != told["sha256"]:
                why = "has another SHA-256 than when it was released"
        except OSError as error:
            why = f"cannot be read ({error})"
        if why:
            raise ReleaseError(
                f"release {release.id} is broken: {path} {why}. Restore that file, or roll back to another release."
            )


def _own_sha256(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _is_taken(file: Path, used: list[Path]) -> bool:
    if (
        file.as_posix() in (MANIFEST, *CARDS)
        or any(part.startswith(".") for part in file.parts)
        or file.name.startswith("labels.db")
    ):
        return False
    return file.parts[0] not in ("index", "retriever") or any(file.is_relative_to(each) for each in used)


def _adapter_sha256(folder: Path) -> str:
    files = {path.name: file_sha256(path) for path in sorted(folder.glob("adapter_*"))}
    return content_sha256(files)


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the stage that was kept, with their intervals."""
    kept = summary.get("chosen")
    for stage in summary.get("stages", ()):
        if stage["stage"] == kept:
            return {key: stage[key] for key in ("stage", "n_scored", "n_failed", "n_contracts", "scores", "categories")}
    return {"stage": kept, "scores": {}}


def _there(path: Path) -> str:
    return "there" if path.is_file() else "not there"
