"""The guards against forgetting, one class each, all with the four moments of `Guard` (guards.py).

What each costs is told by what it adds: rows (the replays), a second distribution a row (KLPenalty), scores between
steps (LowRate), nothing at training time (Merge, Zoo); `Together` adds up theirs. Not handled: guards on two
predictors' LMs that must agree.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import dspy

from optimizers.errors import TrainingError
from optimizers.guard_kl import Said, engine_of, kl_per_token, sample_answers
from optimizers.local_lm.prompts import Chat
from optimizers.local_lm.tuning.merging import merge_adapters

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]
Prompts = Sequence[Chat] | Callable[[dspy.LM], Sequence[Chat]]
OVER_BUDGET = -1e9  # plus how far over: any score within the budget is better, and nearer is better than farther


@dataclass(frozen=True)
class NoGuard:
    """Training as it is; what the others are measured against, and their default at every moment."""

    @property
    def name(self) -> str:
        """What a log calls it."""
        return type(self).__name__

    def start(self, incumbent: dspy.LM) -> dspy.LM:
        """The LM that training starts from."""
        return incumbent

    def rows(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Row]:
        """Rows to mix in with `rows`."""
        return []

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """The `train_kwargs` to train with, for those `given`."""
        return dict(given)

    def after(self, incumbent: dspy.LM, tuned: dspy.LM, rows: Sequence[Row]) -> dspy.LM:
        """The LM to serve, of the two."""
        return tuned


@dataclass(frozen=True)
class ReplaySelf(NoGuard):
    """Answers that the incumbent itself gives to prompts of its earlier skills, mixed in (arXiv:2605.26097: 100 do).

    `prompts`: conversations, or a function of the incumbent to them, for instance questions that it writes itself.
    `n` are drawn, several answers to a prompt where there are fewer. Answers cut off at max_tokens are left out;
    TrainingError where those are more than `max_cut`.
    """

    prompts: Prompts
    n: int = 100
    temperature: float = 1.0
    seed: int = 0
    max_cut: float = 0.5

    def rows(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Row]:
        """As NoGuard.rows."""
        _check_shape(rows, "replay_self")
        prompts = list(self.prompts(incumbent) if callable(self.prompts) else self.prompts)
        if not prompts or self.n < 1:
            raise TrainingError(f"replay_self has {len(prompts)} prompts and n={self.n}; give at least one of each")
        Random(self.seed).shuffle(prompts)
        drawn = (prompts * math.ceil(self.n / len(prompts)))[: self.n]
        said = sample_answers(incumbent, drawn, temperature=self.temperature, seed=self.seed)
        cut = sum(not one.whole for one in said)
        if cut > self.max_cut * len(said):
            raise TrainingError(
                f"{cut} of {len(said)} replayed answers did not end within max_tokens; raise max_tokens, or replay "
                "other prompts"
            )
        return [{"messages": [*one.chat, {"role": "assistant", "content": one.text}]} for one in said if one.whole]


@dataclass(frozen=True)
class ReplayLabels(NoGuard):
    """Labelled rows of earlier skills, mixed in so that they are `share` of all rows (experience replay).

    `earlier` are rows as the training of those skills had them. Each stands there at most once: TrainingError where
    they are too few for the share, rather than another share than was asked for.
    """

    earlier: Sequence[Row]
    share: float = 0.2
    seed: int = 0

    def rows(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Row]:
        """As NoGuard.rows."""
        _check_shape(rows, "replay_labels")
        if not 0 < self.share < 1:
            raise TrainingError(f"share={self.share!r} is of all rows: above 0 and below 1")
        n = math.ceil(self.share / (1 - self.share) * len(rows))
        if n > len(self.earlier):
            raise TrainingError(
                f"share={self.share} beside {len(rows)} rows takes {n} earlier ones of {len(self.earlier)}; "
                "give more, or lower the share"
            )
        return Random(self.seed).sample(list(self.earlier), n)


@dataclass(frozen=True)
class KLPenalty(NoGuard):
    """`beta` times KL(incumbent || model) on the rows' own tokens in the loss (training/anchored.py)."""

    beta: float = 1.0

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """As NoGuard.train_kwargs."""
        if (method := given.get("method", "sft")) != "sft":
            raise TrainingError(f"the guard 'kl' is for method 'sft', not {method!r}, which has its own reference")
        if not self.beta > 0:
            raise TrainingError(f"beta={self.beta!r} must be above 0; without a penalty use the guard 'none'")
        return {**given, "kl_beta": self.beta}


@dataclass(frozen=True)
class OSFGuard(NoGuard):
    """Orthogonal subspace fine-tuning (Nayak et al. 2025): the strongest `kept` share of directions stays frozen.

    Options of another tuner are dropped. An incumbent with an adapter must be an OSF one itself (the provider refuses
    any other): start the sequence with it.
    """

    kept: float = 0.5
    learning_rate: float | None = None

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """As NoGuard.train_kwargs."""
        drop = {"rank", "alpha", "dropout", "target_modules", "learning_rate"}
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        kept = {key: value for key, value in given.items() if key not in drop}
        return {**kept, **rate, "tuner": "osf", "kept": self.kept}


