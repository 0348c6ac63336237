"""Tuners that peft lacks, written as peft tuners: bottleneck adapters, trained bias offsets, trained norms.

Being PeftModels, TRL trains them, switches them off for a reference model and saves them like any other adapter.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.p_tuning import PromptEncoder
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.activations import ACT2FN

from optimizers.local_lm.tuning.structure import features_out

ADDON = "ADDON"


@dataclass
class AddonConfig(PeftConfig):
    """`kind`: "bottleneck" (of `width` and `activation`), "bias" or "norm"; `target_modules`: full names of layers."""

    target_modules: list[str] | None = None
    kind: str = "bottleneck"
    width: int = 32
    activation: str = "silu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ADDON


class Bottleneck(nn.Module):
    """y + up(act(down(y))), computed in its own dtype; `up` starts at zero, so that it starts as the identity."""

    def __init__(self, features: int, width: int, activation: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(features, width), nn.Linear(width, features)
        self.activation = ACT2FN[activation]
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, base: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the residual network's added; shapes as the layer's."""
        y = base(x, *args, **kwargs)
        return y + self.up(self.activation(self.down(y.to(self.down.weight.dtype)))).to(y.dtype)


class BiasOffset(nn.Module):
    """y + offset, the offset starting at zero."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(features))

    def forward(self, base: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, shifted."""
        y = base(x, *args, **kwargs)
        return y + self.offset.to(y.dtype)


class NormCopy(nn.Module):
    """A copy of the norm in float32 (a bfloat16 weight near 1 cannot take a step below 0.004)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.norm = copy.deepcopy(base).float()

    def forward(self, base: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The copy's output in the dtype of its input; the base's own norm is passed over."""
        return self.norm(x, *args, **kwargs).to(x.dtype)


class AddonLayer(nn.Module, BaseTunerLayer):
    """A layer of the base with one addon per adapter name."""

    adapter_layer_names = ("addon_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AddonConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.addon_layers = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AddonConfig) -> None:
        """Add a fresh addon under `adapter_name`."""
        base = self.get_base_layer()
        if config.kind == "norm":
            addon: nn.Module = NormCopy(base)
        elif config.kind == "bias":
            addon = BiasOffset(features_out(base))
        else:
            addon = Bottleneck(features_out(base), config.width, config.activation)
        self.addon_layers[adapter_name] = addon.to(next(base.parameters()).device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, through the active addon if there is one."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.addon_layers]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        return self.addon_layers[names[0]](self.base_layer, x, *args, **kwargs)


class AddonModel(BaseTuner):
    """Puts AddonLayers around the target modules."""

    prefix = "addon_"
    tuner_layer_cls = AddonLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: AddonConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, AddonLayer):
            target.update_layer(adapter_name, peft_config)
            return
        self._replace_module(parent, target_name, AddonLayer(target, adapter_name, peft_config), target)


class WholePromptEncoder(PromptEncoder):
    """p-tuning's encoder, saved with the MLP: peft keeps its output alone, and neither a checkpoint nor a child adapter
    could go on from that."""

    @classmethod
    def _get_adapter_state_dict(cls, model: Any, config: PeftConfig, adapter_name: str, **kwargs: Any) -> dict:
        state = super()._get_adapter_state_dict(model=model, config=config, adapter_name=adapter_name, **kwargs)
        if not config.inference_mode:
            encoder = model.prompt_encoder[adapter_name].state_dict()
            state |= {f"encoder.{name}": tensor.detach().clone() for name, tensor in encoder.items()}
        return state

    def _load_adapter_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        whole = {key.removeprefix("encoder."): value for key, value in state_dict.items() if key.startswith("encoder.")}
        if whole and hasattr(self, "mlp_head"):
            self.load_state_dict(whole, strict=True)
        else:
            super()._load_adapter_state_dict(state_dict)


# peft's register_peft_method wants an entry in an enum that cannot grow; the tables behind it take any string.
PEFT_TYPE_TO_CONFIG_MAPPING[ADDON] = AddonConfig
PEFT_TYPE_TO_TUNER_MAPPING[ADDON] = AddonModel
PEFT_TYPE_TO_PREFIX_MAPPING[ADDON] = AddonModel.prefix
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.P_TUNING] = WholePromptEncoder
