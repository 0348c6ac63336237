"""LM calls of a renewal, remembered on disk: one that is killed and gone on with asks nobody the same thing twice.

    with remembered(folder / "calls", paid="openai/gpt-5", max_calls=2000):
        ...                              # every dspy.LM with a cache looks here first

Only what DSPy's own safe types hold is read back, never arbitrary pickles. Not handled: an LM made with `cache=False`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.cache import Cache

from program.runs import BudgetError

_NO_LIMIT_BYTES = 2**40  # the cache's default evicts, and what is evicted is paid for again


class _Remembering(Cache):
    """DSPy's cache on disk, which counts the calls of one model that it could not answer."""

    def __init__(self, folder: Path, paid: str | None, max_calls: int | None) -> None:
        super().__init__(True, True, str(folder), _NO_LIMIT_BYTES, restrict_pickle=True)
        self._paid, self._max_calls = paid, max_calls
        self._count = folder / "paid_calls"

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        """What was answered before, or None; BudgetError instead of one paid call too many."""
        found = super().get(request, ignored_args_for_cache_key)
        if found is None and self._paid is not None and request.get("model") == self._paid:
            with self._lock:
                n = paid_calls(self._count.parent)
                if self._max_calls is not None and n >= self._max_calls:
                    raise BudgetError(
                        f"{n} calls of {self._paid} are made, and max_calls is {self._max_calls}; raise it and renew "
                        "again: what was answered is kept"
                    )
                self._count.write_text(f"{n + 1}\n", encoding="utf-8")
        return found


def paid_calls(folder: Path) -> int:
    """How many calls of the paid model were begun; 0 where none was."""
    path = folder / "paid_calls"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(text or 0)


@contextmanager
def remembered(folder: Path, *, paid: str | None = None, max_calls: int | None = None) -> Iterator[None]:
    """Within the block, answers are kept in `folder` and taken from there; at most `max_calls` new ones of `paid`."""
    folder.mkdir(parents=True, exist_ok=True)
    before = dspy.cache
    cache = _Remembering(folder, paid, max_calls)
    dspy.cache = cache
    try:
        yield
    finally:
        dspy.cache = before
        cache.disk_cache.close()