@dataclass(frozen=True)
class LowRate(NoGuard):
    """`factor` of the learning rate, and an end before KL(incumbent || model) on the new task exceeds `kl_budget`.

    KL in nats per token, over the incumbent's own answers to `n_prompts` of the rows' prompts, every `every_steps`
    steps. Of the candidates within the budget the one with the caller's best `validate` score is kept, or, without
    one, the farthest. Where even the first is over it, the incumbent stays and a warning says so.
    """

    factor: float = 0.2
    kl_budget: float = 0.05
    every_steps: int = 10
    n_prompts: int = 24
    seed: int = 0

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """As NoGuard.train_kwargs."""
        if not (self.factor > 0 and self.kl_budget > 0):
            raise TrainingError(f"factor={self.factor!r} and kl_budget={self.kl_budget!r} must be above 0")
        said, theirs = self._answers(incumbent, rows), given.get("validate")

        def validate(model: str) -> float:
            kl = fmean(kl_per_token(incumbent, incumbent.copy(model=model), said))
            if kl > self.kl_budget:
                return OVER_BUDGET - kl
            return kl if theirs is None else theirs(model)

        return {
            **given,
            "learning_rate": self.factor
            * (given.get("learning_rate") or incumbent.provider.learning_rate(incumbent.model, given)),
            "validate": validate,
            "validate_steps": given.get("validate_steps") or self.every_steps,
            "patience": given.get("patience") or 2,
            "keep": "best",
        }

    def after(self, incumbent: dspy.LM, tuned: dspy.LM, rows: Sequence[Row]) -> dspy.LM:
        """As NoGuard.after."""
        kl = fmean(kl_per_token(incumbent, tuned, self._answers(incumbent, rows)))
        if kl <= self.kl_budget:
            return tuned
        logger.warning("%s is %.4f nats away, budget %.4f: the incumbent stays", tuned.model, kl, self.kl_budget)
        return incumbent

    def _answers(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Said]:
        _check_shape(rows, "low_rate")
        prompts = [prompt_of(row) for row in rows]
        drawn = Random(self.seed).sample(prompts, min(self.n_prompts, len(prompts)))
        return sample_answers(incumbent, drawn, seed=self.seed)


@dataclass(frozen=True)
class Merge(NoGuard):
    """The tuned adapter averaged with the incumbent's, `weight` being the tuned one's share (tuning/merging.py)."""

    weight: float = 0.5
    rank: int | None = None

    def after(self, incumbent: dspy.LM, tuned: dspy.LM, rows: Sequence[Row]) -> dspy.LM:
        """As NoGuard.after."""
        if tuned.model == incumbent.model:  # what LowRate beside it gives back, where nothing is within its budget
            return incumbent
        engine = engine_of(incumbent)
        before, trained = engine.adapter_of(incumbent.model), engine.adapter_of(tuned.model)
        if trained is None:
            raise TrainingError(f"{tuned.model!r} has no adapter to average; train one first")
        name = merge_adapters(engine.weights, engine.adapters_dir, before, trained, self.weight, rank=self.rank)
        return tuned.copy(model=engine.model_string(name))


@dataclass(frozen=True)
class Zoo(NoGuard):
    """One adapter a skill, each trained from the bare base; guard_zoo.py routes among them. The baseline to beat."""

    def start(self, incumbent: dspy.LM) -> dspy.LM:
        """As NoGuard.start."""
        return incumbent.copy(model=engine_of(incumbent).model_string())


@dataclass(frozen=True)
class Together(NoGuard):
    """Several guards around one training, one after the other at each moment: earlier labels and a KL penalty, say."""

    guards: tuple[NoGuard, ...]

    @property
    def name(self) -> str:
        """As NoGuard.name."""
        return "+".join(guard.name for guard in self.guards)

    def start(self, incumbent: dspy.LM) -> dspy.LM:
        """As NoGuard.start."""
        for guard in self.guards:
            incumbent = guard.start(incumbent)
        return incumbent

    def rows(self, incumbent: dspy.LM, rows: Sequence[Row]) -> list[Row]:
        """As NoGuard.rows."""
        return [row for guard in self.guards for row in guard.rows(incumbent, rows)]

    def train_kwargs(self, incumbent: dspy.LM, rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
        """As NoGuard.train_kwargs."""
        for guard in self.guards:
            given = guard.train_kwargs(incumbent, rows, given)
        return dict(given)

    def after(self, incumbent: dspy.LM, tuned: dspy.LM, rows: Sequence[Row]) -> dspy.LM:
        """As NoGuard.after."""
        for guard in self.guards:
            tuned = guard.after(incumbent, tuned, rows)
        return tuned


def prompt_of(row: Row) -> list[dict[str, str]]:
    """The conversation of a row of method "sft" up to its last answer."""
    if "messages" in row:
        return [dict(turn) for turn in row["messages"][:-1]]
    said = row["prompt"]
    return [{"role": "user", "content": said}] if isinstance(said, str) else [dict(turn) for turn in said]


def _check_shape(rows: Sequence[Row], guard: str) -> None:
    for row in rows:
        if "messages" not in row and not {"prompt", "completion"} <= set(row):
            raise TrainingError(f"the guard {guard!r} is for rows of method 'sft', and one has keys {sorted(row)}")
