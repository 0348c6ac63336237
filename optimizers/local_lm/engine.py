"""The DSPy engine: requests of any number of threads, micro-batched onto one in-process model.

One dispatcher thread runs the model. It waits for its first request, then for as many as it has just answered (the
callers that are likely to come back) or a fifth of the last batch's time, and decodes them together.

Streaming gives the whole answer as one delta: a batch is decoded as a whole.
"""

import asyncio
import atexit
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from dspy import lm15
from dspy.clients.engines.base import validate_request
from dspy.lm15 import Message, Request, Response, TokenLogprob, TopLogprob, Usage

from optimizers.errors import ModelError
from optimizers.local_lm.adapters import check_adapter, serving
from optimizers.local_lm.decoding import Output, PrefixStore, Row, decode, score_rows, supports_prefix
from optimizers.local_lm.prompts import Chat, encode_completion, encode_prompt, request_chat
from optimizers.local_lm.weights import Weights, forget_weights, load_weights

PROVIDER = "local"
PREFIX_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
SHARE_TOKENS = 48
MAX_WAIT_S, MIN_WAIT_S = 0.2, 0.002


@dataclass(frozen=True)
class Completion:
    """One answer as the model gave it, before any adapter read it: what training on rollouts needs."""

    model: str
    chat: tuple[dict[str, str], ...]
    text: str
    ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, eq=False)
class _Job:
    request: Request
    chat: list[dict[str, str]]
    row: Row
    adapter: str | None
    answer: Future


