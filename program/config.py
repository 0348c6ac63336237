"""The one config of `evergreen compile`: frozen, checked when made, saved with the run.

One real row: `CompileConfig(corpus="CUADv1.json", lm="evergreen-base", recipe="r -> p -> s", seed=0,
out="runs/first")`.
Not handled here: whether the paths exist, and which steps a recipe's letters name (`program/recipes.py`).
"""

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any

from program.runs import read_run

# Of optimizers/guards.py; "zoo" is a program of many adapters, and none that one run can hold.
GUARDS = ("none", "replay_self", "replay_labels", "kl", "osf", "low_rate", "merge")
# What a run that is started from another takes over of it: its weights and its retrieval were made for these.
INHERITED = ("lm", "quantize", "max_tokens", "k_passages", "max_chars")
_RECIPE = re.compile(r"\w+( -> \w+)*")


class ConfigError(ValueError):
    """A config file or option breaks a rule; the message gives the value, the rule and what to do."""


@dataclass(frozen=True, slots=True)
class CompileConfig:
    """What one compile run is made of; every field can stand in a TOML or JSON file or be given on the command line.

    `corpus` and `test_corpus` are CUADv1-format files; without `test_corpus` the test contracts are split off `corpus`.
    `max_chars` bounds one passage, in characters; `max_contracts`, `max_train_questions` and `max_val_questions` take
    everything where None; `val_share` of the contracts are chosen on (None: a fifth, a quarter with a `test_corpus`);
    `learning_rate` None is the tuner's own for the model's width; `threads` is how many
    questions are in flight; `quantize` is auto (nf4 for a large model on CUDA), nf4 or none; `max_tokens` bounds one
    completion. With `unlabelled`, a CUADv1-format file or a library of `evergreen index`, a step s labels those
    contracts too and learns from what it trusts, in up to `label_rounds` rounds, as `label_settings` (a table
    of keys of program/label_settings.py) says; `labeller` is a litellm model that labels in the place of the model
    itself. A step a learns from `feedback`, the store that `evergreen serve` keeps,
    and from pairs of a `judge` (likelihood, compare, pairwise, points, or a litellm model) whose report speaks for it,
    by `preference_method` (dpo, orpo, kto or cpo), in `preference_rounds` rounds; up to `preference_contrast` samples
    are drawn for each answer that people called good, and the first that contradicts it is rejected in a pair (0:
    none); `preference_max_kl` bounds how far a round may go, in nats per token (None: without). `varied_rows` is the
    share of a step s's rows that are not the served prompt: a third each in other words, behind a demonstration, and as
    conversations.

    `start_from` is a complete run, whose program (prompts, weights, retrieval) is compiled on, in the place of the
    plain base. `guard` keeps a step s from unlearning what the program could do before it (GUARDS, several joined by
    "+"); the replays draw on `earlier`, a CUADv1-format file of labels learnt before, or else on what the run started
    from has learnt from, `replay_labels` so that they are `replay_share` of all rows. `kl_beta` is the weight of the
    guard kl (None: 1, and 0.3 beside a replay).

    Scores are taken after "all" steps, or with `score_stages` "chosen" only of the program that it starts from and of
    the one that validation chose, and none at all where that is the same. Raises ConfigError.
    """

    corpus: str
    test_corpus: str | None = None
    lm: str = "evergreen-base"
    quantize: str = "auto"
    max_tokens: int = 512
    recipe: str = "r -> p -> s"
    seed: int = 0
    k_passages: int = 4
    max_chars: int = 600
    max_contracts: int | None = None
    max_train_questions: int | None = 400
    max_val_questions: int | None = 80
    val_share: float | None = None
    threads: int = 32
    sft_epochs: float = 2.0
    batch_size: int = 4
    learning_rate: float | None = None
    rank: int = 16
    varied_rows: float = 0.0
    unlabelled: str | None = None
    labeller: str | None = None
    label_rounds: int = 2
    label_settings: dict[str, Any] = field(default_factory=dict)
    feedback: str | None = None
    judge: str | None = None
    preference_method: str = "dpo"
    preference_rounds: int = 1
    preference_contrast: int = 0
    preference_max_kl: float | None = 0.5
    start_from: str | None = None
    guard: str = "none"
    earlier: str | None = None
    replay_share: float = 0.3
    kl_beta: float | None = None
    score_stages: str = "all"
    out: str = "runs/compile"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def guards(self) -> tuple[str, ...]:
        """The words of `guard`."""
        return tuple(self.guard.split("+"))


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> CompileConfig:
    """The config of a .toml or .json file with `overrides` on top; an override of None counts as not given.

    With `start_from` the keys INHERITED are that run's where they are not given. An unknown key, a wrong type or a
    value out of range raises ConfigError, and so does a file that cannot be read; RunError for a `start_from` that is
    no run.
    """
    given = {} if path is None else read_table(Path(path))
    given |= {key: value for key, value in (overrides or {}).items() if value is not None}
    refuse_unknown(given, CompileConfig)
    if "corpus" not in given:
        raise ConfigError("no corpus is given; name a CUADv1-format file with --corpus or the key corpus")
    if isinstance(run := given.get("start_from"), str):
        theirs = read_run(run).config
        given = {key: theirs[key] for key in INHERITED if key in theirs} | given
    return CompileConfig(**given)


