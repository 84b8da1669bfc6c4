"""The BiFPN: sizes that do not halve evenly, and its sums against a few lines."""

import pytest
import torch
import torch.nn.functional as F
from tiny_scenes import CHANNELS

from sfa_ext.tasks.bifpn import BiFPN, BiFPNLayer, Fusion


@pytest.mark.parametrize("height,width", [(256, 128), (100, 75), (97, 131), (33, 34), (32, 32)])
def test_maps_keep_their_sizes_whatever_those_are(height, width):
    sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    maps = [torch.randn(2, c, *size, requires_grad=True) for c, size in zip(CHANNELS, sizes, strict=True)]
    out = BiFPN(CHANNELS, 16, layers=2)(maps)
    last = (-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2))
    assert [tuple(o.shape) for o in out] == [(2, 16, *size) for size in (*sizes, last)]
    # Every map reaches every other: down and up.
    for level in (0, len(out) - 1):
        grads = torch.autograd.grad(out[level].square().mean(), maps, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)


def test_fusion_is_the_normalised_sum_of_positive_weights():
    fusion, (a, b, c) = Fusion(3).double(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([2.0, -1.0, 0.5]))
    torch.testing.assert_close(fusion([a, b, c]), (2 * a + 0.5 * c) / 2.5001)


def test_a_layer_is_the_published_graph():
    layer = BiFPNLayer(8, 3).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.rand_like(p) * 0.3)
    fine, mid, coarse = (torch.randn(1, 8, s, s, dtype=torch.float64) for s in (8, 4, 2))

    def fuse(module, *maps):
        w = module.weight.relu()
        return sum(x * y for x, y in zip(w, maps, strict=True)) / (w.sum() + 1e-4)

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    mid_down = layer.down_convs[1](fuse(layer.down[1], mid, twice(coarse)))
    fine_out = layer.down_convs[0](fuse(layer.down[0], fine, twice(mid_down)))
    mid_out = layer.up_convs[0](fuse(layer.up[0], mid, mid_down, F.max_pool2d(fine_out, 2)))
    coarse_out = layer.up_convs[1](fuse(layer.up[1], coarse, F.max_pool2d(mid_out, 2)))
    for found, expected in zip(layer([fine, mid, coarse]), (fine_out, mid_out, coarse_out), strict=True):
        torch.testing.assert_close(found, expected)
