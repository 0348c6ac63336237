"""DSPy's GRPO groups as token ids: each rollout found again among the engine's raw completions, so that the model is
trained on the prompt it was asked with and on the very tokens it said.

What arrives is `{"messages", "completion": {"role", "content"}, "reward"}`, rendered anew from parsed fields, without
demonstrations, and by an adapter that need not be the rollouts'. It is matched with what the engine logged since the
last step by the first of these that agrees, entries not yet taken first, newest first:

    1. system text, last user message, raw text          2. the same, and the output fields
    3. input fields and output fields                    4. raw text, where one prompt alone was answered with it
    5. of what is left over of a prompt: the one rollout and the one entry with the same names of output fields

"Fields" are names and values under ChatAdapter's or XMLAdapter's markers, without white space and case.
A rollout without a match (another engine's) is trained on as it was rendered, and counted.
"""

import html
import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizers.errors import TrainingError
from optimizers.local_lm.prompts import encode_completion, encode_prompt
from optimizers.local_lm.serving.engine import Completion
from optimizers.local_lm.weights import Weights

HEADER = re.compile(r"^\s*\[\[ ## (\w+) ## \]\]", re.MULTILINE)
ELEMENT = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)
REQUEST = "Respond with the corresponding output fields"

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One answer to one prompt and its reward; `said` is the engine's log entry, None if there was none.

    `completion_ids` end with the end-of-turn token unless the answer was `truncated` or cut at a stop string.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reward: float
    truncated: bool
    said: Completion | None


def read_groups(train_data: Sequence[Any]) -> list[list[Item]]:
    """The groups of a `step` call, each rollout once. Raises TrainingError for rows of another shape.

    dspy.GRPO fills a short group up by repeating its rollouts, the same objects: an object counts once.
    """
    groups = []
    for index, row in enumerate(train_data):
        group = row.get("group") if isinstance(row, Mapping) else row
        if not isinstance(group, Sequence) or not group:
            raise TrainingError(f"group {index} is {row!r}; give {{'batch_id': …, 'group': [rollouts]}}, not empty")
        groups.append(list({id(item): _checked(index, item) for item in group}.values()))
    if not groups:
        raise TrainingError("nothing to train on: no groups came")
    return groups


def _checked(index: int, item: Any) -> Item:
    try:
        said, reward, chat = item["completion"], float(item["reward"]), item["messages"]
        fine = chat and isinstance(said["content"], str) and all({"role", "content"} <= set(turn) for turn in chat)
    except (KeyError, TypeError, ValueError) as err:
        raise TrainingError(
            f"a rollout of group {index} is {item!r}; give {{'messages': [...], 'completion': {{'role': 'assistant', "
            "'content': …}, 'reward': a number}"
        ) from err
    if not fine:
        raise TrainingError(f"a rollout of group {index} has no messages or no text: {item!r}")
    if not math.isfinite(reward):
        raise TrainingError(f"a rollout of group {index} has reward {reward}; let the metric return finite numbers")
    return item


def encode_groups(weights: Weights, groups: Sequence[Sequence[Item]], log: Sequence[Completion]) -> list[list[Rollout]]:
    """Token ids of every rollout: the engine's own where `log` (oldest first) has it, else of the text as rendered."""
    items = [item for group in groups for item in group]
    said = iter(match(items, log))
    return [[_encode(weights, item, next(said)) for item in group] for group in groups]


def _encode(weights: Weights, item: Item, said: Completion | None) -> Rollout:
    reward = float(item["reward"])
    if said is None:
        chat, text = item["messages"], item["completion"]["content"]
        answer = encode_completion(weights, chat, text, with_end=True)
        return Rollout(tuple(encode_prompt(weights, chat)), tuple(answer), reward, False, None)
    prompt = tuple(encode_prompt(weights, said.chat))
    whole = weights.tokenizer.decode(said.ids, skip_special_tokens=True) == said.text
    end = ()
    if said.finish_reason == "stop" and whole:  # at a stop string the text is shorter than its tokens, and no end came
        end = tuple(encode_completion(weights, said.chat, "", with_end=True)[-1:])
    return Rollout(prompt, said.ids + end, reward, said.finish_reason == "length", said)


