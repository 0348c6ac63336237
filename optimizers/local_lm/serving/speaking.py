"""The rows' side of a batch: from logits to tokens, texts and ends, and to whoever listens."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optimizers.local_lm.serving.constraints import Walk, mask_logits
from optimizers.local_lm.serving.rows import Listener, Output, Row
from optimizers.local_lm.serving.sampling import Sampler
from optimizers.local_lm.serving.text import TextStream, plain_text


class Speaking:
    """The rows still in the batch (`slots`, indices into `rows`), those that still speak (`live`), and all outputs.

    `ended(slot, output)` hears of every row at its end.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: frozenset[int], ended: Callable[[int, Output], None] = lambda slot, output: None
    ) -> None:
        self.tokenizer, self.stop_ids, self.ended = tokenizer, stop_ids, ended
        self.rows: list[Row] = []
        self.outputs: list[Output] = []
        self.slots: list[int] = []
        self.live: set[int] = set()
        self.listeners: dict[int, Listener] = {}
        self.texts: dict[int, TextStream] = {}
        self.walks: dict[int, Walk] = {}
        self.sample = Sampler()

    def add(self, rows: Sequence[Row], listeners: Sequence[Listener | None] = ()) -> None:
        """Rows that speak from now on, behind those of before; `listeners`: none, or one or None per row."""
        for row, listener in zip(rows, listeners or [None] * len(rows), strict=True):
            slot = len(self.rows)
            self.rows.append(row)
            self.outputs.append(Output())
            self.slots.append(slot)
            self.live.add(slot)
            self.sample.add(slot, row)
            if listener is not None:
                self.listeners[slot] = listener
            # Only who is heard while speaking, or may be stopped by a string, needs text before the end.
            if row.stop or listener is not None:
                self.texts[slot] = TextStream(self.tokenizer, row.stop)
            if row.grammar is not None:
                self.walks[slot] = row.grammar.start()

    def left(self) -> int:
        """How many tokens the batch may still bring."""
        return max(self.rows[slot].max_tokens - len(self.outputs[slot].ids) for slot in self.live)

    def take(self, logits_B_V: Tensor) -> tuple[Tensor, list[int] | None]:
        """Choose one token per slot; also returns the slots to keep when at least half have ended, else None."""
        plain_B_V = logits_B_V
        if self.walks:
            logits_B_V = mask_logits(logits_B_V, [self._walk(slot) for slot in self.slots], self._left())
        tokens_B = self.sample(logits_B_V, self.slots)
        chosen, scores = self._fetch(plain_B_V, tokens_B)
        if self.walks and (settled := self._settle(chosen)) != chosen:
            tokens_B = tokens_B.new_tensor(settled)
            chosen, scores = self._fetch(plain_B_V, tokens_B)
        for at, slot in enumerate(self.slots):
            if slot in self.live:
                self._hear(slot, chosen[at], scores[at] if scores else None)
        if not self.live or 2 * len(self.live) > len(self.slots):
            return tokens_B, None
        keep = [at for at, slot in enumerate(self.slots) if slot in self.live]
        self.slots = [self.slots[at] for at in keep]
        return tokens_B, keep

    def _walk(self, slot: int) -> Walk | None:
        return self.walks.get(slot) if slot in self.live else None

    def _left(self) -> list[int]:
        return [self.rows[slot].max_tokens - len(self.outputs[slot].ids) for slot in self.slots]

    def _settle(self, chosen: list[int]) -> list[int]:
        """What each grammar makes of its row's token: the token, or another that can still be brought to an end."""
        settled = []
        for slot, token, left in zip(self.slots, chosen, self._left(), strict=True):
            walk = self._walk(slot)
            settled.append(token if walk is None else walk.settle(token, left))
        return settled

    def _fetch(self, logits_B_V: Tensor, tokens_B: Tensor) -> tuple[list[int], list[list[float]] | None]:
        """Tokens and, where a row asks, [logprob, alternatives' tokens, their logprobs]: one wait for the device."""
        asked = [self.rows[slot].logprobs for slot in self.slots]
        if all(n is None for n in asked):
            return tokens_B.tolist(), None
        logps_B_V = logits_B_V.log_softmax(-1)
        best = logps_B_V.topk(min(max(n or 0 for n in asked), logps_B_V.shape[-1]), dim=-1)
        # A float32 holds every token id below 2**24, and one tensor is one transfer.
        columns = [
            tokens_B[:, None].float(),
            logps_B_V.gather(-1, tokens_B[:, None]),
            best.indices.float(),
            best.values,
        ]
        table = torch.cat(columns, dim=1).tolist()
        return [int(row[0]) for row in table], [row[1:] for row in table]

    def _hear(self, slot: int, token: int, scores: list[float] | None) -> None:
        """Add a live row's token to what it said, and end the row if that was its last."""
        row, output, text = self.rows[slot], self.outputs[slot], self.texts.get(slot)
        listener, walk = self.listeners.get(slot), self.walks.get(slot)
        if listener is not None and listener.gone:
            return self._end(slot, "stop")
        if walk is not None and walk.error is not None:
            output.error = walk.error
            return self._end(slot, "stop")
        if token in self.stop_ids:
            output.stop_tokens = 1
            return self._end(slot, "stop")
        output.ids.append(token)
        if scores is not None and row.logprobs is not None:
            half = 1 + (len(scores) - 1) // 2
            output.logprobs.append(scores[0])
            pairs = zip(map(int, scores[1:half]), scores[half:], strict=True)
            output.top.append(list(pairs)[: row.logprobs])
        if text is not None and text.push(token):
            return self._end(slot, "stop")
        if walk is not None and walk.ended:
            return self._end(slot, "length" if walk.cut_short else "stop")
        if len(output.ids) >= row.max_tokens:
            return self._end(slot, "length")
        if listener is not None:
            listener.hear(text.settled(), output)

    def _end(self, slot: int, reason: str) -> None:
        output, text = self.outputs[slot], self.texts.get(slot)
        output.finish_reason = reason
        output.text = plain_text(self.tokenizer, output.ids) if text is None else text.close()
        if text is not None and text.stopped:
            output.finish_reason = "stop"
        self.live.discard(slot)
        self.ended(slot, output)
