"""Training rows, as DSPy or a user gives them, to token ids: what is learnt, what is masked, what does not fit.

    sft      {"messages": [... the assistant last]}, or {"prompt", "completion"}, each a string or messages
    dpo orpo cpo {"prompt", "chosen", "rejected"}; dpo, all rows or none, {"ref_chosen_logps", "ref_rejected_logps"};
             "rejected" None for an answer that is good by itself, of which the loss's likelihood term alone learns
    kto      {"prompt", "completion", "label": True | False}
    distill  {"prompt", "completion", "teacher_prompt"}
    sdft     {"prompt", "teacher_prompt"}: what is learnt from is what the student then says

Any row may carry "group" (rows of one group stay on one side of a validation split) and "difficulty" (for the order),
and one of sft "loss_on", where it is another than the settings': conversations among prompts with demonstrations.
A row longer than the limit is left out and counted, never cut: cut, it would lose its question or its answer's end.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from optimizers.errors import TrainingError
from optimizers.local_lm.prompts import Chat, encode_completion, encode_prompt
from optimizers.local_lm.training.settings import LOSS_ON, TrainSettings
from optimizers.local_lm.weights import Weights

Ids = dict[str, Any]
# A pair's summed log probabilities (nats) under a reference other than the model that training starts from.
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class Rows:
    """Encoded rows: `columns[i]` of what was given at `source[i]`; the rest was too long (`too_long`) or is counted.

    `split` conversations could not be trained in one pass: their template writes earlier answers in another way.
    """

    columns: tuple[Ids, ...]
    source: tuple[int, ...]
    groups: tuple[str, ...]
    difficulty: tuple[float | None, ...]
    too_long: tuple[int, ...]
    given: int
    split: int = 0

    def pick(self, chosen: Sequence[int]) -> "Rows":
        """These rows alone, in this order."""
        parts = (tuple(part[i] for i in chosen) for part in (self.columns, self.source, self.groups, self.difficulty))
        return Rows(*parts, self.too_long, self.given, self.split)


def n_tokens(columns: Ids) -> int:
    """Tokens that a training step reads for one row."""
    prompt = len(columns.get("prompt_ids", ()))
    if "max_tokens" in columns:
        return prompt + len(columns["teacher_ids"])
    if "chosen_ids" in columns:
        return 2 * prompt + len(columns["chosen_ids"]) + len(columns["rejected_ids"])
    return len(columns["input_ids"]) if "input_ids" in columns else prompt + len(columns["completion_ids"])


def longest(columns: Ids) -> int:
    """Tokens of the longest sequence that a row brings to the model."""
    if "input_ids" in columns:
        return len(columns["input_ids"])
    prompt = max(len(columns["prompt_ids"]), len(columns.get("teacher_ids", ())))
    answers = ("chosen_ids", "rejected_ids", "completion_ids")
    return prompt + max((len(columns[name]) for name in answers if name in columns), default=columns.get("max_tokens"))


def encode(weights: Weights, given: Sequence[Mapping[str, Any]], settings: TrainSettings) -> Rows:
    """Encode rows for `settings.method`, every row checked, long ones left out.

    Raises TrainingError for a row of another shape, no rows, and more than `max_dropped` too long.
    """
    if not given:
        raise TrainingError("nothing to train on: no rows came; if a metric filtered them, look at what it refused")
    limit = context_limit(weights, settings)
    encoder = _ENCODERS[settings.method]
    kept: list[tuple[Ids, int, str, float | None]] = []
    too_long, split = [], 0
    for index, row in enumerate(given):
        row = dict(row)
        group, difficulty = str(row.pop("group", index)), row.pop("difficulty", None)
        encoded = encoder(weights, index, row, settings)
        split += len(encoded) > 1
        if any(longest(columns) > limit for columns in encoded):
            too_long.append(index)
            continue
        kept += [(columns, index, group, difficulty) for columns in encoded]
    _check_dropped(len(given), len(kept), len(too_long), limit, settings)
    if len({REFERENCE[0] in columns for columns, *_ in kept}) > 1:
        raise TrainingError(f"some rows carry {REFERENCE} and some do not; give all of them, or none")
    parts = zip(*kept, strict=True)
    return Rows(*(tuple(part) for part in parts), tuple(too_long), len(given), split)


def context_limit(weights: Weights, settings: TrainSettings) -> int:
    """The longest sequence that may be trained on, in tokens."""
    return min(settings.max_length_tokens or weights.context_tokens, weights.context_tokens)


def digest(rows: Rows) -> str:
    """sha256 over everything that is learnt from, hex."""
    return sha256(json.dumps([rows.columns, rows.groups, rows.difficulty], sort_keys=True).encode()).hexdigest()


def _check_dropped(given: int, kept: int, too_long: int, limit: int, settings: TrainSettings) -> None:
    if not kept:
        raise TrainingError(
            f"nothing to train on: {given} rows came, {too_long} of them above {limit} tokens; "
            "if a metric filtered the rows, look at what it refused"
        )
    if too_long > settings.max_dropped * given:
        raise TrainingError(
            f"{too_long} of {given} training rows exceed {limit} tokens, above the allowed share of "
            f"{settings.max_dropped:.0%} (max_dropped); shorten them, or raise max_length_tokens if the context allows"
        )


def _sft(weights: Weights, index: int, row: Mapping[str, Any], settings: TrainSettings) -> list[Ids]:
    row = dict(row)
    loss_on = row.pop("loss_on", settings.loss_on)
    if loss_on not in LOSS_ON:
        raise TrainingError(f"training row {index} has loss_on={loss_on!r}; use one of {', '.join(LOSS_ON)}")
    if set(row) == {"prompt", "completion"}:
        chat = _turns(row["prompt"], "user") + _turns(row["completion"], "assistant")
    elif set(row) == {"messages"}:
        chat = [dict(turn) for turn in row["messages"]]
    else:
        raise _wrong_keys(index, row, "'messages', or 'prompt' and 'completion'")
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        raise TrainingError(
            f"training row {index} has roles {[turn['role'] for turn in chat]}; the last must be the assistant's answer"
        )
    answers = [place for place, turn in enumerate(chat) if turn["role"] == "assistant" and place]
    if loss_on == "last" or len(answers) == 1:
        return [_answered(weights, chat)]
    whole = _every_turn(weights, chat, answers)
    return [whole] if whole else [_answered(weights, chat[: place + 1]) for place in answers]


def _answered(weights: Weights, chat: Chat) -> Ids:
    prompt = encode_prompt(weights, chat[:-1])
    answer = encode_completion(weights, chat[:-1], chat[-1]["content"], with_end=True)
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _every_turn(weights: Weights, chat: Chat, answers: Sequence[int]) -> Ids | None:
    """The whole conversation with a label on every answer's tokens; None if the template does not render it as a
    sequence in which each turn's prompt and answer are a prefix of the next one's."""
    ids: list[int] = []
    labels: list[int] = []
    for place in answers:
        prompt = encode_prompt(weights, chat[:place])
        answer = encode_completion(weights, chat[:place], chat[place]["content"], with_end=True)
        if prompt[: len(ids)] != ids:
            return None
        labels += [-100] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
    return {"input_ids": ids, "labels": labels}


def _pair(weights: Weights, index: int, row: Mapping[str, Any], settings: TrainSettings) -> list[Ids]:
    given = {name: row[name] for name in REFERENCE if name in row} if settings.method == "dpo" else {}
    _need(index, row, {"prompt", "chosen", "rejected", *(REFERENCE if given else ())})
    prompt = _turns(row["prompt"], "user")
    if alone := row["rejected"] is None:  # a pair with itself: what compares the two is constant, its gradient zero
        _has_likelihood(index, settings)
        row = {**row, "rejected": row["chosen"]}
    chosen, rejected = (_text(index, name, row[name]) for name in ("chosen", "rejected"))
    if chosen == rejected and not alone:
        raise TrainingError(f"training row {index} prefers {chosen[:60]!r} to itself; leave ties out")
    ids = {"prompt_ids": encode_prompt(weights, prompt), **{name: float(value) for name, value in given.items()}}
    for name, text in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        ids[name] = encode_completion(weights, prompt, text, with_end=True)
    return [ids]


def _has_likelihood(index: int, settings: TrainSettings) -> None:
    terms = {
        "dpo": lambda: "sft" in settings.loss_type,
        "cpo": lambda: settings.loss_type != "simpo" and settings.cpo_alpha > 0,
    }
    if not terms.get(settings.method, lambda: True)():
        raise TrainingError(
            f"training row {index} has no rejected answer, and {settings.method!r} as it is set has no likelihood term "
            "to learn from it; add one (loss_type 'sft', cpo_alpha), or leave the row out"
        )


def _rated(weights: Weights, index: int, row: Mapping[str, Any], settings: TrainSettings) -> list[Ids]:
    _need(index, row, {"prompt", "completion", "label"})
    if not isinstance(row["label"], bool):
        raise TrainingError(f"training row {index} has label {row['label']!r}; it must be True (good) or False (bad)")
    prompt = _turns(row["prompt"], "user")
    answer = encode_completion(weights, prompt, _text(index, "completion", row["completion"]), with_end=True)
    return [{"prompt_ids": encode_prompt(weights, prompt), "completion_ids": answer, "label": row["label"]}]


def _distilled(weights: Weights, index: int, row: Mapping[str, Any], settings: TrainSettings) -> list[Ids]:
    _need(index, row, {"prompt", "completion", "teacher_prompt"})
    prompt, teacher = _turns(row["prompt"], "user"), _turns(row["teacher_prompt"], "user")
    answer = encode_completion(weights, prompt, _text(index, "completion", row["completion"]), with_end=True)
    return [
        {
            "prompt_ids": encode_prompt(weights, prompt),
            "completion_ids": answer,
            "teacher_ids": encode_prompt(weights, teacher),
        }
    ]


def _self_distilled(weights: Weights, index: int, row: Mapping[str, Any], settings: TrainSettings) -> list[Ids]:
    """No answer yet, but room for one of `max_tokens`, and the token that ends it."""
    _need(index, row, {"prompt", "teacher_prompt"})
    prompt, teacher = _turns(row["prompt"], "user"), _turns(row["teacher_prompt"], "user")
    ids = {"prompt_ids": encode_prompt(weights, prompt), "teacher_ids": encode_prompt(weights, teacher)}
    if ids["prompt_ids"] == ids["teacher_ids"]:
        raise TrainingError(
            f"training row {index} has one prompt for teacher and student: the teacher knows nothing that the student "
            "does not; put the demonstration into its prompt"
        )
    return [ids | {"end_ids": encode_completion(weights, prompt, "", with_end=True), "max_tokens": settings.max_tokens}]


_ENCODERS: dict[str, Callable[..., list[Ids]]] = {
    "sft": _sft,
    "dpo": _pair,
    "orpo": _pair,
    "cpo": _pair,
    "kto": _rated,
    "distill": _distilled,
    "sdft": _self_distilled,
}


def _need(index: int, row: Mapping[str, Any], keys: set[str]) -> None:
    if set(row) != keys:
        raise _wrong_keys(index, row, " and ".join(sorted(keys)))


def _wrong_keys(index: int, row: Mapping[str, Any], wanted: str) -> TrainingError:
    return TrainingError(f"training row {index} has keys {sorted(row)}; give {wanted}")


def _turns(said: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": said}] if isinstance(said, str) else [dict(turn) for turn in said]


def _text(index: int, name: str, said: Any) -> str:
    if isinstance(said, str):
        return said
    turns = list(said)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise TrainingError(f"training row {index}: {name} must be a string or one assistant message, not {turns}")
    return turns[0]["content"]
