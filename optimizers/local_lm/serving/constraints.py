"""Answers held to a JSON schema: at each step only tokens that the grammar accepts can be chosen.

llguidance compiles the schema and follows the tokens; rows with and without a grammar share a batch. An answer is
brought to its end within `max_tokens`: once the shortest way to close it takes all tokens that are left, that way is
taken, and the row ends with finish reason "length" and valid JSON.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dspy import lm15
from torch import Tensor

from optimizers.local_lm.prompts import PROVIDER

KEEP_GRAMMARS = 64
MAX_CLOSING_TOKENS = 2048
LOOK_EVERY = 8
# Some indentation, never an endless run of blanks, which small models fall into.
OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}"}
OUTSIDE_STRINGS = '}]",:0123456789'
INSIDE_STRINGS = '"'  # a brace is only a character there


class Grammars:
    """Compiles response formats for one tokenizer; the last few are kept."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self._hf, self._vocab_size, self._stop_ids = tokenizer, vocab_size, stop_ids
        self._lock = threading.Lock()
        self._tokens: _Tokens | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, response_format: dict[str, Any], max_tokens: int) -> "Grammar":
        """The grammar of a lm15 response_format: any JSON object, or its schema.

        Raises UnsupportedFeatureError for a tokenizer that llguidance cannot read, and InvalidRequestError for a
        schema that it cannot compile, or whose shortest answer has more than `max_tokens`.
        """
        schema = response_format.get("schema", {"type": "object"})
        key = json.dumps(schema)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._compile(schema)
                while len(self._kept) > KEEP_GRAMMARS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            grammar = self._kept[key]
        if grammar.least_tokens is not None and grammar.least_tokens > max_tokens:
            raise lm15.InvalidRequestError(
                f"max_tokens={max_tokens}, and the shortest answer that fits the response_format has "
                f"{grammar.least_tokens} tokens; raise max_tokens",
                provider=PROVIDER,
            )
        return grammar

    def _compile(self, schema: Any) -> "Grammar":
        from llguidance import LLMatcher

        if self._tokens is None:
            self._tokens = _Tokens(self._hf, self._vocab_size, self._stop_ids)
        try:
            matcher = LLMatcher(
                self._tokens.ll, LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS), log_level=0
            )
        except ValueError as err:
            raise _bad_schema(schema, str(err)) from err
        if matcher.is_error():
            raise _bad_schema(schema, matcher.get_error())
        return Grammar(matcher, self._tokens)


def _bad_schema(schema: Any, why: str) -> lm15.InvalidRequestError:
    return lm15.InvalidRequestError(
        f"the response_format's schema cannot be compiled: {why.strip().splitlines()[0]}. Simplify the output types, "
        f"or ask without response_format. Schema: {json.dumps(schema)[:300]}",
        provider=PROVIDER,
    )


class _Tokens:
    """A tokenizer as llguidance reads it, and in which order its tokens bring a JSON text to an end."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: frozenset[int]) -> None:
        from llguidance.hf import from_tokenizer

        self.vocab_size, self.stop_ids = vocab_size, stop_ids
        try:
            self.ll = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(stop_ids))
        except Exception as err:  # of Rust, of no particular type
            raise lm15.UnsupportedFeatureError(
                f"the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} cannot be held to a grammar "
                f"(llguidance: {err}); ask without response_format, or use a model with a fast tokenizer",
                feature="config.response_format",
            ) from err
        texts = [self.ll.decode_bytes([token]).decode("utf-8", "replace") for token in range(vocab_size)]
        self.tilde = texts.index("~") if "~" in texts else None  # stands in JSON in strings only
        orders = (OUTSIDE_STRINGS, INSIDE_STRINGS)
        self.ranks_2_V = np.array(
            [[0 if t in stop_ids else _closing_rank(text, order) for t, text in enumerate(texts)] for order in orders]
        )

    def closing(self, matcher: Any) -> int:
        """The token that leads soonest to the end from where `matcher` stands."""
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: self.vocab_size])
        inside = int(self.tilde is None or bits[self.tilde])
        return int(allowed[self.ranks_2_V[inside, allowed].argmin()]) if len(allowed) else min(self.stop_ids)


def _closing_rank(text: str, order: str) -> int:
    """Lower closes sooner: what `order` names, shortest first; then words, which are forced, longest first; blanks."""
    at = order.find(text[0]) if text else -1
    if at >= 0:
        return 1 + 1000 * at + min(len(text), 999)
    if not text or text[0].isspace():
        return 10**6
    return 10**5 - min(len(text), 999)


class Grammar:
    """A compiled schema; `start` gives a row of its own to follow it. `least_tokens`: the shortest answer's length."""

    def __init__(self, matcher: Any, tokens: _Tokens) -> None:
        self._matcher, self._tokens = matcher, tokens
        self.least_tokens = closing_tokens(matcher, tokens, MAX_CLOSING_TOKENS)

    def start(self) -> "Walk":
        """A fresh walk through the grammar."""
        return Walk(self._matcher.deep_copy(), self._tokens, self.least_tokens)


