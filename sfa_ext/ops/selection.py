"""The operators that score, select, update and exchange single entries of weights, all in place, without gradients.

    accumulate_scores_(scores, grads, criterion)
        scores[i] (float32 or float64, contiguous) += g for criterion "gradient", |g| for "absolute", g * g for
        "squared"; grads[i] of the same shape, any floating dtype
    select_topk(scores, excluded, k) -> positions
        the k largest |scores[i]| over all tensors together (one floating dtype, any strides), without those at the flat
        positions excluded[i] (int64 [n_i], strictly increasing); positions[i] are int64, strictly increasing. Ties go
        to the lowest tensor, then to the lowest position. NaN anywhere is an error
    sparse_adamw_(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages, lr, beta1, beta2, eps,
                  weight_decay)
        a step of AdamW (Loshchilov and Hutter, 2019; the arithmetic of torch.optim.AdamW) on the entries indices[i]
        (int64 or int32 [k_i], strictly increasing flat positions) of weights[i] (contiguous) alone. grads[i] has the
        weight's shape or is gathered to [k_i]. Moments are float32 [k_i] (float64 for float64 weights); masters holds a
        float32 [k_i] for each bfloat16 or float16 weight, in order, which is the value that is trained. rounds[i]
        (int16 [k_i]) says which round selected an entry, ages (int64) how many steps each round's entries took, -1
        for a round that did not select yet: bias correction goes by an entry's own age. All ages of at least 0 rise
        by 1 first
    swap_values_(weight, index, values)
        exchanges weight.flatten()[index] with values, bit by bit; any dtype; index int64 or int32, strictly
        increasing

Every result is the same, bit by bit, for any number of threads. RuntimeError names an argument that is not as said
here, before anything was changed; but the GPU kernels of sparse_adamw_ and swap_values_ look at positions and rounds
without anybody waiting for the device: in CUDA's a wrong one stops the kernel, as in torch's own indexing, and the next
call into CUDA raises "device-side assert triggered"; Triton's leave alone what is out of range. select_topk waits for
the device once, to learn the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference_selection as reference
from . import selection_checks as checks
from ._library import LIBRARY, below_autograd
from .backends import register_portable

_ops = torch.ops.sfa


def _select_topk_fake(scores: list[Tensor], excluded: list[Tensor], k: int) -> list[Tensor]:
    checks.select_topk(scores, excluded, k)
    context = torch.library.get_ctx()
    return [score.new_empty(context.new_dynamic_size(), dtype=torch.int64) for score in scores]


def _checked(op: Any, check: Callable[..., None], check_values: Callable[..., None], changed: Callable[..., list]):
    """The Autograd kernel of `op`: `check`, then the backend's kernel. `changed` are the tensors it changes."""

    def run(*args: Any) -> Any:
        check(*args)
        with below_autograd(lambda: check_values(*args)):
            result = op(*args)
        torch.autograd.graph.increment_version([t for t in changed(*args) if not t.is_inference()])
        return result

    return run


def _register(name: str, check: Callable, check_values: Callable, fake: Callable, changed: Callable) -> None:
    torch.library.register_fake(f"sfa::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, _checked(getattr(_ops, name), check, check_values, changed), "Autograd")
    register_portable(name, getattr(reference, name))


_register(
    "accumulate_scores_",
    checks.accumulate_scores,
    checks.accumulate_scores_values,
    checks.accumulate_scores,
    lambda scores, *_: scores,
)
_register("select_topk", checks.select_topk, checks.select_topk_values, _select_topk_fake, lambda *_: [])
_register(
    "sparse_adamw_",
    checks.sparse_adamw,
    checks.sparse_adamw_values,
    checks.sparse_adamw,
    lambda w, g, i, r, exp_avgs, exp_avg_sqs, masters, ages, *_: [*w, *exp_avgs, *exp_avg_sqs, *masters, ages],
)
_register(
    "swap_values_",
    checks.swap_values,
    checks.swap_values_values,
    checks.swap_values,
    lambda weight, index, values: [weight, values],
)
