"""Many calls at once, by DSPy's executor, without its second tries."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from dspy.utils.parallelizer import ParallelExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(call: Callable[[Item], Result], items: Sequence[Item], *, threads: int, progress: bool) -> list[Result]:
    """`call` of each item, in order; it may not raise, nor give an exception back: DSPy puts None in its place."""
    # timeout=0: DSPy would send a slow call a second time and keep whichever came first.
    executor = ParallelExecutor(num_threads=threads, disable_progress_bar=not progress, timeout=0)
    return executor.execute(call, list(items))
