"""window_attention against float64 written down from SwinV2's definition, and against timm's own block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sfa_ext  # noqa: F401  registers torch.ops.sfa

BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Case:
    batch: int
    size: tuple[int, int]
    heads: int
    depth: int
    window: tuple[int, int]
    shift: tuple[int, int]

    def __str__(self) -> str:
        return "-".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in vars(self).values())

    @property
    def fits(self) -> bool:
        return all(s % w == 0 for s, w in zip(self.size, self.window, strict=True))

    def tensors(self, dtype: torch.dtype) -> list[Tensor | None]:
        """qkv, scale, bias, pad."""
        wide = torch.promote_types(dtype, torch.float32)
        channels, tokens = 3 * self.heads * self.depth, math.prod(self.window)
        qkv = torch.randn(self.batch, *self.size, channels).to(dtype)
        scale = torch.rand(self.heads, dtype=wide) * 10 + 1
        bias = torch.randn(self.heads, tokens, tokens, dtype=wide) * 3
        return [qkv, scale, bias, None if self.fits else torch.randn(channels, dtype=wide)]


CASES = [
    Case(2, (16, 16), 2, 32, (8, 8), (4, 4)),
    Case(1, (12, 18), 2, 32, (6, 6), (0, 0)),
    Case(2, (10, 13), 3, 20, (4, 6), (2, 3)),  # windows that do not fit, depths of no whole vectors
    Case(1, (7, 7), 1, 5, (7, 7), (0, 0)),
    Case(1, (3, 5), 1, 5, (4, 4), (2, 2)),  # a map smaller than the window
    Case(1, (8, 8), 2, 24, (4, 4), (0, 2)),
    Case(1, (2, 2), 1, 1, (1, 1), (0, 0)),
]


def defined(case: Case, qkv: Tensor, scale: Tensor, bias: Tensor, pad: Tensor | None) -> Tensor:
    """Token by token: which window a token is in, which tokens are with it there, and from which part of the map."""
    (height, width), (high, wide), (down, right) = case.size, case.window, case.shift
    padded = [-(-s // w) * w for s, w in zip(case.size, case.window, strict=True)]
    out = torch.zeros(case.batch, height, width, case.heads * case.depth, dtype=qkv.dtype)
    filler = qkv.new_zeros(qkv.shape[-1]) if pad is None else pad

    def part(position: int, size: int, side: int, moved: int) -> int:
        return 0 if not moved else (position >= size - side) + (position >= size - moved)

    for b in range(case.batch):
        for top in range(0, padded[0], high):
            for first in range(0, padded[1], wide):
                places = [(i, j) for i in range(top, top + high) for j in range(first, first + wide)]
                inside = [i < height and j < width for i, j in places]
                at = [((i + down) % height, (j + right) % width) for i, j in places]
                tokens = torch.stack([qkv[(b, *p)] if real else filler for p, real in zip(at, inside, strict=True)])
                q, k, v = tokens.view(len(places), 3, case.heads, case.depth).permute(1, 2, 0, 3)
                q, k = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))
                parts = torch.tensor([[part(i, padded[0], high, down), part(j, padded[1], wide, right)]
                                      for i, j in places])  # fmt: skip
                apart = (parts[:, None] != parts[None]).any(-1)
                logits = q @ k.transpose(1, 2) * scale[:, None, None] + bias - 100.0 * apart
                mixed = (logits.softmax(-1) @ v).permute(1, 0, 2).flatten(1)
                for token, place, real in zip(mixed, at, inside, strict=True):
                    if real:
                        out[(b, *place)] = token
    return out


def call(case: Case, tensors: list[Tensor | None]) -> Tensor:
    return torch.ops.sfa.window_attention(*tensors, case.window, case.shift)


def distance(ours: Tensor, reference: Tensor) -> float:
    return float((ours.detach().double() - reference.detach()).norm() / reference.detach().norm())


@pytest.mark.parametrize("dtype", BOUNDS, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accurate_forward_and_backward(case, dtype):
    tensors = case.tensors(dtype)
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    out = call(case, tensors)
    grad_out = torch.randn(out.shape).to(dtype)
    grads = torch.autograd.grad(out, leaves, grad_out)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    reference = defined(case, *exact, *[None] * (4 - len(exact)))
    wanted = torch.autograd.grad(reference, exact, grad_out.double(), allow_unused=True)
    assert out.dtype == dtype and distance(out, reference) < BOUNDS[dtype]
    for ours, other in zip(grads, wanted, strict=True):
        if other is not None and other.norm() > 1e-9:  # q and k of depth 1 or of a lone token have none
            assert distance(ours, other) < 3 * BOUNDS[dtype]


def test_the_way_of_other_devices_computes_the_same():
    from sfa_ext.ops import reference_attention

    for case in CASES:
        tensors = case.tensors(torch.float64)
        other = reference_attention.window_attention(*tensors, case.window, case.shift)
        assert distance(other, call(case, tensors)) < 1e-13


def test_it_is_registered_and_differentiated_as_torch_demands():
    case = Case(1, (3, 4), 2, 3, (2, 2), (1, 1))
    leaves = [t.requires_grad_() for t in case.tensors(torch.float64)]
    torch.library.opcheck(torch.ops.sfa.window_attention, (*leaves, case.window, case.shift))
    function = lambda *args: call(case, list(args))  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_threads_and_strides_do_not_change_a_bit():
    case = CASES[2]
    tensors = case.tensors(torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = call(case, leaves)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    strided = torch.empty(*tensors[0].shape[:3], 2 * tensors[0].shape[3])[..., ::2].copy_(tensors[0])
    assert torch.equal(call(case, [strided, *tensors[1:]]), results[0][0])


def test_accurate_where_numbers_are_extreme():
    """Zero vectors, very long ones, large windows, and NaN, which stays in its window."""
    case = Case(1, (8, 4), 1, 8, (4, 4), (0, 0))
    qkv, scale, bias, _ = case.tensors(torch.float32)
    qkv[0, 0, 0], qkv[0, 0, 1] = 0.0, qkv[0, 0, 1] * 1e15
    bias[:, 3] -= 200
    exact = defined(case, qkv.double(), scale.double() * 10, bias.double(), None)
    assert distance(call(case, [qkv, scale * 10, bias, None]), exact) < 1e-5
    qkv[0, 6, 2, 4] = torch.nan
    out = call(case, [qkv, scale, bias, None])
    assert out[0, :4].isfinite().all() and out[0, 6, 2].isnan().all()
    large = Case(1, (24, 24), 1, 8, (24, 24), (0, 0))
    tensors = large.tensors(torch.float64)
    assert distance(call(large, tensors), defined(large, *tensors)) < 1e-13


def test_empty_maps_and_a_compiled_caller():
    case = CASES[0]
    qkv, scale, bias, _ = case.tensors(torch.float32)
    assert call(case, [qkv[:0], scale, bias, None]).shape == (0, 16, 16, 64)
    compiled = torch.compile(lambda *t: call(case, [*t, None]) + 1, fullgraph=True, backend="aot_eager")
    leaves = [t.requires_grad_() for t in (qkv, scale, bias)]
    assert torch.equal(compiled(*leaves), call(case, [*leaves, None]) + 1)
    compiled(*leaves).sum().backward()
    assert all(t.grad is not None for t in leaves)


def test_autocast_lowers_the_tokens_alone():
    case = CASES[0]
    tensors = case.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(case, tensors)
    assert torch.equal(out, call(case, [tensors[0].bfloat16(), *tensors[1:]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(2, 16, 3 * 64)}, r"qkv must be \[B, H, W, 3 D\], got \[2, 16, 192\]"),
        ({"qkv": torch.zeros(2, 16, 16, 190)}, r"D a multiple of the 2 heads, got \[2, 16, 16, 190\]"),
        ({"scale": torch.ones(2).double()}, "scale must be float32 on cpu with qkv float32, got float64"),
        ({"bias": torch.zeros(2, 64, 63)}, r"bias must be \[heads, N, N\] = \[2, 64, 64\], got \[2, 64, 63\]"),
        ({"shift": (4, 8)}, r"shift must be in \[0, window\) with window \[8, 8\], got \[4, 8\]"),
        ({"qkv": torch.zeros(2, 15, 16, 192)}, r"pad is needed where windows \[8, 8\] do not fit the map \[15, 16\]"),
        ({"pad": torch.zeros(5)}, r"pad must be \[3 D\] = \[192\], got \[5\]"),
    ],
)
def test_errors_name_the_argument(change, message):
    case = CASES[0]
    named = dict(zip(("qkv", "scale", "bias", "pad"), case.tensors(torch.float32), strict=True))
    named |= {"window": case.window, "shift": case.shift} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sfa.window_attention(*named.values())
