"""timm's SwinV2 as a family of the sites protocol. Res-post-norm: x + drop_path(norm(branch(x)))."""

from __future__ import annotations

from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

FAMILY = "timm SwinV2"
SLOTS = {"attention": "attention_tail", "mlp": "mlp_tail"}


class ResidualTail(nn.Module):
    """What every half-block ends with when no method acts there: stream + drop_path(finish(branch))."""

    def forward(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        return stream + drop_path(finish(branch))


class OpenBlock(SwinTransformerV2Block):
    """timm's block with its two residual sums as modules; parameters and their names stay timm's."""

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, D]
        batch, height, width, channels = x.shape
        x = self.attention_tail(x, self._attn(x), self.norm1, self.drop_path1)
        x = x.reshape(batch, -1, channels)
        x = self.mlp_tail(x, self.mlp(x), self.norm2, self.drop_path2)
        return x.reshape(batch, height, width, channels)


def owns(module: nn.Module) -> bool:
    return isinstance(module, SwinTransformerV2Block)


def is_model(module: nn.Module) -> bool:
    return isinstance(module, SwinTransformerV2)


def open_block(block: nn.Module) -> list[tuple[str, str, int]]:
    """Makes the block's two tails replaceable, in place; returns (kind, slot, width) of each."""
    if not isinstance(block, OpenBlock):
        # The class is swapped, not the module: references to the block, its hooks and its parameters stay valid.
        block.__class__ = OpenBlock
        for slot in SLOTS.values():
            setattr(block, slot, ResidualTail())
    return [(kind, slot, block.dim) for kind, slot in SLOTS.items()]


def close_block(block: nn.Module) -> None:
    """Undoes `open_block`."""
    if isinstance(block, OpenBlock):
        for slot in SLOTS.values():
            delattr(block, slot)
        block.__class__ = SwinTransformerV2Block