def to_json(config: CompileConfig) -> str:
    """The resolved config as JSON; `load_config` of a file with it gives an equal config."""
    return json.dumps(asdict(config), indent=2) + "\n"


def refuse_unknown(given: Mapping[str, Any], config: type) -> None:
    """Raise ConfigError for a key that is no field of the config, with the field that it is most like."""
    known = [field.name for field in fields(config)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown config key {key!r}; {hint}")


def read_table(path: Path) -> dict[str, Any]:
    """The keys and values of a .toml or .json file; ConfigError for another, or one that cannot be read."""
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise ConfigError(f"config file {path} ends in {path.suffix!r}; write it as .toml or .json")
    try:
        content = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"config file {path} holds a {type(content).__name__}; it must hold one table of keys and values"
        )
    return content


def check_types(config: Any) -> None:
    """Raise ConfigError for a field of a frozen config that is of another type than its hint, or an empty text."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        hints = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = tuple(typing.get_origin(each) or each for each in hints)  # dict, of dict[str, str]
        if float in allowed and type(value) is int:  # TOML writes 3 for 3.0
            value = float(value)
            object.__setattr__(config, name, value)
        if type(value) not in allowed:  # exact types: True is an int to isinstance
            wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); it must be {wanted}")
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{name} is empty; give a value or leave the key out")


def _check(config: CompileConfig) -> None:
    check_types(config)
    for name in (
        "k_passages",
        "max_chars",
        "max_tokens",
        "threads",
        "batch_size",
        "rank",
        "label_rounds",
        "preference_rounds",
        "max_contracts",
        "max_train_questions",
        "max_val_questions",
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if config.preference_contrast < 0:
        raise ConfigError(f"preference_contrast is {config.preference_contrast}; it is samples a question: 0 or more")
    for name in ("sft_epochs", "learning_rate", "preference_max_kl", "kl_beta"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be a finite number above 0")
    if config.quantize not in ("auto", "nf4", "none"):
        raise ConfigError(f"quantize is {config.quantize!r}; it must be auto, nf4 or none")
    if config.preference_method not in ("dpo", "orpo", "kto", "cpo"):
        raise ConfigError(f"preference_method is {config.preference_method!r}; it must be dpo, orpo, kto or cpo")
    words = config.guards
    if not set(words) <= set(GUARDS) or (len(words) > 1 and ("none" in words or len(set(words)) < len(words))):
        raise ConfigError(
            f"guard is {config.guard!r}; it must be one of {', '.join(GUARDS)}, or several of them, each once, joined "
            "by '+'"
        )
    if config.score_stages not in ("all", "chosen"):
        raise ConfigError(f"score_stages is {config.score_stages!r}; it must be all or chosen")
    if not 0 < config.replay_share < 1:
        raise ConfigError(f"replay_share is {config.replay_share}; it is of all rows: above 0 and below 1")
    if not 0 <= config.varied_rows <= 1:
        raise ConfigError(f"varied_rows is {config.varied_rows}; it is a share of all rows: from 0 to 1")
    if config.val_share is not None and not 0 < config.val_share < 0.8:
        raise ConfigError(f"val_share is {config.val_share}; it is of all contracts: above 0 and below 0.8")
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}; it must be 0 or more")
    if not _RECIPE.fullmatch(config.recipe):
        raise ConfigError(f"recipe is {config.recipe!r}; write steps joined by ' -> ', as in 'r -> p -> s'")
