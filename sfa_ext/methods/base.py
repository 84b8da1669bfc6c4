"""What every method offers: the protocol between a method and whoever trains with it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfa_ext.backbones import accounted_size, fingerprint, plain_state
from sfa_ext.files import read_tensors, write_tensors
from sfa_ext.selection import Selection
from sfa_ext.selection.shards import copy_, is_shard


def setting(default: Any, text: str) -> Any:
    """A field of a method's settings with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Method(abc.ABC):
    """Settings of a method. `build` adapts a backbone in place."""

    # Whether an adapted model computes, before its first step, exactly what the backbone computes. Methods are built as
    # published, and some of them start elsewhere.
    starts_as_identity: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, backbone: nn.Module, seed: int | None) -> Adaptation:
        """Adapts `backbone` in place; `seed` seeds the method's own random numbers alone."""


@dataclass(frozen=True)
class ParameterReport:
    """What a method trains in the backbone. Shares follow the paper: weights only, over the backbone with its head."""

    external: int  # weights that the method added: matrices, kernels, and vectors where the method is made of them
    internal: int  # pretrained weights that it trains
    biases: int  # added or trained vectors (biases, norms), which the paper does not count
    backbone: int  # the backbone alone
    with_head: int  # the backbone with a 1000-class head: the paper's denominator

    @property
    def trainable(self) -> int:
        return self.external + self.internal

    @property
    def share(self) -> float:
        """Trainable weights over the backbone with its head."""
        return self.trainable / self.with_head

    def __str__(self) -> str:
        return (
            f"{self.trainable:,} trainable weights = {self.share:.2%} of {self.with_head:,} "
            f"({self.external:,} external, {self.internal:,} internal; {self.biases:,} more in vectors; "
            f"{(self.trainable + self.biases) / self.backbone:.2%} of the backbone alone)"
        )


