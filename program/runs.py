"""A compile run as one folder, written so that a crash, Ctrl-C or full disk never harms an earlier run.

    config.json  versions.json  data.json  scores.jsonl  summary.json  program/  report.html  STATUS

A run is built in `.<name>.partial` beside its place and moved there when it ends. STATUS holds one word (running,
complete, partial, failed) and, from its second line, the reason. What stood in the place before:

- a complete run: refused at the start unless `overwrite=True`; kept as `<name>.previous` when the new one is complete.
  If the new one ends partial or failed, the complete one stays and the new one goes beside it as `<name>.partial`;
- an unfinished run: replaced when the new one ends;
- anything else that is not an empty folder: always refused.

One row of scores.jsonl:

    {"stage": "base", "contract_id": "ashgrove-2019-0007", "question_id": "ashgrove-2019-0007__Governing Law",
     "category": "Governing Law", "question": "Highlight ...", "gold_answer": "the laws of the State of Ohio",
     "gold_quotes": ["..."], "answer": "Ohio", "quotes": [{"text": "...", "start": 5120, "end": 5201}], "found": true,
     "confidence": 0.81, "p_answered": 0.97, "error": null, "exact_match": 0.0, "token_f1": 0.29, "seconds": 0.42}

Not handled: Windows and file systems on which a rename is not atomic. A second writer of a path is refused.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from program.failpoints import reach

ROW_KEYS = (
    "stage contract_id question_id category question gold_answer gold_quotes answer quotes found confidence error "
    "p_answered exact_match token_f1 seconds"
).split()
ENDINGS = ("complete", "partial", "failed")


class RunError(RuntimeError):
    """A run folder cannot be started, written or read; the message says why and what to do."""


class BudgetError(RuntimeError):
    """A run would take more than it may; the message says what of, how much, and what to raise."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back; what an unfinished run had not written yet is empty."""

    path: Path
    status: str
    reason: str
    config: dict[str, Any]
    versions: dict[str, Any]
    data: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any]


