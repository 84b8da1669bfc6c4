"""The sites protocol: where in a backbone a method may act, whatever the backbone's family.

Adding a family costs one file that names its places (see `places.py`), and one entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from types import ModuleType

from torch import Tensor, nn

from sfa_ext.backbones import swinv2, vit
from sfa_ext.backbones.places import SLOTS, Grid, Operation, Site

FAMILIES = (swinv2, vit)

# Weights of MH-Att and of the MLP (section "Internal Feature Adapter" of the paper); matched inside a block.
DEFAULT_TARGETS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")

IMAGENET_CLASSES = 1000


def named_blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Transformer blocks of every known family, in the order of the forward pass, with their paths."""
    for name, module in backbone.named_modules():
        if any(family.owns(module) for family in FAMILIES):
            yield name, module


def _named_models(backbone: nn.Module) -> Iterator[tuple[str, nn.Module, ModuleType]]:
    for name, module in backbone.named_modules():
        for family in FAMILIES:
            if family.is_model(module):
                yield name, module, family


def the_model(backbone: nn.Module) -> nn.Module:
    """The timm model in `backbone`. Raises ValueError where it holds none of a known family."""
    for _, model, _ in _named_models(backbone):
        return model
    raise ValueError(f"backbone: {type(backbone).__name__} holds no whole model of a known family ({_families()})")


def find_sites(backbone: nn.Module) -> list[Site]:
    """Two sites a block (attention, MLP), in the order of the forward pass. Opens the blocks in place.

    Raises ValueError where the model holds no block of a known family.
    """
    grids = {f: Grid() for f in FAMILIES} | {f: f.open_model(model) for _, model, f in _named_models(backbone)}
    sites = []
    for name, block in list(named_blocks(backbone)):
        family = next(f for f in FAMILIES if f.owns(block))
        sites += family.open_block(name, block, grids[family])
    if not sites:
        raise ValueError(_no_blocks(backbone))
    return sites


def _no_blocks(backbone: nn.Module) -> str:
    return f"backbone: {type(backbone).__name__} holds no transformer block of a known family ({_families()})"


def _families() -> str:
    return ", ".join(f.FAMILY for f in FAMILIES)


def find_operations(backbone: nn.Module) -> list[Operation]:
    """Operations outside the blocks, then those of every block. Opens the blocks in place.

    Raises ValueError where the model holds no block of a known family.
    """
    find_sites(backbone)
    found = []
    for name, model, family in _named_models(backbone):
        found += family.outer_operations(name, model)
    for name, block in named_blocks(backbone):
        found += next(f for f in FAMILIES if f.owns(block)).block_operations(name, block)
    return found


def close_sites(backbone: nn.Module) -> None:
    """Takes out tails and contexts and gives the blocks their own class back; the model is then as timm built it."""
    for _, block in list(named_blocks(backbone)):
        next(f for f in FAMILIES if f.owns(block)).close_block(block)
    for _, model, family in _named_models(backbone):
        family.close_model(model)


def accelerate(backbone: nn.Module) -> nn.Module:
    """Makes the blocks of a backbone faster, in place, before or after a method adapts it; returns it.

    Attention reads windows where they lie in the map and is one operator (`torch.ops.sfa.window_attention`); the bias
    of relative positions is computed once while it is frozen. Without gradients, linear layers are oneDNN's where those
    are faster, GELU included. Outputs are those of timm up to rounding (relative 1e-6 in float32). Parameters, state
    dict, hooks and methods stay as they are; prompts of VPT and dropped attention are computed as before. Of a plain
    ViT only the MLPs change. `decelerate` undoes it, bit by bit.

    Raises ValueError where the model holds no block of a known family.
    """
    return _for_blocks(backbone, "accelerate_block")


def decelerate(backbone: nn.Module) -> nn.Module:
    """Undoes `accelerate`, in place: the model computes the bits it did before; returns it."""
    return _for_blocks(backbone, "decelerate_block")


def _for_blocks(backbone: nn.Module, action: str) -> nn.Module:
    blocks = list(named_blocks(backbone))
    if not blocks:
        raise ValueError(_no_blocks(backbone))
    for _, block in blocks:
        getattr(next(f for f in FAMILIES if f.owns(block)), action)(block)
    return backbone


def eligible_weights(backbone: nn.Module, targets: Sequence[str] = DEFAULT_TARGETS) -> dict[str, nn.Parameter]:
    """Block weights whose name inside the block matches one of `targets` (shell patterns), by full name, in order.

    Raises ValueError for a pattern that matches nothing.
    """
    found: dict[str, nn.Parameter] = {}
    unused = set(targets)
    for block_name, block in named_blocks(backbone):
        for name, parameter in block.named_parameters():
            hits = {pattern for pattern in targets if fnmatchcase(name, pattern)}
            if hits and parameter.dim() == 2 and not is_adapter_name(name):
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
    model = next((m for _, m, _ in _named_models(backbone)), None)
    if model is None:
        return {"backbone": own, "with_head": own}
    width = model.num_features
    head = sum(p.numel() for p in model.head.parameters()) if isinstance(model.head, nn.Module) else 0
    norms = [model.norm, getattr(model, "fc_norm", nn.Identity())]
    norm = sum(p.numel() for module in norms for p in module.parameters())
    alone = own - head - norm + 2 * width
    return {"backbone": alone, "with_head": alone + (width + 1) * IMAGENET_CLASSES}


def is_adapter_name(name: str) -> bool:
    """True for a parameter that a method installed, not one of the backbone itself."""
    return any(part in SLOTS for part in name.split("."))


def plain_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's own state dict, without what methods installed."""
    return {n: t for n, t in backbone.state_dict().items() if not is_adapter_name(n)}
