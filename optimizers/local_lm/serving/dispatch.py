"""One thread that runs the model: it gathers what many callers ask at once, decodes it in batches, and answers them.

It waits for its first request, then for as many as it has just answered (the callers that are likely to come back) or
a fifth of the last batch's time; and, however few it expects, as long as requests keep coming in quick succession.
What comes for the same adapter while a batch runs joins it (continuous batching: Yu et al. 2022, Orca), and each row is
answered when it ends.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from dspy import lm15
from dspy.lm15 import Request

from optimizers.local_lm.serving.decoding import decode
from optimizers.local_lm.serving.prefixes import PREFIX_BYTES, PrefixStore, supports_prefix
from optimizers.local_lm.serving.rows import Output, Row
from optimizers.local_lm.serving.streams import EventListener
from optimizers.local_lm.tuning.adapters import serving
from optimizers.local_lm.weights import Weights

SHARE_TOKENS = 48
MAX_WAIT_S, MIN_WAIT_S = 0.2, 0.002
LONE_GAP_S, GAP_S = 0.001, 0.008
# A batch takes rows in for so long; then it runs out, and who waits for the model (training, another adapter) has it.
JOINING_S = 10.0
# Rows join once they are this share of those that speak: taking them in copies the cache.
JOINING_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Job:
    """One request on its way: the chat and the row made of it, who listens, and where the answer goes."""

    request: Request
    chat: list[dict[str, str]]
    row: Row
    adapter: str | None
    answer: Future
    listener: EventListener | None = None


class Dispatcher:
    """The thread and its queue. `answered(job, output)` makes a Response.

    `batch_sizes` counts rows per batch, those that joined it too.
    """

    def __init__(self, weights: Weights, adapters_dir: Any, max_batch: int, answered: Callable[[Job, Output], Any]):
        self.weights, self.adapters_dir, self.max_batch, self.answered = weights, adapters_dir, max_batch, answered
        self.batch_sizes: deque[int] = deque(maxlen=10_000)
        limit = PREFIX_BYTES[weights.device.type if weights.device.type in PREFIX_BYTES else "cpu"]
        self.prefixes = PrefixStore(limit) if supports_prefix(weights.model) else None
        self.thread: threading.Thread | None = None
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._starting = threading.Lock()

    def put(self, job: Job) -> None:
        """Queue a job, and start the thread if none runs."""
        with self._starting:
            if self.thread is None or not self.thread.is_alive():
                # A queue of its own per thread: none takes another's farewell, no job comes after it.
                self._queue = SimpleQueue()
                self.thread = threading.Thread(target=self._loop, args=(self._queue,), name="local-lm", daemon=True)
                self.thread.start()
            self._queue.put(job)

    def close(self, timeout_s: float) -> None:
        """Stop the thread once it has answered what is queued; the next job starts another."""
        with self._starting:
            thread, self.thread = self.thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=timeout_s)

    def _loop(self, queue: SimpleQueue) -> None:
        waiting: list[Job | None] = []  # taken from the queue while a batch ran
        expected, last_s = 1, 0.0
        while True:
            jobs, waiting = waiting or [queue.get()], []
            if jobs[-1] is not None:
                jobs = collect(queue, jobs, expected, min(MAX_WAIT_S, max(MIN_WAIT_S, last_s / 5)))
            closing = jobs[-1] is None
            jobs = [job for job in jobs if job is not None and job.answer.set_running_or_notify_cancel()]
            begun, expected = time.perf_counter(), 0
            batches = plan_batches(jobs, self.max_batch)
            for batch in batches:
                # The last one alone takes others in: the ones before it have others waiting.
                joining = Joining(queue, waiting, self.max_batch) if batch is batches[-1] and not closing else None
                expected += self._run_safely(batch, joining)
            last_s = time.perf_counter() - begun
            if closing:
                return

    def _run(self, jobs: list[Job], joining: "Joining | None") -> int:
        """Decode jobs of one adapter, and those that join them; on exhausted memory halve the batch.

        Returns how many were answered since the last that joined could come: callers who may come back.
        """
        adapter, weights, just_ended = jobs[0].adapter, self.weights, 0

        def ended(index: int, output: Output) -> None:
            nonlocal just_ended
            just_ended += 1
            answer = jobs[index].answer
            if output.error is not None:
                answer.set_exception(output.error)
            else:
                answer.set_result(self.answered(jobs[index], output))

        def arrivals(live: int) -> list[tuple[Row, EventListener | None]]:
            nonlocal just_ended
            just_ended = 0
            new = joining.take(adapter, live)
            jobs.extend(new)
            self.batch_sizes[-1] += len(new)
            return [(job.row, job.listener) for job in new]

        self.batch_sizes.append(len(jobs))
        try:
            with weights.lock, serving(weights, adapter, self.adapters_dir) as served:
                decode(
                    served.model,
                    weights.tokenizer,
                    [job.row for job in jobs],
                    weights.stop_ids,
                    self.prefixes,
                    adapter,
                    opening=served.opening,
                    listeners=[job.listener for job in jobs],
                    ended=ended,
                    arrivals=None if joining is None else arrivals,
                )
        except Exception as err:
            self.batch_sizes.pop()
            if not out_of_memory(err):
                raise
            self._free()
            if len(jobs) == 1:
                raise lm15.ServerError(f"out of memory on a single prompt of {len(jobs[0].row.ids)} tokens") from err
        else:
            return just_ended
        jobs = [job for job in jobs if not job.answer.done()]
        half = len(jobs) // 2  # outside the handler: its traceback would hold the failed batch's memory
        return sum(self._run_safely(part, None) for part in (jobs[:half], jobs[half:]) if part)

    def _free(self) -> None:
        if self.prefixes is not None:
            with self.weights.lock:
                self.prefixes.clear()
        if self.weights.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_safely(self, jobs: list[Job], joining: "Joining | None") -> int:
        try:
            return self._run(jobs, joining)
        except Exception as err:  # every caller must hear of it; none may wait for ever
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(err)
            return len(jobs)


class Joining:
    """Who joins a running batch: jobs of its adapter, up to `max_batch` rows, none once another adapter's waits.

    What leaves `queue` and does not join stands in `waiting`, in the order it came.
    """

    def __init__(self, queue: SimpleQueue, waiting: list[Job | None], max_batch: int) -> None:
        self.queue, self.waiting, self.max_batch = queue, waiting, max_batch
        self.until = time.perf_counter() + JOINING_S

    def take(self, adapter: str | None, live: int) -> list[Job]:
        """The jobs that join now, `live` rows of `adapter` speaking."""
        while not self.queue.empty():
            self.waiting.append(self.queue.get())
        room = min(len(self.waiting), self.max_batch - live)
        if room < max(1.0, JOINING_SHARE * live) or time.perf_counter() > self.until:
            return []
        if any(job is None or job.adapter != adapter for job in self.waiting):
            return []
        taken = self.waiting[:room]
        del self.waiting[:room]
        return [job for job in taken if job.answer.set_running_or_notify_cancel()]


def collect(queue: SimpleQueue, first: Sequence[Job], expected: int, wait_s: float) -> list[Job | None]:
    """`first` and what follows it: until `expected` have come or `wait_s` has passed, and then as long as more come."""
    jobs: list[Job | None] = list(first)
    until = time.perf_counter() + wait_s
    while jobs[-1] is not None:
        left_s = until - time.perf_counter() if len(jobs) < expected else 0.0
        # A second request tells of many callers, and each of them has a prompt to write first.
        gap_s = LONE_GAP_S if len(jobs) == 1 else GAP_S
        try:
            jobs.append(queue.get(timeout=max(left_s, gap_s)))
        except Empty:
            return jobs
    return jobs


def plan_batches(jobs: Sequence[Job], max_batch: int) -> list[list[Job]]:
    """Batches of at most `max_batch`: one adapter each, prompts that open alike together, similar lengths together."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.adapter, job.row.ids[:SHARE_TOKENS]), []).append(job)
    merged: dict[tuple, list[Job]] = {}
    for (adapter, opening), group in groups.items():
        # A handful of odd prompts does better in one unshared batch than in batches of one.
        merged.setdefault((adapter, opening if len(group) > 3 else None), []).extend(group)
    batches = []
    for group in merged.values():
        group.sort(key=lambda job: len(job.row.ids))
        batches += [group[i : i + max_batch] for i in range(0, len(group), max_batch)]
    return batches


def out_of_memory(err: Exception) -> bool:
    """Whether an error of torch's says that memory ran out."""
    return isinstance(err, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(err)
