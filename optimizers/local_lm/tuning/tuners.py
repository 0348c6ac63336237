"""Ways of tuning a model: one word and one small frozen config each, apart from the objective that moves the weights.

    tuner_from("lora", {"rank": 32})        LoRA(rank=32, alpha=32, dropout=0.0, target_modules='all-linear')
    tuner_from("peft:VERA", {"config": {"r": 64}})

Reading this costs no import of torch or peft; injection.py makes a trainable module of such a config.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from optimizers.errors import TrainingError
from optimizers.local_lm.tuning.tuner_kinds import (
    IA3,
    OSF,
    BitFit,
    Bottleneck,
    DoRA,
    Full,
    LoRA,
    NormTuning,
    Peft,
    Prefix,
    Prompt,
    PTuning,
    QLoRA,
    RSLoRA,
    TopLayers,
)

PEFT_PREFIX = "peft:"


TUNERS: dict[str, type] = {
    "full": Full,
    "lora": LoRA,
    "dora": DoRA,
    "rslora": RSLoRA,
    "qlora": QLoRA,
    "bottleneck": Bottleneck,
    "prefix": Prefix,
    "prompt": Prompt,
    "p-tuning": PTuning,
    "ia3": IA3,
    "bitfit": BitFit,
    "layernorm": NormTuning,
    "top_layers": TopLayers,
    "osf": OSF,
}

# Starting points for a model whose hidden size is 2,000, by default_rate's rule: LoRA's at ten times that of full
# fine-tuning; fewer parameters, higher rates. `python -m benchmarks.tuners --rates 0.3 1 3` tells what suits a model.
DEFAULT_RATES: dict[str, float] = {
    "full": 5e-5,
    "lora": 5e-4,
    "dora": 5e-4,
    "rslora": 2e-4,
    "qlora": 5e-4,
    "bottleneck": 5e-4,
    "prefix": 2e-2,
    "prompt": 2e-2,
    "p-tuning": 1e-3,
    "ia3": 5e-3,
    "bitfit": 2e-3,
    "layernorm": 2e-3,
    "top_layers": 5e-5,
    "osf": 5e-5,
    "peft": 5e-4,
}
_WIDTH, _POWER = 2000, 0.781
_NARROWEST = 256  # the narrowest model that the rates were measured on

# Tuners of peft that are no adapter of one network for one task, or that need a step TRL's trainers do not take.
UNFIT = {
    "ADALORA": "it needs a call after every step that the trainers here do not make; use 'lora'",
    "CARTRIDGE": "it is trained by distillation of a context; use 'prefix'",
    "CPT": "it replaces the loss; use 'prompt'",
    "MULTITASK_PROMPT_TUNING": "it needs a task id with every request; use 'prompt'",
    "POLY": "it needs a task id with every request; use 'lora'",
    "SHADOW": "it runs a second network beside the model; use 'lora'",
    "XLORA": "it mixes other adapters, which it would have to carry along; use 'lora'",
}


def tuner_from(word: str, options: Mapping[str, Any] | None = None) -> Any:
    """The config that `word` names, with `options` set: a key of TUNERS, or "peft:" and a peft type ("peft:VERA").

    Raises TrainingError for an unknown word or key, or a value out of range; the message lists what is known.
    """
    given = dict(options or {})
    if word.lower().startswith(PEFT_PREFIX):
        kind, given = Peft, {"peft_type": word[len(PEFT_PREFIX) :].upper(), **given}
    elif (kind := TUNERS.get(word)) is None:
        raise TrainingError(f"tuner={word!r} is not known; use one of {list(TUNERS)}, or 'peft:<TYPE>'")
    known = [entry.name for entry in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise TrainingError(f"options {unknown} of tuner {word!r} are not known; known are {known}")
    tuner = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    check_tuner(tuner)
    return tuner


def word_of(tuner: Any) -> str:
    """The word that names a config: "lora", "peft:VERA". Raises TrainingError for what is no tuner config."""
    if isinstance(tuner, Peft):
        return f"{PEFT_PREFIX}{tuner.peft_type}"
    for word, kind in TUNERS.items():
        if type(tuner) is kind:
            return word
    raise TrainingError(f"{tuner!r} is no tuner config; make one with tuner_from(word, options)")


def default_rate(tuner: Any, hidden_size: int) -> float:
    """The learning rate to start from with this tuner on a model of this hidden size: narrower models take higher ones.

    5e-5, times 10 for LoRA, times (2000 / hidden_size)^0.781: the fit for Llama models that "LoRA Without Regret"
    (Schulman et al., 2025) publishes; the other tuners' rates are scaled alike, which is our guess.
    """
    at_2000 = DEFAULT_RATES["peft" if isinstance(tuner, Peft) else word_of(tuner)]
    return at_2000 * (_WIDTH / max(hidden_size, _NARROWEST)) ** _POWER


def options_of(tuner: Any) -> dict[str, Any]:
    """The config's options as plain data: `tuner_from(word_of(tuner), options_of(tuner)) == tuner`."""
    options = asdict(tuner)
    options.pop("peft_type", None)
    return options


def check_tuner(tuner: Any) -> None:
    """Raise TrainingError unless every option is in its range; the message says which."""
    word = word_of(tuner)
    for entry in fields(tuner):
        value = getattr(tuner, entry.name)
        if (rule := RULES.get(entry.name)) is not None and not rule[0](value):
            raise TrainingError(f"tuner {word!r}: {entry.name}={value!r} must be {rule[1]}")
    if isinstance(tuner, Peft):
        _check_peft(tuner)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(name, str) and name for name in value)
    )


ACTIVATIONS = ("silu", "gelu", "relu", "tanh")
PLACEMENTS = ("both", "mlp", "attention")
RULES: dict[str, tuple[Any, str]] = {
    "rank": (_count, "a whole number of at least 1"),
    "width": (_count, "a whole number of at least 1"),
    "tokens": (_count, "a whole number of at least 1"),
    "layers": (_count, "a whole number of at least 1"),
    "hidden": (lambda value: value is None or _count(value), "None or a whole number of at least 1"),
    "alpha": (lambda value: _number(value) and value > 0, "above 0"),
    "dropout": (lambda value: _number(value) and 0 <= value < 1, "from 0 to below 1"),
    "kept": (lambda value: _number(value) and 0 < value < 1, "a share above 0 and below 1"),
    "target_modules": (_names, "'all-linear' or names of layers"),
    "activation": (lambda value: value in ACTIVATIONS, f"one of {ACTIVATIONS}"),
    "placement": (lambda value: value in PLACEMENTS, f"one of {PLACEMENTS}"),
    "init_text": (lambda value: value is None or (isinstance(value, str) and bool(value)), "None or some text"),
    "config": (lambda value: isinstance(value, Mapping), "a mapping of keywords"),
}


def _check_peft(tuner: Peft) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    fit = sorted(set(kinds) - set(UNFIT))
    if tuner.peft_type in UNFIT:
        raise TrainingError(f"peft type {tuner.peft_type} cannot be used here: {UNFIT[tuner.peft_type]}")
    if tuner.peft_type not in kinds:
        raise TrainingError(f"peft type {tuner.peft_type!r} is not known; known are {fit}")
    known = sorted(entry.name for entry in fields(kinds[tuner.peft_type]) if entry.init)
    if unknown := sorted(set(tuner.config) - set(known)):
        raise TrainingError(f"config keys {unknown} of peft:{tuner.peft_type} are not known; known are {known}")
    if tuner.config.get("alora_invocation_tokens"):
        raise TrainingError(
            "alora_invocation_tokens cannot be used here: each request would need to say where it begins"
        )
