"""The text of tokens as they come: whole characters only, and nothing that a stop string may still take back."""

from collections.abc import Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"


def plain_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids` without control tokens, spaces as the tokens have them."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class TextStream:
    """Token ids in, text out. `text` holds the whole characters so far, up to a stop string if one has come."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        # Text is decoded from `_anchor`, one piece back, because a token's text may depend on the one before it.
        self._anchor, self._read = 0, 0

    def push(self, token: int) -> bool:
        """Add one token; returns whether a stop string is complete, and `text` then ends before it."""
        self._ids.append(token)
        known = plain_text(self.tokenizer, self._ids[self._anchor : self._read])
        window = plain_text(self.tokenizer, self._ids[self._anchor :])
        if len(window) <= len(known) or window.endswith(BROKEN):
            return False  # the first bytes of a character, or a token without text
        self._anchor, self._read = self._read, len(self._ids)
        return self._grow(self.text + window[len(known) :])

    def settled(self) -> str:
        """The text so far that no stop string can reach back into."""
        if self.stopped or not self.stop:
            return self.text
        held = max(_overlap(self.text, stop) for stop in self.stop)
        return self.text[: len(self.text) - held]

    def close(self) -> str:
        """The whole text, now that no token follows: an unfinished character shows as a replacement character."""
        if not self.stopped:
            whole = plain_text(self.tokenizer, self._ids)
            if len(whole) > len(self.text) and whole.startswith(self.text):
                self._grow(whole)
        return self.text

    def _grow(self, text: str) -> bool:
        before, self.text = len(self.text), text
        found = [at for stop in self.stop if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            self.text, self.stopped = text[: min(found)], True
        return self.stopped


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
