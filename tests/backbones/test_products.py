"""Linear layers by oneDNN: torch's numbers, whatever acts on the layer, and torch itself where gradients are needed."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from sfa_ext.backbones import products


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"], autouse=True)
def by_onednn(request, monkeypatch):
    """As on a processor where oneDNN is the faster one, and as on one where it is not."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_faster", lambda dtype: request.param and dtype in (torch.float32, torch.bfloat16))
    return request.param


def distance(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 33), (2, 3, 4, 16), (0, 8)], ids=str)
def test_it_is_linear_and_gelu(shape, bias, gelu, dtype):
    torch.manual_seed(0)
    x, w, b = torch.randn(shape).to(dtype), torch.randn(9, shape[-1]).to(dtype), torch.randn(9).to(dtype)
    b = b if bias else None
    exact = F.linear(x.double(), w.double(), None if b is None else b.double())
    exact = exact if gelu is None else F.gelu(exact, approximate=gelu)
    found = products.linear(x, w, b, gelu)
    assert found.shape == exact.shape and found.dtype == dtype
    if x.numel():
        assert distance(found, exact) < {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


def test_rows_that_do_not_lie_side_by_side():
    x, w = torch.randn(6, 4, 8).transpose(0, 1), torch.randn(8, 5).t()
    assert distance(products.linear(x, w), F.linear(x.double(), w.double())) < 1e-6


def test_where_a_gradient_is_needed_torch_computes():
    x, w = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8)
    products.linear(x, w, None, "none").sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.no_grad():
        assert not products.linear(x, w).requires_grad


def test_hooks_autocast_and_compile_are_heard(by_onednn):
    layer, x = nn.Linear(8, 5).requires_grad_(False), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.apply(layer, x).dtype == torch.bfloat16
    compiled = torch.compile(lambda x: products.apply(layer, x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(products.apply(layer, x), layer(x))


class TanhGELU(nn.GELU):
    """Another class than torch's own: its forward decides."""

    def __init__(self):
        super().__init__(approximate="tanh")


@pytest.mark.parametrize("hooked", ["fc1", "act", "fc2"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, TanhGELU], ids=lambda c: c.__name__)
@torch.no_grad()
def test_an_mlp_and_its_hooks(activation, hooked):
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32, act_layer=activation, drop=0.5).eval(), torch.randn(2, 3, 8)
    before = mlp(x)
    products.accelerate_mlp(mlp)
    assert type(mlp) is products.FastMlp and distance(mlp(x), before.double()) < 1e-6
    mlp.train()
    assert (mlp(x) == 0).any() or not torch.allclose(mlp(x), mlp(x))  # dropout is drawn
    mlp.eval()
    mlp.get_submodule(hooked).register_forward_hook(lambda module, inputs, output: 2 * output)
    changed = mlp(x)
    products.decelerate_mlp(mlp)
    assert type(mlp) is Mlp and torch.allclose(changed, mlp(x), atol=1e-6) and not torch.allclose(changed, before)


def test_an_mlp_of_another_class_stays_as_it_is():
    class Own(Mlp):
        pass

    mlp = Own(4, 8)
    products.accelerate_mlp(mlp)
    assert type(mlp) is Own
