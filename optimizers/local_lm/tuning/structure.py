"""Where things are in a decoder, whatever its architecture calls them: layers, output projections, norms, biases."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from optimizers.errors import TrainingError


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder's layers. Raises TrainingError if there is no such list."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise TrainingError(f"{type(model).__name__} has no list of its {count} layers; use 'full' or 'lora'")


def linear_names(model: Any) -> list[str]:
    """All linear layers (quantised ones and GPT-2's Conv1D too) but the output head."""
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def output_projections(model: Any, placement: str) -> list[str]:
    """The last linear layer of each attention block and of each MLP that gives the model's width.

    `placement`: "both", "attention" or "mlp". Raises TrainingError where a layer has none (experts that are no layers).
    """
    width = model.config.get_text_config().hidden_size
    names, (prefix, layers) = [], decoder_layers(model)
    for index, layer in enumerate(layers):
        found: dict[str, str] = {}
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and features_out(module) == width:
                found["attention" if "attn" in name or "attention" in name else "mlp"] = f"{prefix}.{index}.{name}"
        wanted = ("attention", "mlp") if placement == "both" else (placement,)
        if missing := [part for part in wanted if part not in found]:
            raise TrainingError(f"layer {index} has no linear output projection of its {missing}; use 'lora'")
        names += [found[part] for part in wanted]
    return names


def norm_names(model: Any) -> list[str]:
    """Every normalisation layer that has a weight."""
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and module._parameters.get("weight") is not None
    ]


def bias_names(model: Any) -> list[str]:
    """Every module with a bias of its own, the output head aside; where there is none, all linear layers."""
    head = model.get_output_embeddings()
    with_bias = [
        name
        for name, module in model.named_modules()
        if module._parameters.get("bias") is not None and module is not head
    ]
    return with_bias or linear_names(model)


def top_parameter_names(model: Any, layers: int) -> list[str]:
    """Parameters of the last `layers` decoder layers and of the norm behind them. Raises TrainingError if too many."""
    prefix, every = decoder_layers(model)
    if layers > len(every):
        raise TrainingError(f"layers={layers}: the model has {len(every)} decoder layers; use fewer, or 'full'")
    stem = prefix.rpartition(".")[0]
    tops = [f"{prefix}.{index}" for index in range(len(every) - layers, len(every))]
    tops += [name for name in norm_names(model) if name.rpartition(".")[0] == stem]
    return [name for name, _ in model.named_parameters() if any(name.startswith(f"{top}.") for top in tops)]


def features_out(module: nn.Module) -> int:
    """Width of what a linear or normalisation layer gives."""
    for name in ("out_features", "nf"):
        if hasattr(module, name):
            return int(getattr(module, name))
    return int(module._parameters["bias"].shape[0])
