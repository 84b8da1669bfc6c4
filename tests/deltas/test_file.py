"""The task file: what goes in comes out bit by bit, and nothing else is taken for one."""

from __future__ import annotations

import copy
import json
import struct

import pytest
import torch
from small_tasks import head_of, make_task, settings_of

import sfa_ext
from sfa_ext import deltas, tasks
from sfa_ext.deltas.positions import entropy_bits
from sfa_ext.methods import METHODS, PRESETS, resolve


def same(a, b):
    """Equal in dtype and bits, NaN included."""
    bits = [torch.cat([t.detach().flatten()]).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def same_task(a, b):
    tensors = a.tensors.keys() == b.tensors.keys() and all(same(t, b.tensors[n]) for n, t in a.tensors.items())
    chosen = list(a.selected) == list(b.selected) and all(
        same(s.index, b.selected[n].index) and same(s.values, b.selected[n].values) and s.size == b.selected[n].size
        for n, s in a.selected.items()
    )
    return tensors and chosen and a.meta == b.meta


@pytest.mark.parametrize("method", [*METHODS, *PRESETS])
def test_a_task_of_any_method_is_taken_up_bit_by_bit(pico, images, tmp_path, method):
    task, trained, head = make_task(pico, method)
    deltas.write(tmp_path / "task.safetensors", task)
    found = deltas.read(tmp_path / "task.safetensors")
    assert same_task(found, task)
    fresh_head = head_of("pretrain", pico)
    adaptation = sfa_ext.adapt(pico, resolve(method, pico, settings_of(method)))
    deltas.restore(found, adaptation, fresh_head)
    with torch.no_grad():
        ours, theirs = pico(images), trained(images)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(fresh_head.predict(ours, (96, 96))["semantic"], head.predict(theirs, (96, 96))["semantic"])


@pytest.mark.parametrize("name", tasks.names())
def test_heads_of_every_task_come_back_with_their_buffers(pico, name):
    head = head_of(name, pico)
    head.add_module("stem", torch.nn.BatchNorm2d(4))
    head.stem(torch.randn(2, 4, 5, 5))
    task = deltas.collect(sfa_ext.adapt(pico, "frozen"), head)
    found = deltas.from_bytes(deltas.to_bytes(task))
    assert same_task(found, task)
    assert found.part("buffers")["stem.num_batches_tracked"].dtype == torch.int64
    other = head_of(name, pico)
    other.add_module("stem", torch.nn.BatchNorm2d(4))
    deltas.restore(found, pico._sfa_adaptation, other)
    assert all(same(t, head.state_dict()[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize("dtype", deltas.DTYPES.values(), ids=list(deltas.DTYPES))
def test_values_are_kept_in_the_chosen_dtype(pico, dtype):
    task, trained, _ = make_task(pico)
    task.tensors["buffers/running_var"] = torch.tensor([1e-9, 3e5])
    found = deltas.from_bytes(deltas.to_bytes(task.to(dtype)))
    adaptation = sfa_ext.adapt(pico, resolve("sfa-s", pico, settings_of("sfa")))
    del found.tensors["buffers/running_var"], task.tensors["buffers/running_var"]
    deltas.restore(found, adaptation, head_of("pretrain", pico))
    chosen = adaptation.selection.values()
    for name, selected in task.selected.items():
        assert same(chosen[name], selected.values.to(dtype).float())
        assert found.selected[name].values.dtype == dtype
    assert all(t.dtype == dtype for t in found.tensors.values())


def test_buffers_keep_their_dtype_and_a_number_too_large_for_a_dtype_is_named(pico):
    task, _, _ = make_task(pico)
    task.tensors["buffers/running_var"] = torch.tensor([1e-9, 3e5])
    assert task.to(torch.float16).tensors["buffers/running_var"].dtype == torch.float32
    task.tensors["head/semantic.bias"][0] = 1e5
    with pytest.raises(ValueError, match="dtype: head/semantic.bias holds numbers beyond float16; take bfloat16"):
        task.to(torch.float16)


def test_a_half_precision_backbones_task_is_exact(pico, images):
    pico.to(torch.bfloat16)
    twin = copy.deepcopy(pico)
    adaptation = sfa_ext.adapt(twin, resolve("sfa-s", twin, settings_of("sfa")))
    optimizer = adaptation.optimizer(1e-2, steps=2)
    for _ in range(2):
        sum(m.float().square().mean() for m in twin(images.bfloat16())).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = deltas.from_bytes(deltas.to_bytes(deltas.collect(adaptation)))
    deltas.restore(found, sfa_ext.adapt(pico, resolve("sfa-s", pico, settings_of("sfa"))))
    assert all(torch.equal(a, b) for a, b in zip(pico(images.bfloat16()), twin(images.bfloat16()), strict=True))


@pytest.mark.parametrize("dtype", deltas.DTYPES.values(), ids=list(deltas.DTYPES))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.9])
def test_positions_and_values_cost_at_most_five_per_cent_over_the_bound(dtype, share):
    """Of the entropy of the mask plus the bits of the values, over weights of a few shapes of SwinV2."""
    generator, chosen, bound = torch.Generator().manual_seed(0), {}, 0.0
    for name, size in {"qkv": 3 * 256 * 256, "proj": 256 * 256, "fc1": 4 * 256 * 256, "pico": 32 * 32}.items():
        index = (torch.rand(size, generator=generator) < share).nonzero().flatten()
        chosen[name] = deltas.Selected(index, torch.randn(len(index)).to(dtype), size)
        bound += (entropy_bits(size, len(index)) + 8 * dtype.itemsize * len(index)) / 8
    meta = PLAIN
    whole = len(deltas.to_bytes(deltas.Task(meta, chosen)))
    empty = len(deltas.to_bytes(deltas.Task(meta, {})))
    assert bound < whole - empty <= 1.05 * bound


PLAIN = {
    "fingerprint": "0" * 64, "method": {"name": "frozen", "settings": {}}, "head": None, "classes": [], "objects": [],
    "palette": [], "crop": None, "recipe": None, "results": {},
}  # fmt: skip


def test_the_same_task_gives_the_same_bytes(pico):
    task, _, _ = make_task(pico)
    assert deltas.to_bytes(task) == deltas.to_bytes(deltas.from_bytes(deltas.to_bytes(task)))


def test_another_backbone_method_or_head_is_named_and_nothing_is_touched(pico):
    task, _, _ = make_task(pico)
    before, head = copy.deepcopy(pico.state_dict()), head_of("pretrain", pico)
    narrow = head_of("mask2former", pico)
    adaptation = sfa_ext.adapt(pico, resolve("sfa-s", pico, settings_of("sfa")))
    with pytest.raises(ValueError, match=r"the head's 'depth.bias' is \[1\] in the file, this head has no such"):
        deltas.restore(task, adaptation, narrow)
    adaptation.detach()
    with pytest.raises(ValueError, match="selects from '.*qkv.weight', which Frozen"):
        deltas.restore(task, sfa_ext.adapt(pico, "frozen"), head)
    pico._sfa_adaptation.detach()
    adaptation = sfa_ext.adapt(pico, sfa_ext.SFA(dim=1, budget=0.048, rounds=1, interval=1))
    with pytest.raises(ValueError, match=r"does not fit SFA\(.*is of shape"):
        deltas.restore(task, adaptation, head)
    adaptation.detach()
    assert all(torch.equal(t, before[n]) for n, t in pico.state_dict().items())
    pico.model.patch_embed.proj.weight.data.view(-1)[3] += 1e-3
    with pytest.raises(ValueError, match=r"belongs to another backbone \(fingerprint \w{12}, this one has \w{12}\)"):
        deltas.restore(task, sfa_ext.adapt(pico, resolve("sfa-s", pico, settings_of("sfa"))), head)


def test_every_truncation_is_refused(small_file):
    for length in range(len(small_file)):
        with pytest.raises(ValueError, match="^task file: cannot be read, it is (truncated|altered)"):
            deltas.from_bytes(small_file[:length])
    with pytest.raises(ValueError, match="altered"):
        deltas.from_bytes(small_file + b"\0")


def test_every_flipped_byte_is_refused(small_file):
    for place in range(len(small_file)):
        altered = bytearray(small_file)
        altered[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match="^task file: cannot be read, .{10,300}$"):
            deltas.from_bytes(bytes(altered))


@pytest.fixture(scope="module")
def small_file():
    chosen = {"a": deltas.Selected(torch.arange(0, 90, 7), torch.randn(13), 91)}
    return deltas.to_bytes(deltas.Task(PLAIN, chosen, {"head/weight": torch.randn(2, 3)}))


def other_version(data, version):
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    meta = header["__metadata__"]
    meta["sfa_ext"] = meta["sfa_ext"].replace('"version": 1', f'"version": {version}')
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_another_version_is_named(small_file):
    with pytest.raises(ValueError, match="of version 2, this sfa_ext reads version 1"):
        deltas.from_bytes(other_version(small_file, 2))


def test_other_safetensors_files_and_missing_ones_are_named(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="plain.safetensors: cannot be read, it is altered or no task file"):
        deltas.read(path)
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such file"):
        deltas.read(tmp_path / "none.safetensors")
