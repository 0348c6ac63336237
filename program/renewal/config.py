"""The one config of `evergreen renew` and `evergreen watch`: `evergreen.toml` in the home folder of a live program.

One real file:

    corpus = "labelled.json"            # people's labels to train and to choose on
    frozen = "frozen.json"              # people's labels that the gate decides on; nothing is ever trained on them
    contracts = "library"               # what nobody has labelled: a library of `evergreen index`, or CUADv1 JSON
    recipe = "s -> a"
    every_days = 90

    [skills]                            # what earlier releases could do, each with a test set of its own
    "house juniper" = "skills/juniper.json"

Paths count from the home folder. Not handled: whether the files are there (`renew` says so).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from program.config import ConfigError, check_types, read_table, refuse_unknown
from program.renewal.home import FILE_NAME


@dataclass(frozen=True, slots=True)
class RenewalConfig:
    """What a renewal learns from, what it may cost, and what sets one off.

    `first_recipe` makes the first release, `recipe` re-tunes weights later; where drift says that the corpus or the
    questions changed, cheaper steps are taken first (plan.py). `labels_min` new labelled questions, `feedback_min` new
    events, `contracts_min` new contracts and `every_days` set off a renewal (None: never by that). Drift does at once;
    where a renewal for it promoted nothing, drift of that kind sets off the next after `drift_days`. `check_hours` is
    how often `watch` looks. `max_minutes` and `max_memory_gib` (of the GPU where there is CUDA, else of the machine)
    bound what a renewal is estimated to take, `max_calls` the calls of the model that is paid for (`labeller`).

    With `judge` (a name of program/judging/kinds.py, or a litellm model) a sample of what is answered is judged for the
    drift watch, at most `judge_calls` answers a look, by as many new calls.
    With `shadow_answers` a candidate that passes the gate is first asked silently, beside the live release, a
    `shadow_share` of the questions, until both have answered so many; `shadow` (keys of `ShadowRules`) says what it may
    not lose, and it waits no longer than `shadow_days`. A `judge` says then which of two answers is the better one.
    `compile` takes any key of program/config.py beside those that are set here, `gate` those of `GateRules`. Raises
    ConfigError.
    """

    corpus: str
    frozen: str
    contracts: str | None = None
    skills: dict[str, str] = field(default_factory=dict)
    lm: str = "evergreen-base"
    first_recipe: str = "r -> p -> s"
    recipe: str = "s -> a"
    labeller: str | None = None
    labels_min: int | None = 100
    feedback_min: int | None = 50
    contracts_min: int | None = 20
    every_days: float | None = 90.0
    drift_days: float = 30.0
    check_hours: float = 24.0
    max_minutes: float | None = None
    max_memory_gib: float | None = None
    max_calls: int | None = None
    judge: str | None = None
    judge_calls: int = 100
    shadow_answers: int | None = None
    shadow_days: float = 14.0
    shadow_share: float = 1.0
    seed: int = 0
    compile: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    shadow: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "labels_min",
            "feedback_min",
            "contracts_min",
            "max_calls",
            "every_days",
            "drift_days",
            "check_hours",
            "max_minutes",
            "max_memory_gib",
            "judge_calls",
            "shadow_answers",
            "shadow_days",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be a finite number above 0, or be left out")
        if taken := sorted(set(self.compile) & _OURS):
            raise ConfigError(f"[compile] sets {taken}, which a renewal sets itself; say it outside of [compile]")

        if not 0 < self.shadow_share <= 1:
            raise ConfigError(f"shadow_share is {self.shadow_share}; it must be a share above 0, and 1 at most")
        if "min_pairs" in self.shadow:
            raise ConfigError("[shadow] sets min_pairs, which is shadow_answers; say it outside of [shadow]")


_OURS = {"corpus", "test_corpus", "out", "recipe", "lm", "labeller", "unlabelled", "feedback", "seed", "start_from"}


def load_renewal(home: str | Path, overrides: Mapping[str, Any] | None = None) -> RenewalConfig:
    """The config of a home folder with `overrides` on top, its paths absolute; ConfigError where it breaks a rule."""
    home = Path(home).absolute()
    path = home / FILE_NAME
    if not path.is_file():
        raise ConfigError(
            f"{home} has no {FILE_NAME}; write one with at least corpus and frozen (program/renewal/config.py)"
        )
    given = read_table(path) | {key: value for key, value in (overrides or {}).items() if value is not None}
    refuse_unknown(given, RenewalConfig)
    if missing := [key for key in ("corpus", "frozen") if key not in given]:
        raise ConfigError(f"{path} lacks {missing}; name CUADv1-format files of people's labels")
    for key in ("corpus", "frozen", "contracts"):
        if isinstance(given.get(key), str):
            given[key] = str(home / given[key])
    if isinstance(given.get("skills"), dict):
        given["skills"] = {name: str(home / str(file)) for name, file in given["skills"].items()}
    return RenewalConfig(**given)
