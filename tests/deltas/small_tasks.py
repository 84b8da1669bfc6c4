"""Small adapted models, trained a little, and the tasks made from them."""

from __future__ import annotations

import copy

import torch

import sfa_ext
from sfa_ext import deltas, tasks
from sfa_ext.methods import resolve

HEADS = {
    "mask2former": {"size": "small", "hidden": 32, "encoder_layers": 1, "decoder_layers": 1, "queries": 4},
    "pretrain": {"width": 8},
    "fpn": {"width": 8},
    "uper": {"size": "small", "width": 8},
    "depth": {"size": "small", "width": 8},
    "maskrcnn": {"size": "small", "width": 8, "box_dim": 16, "neck": "bifpn", "score_threshold": 0.0, "detections": 5},
}
CLASSES = ("floor", "ball", "cube")
PALETTE = [[120, 120, 120], [200, 30, 30], [30, 30, 200]]


def settings_of(name):
    return {"rounds": 1, "interval": 1} if "sfa" in name else {}


def head_of(name, backbone):
    settings = HEADS.get(name, {})
    return tasks.build(name, settings, backbone.feature_info.channels(), CLASSES, (1, 2)).eval()


def train(backbone, adaptation, head, steps=2, seed=0):
    """A few steps on noise; every trained tensor moves."""
    optimizer = adaptation.optimizer(1e-2, head=head.parameters(), steps=steps)
    for step in range(steps):
        images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(100 * seed + step))
        loss = sum(m.square().mean() for m in backbone(images)) + sum(p.square().sum() for p in head.parameters())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_task(backbone, method="sfa-s", head="pretrain", seed=0, **settings):
    """A task trained from `backbone`, which is left as it was; and the task's model, to compare with."""
    twin = copy.deepcopy(backbone)
    adaptation = sfa_ext.adapt(twin, resolve(method, twin, settings_of(method) | settings), seed=seed)
    module = head_of(head, twin)
    train(twin, adaptation, module, seed=seed)
    meta = {"head": {"name": head, "settings": HEADS.get(head, {})}, "classes": list(CLASSES), "objects": [1, 2]}
    task = deltas.collect(adaptation, module, **meta, palette=PALETTE, crop=96)
    return task, twin, module
