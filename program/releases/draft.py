"""From a run to the folder of a release, before it has its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from program.failpoints import reach
from program.releases import folders
from program.releases.cards import write_cards
from program.releases.manifest import content_sha256, describe, index_of, is_vector, run_files, write_manifest
from program.releases.types import Release, ReleaseError


@dataclass(frozen=True, slots=True)
class Content:
    """What is taken of a run: its files, the hashes of those that do not change by being opened, one hash of these."""

    names: tuple[str, ...]
    hashes: Mapping[str, str]
    sha256: str


def content_of(run: Path) -> Content:
    """Read a complete compile run through; ReleaseError for another."""
    names = run_files(run)
    index = index_of(run)["path"]
    hashes = {name: folders.file_sha256(run / name) for name in names if not is_vector(name, index)}
    return Content(tuple(names), hashes, content_sha256(hashes))


def write_draft(
    draft: Path,
    run: Path,
    content: Content,
    told: Mapping[str, Any],
    earlier: Sequence[Release],
    *,
    lineage: Mapping[str, Any] | None,
    scores: Mapping[str, Any] | None,
) -> None:
    """Fill the empty folder `draft`, synced: files of `run`, linked to those of `earlier` releases, cards, manifest.

    ReleaseError if a file changes meanwhile, or the run's program is not what was saved.
    """
    draft.chmod(0o755)
    reach("release.add.drafted")
    twins = folders.twins((release.path, release.manifest["files"]) for release in earlier)
    for name in content.names:
        sha256 = content.hashes.get(name) or folders.file_sha256(run / name)
        twin = None if name.startswith("program/") else twins.get(sha256)
        folders.bring(run / name, draft / name, twin, sha256)
        reach("release.add.file")
    reach("release.add.copied")
    files = {name: _file(draft / name) for name in content.names}
    _check(draft, run, content, files)
    reach("release.add.checked")
    told = dict(told) | {"content": content.sha256} | describe(draft, run, lineage=lineage, scores=scores)
    files |= {name: _file(draft / name) for name in write_cards(draft, told)}
    reach("release.add.carded")
    write_manifest(draft, told | {"files": files})
    reach("release.add.told")
    folders.sync_tree(draft)
    reach("release.add.synced")


def _check(draft: Path, run: Path, content: Content, files: Mapping[str, Mapping[str, Any]]) -> None:
    from optimizers.errors import ModelError
    from optimizers.local_lm.sealed import check_seal

    for name, sha256 in content.hashes.items():
        if files[name]["sha256"] != sha256:
            raise ReleaseError(f"{run / name} changed while it was copied; wait until nobody writes to the run")
    try:
        check_seal(draft / "program")
    except ModelError as error:
        raise ReleaseError(f"{run} cannot be released: {error}") from error


def _file(path: Path) -> dict[str, Any]:
    return {"sha256": folders.file_sha256(path), "bytes": path.stat().st_size}
