"""The DSPy engine: requests of any number of threads and coroutines, batched onto one in-process model."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dspy import lm15
from dspy.clients.engines.base import validate_request
from dspy.lm15 import Message, Request, Response, StreamStartEvent, Usage

from optimizers.errors import ModelError
from optimizers.local_lm.prompts import PROVIDER, Chat, encode_completion, encode_prompt, request_chat
from optimizers.local_lm.serving.constraints import Grammars
from optimizers.local_lm.serving.decoding import score_rows
from optimizers.local_lm.serving.dispatch import Dispatcher, Job
from optimizers.local_lm.serving.prefixes import PrefixStore
from optimizers.local_lm.serving.rows import Completion, Output, Row
from optimizers.local_lm.serving.streams import EventListener, raised, token_logprobs
from optimizers.local_lm.tuning.adapters import check_adapter, serving
from optimizers.local_lm.weights import Weights


class LocalEngine:
    """Sync engine of `local_lm`: `complete(Request) -> Response` on one Hugging Face causal LM in this process.

    `completions` is a bounded log of raw answers, newest last. `batch_sizes` counts rows per decoded batch. A
    response_format (JSON object or schema) is honoured by constrained decoding. Raises dspy.lm15 errors from
    `complete`: ContextLengthError, UnsupportedModelError, UnsupportedFeatureError, InvalidRequestError (a schema that
    cannot be compiled or kept within max_tokens), and the retryable ServerError when memory runs out.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset(
        {"temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "logprobs", "top_logprobs", "response_format"}
    )

    def __init__(
        self, weights: Weights, work_dir: Path, *, max_batch: int = 64, max_tokens: int = 512, keep: int = 10_000
    ):
        if max_batch < 1:
            raise ModelError(f"max_batch={max_batch} must be at least 1")
        self.weights, self.work_dir = weights, Path(work_dir)
        self.max_batch, self.max_tokens = max_batch, max_tokens
        self.spec: dict[str, Any] = {}
        self.completions: deque[Completion] = deque(maxlen=keep)
        vocab_size = weights.model.get_output_embeddings().weight.shape[0]
        self.grammars = Grammars(weights.tokenizer, vocab_size, weights.stop_ids)
        self.dispatcher = Dispatcher(weights, self.adapters_dir, max_batch, self._answered)

    def __deepcopy__(self, memo: dict) -> "LocalEngine":
        return self  # one model in memory, however many copies of a program

    @property
    def adapters_dir(self) -> Path:
        """Where this engine's adapters lie."""
        return self.work_dir / "adapters"

    @property
    def batch_sizes(self) -> deque[int]:
        """Rows in each decoded batch, newest last."""
        return self.dispatcher.batch_sizes

    @property
    def prefixes(self) -> PrefixStore | None:
        """The kept prompt prefixes; None for a model whose cache cannot be cropped."""
        return self.dispatcher.prefixes

    # -- what DSPy calls

    def complete(self, request: Request) -> Response:
        """Answer one request; called from many threads at once it batches them."""
        return self.submit(request).result()

    def stream(self, request: Request) -> Iterator[Any]:
        """The answer's events as its tokens are decoded, in a batch with others. Closing it gives the answer up."""
        events: SimpleQueue[Any] = SimpleQueue()
        listener = self._listener(request, events.put)
        answer = self.submit(request, listener)
        try:
            yield StreamStartEvent(model=request.model)
            while (event := raised(events.get())).type != "end":
                yield event
            yield event
        finally:
            listener.gone = True
            answer.cancel()

    def close(self, timeout_s: float = 60.0) -> None:
        """Stop the dispatcher once it has answered what is queued; the next request starts another."""
        self.dispatcher.close(timeout_s)

    def dump_state(self) -> dict[str, Any]:
        """What `load_state` needs to build the engine again; no weights, no secrets."""
        return dict(self.spec)

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "LocalEngine":
        """The engine that `dump_state` described, shared with any other of the same description."""
        from optimizers.local_lm.serving.registry import shared_engine

        return shared_engine(**state)

    # -- beyond the protocol

    def submit(self, request: Request, listener: EventListener | None = None) -> Future:
        """Queue a request; the future yields its Response. `listener` hears it while it is being said."""
        validate_request(request)
        adapter = self.adapter_of(request.model)
        if adapter is not None and adapter not in self.weights.attached:
            try:
                check_adapter(self.adapters_dir / adapter, self.weights)
            except ModelError as err:
                raise lm15.UnsupportedModelError(str(err), provider=PROVIDER) from err
        chat = request_chat(request)
        row = self._row(request, encode_prompt(self.weights, chat))
        job = Job(request, chat, row, adapter, Future(), listener)
        if listener is not None:
            job.answer.add_done_callback(listener.finish)
        self.dispatcher.put(job)
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
        with self.weights.lock, serving(self.weights, adapter, self.adapters_dir) as served:
            return score_rows(served.model, prompt, rows, self.prefixes, adapter, opening=served.opening)

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

    def _listener(self, request: Request, put: Any) -> EventListener:
        return EventListener(put, self.weights.tokenizer, request.config.logprobs is not None)

    def _row(self, request: Request, ids: list[int]) -> Row:
        config = request.config
        max_tokens = config.max_tokens or self.max_tokens
        if len(ids) + max_tokens > self.weights.context_tokens:
            raise lm15.ContextLengthError(
                f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}: together more than the context of "
                f"{self.weights.context_tokens} tokens that {self.weights.base!r} has; shorten it or lower max_tokens",
                provider=PROVIDER,
            )
        heat = config.temperature or 0.0
        return Row(
            ids=tuple(ids),
            max_tokens=max_tokens,
            temperature=heat,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            stop=config.stop,
            # A seed of its own even where none is asked for: a batch that is run again says the same again.
            seed=random.getrandbits(62) if heat and config.seed is None else config.seed,
            logprobs=config.logprobs,
            grammar=self.grammars.compile(config.response_format, max_tokens) if config.response_format else None,
        )

    def _answered(self, job: Job, output: Output) -> Response:
        chat, ids = tuple(job.chat), tuple(output.ids)
        self.completions.append(Completion(job.request.model, chat, output.text, ids, output.finish_reason))
        return Response(
            id=None,
            model=job.request.model,
            message=Message.assistant(output.text) if output.text else Message.assistant([lm15.TextPart("")]),
            finish_reason=output.finish_reason,
            usage=Usage(input_tokens=len(job.row.ids), output_tokens=len(output.ids) + output.stop_tokens),
            logprobs=None if job.row.logprobs is None else token_logprobs(self.weights.tokenizer, output),
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
        """The answer's events as its tokens are decoded. Closing it gives the answer up."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        listener = self.engine._listener(request, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        answer = await asyncio.to_thread(self.engine.submit, request, listener)
        try:
            yield StreamStartEvent(model=request.model)
            while (event := raised(await events.get())).type != "end":
                yield event
            yield event
        finally:
            listener.gone = True
            answer.cancel()

    async def aclose(self) -> None:
        """The engine is shared: nothing of its own to close."""

    def dump_state(self) -> dict[str, Any]:
        """See LocalEngine.dump_state."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncLocalEngine":
        """See LocalEngine.load_state."""
        return cls(LocalEngine.load_state(state))
