"""What a run was made with and from: versions, commit, hashes of the data, and which contracts went where.

Not handled: the model's own weights (`optimizers/local_lm` keeps their hashes) and hosted models, which can change
under one name.
"""

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from program.runs import RunError

_PACKAGES = (
    "evergreen dspy litellm torch transformers trl peft bitsandbytes chromadb sentence-transformers numpy scipy"
).split()


def version_record(command: str = "") -> dict[str, Any]:
    """What versions.json holds: command line, start time (UTC), Python, platform, packages, and the commit or None."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    started = datetime.now(UTC).isoformat(timespec="seconds")
    python = {"python": sys.version.split()[0], "platform": sys.platform}
    return {"command": command, "started": started, **python, "packages": packages, "commit": _commit()}


def data_record(files: Mapping[str, str | Path], splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What data.json holds: SHA-256 and bytes of each corpus file by name, and each split's contract ids, sorted.

    A contract in two splits raises RunError: its questions would be trained on and tested on.
    """
    seen: dict[str, str] = {}
    for split, contract_ids in splits.items():
        for contract_id in set(contract_ids):
            if contract_id in seen:
                raise RunError(f"contract {contract_id!r} is in {seen[contract_id]!r} and {split!r}; split by contract")
            seen[contract_id] = split
    hashes = {}
    for name, path in files.items():
        with open(path, "rb") as file:
            hashes[name] = {
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                "bytes": Path(path).stat().st_size,
            }
    return {"files": hashes, "splits": {split: sorted(set(ids)) for split, ids in splits.items()}}


def _commit() -> str | None:
    """The commit this file is of, "-dirty" with uncommitted changes; None where it is not under version control."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside another project's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
