"""Adapters: immutable, named by their content, kept in safetensors with a COMPLETE marker, attached on demand.

    <work_dir>/adapters/sft-3f2a91c0de/   adapter_config.json  adapter_model.safetensors  training.json  COMPLETE

Base weights stay in memory once. An adapter of any kind (tuners.py) is a graft: pointers that are put into the network
while it serves or trains, and taken out after, so that the base is the plain base, bit for bit.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm.sealed import MARKER, check_seal, draft_beside, move_into_place, seal
from optimizers.local_lm.tuning.grafts import Graft, Snapshot, as_base, put_in, take_out
from optimizers.local_lm.tuning.tuners import Peft, options_of, tuner_from, word_of
from optimizers.local_lm.weights import Weights, file_sha256

if TYPE_CHECKING:
    from peft import PeftModel

# injection.py is imported where it is needed: peft takes a second to import, and the bare base serves without it.
MAX_ATTACHED = 8
MAX_ATTACHED_BYTES = {"cpu": 4 * 2**30, "cuda": 24 * 2**30}


@dataclass(frozen=True)
class Served:
    """What to call for one adapter: `model`, the network, and `opening`, what stands before every prompt.

    `opening` holds keys and values (1xHxLxD, one pair per layer) of L virtual tokens; empty for most adapters.
    """

    model: Any
    opening: Sequence[tuple[Tensor, Tensor]] = ()


@dataclass(frozen=True, eq=False)
class Tuning:
    """A training in progress: the tuner's config, the trainable module, and the graft it stands in the network as."""

    tuner: Any
    module: Any
    graft: Graft


def check_adapter(folder: Path, weights: Weights) -> None:
    """Raise ModelError unless the adapter is complete, unchanged since it was written, and made for these weights."""
    told = check_seal(folder)
    if told["base_digest"] != weights.digest:
        raise ModelError(
            f"adapter {folder.name!r} was trained on base {told['base']!r} (digest {told['base_digest'][:8]}), not on "
            f"{weights.base!r} (digest {weights.digest[:8]}); load the base it was trained on"
        )


def tuner_of(folder: Path) -> Any:
    """The tuner's config that an adapter was made with. Raises ModelError if the adapter is broken."""
    told = check_seal(folder).get("tuner", {"word": "lora", "options": {}})
    return tuner_from(told["word"], told["options"])


@contextmanager
def serving(weights: Weights, adapter: str | None, root: Path) -> Iterator[Served]:
    """What to call for `adapter` (None: the bare base), for as long as the block lasts. Hold `weights.lock`.

    Inside `training` too, where None is the base as a reference model; what is being trained stands there again after.
    """
    graft = None if adapter is None else _attach(weights, adapter, root)
    with _standing(weights, graft):
        yield Served(weights.model, () if graft is None else graft.opening)


@contextmanager
def serving_trained(weights: Weights) -> Iterator[Served]:
    """What to call for the weights in training, as they are now: for rollouts on policy. Inside `training` only.

    Float32 copies over a half-precision base serve in the base's dtype, as the kept adapter will.
    """
    if weights.tuning is None:
        raise TrainingError("nothing is in training; open training(weights, ...) around this")
    from optimizers.local_lm.tuning.injection import opening_of

    graft, module = weights.tuning.graft, weights.tuning.module
    with _standing(weights, as_base(graft) if module is weights.model else graft):
        yield Served(weights.model, opening_of(weights, module))


@contextmanager
def _standing(weights: Weights, graft: Graft | None) -> Iterator[None]:
    """`graft` alone in the network, in eval mode; then what stood there before, in its mode."""
    model, before = weights.model, weights.graft
    was_training = model.training
    _exchange(weights, graft)
    if was_training:
        model.eval()
    try:
        yield
    finally:
        _exchange(weights, before)
        if was_training:
            model.train()


def _exchange(weights: Weights, graft: Graft | None) -> None:
    if weights.graft is not None:
        take_out(weights.graft)
    if graft is not None:
        put_in(graft)
    weights.graft = graft


def _attach(weights: Weights, adapter: str, root: Path) -> Graft:
    attached = weights.attached
    if adapter in attached:
        attached[adapter] = attached.pop(adapter)
        return attached[adapter]
    from optimizers.local_lm.tuning.injection import load

    folder = root / adapter
    check_adapter(folder, weights)
    with _standing(weights, None):
        snapshot = Snapshot(weights.model)
        try:
            attached[adapter] = snapshot.graft(load(weights, folder))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as err:
            raise ModelError(f"adapter {adapter!r} does not fit {weights.base!r}: {err}") from err
        finally:
            snapshot.restore()
    limit = MAX_ATTACHED_BYTES.get(weights.device.type, MAX_ATTACHED_BYTES["cpu"])
    while len(attached) > 1 and (
        len(attached) > MAX_ATTACHED or sum(graft.size_bytes for graft in attached.values()) > limit
    ):
        del attached[next(iter(attached))]
    return attached[adapter]


def drop_adapter(weights: Weights, root: Path, *names: str) -> None:
    """Take adapters that nobody was told of out of memory and off the disk."""
    with weights.lock:
        for name in names:
            weights.attached.pop(name, None)
            if (root / name).is_dir():  # a job that was killed while it cleaned up comes here again
                shutil.rmtree(root / name)


