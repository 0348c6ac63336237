"""Ranked pairs, what a reward model learns from, and their tokens: the policy's own, prompt and answer.

One real row: a correction against what had been said, in the messages that the program is served with.

    RankedPair(messages=({"role": "system", ...}, {"role": "user", "content": "[[ ## passages ## ]]\\n[1] This ..."}),
               chosen="[[ ## quotes ## ]]\\nlaws of the State of Ohio ...", rejected="[[ ## quotes ## ]]\\nnone ...",
               group="ashgrove-2019-0007", source="edit", margin=None)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy
from dspy import lm15

from optimizers.errors import TrainingError
from optimizers.finetuning import serving_prompt
from optimizers.local_lm.prompts import PROVIDER, Chat, encode_completion, encode_prompt
from optimizers.local_lm.training.rows import Ids, Rows
from optimizers.local_lm.weights import Weights
from optimizers.preference_types import Preference


@dataclass(frozen=True, slots=True)
class RankedPair:
    """Of two assistant texts after `messages`, the better one and the other.

    `group` is the contract's id: pairs of one group stay on one side of every split ("": a group of its own). `source`
    says where the ranking comes from (see Preference). `margin`: by how much, in the source's own units.
    """

    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str
    group: str = ""
    source: str = ""
    margin: float | None = None


def ranked_pairs(
    preferences: Sequence[Preference], program: dspy.Module, adapter: dspy.Adapter
) -> tuple[list[RankedPair], int]:
    """Preferences under the prompts that `program` is served with, and how many were left out for want of a side."""
    pairs = []
    for one in preferences:
        if one.chosen is None or one.rejected is None:
            continue
        messages = serving_prompt(program, one, adapter)
        pairs.append(RankedPair(tuple(messages), one.chosen, one.rejected, one.group, one.source, one.margin))
    return pairs, len(preferences) - len(pairs)


def encode_pairs(
    weights: Weights,
    pairs: Sequence[RankedPair],
    *,
    limit_tokens: int | None = None,
    max_dropped: float = 0.0,
    margin_scale: float | None = None,
) -> Rows:
    """Pairs as token ids: columns "chosen_ids" and "rejected_ids", and "margin" (logits) with a `margin_scale`.

    Pairs with a side above `limit_tokens` (None: the model's context) are left out, never cut. Raises TrainingError for
    more than the share `max_dropped` of such, saying how many; no pairs; a text preferred to itself; a missing or
    negative margin where margins are asked for.
    """
    limit = min(limit_tokens or weights.context_tokens, weights.context_tokens)
    columns, source, too_long = [], [], []
    for index, pair in enumerate(pairs):
        if pair.chosen == pair.rejected:
            raise TrainingError(f"pair {index} prefers {pair.chosen[:60]!r} to itself; leave ties out")
        row: Ids = {"prompt_ids": []}  # both sides are whole sequences
        row |= {
            name: encode_answered(weights, pair.messages, text)
            for name, text in (("chosen_ids", pair.chosen), ("rejected_ids", pair.rejected))
        }
        if margin_scale is not None:
            row["margin"] = margin_scale * _margin(index, pair)
        if max(len(row["chosen_ids"]), len(row["rejected_ids"])) > limit:
            too_long.append(index)
            continue
        columns.append(row)
        source.append(index)
    if len(too_long) > max_dropped * len(pairs):
        raise TrainingError(
            f"{len(too_long)} of {len(pairs)} pairs exceed {limit} tokens (the first: pair {too_long[0]}), above the "
            f"allowed share of {max_dropped:.0%} (max_dropped); shorten their prompts, leave them out, or raise "
            "max_length_tokens if the context allows"
        )
    if not columns:
        raise TrainingError("no pairs to learn from came; if a filter dropped them, look at its report")
    groups = tuple(pairs[index].group or f"pair {index}" for index in source)
    return Rows(tuple(columns), tuple(source), groups, (None,) * len(columns), tuple(too_long), len(pairs))


def encode_answered(weights: Weights, messages: Chat, text: str) -> list[int]:
    """Token ids of the messages and of `text` as the assistant's whole turn, its end-of-turn token included."""
    return encode_prompt(weights, messages) + encode_completion(weights, messages, text, with_end=True)


def check_length(weights: Weights, rows: Sequence[Sequence[int]]) -> None:
    """Raise lm15's ContextLengthError, with the count, if any sequence is longer than the model's context."""
    too_long = [len(ids) for ids in rows if len(ids) > weights.context_tokens]
    if too_long:
        raise lm15.ContextLengthError(
            f"{len(too_long)} of {len(rows)} texts with their prompts take up to {max(too_long)} tokens; the context "
            f"is {weights.context_tokens}: shorten the prompts, nothing is cut",
            provider=PROVIDER,
        )


def _margin(index: int, pair: RankedPair) -> float:
    if pair.margin is None or not pair.margin >= 0:
        raise TrainingError(
            f"pair {index} has margin {pair.margin!r}, and margin_scale is set: every margin must be a number of at "
            "least 0; leave margin_scale out, or the pair"
        )
    return float(pair.margin)