class Adaptation(abc.ABC):
    """A backbone adapted in place. Made by `sfa_ext.adapt`."""

    selection: Selection | None = None  # the pretrained weights that the method selects, where it does

    def __init__(self, backbone: nn.Module, settings: Method):
        self.backbone = backbone
        self.settings = settings
        self._required_grad = {name: p.requires_grad for name, p in backbone.named_parameters()}
        self.size = accounted_size(backbone)
        meta = any(p.is_meta for p in backbone.parameters())
        self.fingerprint = "" if meta else fingerprint(plain_state(backbone))
        self.merged = False

    def follow(self) -> None:
        """Takes up the backbone's parameters as torch's `fully_shard` left them; comes before the optimizer."""
        if self.selection is not None:
            self.selection.follow(dict(self.backbone.named_parameters()))

    @abc.abstractmethod
    def report(self) -> ParameterReport:
        """How many parameters the method trains, by kind."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters in or beside the backbone that are trained whole, by name."""
        return ()

    def parameters(self) -> list[Tensor]:
        """Every tensor whose gradient the next step applies; give these to gradient clipping."""
        return [p for _, p in self.named_parameters()]

    def optimizer(
        self,
        lr: float = 1e-4,
        *,
        head: Iterable[nn.Parameter] = (),
        head_lr: float | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        steps: int | None = None,
    ) -> torch.optim.Optimizer:
        """An optimizer for this method's parameters and for `head`; its `step()` is all that a loop must call.

        Vectors (biases, norms) are not decayed. `steps` is the length of the training; SFA needs it where its
        number of rounds is left open.
        """
        groups = decay_groups(self.named_parameters(), lr, weight_decay)
        groups += decay_groups((("", p) for p in head), lr if head_lr is None else head_lr, weight_decay)
        return self._optimizer(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, steps)

    def _optimizer(self, groups: list[dict[str, Any]], defaults: dict[str, Any], steps: int | None):
        if not groups:
            raise ValueError("head: this method trains nothing in the backbone; give the head's parameters")
        return torch.optim.AdamW(groups, fused=True, **defaults)

    def chosen(self) -> dict[str, int]:
        """Sizes that the method took for this backbone, by the names of their settings."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The settings with the sizes that were chosen for this backbone."""
        return dataclasses.asdict(self.settings) | self.chosen()

    def optimizer_bytes(self) -> tuple[int, int]:
        """Bytes that the optimizer keeps for the backbone in float32 training: at the end, and at the most before."""
        report = self.report()
        moments = 2 * 4 * (report.trainable + report.biases)
        return moments, moments

    def host_bytes(self) -> int:
        """Bytes in host memory, beside what is on the device, that `detach` needs."""
        return 0

    def status(self) -> dict[str, float]:
        """Numbers for the log that change while training."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """All that differs from the bare backbone, as a flat dict of tensors.

        Of a backbone that ranks share, parameters are shared tensors, and of what is selected each rank has its part.
        """
        return {f"parameters/{name}": p.detach() for name, p in self.named_parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` returned. Raises ValueError, before anything changes, where it does not fit."""
        self._check_parameters(state)
        self._copy_parameters(state)

    def _check_parameters(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named_parameters():
            found = state.get(f"parameters/{name}")
            if found is None or found.shape != parameter.shape:
                got = "missing" if found is None else f"of shape {list(found.shape)}"
                raise ValueError(f"state: {name!r} is {got}, this adaptation needs {list(parameter.shape)}")

    @torch.no_grad()
    def _copy_parameters(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named_parameters():
            copy_(parameter, state[f"parameters/{name}"])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What the method itself keeps in `optimizer` beyond AdamW's own state."""
        return {}

    def own_state(self) -> dict[str, str]:
        """Names in `state` and `optimizer_state` of what each of several ranks has of its own, and what stands for it.

        On another number of ranks that is their "mean", or all of them "joined" in the order of ranks.
        """
        return {}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes what `optimizer_state` returned; most methods keep nothing there."""

    def save(self, path: str | Path) -> None:
        """Writes `state()`, the settings and the backbone's fingerprint as one .safetensors file, atomically."""
        meta = {"fingerprint": self.fingerprint, "method": type(self.settings).__name__}
        write_tensors(Path(path), self.state(), meta | {"settings": dataclasses.asdict(self.settings)})

    def load(self, path: str | Path) -> None:
        """Takes up a file that `save` wrote, all or nothing.

        Raises FileNotFoundError, or ValueError where the file is truncated, of another backbone or of other settings.
        """
        tensors, meta = read_tensors(Path(path))
        if meta.get("fingerprint") != self.fingerprint:
            raise ValueError(f"{path}: was made on another backbone (fingerprints differ); load that one first")
        try:
            self.load_state(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: does not fit {self.settings}: {error}") from error

    def detach(self) -> nn.Module:
        """Takes the method out of the backbone, which is then bit-identical to what it was; returns it.

        Raises ValueError for a backbone that `fully_shard` spread over ranks: torch cannot undo that.
        """
        if any(is_shard(p) for p in self.backbone.parameters()):
            raise ValueError("detach: the backbone is sharded; save the task, and load it onto a backbone built afresh")
        if self.merged:
            self.unmerge()
        self._remove()
        self._release()
        return self.backbone

    def merge(self) -> nn.Module:
        """Folds what was trained into the backbone's own weights and takes the method out; returns the backbone.

        It is then a plain timm model with the same outputs, up to rounding, and may be adapted again. `unmerge` and
        `detach` bring the former bits back. Raises ValueError where the method cannot be folded into weights.
        """
        return self._merge(self._fold)

    def _merge(self, fold: Callable[[], None]) -> nn.Module:
        if self.merged:
            raise ValueError("merge: this adaptation is merged already")
        fold()
        self._release()
        self.merged = True
        self.backbone._sfa_merged = [*getattr(self.backbone, "_sfa_merged", ()), self]
        return self.backbone

    def unmerge(self) -> None:
        """Undoes `merge`, bit by bit; to train on, make a new optimizer."""
        if not self.merged:
            raise ValueError("unmerge: this adaptation is not merged")
        if self.backbone._sfa_adaptation is not None or self.backbone._sfa_merged[-1] is not self:
            raise ValueError("unmerge: the backbone was adapted again since; detach or unmerge that first")
        self.backbone.requires_grad_(False)
        self._unfold()
        self.merged = False
        self.backbone._sfa_adaptation = self
        self.backbone._sfa_merged.pop()

    def _release(self) -> None:
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, True))
            parameter.grad = None
        self.backbone._sfa_adaptation = None

    def _fold(self) -> None:
        """Puts what was trained into the backbone's weights and restores its modules."""
        raise ValueError(
            f"merge: {type(self.settings).__name__} computes beside the backbone's weights and cannot be folded into "
            "them; keep the adaptation, or take one that can (LoRA, SSF, SFA with rho=0)"
        )

    def _unfold(self) -> None:
        """Undoes `_fold`."""
        raise NotImplementedError

    @abc.abstractmethod
    def _remove(self) -> None:
        """Restores the backbone's modules and values."""


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> list[dict]:
    """AdamW groups in which matrices are decayed and vectors are not; empty groups are left out."""
    matrices, vectors = [], []
    for _, parameter in parameters:
        if parameter.requires_grad:
            (matrices if parameter.dim() > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
