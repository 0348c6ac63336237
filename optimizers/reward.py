"""A reward model: one number for how good an answer is, learnt from ranked pairs on the model that the engine serves.

reward = train_reward(lm, pairs, RewardSettings(epochs=2), val_pairs=val_pairs)
better, worse = reward.scores([messages, messages], ["Ohio", "Utah"])
again = RewardModel.load(lm.engine, reward.name)
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.prompts import Chat
from optimizers.local_lm.serving.dispatch import out_of_memory
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.tuning.adapters import check_adapter, serving
from optimizers.local_lm.weights import Weights
from optimizers.reward_calibration import Calibration
from optimizers.reward_network import plan_batches, score_ids
from optimizers.reward_rows import RankedPair, check_length, encode_answered, encode_pairs, ranked_pairs

if TYPE_CHECKING:
    from optimizers.local_lm.training.watch import Progress
    from optimizers.reward_training import RewardSettings

__all__ = ["RankedPair", "RewardModel", "ranked_pairs", "rewards_dir", "train_reward"]


def rewards_dir(engine: LocalEngine) -> Path:
    """Where an engine's reward models lie: beside its adapters, since no prompt may be answered by one."""
    return engine.work_dir / "rewards"


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A trained head and adapter on an engine's base; `calibration` is None where no validation pairs were given.

    `record` is the folder's reward.json: settings, pairs, losses and validation by step.
    """

    engine: LocalEngine
    name: str
    head: nn.Linear
    calibration: Calibration | None
    record: dict[str, Any]

    @classmethod
    def load(cls, engine: LocalEngine, name: str) -> "RewardModel":
        """The reward model `name` of the engine's work_dir. Raises ModelError for changed files, another base."""
        folder = rewards_dir(engine) / name
        check_adapter(folder, engine.weights)
        record = json.loads((folder / "reward.json").read_text())
        told = record["calibration"]
        calibration = None if told is None else Calibration(**told)
        return cls(engine, name, _read_head(folder, engine.weights), calibration, record)

    def scores(self, messages_list: Sequence[Chat], texts: Sequence[str]) -> list[float]:
        """The reward of each text as the assistant's whole turn after its messages; higher is better, unbounded.

        Rewards compare answers to one prompt. Runs in batches, each under the engine's lock between two of its own;
        what the answers to one prompt share is computed once. Raises ModelError for lists of unequal length,
        lm15's ContextLengthError for texts that do not fit (nothing is cut).
        """
        if len(messages_list) != len(texts):
            raise ModelError(
                f"{len(messages_list)} prompts came with {len(texts)} texts; give one prompt for each text"
            )
        weights = self.engine.weights
        rows = [encode_answered(weights, *pair) for pair in zip(messages_list, texts, strict=True)]
        check_length(weights, rows)
        known: dict[str, int] = {}
        prompts = [known.setdefault(json.dumps(list(messages)), len(known)) for messages in messages_list]
        rewards = [0.0] * len(rows)
        for places in plan_batches(rows, prompts, self.engine.max_batch):
            found = self._run([rows[place] for place in places])
            for place, reward in zip(places, found, strict=True):
                rewards[place] = reward
        return rewards

    def _run(self, rows: list[list[int]]) -> list[float]:
        engine = self.engine
        try:
            with engine.weights.lock, serving(engine.weights, self.name, rewards_dir(engine)) as served:
                return score_ids(served.model, self.head, rows, engine.prefixes, self.name)
        except Exception as err:
            if not out_of_memory(err) or len(rows) == 1:
                raise
        half = len(rows) // 2  # outside the handler: its traceback would hold the failed batch's memory
        return self._run(rows[:half]) + self._run(rows[half:])


def train_reward(
    lm: dspy.LM | LocalEngine,
    pairs: Sequence[RankedPair],
    settings: "RewardSettings | None" = None,
    *,
    val_pairs: Sequence[RankedPair] = (),
    stop: threading.Event | None = None,
    report: "Callable[[Progress], None]" = lambda progress: None,
) -> RewardModel:
    """Train a reward model by the Bradley-Terry loss, -log sigmoid(reward(chosen) - reward(rejected)), and load it.

    Starts from the base, or from a copy of the adapter that `lm` names. `val_pairs` choose the weights and fit the
    calibration; none of their groups may be among those of `pairs`. `stop` ends the run at its next step. Raises
    TrainingError (pairs too long, with their count; groups on both sides; a loss that is not finite; stopped),
    ModelError. Bradley & Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155), eq. 1.
    """
    from optimizers.reward_training import RewardSettings, RewardTask, fit_reward  # trainers take seconds to import

    settings = settings or RewardSettings()
    engine = lm if isinstance(lm, LocalEngine) else getattr(lm, "engine", None)
    if not isinstance(engine, LocalEngine):
        raise TrainingError(f"{lm!r} has no weights in this process; train on an LM of local_lm(...)")
    adapter = None if isinstance(lm, LocalEngine) else engine.adapter_of(lm.model)
    if both := {pair.group for pair in pairs if pair.group} & {pair.group for pair in val_pairs}:
        raise TrainingError(
            f"{len(both)} groups are on both sides (the first: {min(both)!r}); split pairs by contract, or what is "
            "measured on val_pairs is what was learnt by heart"
        )

    def encode(some: Sequence[RankedPair]) -> Any:
        return encode_pairs(
            engine.weights, some, limit_tokens=settings.max_length_tokens, max_dropped=settings.max_dropped,
            margin_scale=settings.margin_scale,
        )  # fmt: skip

    task = RewardTask(
        weights=engine.weights,
        rows=encode(pairs),
        val=encode(val_pairs) if val_pairs else None,
        settings=settings,
        root=rewards_dir(engine),
        groups=tuple(sorted({pair.group for pair in [*pairs, *val_pairs] if pair.group})),
        parent=None if adapter is None else engine.adapters_dir / adapter,
        stop=stop or threading.Event(),
        report=report,
    )
    return RewardModel.load(engine, fit_reward(task))


def _read_head(folder: Path, weights: Weights) -> nn.Linear:
    try:
        tensor = load_file(folder / "score.safetensors", device=str(weights.device))["score.weight"]
    except (OSError, KeyError, SafetensorError) as err:
        raise ModelError(f"{folder.name!r} holds no head of a reward model ({err}); train it again") from err
    if tuple(tensor.shape) != (1, weights.hidden_size):
        raise ModelError(
            f"the head of {folder.name!r} has shape {tuple(tensor.shape)}; the base's width asks for "
            f"(1, {weights.hidden_size}): load the base it was trained on"
        )
    head = nn.Linear(weights.hidden_size, 1, bias=False)
    head.weight = nn.Parameter(tensor.float(), requires_grad=False)
    return head
