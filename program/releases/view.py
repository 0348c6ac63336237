"""Where a release is opened from: Chroma writes into whatever it opens, and a release is never written to."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from program.releases.manifest import is_vector, read_release, verify
from program.releases.types import MANIFEST, ReleaseError


@contextmanager
def view(run: Path | str) -> Iterator[Path]:
    """A folder to open the run or release in `run` from, for as long as the block lasts; a plain run is opened itself.

    Of a release it holds links to the files, and copies of the vectors (as many bytes in the temporary folder), so that
    several processes may serve one release. Does not verify: `resolve` and `ReleaseReader.servable` do.
    """
    run = Path(run).absolute()
    if not (run / MANIFEST).is_file():
        yield run
        return
    release = read_release(run)
    index = release.manifest["index"]["path"]
    with tempfile.TemporaryDirectory(prefix="evergreen-release-", ignore_cleanup_errors=True) as scratch:
        place = Path(scratch) / release.id
        for name in release.manifest["files"]:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if is_vector(name, index):
                shutil.copyfile(run / name, place / name)
            else:
                os.symlink(run / name, place / name)
        yield place


def resolve(path: Path | str) -> Path:
    """The folder that `path` means: a run stays itself, a release is verified, a releases root is its live release.

    A live release that is broken is refused with a warning in the log, and the newest whole one before it is meant.
    Raises ReleaseError where nothing is live, or nothing that was live is whole. Open what it gives in a `view`.
    """
    from program.releases.reader import ReleaseReader

    path = Path(path)
    if (path / MANIFEST).is_file():
        verify(read_release(path.absolute()))
        return path
    if (path / "STATUS").is_file() or not ReleaseReader.is_root(path):
        return path
    found = ReleaseReader.open(path).servable()
    if found is None:
        raise ReleaseError(f"{path}: none of its releases is live; `evergreen releases promote ID --reason ...` first")
    return found[0].path