def count_trainable(module: Any) -> int:
    """Parameters that training will move."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@contextmanager
def training(weights: Weights, *, tuner: Any = None, parent: Path | None = None) -> Iterator[Any]:
    """A trainable module over the base: a fresh one of `tuner` (see tuners.py), or a copy of the adapter in `parent`.

    A PeftModel with its adapter named "default"; for Full and TopLayers the network itself, with float32 copies of what
    is trained. A parent is trained on as the kind that it is; a `tuner` given beside it must be of that kind, and its
    options are of no effect. Holds the lock. On leaving, whatever happened, the base is as it was: layers, values,
    dtypes, modes, hooks, config. Raises TrainingError if nothing would be trained; ModelError if `parent` is broken.
    """
    from optimizers.local_lm.tuning.injection import inject, resume

    with weights.lock:
        tuner = _tuner(weights, tuner, parent)
        model, tokenizer = weights.model, weights.tokenizer
        configs = [model.config, model.generation_config]
        kept, pad_token = [dict(config.__dict__) for config in configs], tokenizer.pad_token
        with _standing(weights, None):
            snapshot = Snapshot(model)
            try:
                module = inject(weights, tuner) if parent is None else resume(weights, parent)
                module.eval()  # new layers come in training mode; whoever trains switches all of it
                graft = _graft(snapshot, tuner)
                if not any(parameter.requires_grad for parameter in module.parameters()):
                    raise TrainingError("no parameter would be trained; the tuner fits none of the model's layers")
                weights.graft, weights.tuning = graft, Tuning(tuner, module, graft)
                yield module
            finally:
                weights.graft = weights.tuning = None
                snapshot.restore()
                for config, values in zip(configs, kept, strict=True):
                    config.__dict__.clear()
                    config.__dict__.update(values)
                tokenizer.pad_token = pad_token


def _tuner(weights: Weights, tuner: Any, parent: Path | None) -> Any:
    if weights.tuning is not None:
        raise TrainingError("these weights are in training already; leave that block first")
    if parent is None:
        if tuner is None:
            raise TrainingError("give a tuner (tuner_from('lora')), a parent adapter, or both")
        word_of(tuner)
        return tuner
    check_adapter(parent, weights)
    own = tuner_of(parent)
    if tuner is not None and word_of(tuner) != word_of(own):
        raise TrainingError(
            f"adapter {parent.name!r} is of kind {word_of(own)!r} and can be trained on as such alone, not as "
            f"{word_of(tuner)!r}; leave tuner out, or start from the base"
        )
    return own


def _graft(snapshot: Snapshot, tuner: Any) -> Graft:
    try:
        return snapshot.graft()
    except ModelError as err:
        raise TrainingError(f"tuner {word_of(tuner)!r} cannot be served here: {err}") from err


def keep_adapter(
    module: Any, weights: Weights, root: Path, *, kind: str, record: dict[str, Any], parent: str | None = None
) -> str:
    """Write what is in training under `root` and return its name, `<kind>-<10 hex of its content>`.

    `module` is what `training` gave; call inside its block. `record` becomes training.json. The folder appears whole or
    not at all. Raises TrainingError for weights not finite, or for a module that serves otherwise than it trained.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", kind):
        raise TrainingError(f"adapter name {kind!r} may hold only letters, digits, '_' and '-'")
    if weights.tuning is None or weights.tuning.module is not module:
        raise TrainingError("this module is not in training; keep an adapter inside the block that trains it")
    if not all(torch.isfinite(p).all() for p in module.parameters() if p.requires_grad):
        raise TrainingError("the trained weights are not finite; lower learning_rate")
    from optimizers.local_lm.tuning.injection import CONFIG_FILE, WEIGHTS_FILE, write

    tuner = weights.tuning.tuner
    if isinstance(tuner, Peft):
        _check_plain_call(weights, module)
    with draft_beside(root) as draft:
        write(weights, module, tuner, draft)
        content = file_sha256(draft / WEIGHTS_FILE) + file_sha256(draft / CONFIG_FILE) + weights.digest
        name = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        (draft / "training.json").write_text(json.dumps({"parent": parent, **record}, indent=1))
        made_with = {"word": word_of(tuner), "options": options_of(tuner)}
        seal(draft, {"base": weights.base, "base_digest": weights.digest, "tuner": made_with})
        if not (root / name / MARKER).is_file():
            move_into_place(draft, root / name)
        return name


@torch.no_grad()
def _check_plain_call(weights: Weights, module: "PeftModel") -> None:
    """A tuner that acts through PeftModel's own forward alone would train, and then serve as the bare base."""
    if module.active_peft_config.is_prompt_learning:
        return
    with _standing(weights, weights.tuning.graft):
        module.eval()
        ids = torch.tensor([sorted(weights.stop_ids)[:1] * 4], device=weights.device)
        trained, plain = module(input_ids=ids).logits, weights.model(input_ids=ids).logits
    if not torch.equal(trained, plain):
        raise TrainingError(f"{word_of(weights.tuning.tuner)} acts outside the network's layers and cannot be served")