def match(items: Sequence[Item], log: Sequence[Completion]) -> list[Completion | None]:
    """The log entry behind each item, None where there is none; see the module's docstring for the rule."""
    found: list[Completion | None] = [None] * len(items)
    taken: set[int] = set()
    for key, one_prompt in TIERS:
        open_items = [at for at, entry in enumerate(found) if entry is None]
        if not open_items:
            break
        shelf = _shelf(log, key)
        for at in open_items:
            entries = shelf.get(key(*_rendered(items[at])), [])
            if one_prompt and len({_turns(entry.chat) for entry in entries}) > 1:
                continue
            found[at] = next((entry for entry in entries if id(entry) not in taken), entries[0] if entries else None)
            taken.add(id(found[at]))
    _leftovers(items, log, found, taken)
    return found


def _shelf(log: Sequence[Completion], key: Callable[..., Hashable]) -> dict[Hashable, list[Completion]]:
    shelf: dict[Hashable, list[Completion]] = defaultdict(list)
    for entry in reversed(log):
        shelf[key(*_said(entry))].append(entry)
    return shelf


def _leftovers(
    items: Sequence[Item], log: Sequence[Completion], found: list[Completion | None], taken: set[int]
) -> None:
    asked: dict[Hashable, list[int]] = defaultdict(list)
    for at, entry in enumerate(found):
        if entry is None:
            asked[_outline(*_rendered(items[at]))].append(at)
    shelf = _shelf([entry for entry in log if id(entry) not in taken], _outline)
    for key, places in asked.items():
        if key[1] != {""} and len(places) == len(shelf.get(key, [])) == 1:
            found[places[0]] = shelf[key][0]


def fields_of(text: str) -> frozenset[tuple[str, str]]:
    """Names and values under an adapter's markers, without white space and case; of a text without any, the text."""
    text = text[: text.rfind(REQUEST)] if REQUEST in text else text
    marks = list(HEADER.finditer(text))
    fields: dict[str, str] = {}
    for at, mark in enumerate(marks):
        fields.setdefault(mark[1], text[mark.end() : marks[at + 1].start() if at + 1 < len(marks) else None])
    fields.pop("completed", None)
    if not fields:
        fields = {name: html.unescape(value) for name, value in ELEMENT.findall(text)} or {"": text}
    return frozenset((name, "".join(value.split()).casefold()) for name, value in fields.items())


def _turns(chat: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in chat)


def _ends(chat: Sequence[Mapping[str, str]]) -> Hashable:
    """System text and last message: all of a prompt but its demonstrations."""
    first, last = chat[0], chat[-1]
    return (first["content"].strip() if first["role"] == "system" else None), last["content"].strip()


def _outline(chat: Sequence[Mapping[str, str]], text: str) -> tuple[Hashable, frozenset[str]]:
    return _ends(chat), frozenset(name for name, _ in fields_of(text))


def _rendered(item: Item) -> tuple[Sequence[Mapping[str, str]], str]:
    return item["messages"], item["completion"]["content"]


def _said(entry: Completion) -> tuple[Sequence[Mapping[str, str]], str]:
    return entry.chat, entry.text


# Keys of a prompt and its answer, from the strictest; and whether the key must belong to one prompt alone.
TIERS: tuple[tuple[Callable[[Sequence[Mapping[str, str]], str], Hashable], bool], ...] = (
    (lambda chat, text: (_ends(chat), text.strip()), False),
    (lambda chat, text: (_ends(chat), fields_of(text)), False),
    (lambda chat, text: (fields_of(chat[-1]["content"]), fields_of(text)), False),
    (lambda chat, text: text.strip(), True),
)
