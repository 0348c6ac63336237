"""peft's own config for each tuner that is one of peft's, or one of ours in its manner (addons.py)."""

from typing import Any

from peft import (
    IA3Config,
    LoraConfig,
    OSFConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from optimizers.errors import TrainingError
from optimizers.local_lm.tuning.addons import AddonConfig
from optimizers.local_lm.tuning.structure import bias_names, norm_names, output_projections
from optimizers.local_lm.tuning.tuner_kinds import (
    IA3,
    OSF,
    BitFit,
    Bottleneck,
    DoRA,
    LoRA,
    NormTuning,
    Peft,
    Prefix,
    Prompt,
    PTuning,
    RSLoRA,
)
from optimizers.local_lm.weights import Weights

OWN_TARGETS = ("ADAPTION_PROMPT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")


def peft_config(weights: Weights, tuner: Any) -> PeftConfig:
    """peft's own config for a tuner. Raises TrainingError where the network lacks the layers it would tune."""
    model, task = weights.model, "CAUSAL_LM"
    match tuner:
        case LoRA():
            targets = tuner.target_modules
            return LoraConfig(
                task_type=task,
                r=tuner.rank,
                lora_alpha=tuner.alpha,
                lora_dropout=tuner.dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
                use_dora=isinstance(tuner, DoRA),
                use_rslora=isinstance(tuner, RSLoRA),
            )
        case Bottleneck():
            names = output_projections(model, tuner.placement)
            return AddonConfig(task_type=task, target_modules=names, width=tuner.width, activation=tuner.activation)
        case BitFit():
            return AddonConfig(task_type=task, kind="bias", target_modules=bias_names(model))
        case NormTuning():
            return AddonConfig(task_type=task, kind="norm", target_modules=norm_names(model))
        case Prefix():
            return PrefixTuningConfig(task_type=task, num_virtual_tokens=tuner.tokens)
        case Prompt():
            return PromptTuningConfig(task_type=task, num_virtual_tokens=tuner.tokens)
        case PTuning():
            return PromptEncoderConfig(
                task_type=task, num_virtual_tokens=tuner.tokens, encoder_hidden_size=tuner.hidden
            )
        case IA3():
            return _ia3(model, task)
        case OSF():
            return OSFConfig(task_type=task, effective_rank=float(tuner.kept), target_modules="all-linear")
        case Peft():
            kind = PEFT_TYPE_TO_CONFIG_MAPPING[tuner.peft_type]
            given = {"task_type": task, **tuner.config}
            if tuner.peft_type not in OWN_TARGETS and "target_modules" in kind.__dataclass_fields__:
                given.setdefault("target_modules", "all-linear")
            return kind(**given)
    raise TrainingError(f"{tuner!r} is no tuner config; make one with tuner_from(word, options)")


def _ia3(model: Any, task: str) -> IA3Config:
    """Keys, values and what enters the MLP's output projection, as in the paper; peft's table has queries for some."""
    pairs = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("k_proj", "v_proj")]
    if not pairs:
        return IA3Config(task_type=task)  # peft knows the architecture, or says that it does not
    inner = output_projections(model, "mlp")
    return IA3Config(task_type=task, target_modules=pairs + inner, feedforward_modules=inner)
