"""The operators of a training step inside a CUDA graph: what counts steps stands on the device."""

from __future__ import annotations

import pytest
import torch

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext.ops import reference_selection

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.skipif(sfa_ext.ops.backends()["sparse_adamw_"]["cuda"] != "cuda", reason="no CUDA kernels are in use"),
]
SETTINGS = (1e-2, 0.9, 0.99, 1e-8, 0.1)


def state(device: str) -> list:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, generator=generator).to(device) for n in (700, 33)]
    grads = [torch.randn(n, generator=generator).to(device) for n in (700, 33)]
    indices = [torch.arange(0, w.numel(), 3, device=device) for w in weights]
    rounds = [torch.zeros(i.numel(), dtype=torch.int16, device=device) for i in indices]
    moments = [[torch.zeros(i.numel(), device=device) for i in indices] for _ in range(2)]
    return [weights, grads, indices, rounds, *moments, [], torch.tensor([0, -1], device=device)]


def test_replayed_steps_equal_steps_one_by_one():
    captured, single = state("cuda"), state("cpu")
    scores, summed = torch.zeros(700, device="cuda"), torch.zeros(700)
    # Kernels are loaded when first called, which drivers before CUDA 12.3 do not do during a capture.
    torch.ops.sfa.sparse_adamw_(*state("cuda"), *SETTINGS)
    torch.ops.sfa.accumulate_scores_([scores.clone()], [captured[1][0]], "squared")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.sfa.sparse_adamw_(*captured, *SETTINGS)
        torch.ops.sfa.accumulate_scores_([scores], [captured[1][0]], "squared")
    for _ in range(5):
        graph.replay()
        reference_selection.sparse_adamw_(*single, *SETTINGS)
        reference_selection.accumulate_scores_([summed], [single[1][0]], "squared")
    assert captured[-1].tolist() == single[-1].tolist() == [5, -1]
    for got, want in zip(captured[0], single[0], strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scores.cpu(), summed)
