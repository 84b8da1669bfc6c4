"""How a module tree is wired, so that what a method built into it can be taken out and put back in microseconds.

A method changes a backbone in place and reversibly: it swaps the class of a block, puts modules or parameters into
it, registers hooks. All of that is in a module's class and attributes. Comparing them before and after a method was
built tells what it did, whatever the method; exchanging just these attributes switches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# What says how a module is used, not how it is wired.
_LEFT_OUT = {"training", "_sfa_adaptation"}
_ABSENT = object()

Snapshot = dict[nn.Module, tuple[type, dict[str, Any]]]


def snapshot(root: nn.Module) -> Snapshot:
    """Class and attributes of each module under `root`. Dictionaries (children, parameters, hooks) are copied."""
    return {m: (type(m), {k: _copy(v) for k, v in vars(m).items() if k not in _LEFT_OUT}) for m in root.modules()}


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict) else value


@dataclass(frozen=True)
class Rewiring:
    """What differs between two snapshots: for each module its class, and the attributes that differ, then and now."""

    changes: list[tuple[nn.Module, type, dict[str, Any], type, dict[str, Any]]]

    def apply(self) -> None:
        """Brings the modules from the first snapshot's state to the second's."""
        for module, _, _, kind, attributes in self.changes:
            _set(module, kind, attributes)

    def undo(self) -> None:
        """Brings the modules back to the first snapshot's state."""
        for module, kind, attributes, _, _ in self.changes:
            _set(module, kind, attributes)


def difference(before: Snapshot, after: Snapshot) -> Rewiring:
    """The rewiring from `before` to `after`, over the modules that both know."""
    changes = []
    for module, (old_kind, old) in before.items():
        new_kind, new = after.get(module, (old_kind, old))
        keys = [k for k in {**old, **new} if not _same(old.get(k, _ABSENT), new.get(k, _ABSENT))]
        if keys or old_kind is not new_kind:
            pick = lambda state, keys=keys: {k: state.get(k, _ABSENT) for k in keys}  # noqa: E731
            changes.append((module, old_kind, pick(old), new_kind, pick(new)))
    return Rewiring(changes)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(x, b[k]) for k, x in a.items())
    return a is b or (isinstance(a, (int, float, str, bool, tuple)) and type(a) is type(b) and a == b)


def _set(module: nn.Module, kind: type, attributes: dict[str, Any]) -> None:
    module.__class__ = kind
    state = vars(module)
    for name, value in attributes.items():
        if value is _ABSENT:
            state.pop(name, None)
        elif isinstance(value, dict) and isinstance(state.get(name), dict):
            # In place: whoever registered a hook holds a reference to the very dictionary.
            state[name].clear()
            state[name].update(value)
        else:
            state[name] = _copy(value)
