"""A training job's folder: checkpoints that count only when whole, what validation has said, and a lock.

    <work_dir>/jobs/<id>/  state.json   checkpoint-200/ (… COMPLETE)   checkpoint-300/

The id covers base, parent, settings, tuner and rows: the same call finds what a killed one left, no other does.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.sealed import check_seal, seal


@dataclass
class JobState:
    """What a job has found out so far; written after every validation."""

    scores: list[dict[str, Any]] = field(default_factory=list)  # {"step", "score", "adapter"}


def job_id(**parts: Any) -> str:
    """16 hex digits over everything that decides the weights."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def open_job(root: Path, name: str, *, resume: bool) -> Iterator[Path]:
    """The job's folder, locked; removed on leaving without an error. Raises TrainingError if another process has it."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    lock = FileLock(root / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise TrainingError(f"job {name} is being trained by another process; wait, or change a setting") from err
    try:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def read_state(folder: Path) -> JobState:
    """The state written last, or a new one."""
    path = folder / "state.json"
    return JobState(**json.loads(path.read_text())) if path.is_file() else JobState()


def write_state(folder: Path, state: JobState) -> None:
    """Write the state beside the old one and put it in its place."""
    new = folder / "state.json.new"
    new.write_text(json.dumps(asdict(state)))
    os.replace(new, folder / "state.json")


def last_whole(folder: Path, before_step: float = math.inf) -> Path | None:
    """The newest checkpoint of an earlier step than `before_step` whose COMPLETE marker and hashes hold."""
    found = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")}
    for step in sorted((step for step in found if step < before_step), reverse=True):
        try:
            check_seal(found[step])
        except ModelError:
            continue
        return found[step]
    return None


class SealCheckpoints(TrainerCallback):
    """Marks each checkpoint COMPLETE with the hashes of its files once the trainer has written it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after a checkpoint's files are closed."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", {"step": state.global_step})
