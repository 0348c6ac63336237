"""What an adapter changes in a network, as pointers: put in while it serves, taken out after, the base never touched.

A graft is a list of places (a module's child, or a parameter of its own) with what stands there in the base and what
stands there with the adapter. Grafts of any kind and number lie side by side in memory; one at a time is in.

Does not handle: adapters that work by hooks or by rewriting the base's weights in place (both are refused).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from optimizers.errors import ModelError

ABSENT = object()
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class Change:
    """One place: `slots` is a module's dict of children or parameters; ABSENT means nothing stands there."""

    slots: dict[str, Any]
    name: str
    base: Any
    grafted: Any


@dataclass(frozen=True, eq=False)
class Graft:
    """An adapter ready to serve: its changes, and the keys and values of its virtual tokens (1xHxLxD per layer)."""

    changes: tuple[Change, ...]
    opening: tuple[tuple[Tensor, Tensor], ...] = ()
    size_bytes: int = 0


def put_in(graft: Graft) -> None:
    """Let the adapter stand in the network: O(places), no tensor is copied."""
    for change in graft.changes:
        _put(change, change.grafted)


def take_out(graft: Graft) -> None:
    """Let the base stand there again."""
    for change in graft.changes:
        _put(change, change.base)


def as_base(graft: Graft) -> Graft:
    """The same graft with its parameters in the dtype of the base's: itself where they are, else with copies."""
    cast: dict[int, Tensor] = {}
    for change in graft.changes:
        new = change.grafted
        if isinstance(new, nn.Parameter) and isinstance(change.base, nn.Parameter) and new.dtype != change.base.dtype:
            if id(new) not in cast:
                cast[id(new)] = nn.Parameter(new.detach().to(change.base.dtype), requires_grad=False)
    if not cast:
        return graft
    changes = tuple(replace(change, grafted=cast.get(id(change.grafted), change.grafted)) for change in graft.changes)
    return replace(graft, changes=changes)


def _put(change: Change, what: Any) -> None:
    if what is ABSENT:
        change.slots.pop(change.name, None)
    else:
        change.slots[change.name] = what


class Snapshot:
    """A network as it stands: module attributes, children, parameters, hooks, flags; `restore` brings all of it back.

    Values written into a parameter in place are the one thing it cannot bring back; nothing here does that.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(name, module, dict(module.__dict__)) for name, module in model.named_modules()]
        self.inner = [
            {key: copy.copy(value) for key, value in kept.items() if isinstance(value, dict | set)}
            for _, _, kept in self.modules
        ]
        self.tensors = [
            (name, tensor, tensor.data, tensor.requires_grad)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        ]

    def graft(self, opening: Sequence[tuple[Tensor, Tensor]] = ()) -> Graft:
        """What has been put into the network since. Raises ModelError for what no graft can hold."""
        self._refuse_hooks_and_rewrites()
        changes = []
        for (_, module, _), inner in zip(self.modules, self.inner, strict=True):
            for kind in ("_modules", "_parameters"):
                slots, before = module.__dict__[kind], inner[kind]
                for name in [*before, *(name for name in slots if name not in before)]:
                    base, grafted = before.get(name, ABSENT), slots.get(name, ABSENT)
                    if base is not grafted:
                        changes.append(Change(slots, name, base, grafted))
        return Graft(tuple(changes), tuple(opening), self._new_bytes(changes, opening))

    def restore(self) -> None:
        """Bring everything back: pointers, flags, hooks, dtypes and devices; gradients are dropped."""
        for (_, module, kept), inner in zip(self.modules, self.inner, strict=True):
            module.__dict__.clear()
            module.__dict__.update(kept)
            for key, value in inner.items():
                kept[key].clear()
                kept[key].update(value)
        for _, tensor, data, requires_grad in self.tensors:
            if tensor.data_ptr() != data.data_ptr() or tensor.dtype != data.dtype:
                tensor.data = data
            tensor.requires_grad_(requires_grad)
            tensor.grad = None

    def _refuse_hooks_and_rewrites(self) -> None:
        for (name, module, kept), inner in zip(self.modules, self.inner, strict=True):
            hooked = any(module.__dict__[kind] != inner[kind] for kind in HOOKS)
            if hooked or module.__dict__.get("forward") is not kept.get("forward"):
                raise ModelError(f"the adapter works by a hook or a patched forward on {name!r}; use another tuner")
        for name, tensor, data, _ in self.tensors:
            if tensor.data_ptr() != data.data_ptr():
                raise ModelError(
                    f"the adapter rewrites the base's own {name!r}; choose an initialisation that leaves the base alone"
                )

    def _new_bytes(self, changes: Sequence[Change], opening: Sequence[tuple[Tensor, Tensor]]) -> int:
        known = {id(tensor) for _, tensor, _, _ in self.tensors}
        new = {}
        for change in changes:
            there = change.grafted
            tensors = [there] if isinstance(there, Tensor) else []
            if isinstance(there, nn.Module):
                tensors = [*there.parameters(), *there.buffers()]
            new |= {id(tensor): tensor.nbytes for tensor in tensors if id(tensor) not in known}
        return sum(new.values()) + sum(k.nbytes + v.nbytes for k, v in opening)
