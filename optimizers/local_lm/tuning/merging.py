"""Two adapters averaged into a third: linear in what they add to the base's weights, not in their factors.

With LoRA's B A as the update, (1 - w) B0 A0 + w B1 A1 = [(1 - w) B0, w B1] [A0; A1]: exact, at the sum of the ranks
(model averaging with the incumbent: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, eq. 1). Not handled: adapters that
are no linear update of the weights (DoRA, bottlenecks, virtual tokens).
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from optimizers.errors import TrainingError
from optimizers.local_lm.tuning.adapters import check_adapter, keep_adapter, training, tuner_of
from optimizers.local_lm.tuning.injection import CONFIG_FILE, WEIGHTS_FILE
from optimizers.local_lm.tuning.tuners import LoRA, QLoRA, word_of
from optimizers.local_lm.weights import Weights

LINEAR = ("lora", "qlora", "rslora")
Factors = dict[str, tuple[Tensor, Tensor]]


def merge_adapters(
    weights: Weights, root: Path, incumbent: str | None, tuned: str, weight: float, *, rank: int | None = None
) -> str | None:
    """The adapter (1 - weight) * incumbent + weight * tuned under `root`; None for the bare base, as `incumbent` too.

    At 0 it is the incumbent itself and at 1 the tuned one. Between, a new immutable adapter `merge-…`, bound to the
    base, of the two ranks together, or of the best approximation of `rank` (truncated SVD): without it ranks add up
    from round to round. Raises TrainingError for a weight outside [0, 1] or an adapter that is no LoRA, ModelError for
    a broken one.
    """
    if not 0 <= weight <= 1:
        raise TrainingError(f"weight={weight!r} is the tuned adapter's share: from 0 to 1")
    for name in filter(None, (incumbent, tuned)):
        check_adapter(root / name, weights)
    if weight in (0, 1) or incumbent == tuned:
        return incumbent if weight == 0 else tuned
    targets = {_targets(root / name) for name in filter(None, (incumbent, tuned))}
    if len(targets) > 1:
        raise TrainingError(f"adapters {incumbent!r} and {tuned!r} are on other layers; train both on the same ones")
    parts = [(weight, _factors(root / tuned))]
    if incumbent is not None:
        parts.insert(0, (1 - weight, _factors(root / incumbent)))
    merged = _concatenated(parts)
    if rank is not None:
        merged = {name: _truncated(a, b, rank) for name, (a, b) in merged.items()}
    size = max(a.shape[0] for a, _ in merged.values())
    told = targets.pop()
    kind = QLoRA if weights.quantize == "nf4" else LoRA
    tuner = kind(rank=size, alpha=size, target_modules=told if isinstance(told, str) else tuple(told))
    with training(weights, tuner=tuner) as module:
        state = {}
        for name, (a, b) in merged.items():
            state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = _padded(a, b, size)
        refused = set_peft_model_state_dict(module, state)
        if refused.unexpected_keys or any("lora_" in key for key in refused.missing_keys):
            raise TrainingError(f"adapter {tuned!r} is on layers that a fresh LoRA of {told!r} is not; train it anew")
        record = {"merged": {"incumbent": incumbent, "tuned": tuned, "weight": weight, "rank": size}}
        return keep_adapter(module, weights, root, kind="merge", record=record, parent=tuned)


def _targets(folder: Path) -> str | tuple[str, ...]:
    tuner = tuner_of(folder)
    if word_of(tuner) not in LINEAR:
        raise TrainingError(
            f"adapter {folder.name!r} is of kind {word_of(tuner)!r}, which cannot be averaged; use one of {LINEAR}"
        )
    return tuner.target_modules


def _factors(folder: Path) -> Factors:
    """A (rank x in) and B (out x rank) of each layer, the scale in B."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    ends = (".lora_A.weight", ".lora_B.weight")
    if strange := sorted(name for name in state if not name.endswith(ends)):
        raise TrainingError(
            f"adapter {folder.name!r} holds {strange[:3]}, which are no LoRA factors; leave it unmerged"
        )
    layers = {name.removesuffix(ends[0]) for name in state if name.endswith(ends[0])}
    return {name: (state[name + ends[0]], scale * state[name + ends[1]]) for name in sorted(layers)}


def _concatenated(parts: list[tuple[float, Factors]]) -> Factors:
    names = sorted({name for _, factors in parts for name in factors})
    held = {name: [(share, *factors[name]) for share, factors in parts if name in factors] for name in names}
    return {
        name: (torch.cat([a for _, a, _ in some]), torch.cat([share * b for share, _, b in some], dim=1))
        for name, some in held.items()
    }


def _truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest B A of `rank` (Eckart & Young 1936), by the SVD of the small product of the QR factors."""
    left, left_rest = torch.linalg.qr(b)
    right, right_rest = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(left_rest @ right_rest.T)
    root = s[:rank].sqrt()
    return root[:, None] * (v[:rank] @ right.T), (left @ u[:, :rank]) * root


def _padded(a: Tensor, b: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same update at rank `size`: zeros add nothing."""
    short = size - a.shape[0]
    return torch.cat([a, a.new_zeros(short, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], short)], dim=1)