class LocalEngine:
    """Sync engine of `local_lm`: `complete(Request) -> Response` on one Hugging Face causal LM in this process.

    `completions` is a bounded log of raw answers, newest last. `batch_sizes` counts rows per decoded batch. Raises
    dspy.lm15 errors from `complete`: ContextLengthError, UnsupportedModelError, UnsupportedFeatureError, and the
    retryable ServerError when memory runs out.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset(
        {"temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "logprobs", "top_logprobs"}
    )

    def __init__(
        self, weights: Weights, work_dir: Path, *, max_batch: int = 32, max_tokens: int = 512, keep: int = 10_000
    ):
        if max_batch < 1:
            raise ModelError(f"max_batch={max_batch} must be at least 1")
        self.weights, self.work_dir = weights, Path(work_dir)
        self.max_batch, self.max_tokens = max_batch, max_tokens
        self.spec: dict[str, Any] = {}
        self.completions: deque[Completion] = deque(maxlen=keep)
        self.batch_sizes: deque[int] = deque(maxlen=keep)
        limit = PREFIX_BYTES[weights.device.type if weights.device.type in PREFIX_BYTES else "cpu"]
        self.prefixes = PrefixStore(limit) if supports_prefix(weights.model) else None
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "LocalEngine":
        return self  # one model in memory, however many copies of a program

    @property
    def adapters_dir(self) -> Path:
        """Where this engine's adapters lie."""
        return self.work_dir / "adapters"

    # -- what DSPy calls

    def complete(self, request: Request) -> Response:
        """Answer one request; called from many threads at once it batches them."""
        return self.submit(request).result()

    def stream(self, request: Request) -> Iterator[Any]:
        """The answer's events, text in one delta."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self, timeout_s: float = 60.0) -> None:
        """Stop the dispatcher once it has answered what is queued; the next request starts another."""
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=timeout_s)

    def dump_state(self) -> dict[str, Any]:
        """What `load_state` needs to build the engine again; no weights, no secrets."""
        return dict(self.spec)

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "LocalEngine":
        """The engine that `dump_state` described, shared with any other of the same description."""
        return shared_engine(**state)

    # -- beyond the protocol

    def submit(self, request: Request) -> Future:
        """Queue a request; the future yields its Response."""
        validate_request(request)
        adapter = self.adapter_of(request.model)
        if adapter is not None and adapter not in self.weights.attached:
            try:
                check_adapter(self.adapters_dir / adapter, self.weights)
            except ModelError as err:
                raise lm15.UnsupportedModelError(str(err), provider=PROVIDER) from err
        chat = request_chat(request)
        row = self._row(request, encode_prompt(self.weights, chat))
        job = _Job(request, chat, row, adapter, Future())
        self._enqueue(job)
        return job.answer

    def score(self, messages: Chat, completions: Sequence[str], model: str | None = None) -> list[float]:
        """Sum of log probabilities (nats) of each completion after `messages`, without the end-of-turn token.

        `model` is a model string (`local/<base>[@<adapter>]`); None means the bare base.
        """
        if not completions:
            return []
        adapter = None if model is None else self.adapter_of(model)
        prompt = encode_prompt(self.weights, messages)
        rows = [encode_completion(self.weights, messages, text, with_end=False) for text in completions]
        longest = len(prompt) + max(map(len, rows))
        if longest > self.weights.context_tokens:
            raise lm15.ContextLengthError(
                f"prompt and completion take {longest} tokens; the context is {self.weights.context_tokens}",
                provider=PROVIDER,
            )
        with self.weights.lock, serving(self.weights, adapter, self.adapters_dir) as network:
            return score_rows(network, prompt, rows, self.prefixes, adapter)

    def adapter_of(self, model: str) -> str | None:
        """The adapter a model string names, None for the bare base. Raises UnsupportedModelError for another base."""
        base, _, adapter = model.removeprefix(f"{PROVIDER}/").partition("@")
        if base != self.weights.base:
            raise lm15.UnsupportedModelError(
                f"model {model!r} is not served here: this engine holds {self.weights.base!r}; "
                "build the LM with local_lm(...)",
                provider=PROVIDER,
            )
        return adapter or None

    def model_string(self, adapter: str | None = None) -> str:
        """`local/<base>` or `local/<base>@<adapter>`."""
        return f"{PROVIDER}/{self.weights.base}" + (f"@{adapter}" if adapter else "")

    # -- inside

    def _row(self, request: Request, ids: list[int]) -> Row:
        config = request.config
        for name in ("frequency_penalty", "presence_penalty", "reasoning", "probabilities", "extensions"):
            if getattr(config, name):
                raise lm15.UnsupportedFeatureError(f"a local LM has no {name}; drop it", feature=f"config.{name}")
        max_tokens = config.max_tokens or self.max_tokens
        if len(ids) + max_tokens > self.weights.context_tokens:
            raise lm15.ContextLengthError(
                f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}: together more than the context of "
                f"{self.weights.context_tokens} tokens that {self.weights.base!r} has; shorten it or lower max_tokens",
                provider=PROVIDER,
            )
        return Row(
            ids=tuple(ids),
            max_tokens=max_tokens,
            temperature=config.temperature or 0.0,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            stop=config.stop,
            seed=config.seed,
            logprobs=config.logprobs,
        )

    def _enqueue(self, job: _Job) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                # A queue of its own per thread: none takes another's farewell, no job comes after it.
                self._queue = SimpleQueue()
                self._thread = threading.Thread(
                    target=_dispatch, args=(self, self._queue), name="local-lm", daemon=True
                )
                self._thread.start()
            self._queue.put(job)

    def _run(self, jobs: list[_Job]) -> None:
        """Decode jobs of one adapter; on exhausted memory halve the batch, down to one."""
        try:
            with self.weights.lock, serving(self.weights, jobs[0].adapter, self.adapters_dir) as network:
                rows = [job.row for job in jobs]
                tokenizer, stop_ids = self.weights.tokenizer, self.weights.stop_ids
                outputs = decode(network, tokenizer, rows, stop_ids, self.prefixes, jobs[0].adapter)
        except Exception as err:
            if not _out_of_memory(err):
                raise
            if self.prefixes is not None:
                with self.weights.lock:
                    self.prefixes.clear()
            if self.weights.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(jobs) == 1:
                raise lm15.ServerError(f"out of memory on a single prompt of {len(jobs[0].row.ids)} tokens") from err
            half = len(jobs) // 2
            self._run_safely(jobs[:half])
            self._run_safely(jobs[half:])
            return
        self.batch_sizes.append(len(jobs))
        for job, output in zip(jobs, outputs, strict=True):
            chat = tuple(job.chat)
            self.completions.append(
                Completion(job.request.model, chat, output.text, tuple(output.ids), output.finish_reason)
            )
            job.answer.set_result(_response(self.weights.tokenizer, job, output))

    def _run_safely(self, jobs: list[_Job]) -> None:
        try:
            self._run(jobs)
        except Exception as err:  # every caller must hear of it; none may wait for ever
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(err)


def _dispatch(engine: LocalEngine, queue: SimpleQueue) -> None:
    expected, last_s = 1, 0.0
    while True:
        job = queue.get()
        if job is None:
            return
        jobs = _collect(queue, job, expected, min(MAX_WAIT_S, max(MIN_WAIT_S, last_s / 5)))
        closing = jobs[-1] is None
        jobs = [job for job in jobs if job is not None and job.answer.set_running_or_notify_cancel()]
        begun = time.perf_counter()
        for batch in plan_batches(jobs, engine.max_batch):
            engine._run_safely(batch)
        expected, last_s = len(jobs), time.perf_counter() - begun
        if closing:
            return


def _collect(queue: SimpleQueue, first: _Job, expected: int, wait_s: float) -> list[_Job | None]:
    jobs: list[_Job | None] = [first]
    until = time.perf_counter() + wait_s
    while jobs[-1] is not None:
        left_s = until - time.perf_counter() if len(jobs) < expected else 0.0
        try:
            jobs.append(queue.get(timeout=left_s) if left_s > 0 else queue.get_nowait())
        except Empty:
            return jobs
    return jobs


def plan_batches(jobs: Sequence[_Job], max_batch: int) -> list[list[_Job]]:
    """Batches of at most `max_batch`: one adapter each, prompts that open alike together, similar lengths together."""
    groups: dict[tuple, list[_Job]] = {}
    for job in jobs:
        groups.setdefault((job.adapter, job.row.ids[:SHARE_TOKENS]), []).append(job)
    merged: dict[tuple, list[_Job]] = {}
    for (adapter, opening), group in groups.items():
        # A handful of odd prompts does better in one unshared batch than in batches of one.
        merged.setdefault((adapter, opening if len(group) > 3 else None), []).extend(group)
    batches = []
    for group in merged.values():
        group.sort(key=lambda job: len(job.row.ids))
        batches += [group[i : i + max_batch] for i in range(0, len(group), max_batch)]
    return batches


def _out_of_memory(err: Exception) -> bool:
    return isinstance(err, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(err)


def _response(tokenizer: Any, job: _Job, output: Output) -> Response:
    logprobs = None
    if job.row.logprobs is not None:
        logprobs = tuple(
            TokenLogprob(
                token=tokenizer.decode([token]),
                logprob=logp,
                token_id=token,
                top=tuple(TopLogprob(token=tokenizer.decode([t]), logprob=lp, token_id=t) for t, lp in top),
            )
            for token, logp, top in zip(output.ids, output.logprobs, output.top, strict=True)
        )
    return Response(
        id=None,
        model=job.request.model,
        message=Message.assistant(output.text) if output.text else Message.assistant([lm15.TextPart("")]),
        finish_reason=output.finish_reason,
        usage=Usage(input_tokens=len(job.row.ids), output_tokens=len(output.ids) + output.stop_tokens),
        logprobs=logprobs,
    )


class AsyncLocalEngine:
    """Async face of a LocalEngine: the same queue, awaited."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict) -> "AsyncLocalEngine":
        return self

    async def complete(self, request: Request) -> Response:
        """Answer one request without blocking the event loop."""
        return await asyncio.wrap_future(await asyncio.to_thread(self.engine.submit, request))

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The answer's events, text in one delta."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """The engine is shared: nothing of its own to close."""

    def dump_state(self) -> dict[str, Any]:
        """See LocalEngine.dump_state."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncLocalEngine":
        """See LocalEngine.load_state."""
        return cls(LocalEngine.load_state(state))


_engines: dict[tuple, LocalEngine] = {}
_building = threading.Lock()


def shared_engine(
    name_or_path: str,
    *,
    work_dir: str,
    quantize: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    max_batch: int = 32,
    max_tokens: int = 512,
) -> LocalEngine:
    """The process's engine of this description; equal descriptions share one dispatcher and one model."""
    spec = {
        "name_or_path": str(name_or_path),
        "work_dir": str(work_dir),
        "quantize": quantize,
        "device": device,
        "dtype": dtype,
        "max_batch": max_batch,
        "max_tokens": max_tokens,
    }
    weights = load_weights(name_or_path, quantize=quantize, device=device, dtype=dtype)
    with _building:
        key = (id(weights), *spec.values())
        engine = _engines.get(key)
        if engine is None:
            engine = LocalEngine(weights, Path(work_dir), max_batch=max_batch, max_tokens=max_tokens)
            engine.spec = spec
            _engines[key] = engine
        return engine


@atexit.register
def _stop_engines() -> None:
    # A daemon thread inside torch while the interpreter goes down can take the process with it.
    for engine in list(_engines.values()):
        engine.close(timeout_s=5.0)


def forget_engines() -> None:
    """Stop and drop every shared engine, and the weights registry with them (a fresh process's state)."""
    with _building:
        for engine in _engines.values():
            engine.close()
        _engines.clear()
    forget_weights()
