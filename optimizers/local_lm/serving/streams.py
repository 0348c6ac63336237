"""An answer's events while it is being said: lm15 start, text deltas and end, for whoever takes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from dspy import lm15
from dspy.lm15 import Response, StreamDeltaEvent, StreamEndEvent, TextDelta, TokenLogprob, TopLogprob

from optimizers.local_lm.serving.rows import Output


class EventListener:
    """A row's listener that turns what it hears into events and gives them to `put`, from the decoding thread.

    A `put` that raises (its event loop is closed, say) is taken for a consumer that has gone; the batch goes on. After
    a retry (memory ran out, and the batch was split) only what has not been told yet is told.
    """

    def __init__(self, put: Callable[[Any], None], tokenizer: Any, logprobs: bool) -> None:
        self.put, self.tokenizer, self.logprobs = put, tokenizer, logprobs
        self.gone = False
        self._text, self._tokens = "", 0

    def hear(self, text: str, output: Output) -> None:
        """Tell what is new in `text`, with the log probabilities of the tokens it came from."""
        if len(text) > len(self._text):
            self._tell(text, token_logprobs(self.tokenizer, output, self._tokens) if self.logprobs else ())

    def finish(self, answer: Future) -> None:
        """Tell the rest and the end, or the error: the answer's done-callback."""
        try:
            response: Response = answer.result()
        except (Exception, CancelledError) as err:
            self._put(err)
            return
        text, logprobs = response.message.text or "", response.logprobs or ()
        if not text.startswith(self._text):
            self._put(lm15.ServerError("memory ran out while streaming, and the answer came out otherwise; ask again"))
            return
        if len(text) > len(self._text) or len(logprobs) > self._tokens or not self._text:
            self._tell(text, logprobs[self._tokens :])
        self._put(StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage))

    def _tell(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        new, self._text = text[len(self._text) :], text
        self._tokens += len(logprobs)
        self._put(StreamDeltaEvent(TextDelta(new, logprobs=tuple(logprobs))))

    def _put(self, event: Any) -> None:
        if not self.gone:
            try:
                self.put(event)
            except Exception:
                self.gone = True


def raised(event: Any) -> Any:
    """The event that came, or, if an error came in its place, that error raised."""
    if isinstance(event, BaseException):
        raise event
    return event


def token_logprobs(tokenizer: Any, output: Output, start: int = 0) -> tuple[TokenLogprob, ...]:
    """An output's log probabilities from token `start` on, as lm15 has them."""
    told = list(zip(output.ids, output.logprobs, output.top, strict=True))[start:]
    return tuple(
        TokenLogprob(
            token=tokenizer.decode([token]),
            logprob=logp,
            token_id=token,
            top=tuple(TopLogprob(token=tokenizer.decode([t]), logprob=lp, token_id=t) for t, lp in top),
        )
        for token, logp, top in told
    )
