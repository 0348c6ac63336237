"""What a model says, and how far another has moved from it: KL per token on whole answers.

RL's Razor (Shenfeld et al. 2025, arXiv:2509.04259): what fine-tuning forgets is told by KL(base || tuned) on the new
task's prompts. Here it is measured on the base's own answers, over the whole vocabulary at each of their tokens.
Needs logits, so both LMs are local ones on the same base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import dspy
import torch
from dspy.lm15 import Config, Message, Request

from optimizers.errors import TrainingError
from optimizers.local_lm.prompts import Chat, encode_completion, encode_prompt
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.serving.prefixes import length_of, plain_cache
from optimizers.local_lm.tuning.adapters import Served, serving


@dataclass(frozen=True, slots=True)
class Said:
    """An answer to a conversation; `whole` is False where it was cut off at the LM's max_tokens."""

    chat: tuple[dict[str, str], ...]
    text: str
    whole: bool
    n_tokens: int


def engine_of(lm: dspy.LM) -> LocalEngine:
    """The LM's engine. Raises TrainingError for an LM whose weights are not in this process."""
    if not isinstance(getattr(lm, "engine", None), LocalEngine):
        raise TrainingError(f"{getattr(lm, 'model', lm)!r} is no local LM, and its weights are needed: use local_lm(…)")
    return lm.engine


def sample_answers(lm: dspy.LM, chats: Sequence[Chat], *, temperature: float = 1.0, seed: int = 0) -> list[Said]:
    """What `lm` says to each conversation, batched, past DSPy's cache; the same seed gives the same answers."""
    engine, rng = engine_of(lm), Random(seed)
    asked = []
    for chat in chats:
        system = "\n\n".join(turn["content"] for turn in chat if turn["role"] == "system") or None
        roles = {"user": Message.user, "assistant": Message.assistant}
        turns = tuple(roles[turn["role"]](turn["content"]) for turn in chat if turn["role"] != "system")
        limit = lm.kwargs.get("max_tokens") or engine.max_tokens
        config = Config(temperature=temperature, max_tokens=limit, seed=rng.getrandbits(32) if temperature else None)
        asked.append(Request(lm.model, turns, system=system, config=config))
    answers = [answer.result() for answer in [engine.submit(request) for request in asked]]
    return [
        Said(tuple(chat), answer.message.text or "", answer.finish_reason == "stop", answer.usage.output_tokens)
        for chat, answer in zip(chats, answers, strict=True)
    ]


@torch.inference_mode()
def kl_per_token(before: dspy.LM, after: dspy.LM, said: Sequence[Said]) -> list[float]:
    """KL(before || after), nats, averaged over each answer's tokens (its end included); one number an answer.

    Raises TrainingError where the two are not on one base.
    """
    engine = engine_of(before)
    weights = engine.weights
    if engine_of(after).weights is not weights:
        raise TrainingError(f"{before.model!r} and {after.model!r} are on other weights; compare adapters of one base")
    names, found = (engine.adapter_of(before.model), engine.adapter_of(after.model)), []
    for one in said:
        prompt = encode_prompt(weights, one.chat)
        answer = encode_completion(weights, one.chat, one.text, with_end=one.whole)
        if not answer:
            found.append(0.0)
            continue
        logps = []
        for name in names:
            with weights.lock, serving(weights, name, engine.adapters_dir) as served:
                logps.append(_logps(served, prompt + answer, len(answer)))
        found.append(float((logps[0].exp() * (logps[0] - logps[1])).sum(-1).mean()))
    return found


def _logps(served: Served, ids: Sequence[int], n: int) -> torch.Tensor:
    """Log probabilities (n x V) of what stands at the last `n` places."""
    before = length_of(served.opening)
    ids_1_T = torch.tensor([list(ids)], device=served.model.device)
    positions = torch.arange(before, before + ids_1_T.shape[1], device=served.model.device)[None]
    cache = plain_cache(served.model, served.opening, 1)
    logits = served.model(input_ids=ids_1_T, position_ids=positions, past_key_values=cache, logits_to_keep=n + 1).logits
    return logits[0, :-1].float().log_softmax(-1)