class RunFolder:
    """A run being written; use it in a `with` block and call `finish("complete")` at its end.

    Leaving the block without `finish` marks the run: partial after Ctrl-C or a plain exit, failed after an exception
    (which goes on; a full disk goes on as RunError). `folder` is where files go meanwhile, `target` where the run
    will stand.
    """

    def __init__(self, target: Path, folder: Path, lock: FileLock) -> None:
        self.target, self.folder, self._lock = target, folder, lock

    @classmethod
    def start(cls, path: str | Path, *, overwrite: bool = False) -> Self:
        """Opens a new run to stand at `path`; RunError where `path` is taken (see the module) or being written."""
        target = Path(path).absolute()
        refuse_if_taken(target, overwrite)
        folder = target.parent / f".{target.name}.partial"
        lock = FileLock(target.parent / f".{target.name}.lock")
        with _saving(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RunError(
                    f"{target} is being written by another process; wait for it or choose another path"
                ) from error
            if folder.exists():  # nobody holds the lock, so its writer was killed: keep what it had
                _replace_folder(folder, _beside(target, "partial"))
            (folder / "program").mkdir(parents=True)
            write_text(folder / "STATUS", "running\n")
        return cls(target, folder, lock)

    def write_json(self, name: str, content: Any) -> Path:
        """Writes `content` to the file `name` of the run, whole or not at all; nan is refused (ValueError)."""
        with _saving(self.target):
            return write_json(self.folder / name, content)

    def append_scores(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Adds all rows of one stage to scores.jsonl, or none; another shape or a stage twice raises RunError."""
        path = self.folder / "scores.jsonl"
        for row in rows:
            missing = [key for key in ROW_KEYS if key not in row]
            if missing or row["stage"] != stage:
                raise RunError(
                    f"score row {dict(row)} lacks {missing} or is not of stage {stage!r}; see program/runs.py"
                )
        earlier = _read_rows(path)
        if any(row["stage"] == stage for row in earlier):
            raise RunError(f"stage {stage!r} is in {path} already; give each step of the recipe its own stage name")
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in [*earlier, *rows]]
        with _saving(self.target):
            return write_text(path, "".join(lines))

    def finish(self, status: str, reason: str = "") -> Path:
        """Marks the run, moves it in place and returns where it stands; RunError for a status not in ENDINGS."""
        if status not in ENDINGS:
            raise RunError(f"status is {status!r}; a run ends as one of {', '.join(ENDINGS)}")
        with _saving(self.target):
            for path in self.folder.rglob("*"):  # weights may still be in memory: "complete" must outlive a power cut
                _sync(path)
            reach("run.finish.synced")
            write_text(self.folder / "STATUS", f"{status}\n{reason}\n" if reason else f"{status}\n")
            reach("run.finish.marked")
            place = self.target
            if _status(self.target) == "complete":
                if status == "complete":
                    _replace_folder(self.target, _beside(self.target, "previous"))
                else:
                    place = _beside(self.target, "partial")
            _replace_folder(self.folder, place)
            reach("run.finish.moved")
        self.folder = place
        self._lock.release()
        return place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if not self._lock.is_locked:
            return
        try:
            if isinstance(error, KeyboardInterrupt):
                self.finish("partial", "stopped with Ctrl-C")
            elif error is None:
                self.finish("partial", "ended without finish()")
            else:
                self.finish("failed", f"{type(error).__name__}: {error}")
        except RunError as second:  # the disk may still be full: say so beside the first error, do not hide it
            if error is None:
                raise
            error.add_note(f"The run could not be marked either and lies in {self.folder}: {second}")
        finally:
            self._lock.release()
        if _disk_full(error) and not isinstance(error, RunError):
            raise _save_error(self.target, error) from error


def read_run(path: str | Path) -> Run:
    """Reads a run folder, finished or not; RunError where it is none or a file of it is damaged."""
    path = Path(path)
    status = _status(path)
    if status is None:
        near = [p.name for p in (_beside(path, "previous"), _beside(path, "partial")) if _status(p)]
        hint = f"beside it stands {' and '.join(near)}" if near else "give the folder that `evergreen compile` wrote"
        raise RunError(f"{path} is no run folder (no STATUS file in it); {hint}")
    contents = [_read_json(path / name) for name in ("config.json", "versions.json", "data.json", "summary.json")]
    reason = (path / "STATUS").read_text(encoding="utf-8").partition("\n")[2].strip()
    return Run(path, status, reason, *contents[:3], tuple(_read_rows(path / "scores.jsonl")), contents[3])


def is_complete(path: Path) -> bool:
    """Whether a run stands in `path` that has ended well; RunError where something else does."""
    return path.exists() and read_run(path).status == "complete"


def write_json(path: Path, content: Any) -> Path:
    """`write_text` of JSON; nan and infinity raise ValueError, since JSON has none (write None)."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Writes a file whole or not at all: beside, fsync, replace, fsync of the folder."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


def refuse_if_taken(target: Path, overwrite: bool) -> None:
    """RunError where `target` is something that a new run may not replace."""
    status = _status(target)
    if status == "complete" and not overwrite:
        raise RunError(f"{target} holds a complete run; choose another path, or overwrite it (it is kept as .previous)")
    _refuse_foreign(target)


def _refuse_foreign(path: Path) -> None:
    if _status(path) is None and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path} exists and is no run folder; it is never replaced: move it, or choose another path")


def _status(path: Path) -> str | None:
    try:
        return (path / "STATUS").read_text(encoding="utf-8").partition("\n")[0].strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _beside(target: Path, suffix: str) -> Path:
    return target.parent / f"{target.name}.{suffix}"


def _replace_folder(source: Path, place: Path) -> None:
    # A folder cannot replace a filled one in one step: what is in the way is an unfinished or previous run.
    _refuse_foreign(place)
    if place.exists():
        shutil.rmtree(place)
    os.replace(source, place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _saving(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _save_error(target, error) from error


def _save_error(target: Path, error: BaseException) -> RunError:
    full = "the disk is full: free some space and run again"
    todo = full if _disk_full(error) else "check the path and its permissions"
    kept = "; the earlier run there is untouched" if _status(target) == "complete" else ""
    return RunError(f"the run {target} could not be saved ({error}){kept}; {todo}")


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is a full disk's; native libraries say so in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run again, or restore the file") from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n") if path.exists() else [], start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise RunError(f"{path}, line {number}, is damaged ({error}); run again, or restore the file") from error
    return rows
