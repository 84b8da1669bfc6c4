"""Heads of every task in task files and in the bank: buffers and all, their predictions are the trained model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_tasks import make_task

from sfa_ext import deltas, tasks
from sfa_ext.data.augment import normalise
from sfa_ext.deltas import TaskBank, whole
from sfa_ext.tasks import inference


def equal(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b)


@pytest.mark.parametrize("name", tasks.names())
def test_a_head_predicts_from_the_bank_what_it_predicted_when_trained(pico, tmp_path, name):
    task, trained, head = make_task(pico, "sfa-s", name)
    for buffer in head.buffers():  # running statistics away from their start
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    deltas.write(tmp_path / "task.safetensors", task)
    bank = TaskBank(pico)
    bank.add(tmp_path / "task.safetensors", "one")
    picture = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    with torch.no_grad():
        image = normalise(torch.tensor(picture).permute(2, 0, 1))[None]
        expected = inference.predict(trained.eval(), head.eval(), image, 96)
    found = bank.predict("one", picture)
    assert found.keys() == expected.keys() and all(equal(value, expected[key]) for key, value in found.items())


def test_a_head_of_instances_cannot_be_exported_as_a_module(pico, tmp_path):
    task, *_ = make_task(pico, "sfa-s", "maskrcnn")
    deltas.write(tmp_path / "task.safetensors", task)
    with pytest.raises(ValueError, match="the head 'maskrcnn' finds any number of instances"):
        whole.write_module(tmp_path / "task.safetensors", lambda task: pico, tmp_path / "out.pt2")
