"""Requests and training rows to token ids, through the tokenizer's own chat template and nowhere else.

Serving, scoring and training share these functions, so a model is trained on the very tokens it is asked with.
"""

from collections.abc import Sequence
from typing import Any

from dspy import lm15
from dspy.lm15 import Request, TextPart

from optimizers.errors import TrainingError
from optimizers.local_lm.weights import Weights

PROVIDER = "local"
Chat = Sequence[dict[str, str]]
ROLES = {"user": "user", "assistant": "assistant", "developer": "system"}


def request_chat(request: Request) -> list[dict[str, str]]:
    """A request's messages as role/content dicts. Raises lm15's UnsupportedFeatureError for what a local LM has not."""
    if request.tools:
        raise lm15.UnsupportedFeatureError("a local LM takes no tools; describe them in the prompt", feature="tools")
    for name in ("frequency_penalty", "presence_penalty", "reasoning", "probabilities", "extensions"):
        if getattr(request.config, name):
            raise lm15.UnsupportedFeatureError(f"a local LM has no {name}; drop it", feature=f"config.{name}")
    chat = [] if request.system is None else [{"role": "system", "content": _text(request.system)}]
    for message in request.messages:
        if message.role not in ROLES:
            raise lm15.UnsupportedFeatureError(f"a local LM takes no {message.role!r} messages", feature="messages")
        chat.append({"role": ROLES[message.role], "content": _text(message.parts)})
    return chat


def _text(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    for part in parts:
        if not isinstance(part, TextPart):
            raise lm15.UnsupportedFeatureError(f"a local LM reads text, not {part.type!r} parts", feature="messages")
    return "".join(part.text for part in parts)


def encode_prompt(weights: Weights, chat: Chat) -> list[int]:
    """Token ids of the chat up to where the assistant speaks."""
    return _tokens(weights, _render(weights, chat, open_turn=True))


def encode_completion(weights: Weights, chat: Chat, text: str, *, with_end: bool) -> list[int]:
    """Token ids the assistant would have to produce after `chat` to say `text`, with or without its end-of-turn token.

    Raises TrainingError if the template writes the open and the finished turn differently, or never ends a turn.
    """
    answer = {"role": "assistant", "content": text}
    prompt, whole = _render(weights, chat, open_turn=True), _render(weights, [*chat, answer], open_turn=False)
    if not whole.startswith(prompt):
        # Mistral's templates put the system text in front of the last turn, if that is the user's: what comes before
        # the answer then changes with it, the answer's own tokens do not.
        prompt = _render(weights, chat[-1:], open_turn=True)
        whole = _render(weights, [*chat[-1:], answer], open_turn=False)
    if not whole.startswith(prompt):
        raise TrainingError(
            "the chat template renders the prompt differently once an answer follows, so the answer's tokens are not "
            f"known; mend the template. Prompt ends {prompt[-60:]!r}, whole text has {whole[len(prompt) - 60 :][:80]!r}"
        )
    ids = _tokens(weights, whole[len(prompt) :])
    end = next((i for i, token in enumerate(ids) if token in weights.stop_ids), None)
    if end is None:
        raise TrainingError(
            f"the chat template ends no assistant turn with a stop token ({sorted(weights.stop_ids)}): a model trained "
            "on it would never stop; put the end-of-turn token into the template or eos_token_id"
        )
    return ids[: end + with_end]


def _render(weights: Weights, chat: Chat, *, open_turn: bool) -> str:
    turns = [{"role": turn["role"], "content": _plain(weights, turn["content"])} for turn in chat]
    if weights.folds_system and turns and turns[0]["role"] == "system":
        system, *rest = turns
        turns = [{"role": rest[0]["role"], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return weights.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn)


def _plain(weights: Weights, content: str) -> str:
    """Content with any control token spelled apart, so that a document cannot end its own turn."""
    for token in weights.control_tokens:
        if token in content:
            content = content.replace(token, f"{token[0]} {token[1:]}")
    return content


def _tokens(weights: Weights, text: str) -> list[int]:
    return weights.tokenizer(text, add_special_tokens=False)["input_ids"]
