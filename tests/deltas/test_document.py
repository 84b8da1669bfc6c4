"""docs/task-file.md: the reader it shows works as it stands there, and it names what a file really holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_tasks import make_task

from sfa_ext import deltas

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "task-file.md").read_text()


@pytest.fixture
def read_task():
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.S)[1], names)
    return names["read_task"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_the_documents_reader_reads_what_the_package_reads(pico, tmp_path, read_task, share):
    task, *_ = make_task(pico)
    name = "model.layers.0.blocks.0.mlp.fc2.weight"
    index = (torch.rand(4096, generator=torch.Generator().manual_seed(1)) < share).nonzero().flatten()
    task.selected[name] = deltas.Selected(index, torch.randn(len(index)), 4096)
    deltas.write(tmp_path / "task.safetensors", task)
    description, selected, tensors = read_task(tmp_path / "task.safetensors")
    assert description == task.meta and list(selected) == list(task.selected)
    for name, (positions, values) in selected.items():
        assert positions.tolist() == task.selected[name].index.tolist()
        assert torch.equal(values, task.selected[name].values)
    assert tensors.keys() == task.tensors.keys() and all(torch.equal(t, task.tensors[n]) for n, t in tensors.items())


def test_the_documents_reader_refuses_an_altered_file(pico, tmp_path, read_task):
    data = bytearray(deltas.to_bytes(make_task(pico)[0]))
    data[-1] ^= 1
    (tmp_path / "task.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="altered, or of another version"):
        read_task(tmp_path / "task.safetensors")


def test_the_reader_is_at_most_thirty_lines():
    code = re.search(r"(def read_task.*?)```", TEXT, re.S)[1]
    assert len(code.strip().splitlines()) <= 30


def test_every_key_that_a_file_has_is_described(pico):
    task, *_ = make_task(pico)
    assert not [key for key in task.meta if f"`{key}`" not in TEXT]
