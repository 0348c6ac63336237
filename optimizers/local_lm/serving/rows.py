"""What a batch is made of and leaves behind: rows to continue, what each of them said, and who hears it."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One prompt and how to continue it. `logprobs`: None for none, 0 for the chosen tokens', n for n alternatives.

    `grammar` (a constraints.Grammar) lets nothing be said but what it accepts; None lets everything be said.
    """

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    grammar: Any = None


@dataclass
class Output:
    """What one row said: `ids` without the end-of-turn token, log probabilities (nats, temperature 1) one per id.

    `error` is what ended this row alone; the rows beside it are none the worse.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    stop_tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class Completion:
    """One answer as the model gave it, before any adapter read it: what training on rollouts needs."""

    model: str
    chat: tuple[dict[str, str], ...]
    text: str
    ids: tuple[int, ...]
    finish_reason: str


class Listener(Protocol):
    """Who hears a row while it speaks. Once `gone` is true the row is given up."""

    gone: bool

    def hear(self, text: str, output: Output) -> None:
        """Take all text so far that nothing can take back, and the output it comes from; must not raise."""
