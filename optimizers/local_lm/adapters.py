"""Adapters: immutable, named by their content, kept in safetensors with a COMPLETE marker, attached on demand.

    <work_dir>/adapters/sft-3f2a91c0de/   adapter_config.json  adapter_model.safetensors  training.json  COMPLETE

Base weights stay in memory once. Serving the base switches adapters off; training takes them all off.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.sealed import MARKER, check_seal, draft_beside, move_into_place, seal
from optimizers.local_lm.weights import Weights, file_sha256

MAX_ATTACHED = 8
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def check_adapter(folder: Path, weights: Weights) -> None:
    """Raise ModelError unless the adapter is complete, unchanged since it was written, and made for these weights."""
    told = check_seal(folder)
    if told["base_digest"] != weights.digest:
        raise ModelError(
            f"adapter {folder.name!r} was trained on base {told['base']!r} (digest {told['base_digest'][:8]}), not on "
            f"{weights.base!r} (digest {weights.digest[:8]}); load the base it was trained on"
        )


@contextmanager
def serving(weights: Weights, adapter: str | None, root: Path) -> Iterator[Any]:
    """The model to call for `adapter` (None: the bare base), for as long as the block lasts. Hold `weights.lock`."""
    if adapter is None:
        if weights.peft is None:
            yield weights.model
        else:
            with weights.peft.disable_adapter():
                yield weights.model
        return
    _attach(weights, adapter, root)
    weights.peft.set_adapter(adapter, inference_mode=True)
    yield weights.model


def _attach(weights: Weights, adapter: str, root: Path) -> None:
    if adapter in weights.attached:
        weights.attached[adapter] = weights.attached.pop(adapter)
        return
    folder = root / adapter
    check_adapter(folder, weights)
    try:
        if weights.peft is None:
            weights.peft = PeftModel.from_pretrained(weights.model, folder, adapter_name=adapter, use_safetensors=True)
        else:
            weights.peft.load_adapter(folder, adapter_name=adapter, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        raise ModelError(f"adapter {adapter!r} does not fit {weights.base!r}: {err}") from err
    weights.peft.eval()
    weights.attached[adapter] = folder
    while len(weights.attached) > MAX_ATTACHED:
        oldest = next(iter(weights.attached))
        weights.peft.delete_adapter(oldest)
        del weights.attached[oldest]


def detach_all(weights: Weights) -> None:
    """Take every adapter off: `weights.model` is again the plain base, layer for layer. Hold `weights.lock`."""
    if weights.peft is not None:
        weights.peft.unload()
        weights.peft = None
    weights.attached.clear()
    # peft leaves its note on the model and would warn of a second wrapping.
    for name in ("peft_config", "_hf_peft_config_loaded"):
        weights.model.__dict__.pop(name, None)


@contextmanager
def training(weights: Weights, *, lora: LoraConfig | None = None, parent: Path | None = None) -> Iterator[PeftModel]:
    """A trainable PeftModel over the base: a fresh `lora`, or a copy of the adapter in `parent`. Holds the lock.

    On leaving, whatever happened, the base is as it was: no wrapped layer, eval mode, its config and forward restored.
    Raises TrainingError if nothing would be trained; ModelError if `parent` is broken.
    """
    if (lora is None) == (parent is None):
        raise TrainingError("give either a fresh LoRA config or a parent adapter, not both and not neither")
    with weights.lock:
        detach_all(weights)
        model, tokenizer = weights.model, weights.tokenizer
        configs = [model.config, model.generation_config]
        before = [dict(config.__dict__) for config in configs]
        own, pad_token = dict(model.__dict__), tokenizer.pad_token
        try:
            if parent is None:
                peft = get_peft_model(model, lora)
            else:
                check_adapter(parent, weights)
                peft = PeftModel.from_pretrained(model, parent, is_trainable=True, use_safetensors=True)
            weights.peft = peft
            if not any(parameter.requires_grad for parameter in peft.parameters()):
                raise TrainingError("no parameter would be trained; the adapter fits none of the model's layers")
            yield peft
        finally:
            if getattr(model, "is_activation_checkpointing", False):
                model.gradient_checkpointing_disable()
            if "_require_grads_hook" in model.__dict__ and "_require_grads_hook" not in own:
                model.disable_input_require_grads()
            detach_all(weights)
            model.__dict__.clear()
            model.__dict__.update(own)
            for config, kept in zip(configs, before, strict=True):
                config.__dict__.clear()
                config.__dict__.update(kept)
            tokenizer.pad_token = pad_token
            model.requires_grad_(False)
            model.eval()


def keep_adapter(
    peft: PeftModel, weights: Weights, root: Path, *, kind: str, record: dict[str, Any], parent: str | None = None
) -> str:
    """Write the trained adapter under `root` and return its name, `<kind>-<10 hex of its content>`.

    `record` becomes training.json. The folder appears whole or not at all. Raises TrainingError for weights not finite.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", kind):
        raise TrainingError(f"adapter name {kind!r} may hold only letters, digits, '_' and '-'")
    if not all(torch.isfinite(p).all() for p in peft.parameters() if p.requires_grad):
        raise TrainingError("the trained weights are not finite; lower learning_rate")
    with draft_beside(root) as draft:
        active = peft.active_adapter
        peft.save_pretrained(draft, safe_serialization=True, selected_adapters=[active])
        if active != "default":
            for file in (draft / active).iterdir():
                file.replace(draft / file.name)
            (draft / active).rmdir()
        (draft / "README.md").unlink(missing_ok=True)
        _clean_config(draft / CONFIG_FILE, weights)
        content = file_sha256(draft / WEIGHTS_FILE) + file_sha256(draft / CONFIG_FILE) + weights.digest
        name = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        (draft / "training.json").write_text(json.dumps({"parent": parent, **record}, indent=1))
        seal(draft, {"base": weights.base, "base_digest": weights.digest})
        if not (root / name / MARKER).is_file():
            move_into_place(draft, root / name)
        return name


def _clean_config(path: Path, weights: Weights) -> None:
    """The base's public name instead of its folder (a path of one machine), and modules in a fixed order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = weights.base
    config["inference_mode"] = True
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True))