class Walk:
    """One row's way through its grammar. `ended`: nothing may follow. `cut_short`: closed for want of tokens."""

    def __init__(self, matcher: Any, tokens: _Tokens, least_tokens: int | None) -> None:
        self.matcher, self.tokens = matcher, tokens
        self.closing = least_tokens
        self.error: Exception | None = None
        self.ended = self.cut_short = False

    def settle(self, token: int, left: int) -> int:
        """Accept `token` with `left` tokens to go, it among them, or another one if it could not be closed in time."""
        if self.error is not None or self.ended:
            return token
        if self.closing is not None:
            if left % LOOK_EVERY == 0:
                self.closing = closing_tokens(self.matcher, self.tokens, left) or self.closing
            if left <= 2 * (self.closing + LOOK_EVERY):
                token = self._in_time(token, left)
        if not self.matcher.consume_token(token):
            self.error = lm15.ServerError(f"the grammar gave up: {self.matcher.get_error()}", provider=PROVIDER)
        self.ended = self.matcher.is_stopped()
        return token

    def _in_time(self, token: int, left: int) -> int:
        ahead = self.matcher.deep_copy()
        if ahead.consume_token(token):
            after = closing_tokens(ahead, self.tokens, left)
            if after is not None and after <= left - 1:
                self.closing = after
                return token
        self.cut_short = True
        return self.tokens.closing(self.matcher)


def closing_tokens(matcher: Any, tokens: _Tokens, limit: int) -> int | None:
    """How many tokens the shortest way known takes from here to the end; None if that is more than `limit`."""
    ahead, count = matcher.deep_copy(), 0
    while not ahead.is_stopped():
        token = tokens.closing(ahead)
        if token in tokens.stop_ids:
            return count  # an end-of-turn token takes no room in the answer
        if count == limit or not ahead.consume_token(token):
            return None
        count += 1
    return None if ahead.is_error() else count


def mask_logits(logits_B_V: Tensor, walks: Sequence[Walk | None], left: Sequence[int]) -> Tensor:
    """Logits with -inf where a row's grammar accepts no such token; rows without a walk as they are."""
    at = [i for i, walk in enumerate(walks) if walk is not None and walk.error is None and not walk.ended]
    if not at:
        return logits_B_V
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    vocab = logits_B_V.shape[1]
    words = allocate_token_bitmask(len(at), vocab)
    for row, i in enumerate(at):
        fill_next_token_bitmask(walks[i].matcher, words, row)
    words_B_W = torch.from_numpy(words).to(logits_B_V.device)
    bits = (words_B_W[:, :, None] >> torch.arange(32, device=words_B_W.device, dtype=torch.int32)) & 1
    masked = logits_B_V.clone()
    masked[at] = masked[at].masked_fill(bits.flatten(1)[:, :vocab] == 0, float("-inf"))
    return masked
