"""From a tuner's config to a trainable module over the base, to files, and back: peft wherever peft has the tuner.

Full fine-tuning and top layers are the two that are no PeftModel: the network itself comes back, with float32 copies of
the trained parameters in the base's places. Everything here changes the network; the caller holds a Snapshot.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.tuning.peft_configs import peft_config
from optimizers.local_lm.tuning.structure import top_parameter_names
from optimizers.local_lm.tuning.tuners import OSF, Full, Prefix, Prompt, QLoRA, TopLayers, check_tuner, word_of
from optimizers.local_lm.weights import Weights

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PARAMETERS = "PARAMETERS"
NOT_IN_4_BITS = (Full, TopLayers, OSF)


def inject(weights: Weights, tuner: Any) -> Any:
    """A fresh trainable module: a PeftModel, or the network itself for Full and TopLayers.

    Raises TrainingError for options out of range, a base it cannot train (4 bits), layers it does not find.
    """
    check_tuner(tuner)
    _check_base(weights, tuner)
    model = weights.model
    if isinstance(tuner, Full | TopLayers):
        every = [name for name, _ in model.named_parameters()]
        names = every if isinstance(tuner, Full) else top_parameter_names(model, tuner.layers)
        return _train_parameters(model, {name: model.get_parameter(name) for name in names})
    begin = _beginning(weights, tuner) if isinstance(tuner, Prefix | Prompt) else None
    try:
        module = get_peft_model(model, peft_config(weights, tuner))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as err:
        raise TrainingError(f"tuner {word_of(tuner)!r} does not fit {weights.base!r}: {err}") from err
    if begin is not None:
        with torch.no_grad():
            module.prompt_encoder["default"].embedding.weight.copy_(begin)
    return module


def resume(weights: Weights, folder: Path) -> Any:
    """A trainable copy of the adapter in `folder`. Raises TrainingError if its kind cannot go on from what is kept."""
    try:
        if _is_parameters(folder):
            return _train_parameters(weights.model, _read_parameters(weights, folder))
        config = PeftConfig.from_pretrained(folder)
        if not config.is_prompt_learning:
            return PeftModel.from_pretrained(weights.model, folder, is_trainable=True, use_safetensors=True)
        config.inference_mode, config.base_model_name_or_path = False, None
        module = get_peft_model(weights.model, config)
        set_peft_model_state_dict(module, load_file(folder / WEIGHTS_FILE))
        return module
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as err:
        raise TrainingError(f"adapter {folder.name!r} cannot be trained on: {err}; start from the base") from err


def load(weights: Weights, folder: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """Put the adapter in `folder` into the network to serve; returns the keys and values of its virtual tokens."""
    if _is_parameters(folder):
        tensors = _read_parameters(weights, folder)
        _replace(weights.model, {name: nn.Parameter(value, requires_grad=False) for name, value in tensors.items()})
        return ()
    # In the base's own dtype, in which mixed-precision training computed it too.
    module = PeftModel.from_pretrained(weights.model, folder, use_safetensors=True, autocast_adapter_dtype=False)
    module.requires_grad_(False)
    module.eval()
    return opening_of(weights, module)


def write(weights: Weights, module: Any, tuner: Any, draft: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors of the module in training."""
    if isinstance(tuner, Full | TopLayers):
        kept = {id(change.grafted): change.base.dtype for change in weights.tuning.graft.changes}
        trained = {name: p.detach().to(kept[id(p)]) for name, p in module.named_parameters() if id(p) in kept}
        save_file({name: tensor.contiguous().cpu() for name, tensor in trained.items()}, draft / WEIGHTS_FILE)
        (draft / CONFIG_FILE).write_text(json.dumps({"peft_type": PARAMETERS, "tuner": word_of(tuner)}))
    else:
        module.save_pretrained(
            draft, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False
        )
        (draft / "README.md").unlink(missing_ok=True)
    _clean_config(draft / CONFIG_FILE, weights)


@torch.no_grad()
def opening_of(weights: Weights, module: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values (1xHxLxD per layer) of a module's virtual tokens; empty for all but prompt learning."""
    if not isinstance(module, PeftModel) or not module.active_peft_config.is_prompt_learning:
        return ()
    prompt = module.get_prompt(batch_size=1)
    if isinstance(prompt, Tensor):
        embeddings = prompt.to(weights.model.get_input_embeddings().weight.dtype)
        prompt = weights.model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1).past_key_values
    return tuple((layer.keys.detach(), layer.values.detach()) for layer in prompt.layers)


def _check_base(weights: Weights, tuner: Any) -> None:
    word = word_of(tuner)
    if isinstance(tuner, QLoRA) and weights.quantize != "nf4":
        raise TrainingError(
            f"tuner 'qlora' trains on 4-bit weights, which {weights.base!r} are not; load them with quantize='nf4', or "
            "use 'lora'"
        )
    if isinstance(tuner, NOT_IN_4_BITS) and weights.quantize is not None:
        raise TrainingError(
            f"tuner {word!r} trains the weights themselves, and {weights.quantize} ones cannot be trained; load "
            f"{weights.base!r} with quantize='none', or use 'qlora'"
        )


@torch.no_grad()
def _beginning(weights: Weights, tuner: Prefix | Prompt) -> Tensor:
    """What real text gives at the virtual tokens' places, in the shape of peft's embedding (LxE)."""
    tokenizer, model = weights.tokenizer, weights.model
    if tuner.init_text is None:
        ids = torch.randint(len(tokenizer), (tuner.tokens,)).tolist()
    else:
        ids = tokenizer(tuner.init_text, add_special_tokens=False)["input_ids"]
        ids = (ids * tuner.tokens)[: tuner.tokens]
    ids_1_L = torch.tensor([ids], device=weights.device)
    if isinstance(tuner, Prompt):
        return model.get_input_embeddings()(ids_1_L)[0].float()
    layers = model(input_ids=ids_1_L, use_cache=True, logits_to_keep=1).past_key_values.layers
    if len({layer.keys.shape for layer in layers}) > 1:
        raise TrainingError(f"layers of {weights.base!r} differ in their keys' shapes; use 'prompt'")
    stacked = torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])  # 2NxHxLxD
    return stacked.permute(2, 0, 1, 3).reshape(tuner.tokens, -1).float()


def _train_parameters(model: Any, begin: dict[str, Tensor]) -> Any:
    model.requires_grad_(False)
    _replace(model, {name: nn.Parameter(value.detach().float().clone()) for name, value in begin.items()})
    return model


def _replace(model: nn.Module, new: dict[str, nn.Parameter]) -> None:
    """Put parameters in the base's places, in every place that shares one (a head tied to the embeddings)."""
    by_base = {id(model.get_parameter(name)): parameter for name, parameter in new.items()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in by_base:
                module._parameters[name] = by_base[id(parameter)]


def _is_parameters(folder: Path) -> bool:
    return json.loads((folder / CONFIG_FILE).read_text())["peft_type"] == PARAMETERS


def _read_parameters(weights: Weights, folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / WEIGHTS_FILE, device=str(weights.device))
    base = dict(weights.model.named_parameters())
    for name, tensor in tensors.items():
        if name not in base or base[name].shape != tensor.shape:
            raise ModelError(f"adapter {folder.name!r} has {name!r} of shape {tuple(tensor.shape)}; the base has not")
    return {name: tensor.to(base[name].dtype) for name, tensor in tensors.items()}


def _clean_config(path: Path, weights: Weights) -> None:
    """The base's public name instead of its folder (a path of one machine), and modules in a fixed order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = weights.base
    config["inference_mode"] = True
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=1, sort_keys=True))
