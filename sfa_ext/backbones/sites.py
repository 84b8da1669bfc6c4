"""The sites protocol: where in a backbone a method may act, whatever the backbone's family.

A transformer block has two half-blocks, attention and MLP. Each computes

    stream + drop_path(finish(branch))

where `finish` is what the family puts last on the branch (SwinV2: its LayerNorm). A family's file turns this sum into a
replaceable module, the *tail*; a `Site` is the place of one tail. Adding a family costs one file with `owns(block)` and
`open_block(block)`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sfa_ext.backbones import swinv2

FAMILIES = (swinv2,)

# Weights of MH-Att and of the MLP (section "Internal Feature Adapter" of the paper); matched inside a block.
DEFAULT_TARGETS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Site:
    """One half-block's tail. `name` is its path in the backbone, `kind` is "attention" or "mlp", `width` is D."""

    name: str
    kind: str
    width: int
    block: nn.Module = field(repr=False)
    slot: str

    def install(self, tail: nn.Module) -> None:
        """Puts `tail(stream, branch, finish, drop_path) -> Tensor` in place of the plain residual sum."""
        setattr(self.block, self.slot, tail)

    def remove(self) -> None:
        """Restores the plain residual sum."""
        setattr(self.block, self.slot, swinv2.ResidualTail())


def named_blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Transformer blocks of every known family, in the order of the forward pass, with their paths."""
    for name, module in backbone.named_modules():
        if any(family.owns(module) for family in FAMILIES):
            yield name, module


def find_sites(backbone: nn.Module) -> list[Site]:
    """Two sites a block (attention, MLP), in the order of the forward pass. Opens the blocks in place.

    Raises ValueError where the model holds no block of a known family.
    """
    sites = []
    for name, block in named_blocks(backbone):
        family = next(f for f in FAMILIES if f.owns(block))
        for kind, slot, width in family.open_block(block):
            sites.append(Site(f"{name}.{slot}", kind, width, block, slot))
    if not sites:
        known = ", ".join(f.FAMILY for f in FAMILIES)
        raise ValueError(f"backbone: {type(backbone).__name__} holds no transformer block of a known family ({known})")
    return sites


def close_sites(sites: Sequence[Site]) -> None:
    """Gives the blocks their own class back; the model is then as timm built it."""
    for site in sites:
        site.remove()
    for block in {id(s.block): s.block for s in sites}.values():
        next(f for f in FAMILIES if f.owns(block)).close_block(block)


def eligible_weights(backbone: nn.Module, targets: Sequence[str] = DEFAULT_TARGETS) -> dict[str, nn.Parameter]:
    """Block weights whose name inside the block matches one of `targets` (shell patterns), by full name, in order.

    Raises ValueError for a pattern that matches nothing.
    """
    found: dict[str, nn.Parameter] = {}
    unused = set(targets)
    for block_name, block in named_blocks(backbone):
        for name, parameter in block.named_parameters():
            hits = {pattern for pattern in targets if fnmatchcase(name, pattern)}
            if hits and parameter.dim() == 2:
                found[f"{block_name}.{name}"] = parameter
                unused -= hits
    if unused:
        raise ValueError(f"targets: {sorted(unused)} match no weight matrix of any block; defaults: {DEFAULT_TARGETS}")
    return found


def accounted_size(backbone: nn.Module) -> dict[str, int]:
    """Parameter counts that shares refer to: `backbone` alone, and `with_head`, with a 1000-class head.

    The paper's percentages refer to `with_head` (87.9 M for SwinV2-Base). A backbone cut to feature maps lost its last
    norm and its head; they are counted as if present. Adapters already installed are not counted.
    """
    own = sum(p.numel() for n, p in backbone.named_parameters() if not is_adapter_name(n))
    model = next((m for m in backbone.modules() if any(f.is_model(m) for f in FAMILIES)), None)
    if model is None:
        return {"backbone": own, "with_head": own}
    width = model.num_features
    head = sum(p.numel() for p in model.head.parameters()) if isinstance(model.head, nn.Module) else 0
    norm = sum(p.numel() for p in model.norm.parameters())
    alone = own - head - norm + 2 * width
    return {"backbone": alone, "with_head": alone + (width + 1) * IMAGENET_CLASSES}


def is_adapter_name(name: str) -> bool:
    """True for a parameter that lives in an installed tail, not in the backbone itself."""
    return any(part in swinv2.SLOTS.values() for part in name.split("."))


def plain_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's own state dict, without what methods installed."""
    return {n: t for n, t in backbone.state_dict().items() if not is_adapter_name(n)}
