"""How to train: one frozen config per objective, apart from the trainers so that reading it costs no import of one.

`train_kwargs` of DSPy are flat: keys of the objective (`method`) and of the tuner (`tuner`, tuning/tuners.py) side by
side, for instance {"method": "dpo", "beta": 0.1, "tuner": "lora", "rank": 8, "learning_rate": 2e-4}.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from optimizers.errors import TrainingError

ORDERS = ("random", "easy_to_hard", "given")
LOSS_ON = ("last", "every")
KEEP = ("best", "last")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
ON_POLICY_DIVERGENCES = (*DIVERGENCES, "sampled")
TEACHERS = ("frozen", "ema", "live")
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "robust", "sft", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
CPO_LOSSES = ("sigmoid", "simpo")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What every objective shares; the defaults suit a few hundred rows.

    `tuner` None: that of the adapter training goes on from, else "lora" (on an nf4 base that is QLoRA). `epochs` or, if
    above 0, `max_steps`. `learning_rate` None: the tuner's own. `max_length_tokens` None: the model's context; longer
    rows are left out and counted, above `max_dropped` (a share of the rows) training is refused. `bf16` None: wherever
    the hardware has it. `order` "easy_to_hard" sorts by a row's "difficulty" or, without one, by the loss of the model
    it starts from.

    `val_share` above 0 puts that share of the rows' groups aside (a row's "group", for instance its contract; without
    one each row is its own) and scores it every `validate_steps` steps (0: every epoch). `validate`, a function of a
    model string that returns a score (higher is better), is asked instead of the validation loss. After `patience`
    scores without a better one training ends (0: never early); `keep` says which weights come out. `search`: number of
    Optuna trials over learning rate, rank and epochs before the run.

    Checkpoints every `checkpoint_steps`; a killed job goes on from its last whole one when the same call is made again
    (`resume`).
    """

    rate_factor: ClassVar[float] = 1.0  # of the tuner's learning rate, where none is given

    method: str
    name: str
    tuner: str | None = None
    epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_length_tokens: int | None = None
    max_dropped: float = 0.1
    order: str = "random"
    val_share: float = 0.0
    validate: Callable[[str], float] | None = field(default=None, compare=False)
    validate_steps: int = 0
    patience: int = 0
    keep: str = "best"
    checkpoint_steps: int = 100
    resume: bool = True
    search: int = 0
    seed: int = 0
    bf16: bool | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainSettings):
    """Supervised fine-tuning on completion tokens only.

    `loss_on` "last": the conversation's last answer, since the earlier ones of a DSPy prompt are demonstrations.
    "every": all assistant turns in one pass; for real conversations. `kl_beta` above 0 adds that much of the KL from
    the weights training starts from, on the same tokens, over their `kl_top_k` likeliest outcomes (None: all).
    """

    method: str = "sft"
    name: str = "sft"
    loss_on: str = "last"
    kl_beta: float = 0.0
    kl_top_k: int | None = 64


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(TrainSettings):
    """What the preference objectives share: one pass, and a tenth of the tuner's rate, since they go far on little."""

    rate_factor: ClassVar[float] = 0.1

    epochs: float = 1.0
    beta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class DPOSettings(PreferenceSettings):
    """Direct preference optimization (Rafailov et al. 2023, eq. 7) and the losses TRL keeps beside it.

    The reference is the model that training starts from: its log probabilities are computed once, at first. Rows may
    bring another's (rows.py). `loss_type`: TRL's names, several with `loss_weights`, for instance ("sigmoid", "sft")
    with (1.0, 0.2) for DPO with an NLL term on the chosen answer, per token (Iterative RPO, Pang et al. 2024, eq. 1).
    "hinge" is SLiC's (Zhao et al. 2023), "ipo" IPO's (Azar et al. 2024, eq. 17) per token, and "robust" unbiased where
    a share `label_smoothing` of the pairs is the wrong way round (Chowdhury et al. 2024, eq. 11).
    """

    method: str = "dpo"
    name: str = "dpo"
    loss_type: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class KTOSettings(PreferenceSettings):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, eq. 8) on answers that are each good or bad."""

    method: str = "kto"
    name: str = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ORPOSettings(PreferenceSettings):
    """Odds-ratio preference optimization (Hong et al. 2024, eq. 6): SFT and preference in one, without a reference."""

    method: str = "orpo"
    name: str = "orpo"


@dataclass(frozen=True, kw_only=True)
class CPOSettings(PreferenceSettings):
    """Contrastive preference optimization (Xu et al. 2024); `loss_type` "simpo" for SimPO (Meng et al. 2024, eq. 6)."""

    method: str = "cpo"
    name: str = "cpo"
    loss_type: str = "sigmoid"
    cpo_alpha: float = 1.0
    simpo_gamma: float = 0.5
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DistillSettings(TrainSettings):
    """Distillation of the starting model under the teacher's prompt into the model under the student's.

    Per token of the completion, over the `top_k` likeliest tokens of the teacher and one bucket for the rest (None: the
    whole vocabulary): "forward_kl", "reverse_kl", or "jsd" with `jsd_beta` (Agarwal et al. 2024, GKD, eq. 1).
    """

    method: str = "distill"
    name: str = "distill"
    epochs: float = 1.0
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    top_k: int | None = 64
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SelfDistillSettings(DistillSettings):
    """Self-distillation on the student's own answers (SDFT, Shenfeld et al. 2026, arXiv:2601.19897, algorithm 1).

    Every `refresh` steps the student, as it then is, answers the prompts of the next steps (at `rollout_temperature`,
    up to `max_tokens` tokens, `rollout_batch` prompts at a time); each step brings it nearer to the teacher on those
    answers, their first `skip_tokens` tokens left out. `teacher`: "frozen" (the weights that training starts from),
    "ema" (they, moved by `ema_rate` towards the student after every step) or "live" (the student itself). The
    `divergence` may also be "sampled": one token's estimate of the reverse KL, from likelihoods of what was said alone.
    Rows that do not fit the context with `max_tokens` to spare are refused (`max_dropped` 0), never cut.
    """

    method: str = "sdft"
    name: str = "sdft"
    top_k: int | None = None
    max_dropped: float = 0.0
    teacher: str = "ema"
    ema_rate: float = 0.01
    skip_tokens: int = 3
    refresh: int = 4
    rollout_temperature: float = 1.0
    rollout_batch: int = 64
    max_tokens: int = 256


_KINDS = (SFTSettings, DPOSettings, KTOSettings, ORPOSettings, CPOSettings, DistillSettings, SelfDistillSettings)
METHODS: dict[str, type[TrainSettings]] = {kind.method: kind for kind in _KINDS}


def settings_from(train_kwargs: Mapping[str, Any] | None) -> tuple[TrainSettings, dict[str, Any]]:
    """The objective's settings, and the keys that are none of its own: the tuner's options, for the tuner to check.

    Raises TrainingError for an unknown method or a value out of range.
    """
    given = dict(train_kwargs or {})
    method = given.get("method", "sft")
    if method not in METHODS:
        raise TrainingError(f"method={method!r} is not known; use one of {sorted(METHODS)}")
    kind = METHODS[method]
    own = {entry.name for entry in fields(kind)}
    if method == "dpo" and isinstance(given.get("loss_type"), str):
        given["loss_type"] = (given["loss_type"],)
    settings = kind(**{key: _frozen(value) for key, value in given.items() if key in own})
    _check(settings)
    return settings, {key: value for key, value in given.items() if key not in own}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(settings: TrainSettings) -> None:
    for name in ("epochs", "batch_size", "gradient_accumulation_steps", "checkpoint_steps"):
        if not getattr(settings, name) > 0:
            raise TrainingError(f"{name}={getattr(settings, name)!r} must be above 0")
    if settings.learning_rate is not None and not settings.learning_rate > 0:
        raise TrainingError(f"learning_rate={settings.learning_rate!r} must be above 0")
    if not 0 <= settings.val_share < 1:
        raise TrainingError(f"val_share={settings.val_share!r} is a share of the rows: from 0 to below 1")
    if settings.search and not (settings.val_share or settings.validate):
        raise TrainingError("search compares trials on validation rows: set val_share above 0, or give validate")
    if settings.patience and not (settings.val_share or settings.validate):
        raise TrainingError("patience counts validation scores: set val_share above 0, or give validate")
    choices = {"order": ORDERS, "keep": KEEP, "loss_on": LOSS_ON, "teacher": TEACHERS}
    if isinstance(settings, DistillSettings):
        choices["divergence"] = ON_POLICY_DIVERGENCES if settings.method == "sdft" else DIVERGENCES
    for name, known in choices.items():
        if (value := getattr(settings, name, None)) is not None and value not in known:
            raise TrainingError(f"{name}={value!r} is not known; use one of {known}")
    if isinstance(settings, SFTSettings) and not settings.kl_beta >= 0:
        raise TrainingError(f"kl_beta={settings.kl_beta!r} must be 0 or above")
    if isinstance(settings, PreferenceSettings):
        _check_preference(settings)
    if isinstance(settings, DistillSettings):
        _check_distill(settings)


def _check_preference(settings: PreferenceSettings) -> None:
    if not settings.beta > 0:
        raise TrainingError(f"beta={settings.beta!r} must be above 0")
    if isinstance(settings, DPOSettings | CPOSettings):
        losses, known = settings.loss_type, DPO_LOSSES
        if isinstance(settings, CPOSettings):
            losses, known = (settings.loss_type,), CPO_LOSSES
        if not losses or not set(losses) <= set(known):
            raise TrainingError(f"loss_type={settings.loss_type!r} is not known; use one or more of {known}")
        if not 0 <= settings.label_smoothing < 0.5:
            raise TrainingError(
                f"label_smoothing={settings.label_smoothing!r} is the share of pairs that are wrong: 0 to below 0.5"
            )
    if isinstance(settings, DPOSettings):
        if settings.loss_weights is not None and len(settings.loss_weights) != len(settings.loss_type):
            raise TrainingError(
                f"loss_weights={settings.loss_weights!r} must have one weight for each of {settings.loss_type}"
            )
        if "robust" in settings.loss_type and settings.label_smoothing == 0:
            raise TrainingError("loss_type 'robust' with label_smoothing=0 is 'sigmoid'; say what share is wrong")


def _check_distill(settings: DistillSettings) -> None:
    if settings.divergence == "jsd" and not 0 < settings.jsd_beta < 1:
        raise TrainingError(f"jsd_beta={settings.jsd_beta!r} must be between 0 and 1, which are the two KLs themselves")
    if not settings.temperature > 0 or (settings.top_k is not None and settings.top_k < 1):
        raise TrainingError(
            f"temperature={settings.temperature!r} must be above 0, top_k={settings.top_k!r} 1 or more, or None for all"
        )
    if not isinstance(settings, SelfDistillSettings):
        return
    for name in ("refresh", "rollout_temperature", "rollout_batch", "max_tokens"):
        if not getattr(settings, name) > 0:
            raise TrainingError(f"{name}={getattr(settings, name)!r} must be above 0")
    if not 0 < settings.ema_rate <= 1 or settings.skip_tokens < 0:
        raise TrainingError(
            f"ema_rate={settings.ema_rate!r} must be above 0 and at most 1, "
            f"skip_tokens={settings.skip_tokens!r} 0 or more"
        )
    if settings.val_share or settings.order == "easy_to_hard":
        raise TrainingError(
            "rows of 'sdft' hold no answers, so they have no loss to validate or sort by: set val_share=0 and give "
            "validate, a score of the model; use order 'random' or 'given'"
        )
