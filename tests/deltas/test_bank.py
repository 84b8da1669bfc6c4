"""The bank: each task's own outputs to the bit, whatever was in the backbone before and whoever else uses it."""

from __future__ import annotations

import copy
import os
import random
import threading
import time

import numpy as np
import pytest
import torch
from small_tasks import make_task

import sfa_ext
from sfa_ext import backbones, deltas
from sfa_ext.deltas import TaskBank
from sfa_ext.methods import METHODS

LONG = pytest.mark.skipif(os.environ.get("SFA_LONG") != "1", reason="takes minutes; set SFA_LONG=1")


@torch.no_grad()
def outputs(backbone, head, images):
    maps = backbone(images)
    return [*maps, head.predict(maps, (96, 96))["semantic"]]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_equal(a, b):
    return list(a) == list(b) and all(torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
@pytest.mark.parametrize("method", METHODS)
def test_a_task_in_the_bank_computes_what_it_computed_when_trained(pico, images, tmp_path, method, keep):
    start = copy.deepcopy(pico.state_dict())
    task, trained, head = make_task(pico, method)
    other, *_ = make_task(pico, "sfa-s", seed=1)
    bank = TaskBank(pico, keep=keep)
    for name, each in {"one": task, "other": other}.items():
        deltas.write(tmp_path / f"{name}.safetensors", each)
        bank.add(tmp_path / f"{name}.safetensors")
    assert state_equal(pico.state_dict(), start), "adding a task changes nothing"
    expected = outputs(trained.eval(), head, images)
    for name in ("one", "other", "one"):
        with bank.task(name) as loaded:
            assert equal(outputs(pico, loaded, images), expected) == (name == "one")
    assert state_equal(pico.state_dict(), start) and bank.active is None


def test_one_two_one_is_exact_for_heads_of_two_kinds(pico, images):
    bank, expected = TaskBank(copy.deepcopy(pico)), {}
    for seed, (name, head) in enumerate({"rooms": "mask2former", "depth": "pretrain"}.items()):
        task, trained, module = make_task(pico, "sfa", head, seed)
        expected[name] = outputs(trained.eval(), module, images)
        bank.add(task, name)
    for name in ("rooms", "depth", "rooms", "depth", "rooms"):
        with bank.task(name) as head:
            assert equal(outputs(bank.backbone, head, images), expected[name])


def test_what_was_activated_comes_back_after_another_task(pico, images):
    bank = TaskBank(pico)
    for seed, name in enumerate("ab"):
        bank.add(make_task(pico, seed=seed)[0], name)
    bank.activate("a")
    with bank.task("b"):
        assert bank.active == "b"
        with bank.task("b"):
            pass
        assert bank.active == "b"
    assert bank.active == "a"
    with bank.task("b", stay=True):
        pass
    assert bank.active == "b"
    bank.deactivate()
    assert bank.active is None
    bank.activate("a")
    bank.remove("a")
    assert bank.active is None and bank.names == ["b"] and "a" not in bank and len(bank) == 1


def test_names_are_checked_and_the_known_ones_listed(pico):
    bank = TaskBank(pico)
    with pytest.raises(ValueError, match="unknown task 'a'; known: none, add one first"):
        bank.task("a")
    bank.add(make_task(pico)[0], "a")
    for call in (
        bank.task,
        bank.activate,
        bank.remove,
        bank.meta,
        lambda n: bank.predict(n, np.zeros((9, 9, 3), "u1")),
    ):
        with pytest.raises(ValueError, match="unknown task 'b'; known: a"):
            call("b")
    with pytest.raises(ValueError, match="there is a task 'a' already"):
        bank.add(make_task(pico)[0], "a")
    with pytest.raises(ValueError, match="keep: unknown 'cloud', known: device, host, disk"):
        TaskBank(pico, keep="cloud")
    with pytest.raises(RuntimeError, match="this thread is using 'a' and cannot wait for None"), bank.task("a"):
        bank.deactivate()
    with pytest.raises(RuntimeError, match="this thread is using 'a'; leave it first"), bank.task("a"):
        bank.remove("a")


def test_a_task_of_another_backbone_is_refused_and_nothing_changes(pico):
    task, *_ = make_task(pico)
    other = copy.deepcopy(pico)
    other.model.layers[0].blocks[0].norm1.bias.data[0] += 1
    start = copy.deepcopy(other.state_dict())
    bank = TaskBank(other)
    with pytest.raises(ValueError, match="x: belongs to another backbone"):
        bank.add(task, "x")
    assert len(bank) == 0 and state_equal(other.state_dict(), start)
    adaptation = sfa_ext.adapt(other, "frozen")
    with pytest.raises(ValueError, match="backbone: it is adapted; call detach"):
        TaskBank(other)
    adaptation.detach()


def altered(task, **changes):
    return deltas.Task(task.meta | changes, dict(task.selected), dict(task.tensors))


def test_a_task_that_does_not_fit_is_refused_and_the_bank_goes_on(pico, images):
    task, trained, head = make_task(pico)
    bank, start = TaskBank(pico), copy.deepcopy(pico.state_dict())
    bank.add(task, "good")
    bank.activate("good")
    method, size = task.meta["method"], len(CLASSES := task.meta["classes"])
    bad = {
        "method: unknown 'magic', known: frozen": altered(task, method={"name": "magic", "settings": {}}),
        "unknown setting 'budge'": altered(task, method=method | {"settings": {"budge": 1}}),
        "is of shape": altered(task, method=method | {"settings": method["settings"] | {"dim": 3}}),
        "unknown task 'magic'": altered(task, head={"name": "magic", "settings": {}}),
        "the head's 'semantic.bias'": altered(task, classes=CLASSES * 2, palette=task.meta["palette"] * size),
        "this backbone is built for 96x96; build it with size=64": altered(task, crop=64),
        "this head has no such tensor": altered(task),
        "the method's 'parameters/extra' is unknown": altered(task),
        "selects from 'nothing' of 9 entries, this backbone has no such weight": altered(task),
        "entries, this backbone has 3072 entries": altered(task),
    }
    bad["this head has no such tensor"].tensors["head/extra"] = torch.zeros(1)
    bad["the method's 'parameters/extra' is unknown"].tensors["method/parameters/extra"] = torch.zeros(1)
    nowhere = deltas.Selected(torch.arange(2), torch.zeros(2), 9)
    bad["selects from 'nothing' of 9 entries, this backbone has no such weight"].selected["nothing"] = nowhere
    qkv = "model.layers.0.blocks.0.attn.qkv.weight"
    bad["entries, this backbone has 3072 entries"].selected[qkv] = nowhere
    for message, each in bad.items():
        with pytest.raises(ValueError, match=message):
            bank.add(each, "bad")
    assert bank.names == ["good"] and bank.active == "good"
    with bank.task("good") as loaded:
        assert equal(outputs(pico, loaded, images), outputs(trained.eval(), head, images))
    bank.deactivate()
    assert state_equal(pico.state_dict(), start)


def test_a_task_on_disk_that_was_altered_is_refused_when_used_and_the_other_stays(pico, images, tmp_path):
    bank = TaskBank(pico, keep="disk")
    for seed, name in enumerate("ab"):
        deltas.write(tmp_path / f"{name}.safetensors", make_task(pico, seed=seed)[0])
        bank.add(tmp_path / f"{name}.safetensors")
    bank.activate("a")
    with torch.no_grad():
        before = pico(images)
    data = bytearray((tmp_path / "b.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "b.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="b.safetensors: cannot be read, it is truncated or altered"):
        bank.activate("b")
    assert bank.active == "a"
    with torch.no_grad():
        assert equal(pico(images), before)


def test_memory_is_the_backbone_once_and_what_each_task_holds(pico, tmp_path):
    task, *_ = make_task(pico, "sfa-s")
    deltas.write(tmp_path / "a.safetensors", task)
    bank = TaskBank(pico)
    bank.add(tmp_path / "a.safetensors")
    entries = sum(len(s.index) for s in task.selected.values())
    own = sum(t.numel() * t.element_size() for t in task.tensors.values())
    backbone = sum(t.numel() * t.element_size() for t in [*pico.parameters(), *pico.buffers()])
    assert bank.memory() == {"backbone": backbone, "a": own + 8 * entries}
    with bank.task("a"):
        assert bank.memory() == {"backbone": backbone, "a": own + 8 * entries}
    on_disk = TaskBank(pico, keep="disk")
    on_disk.add(tmp_path / "a.safetensors")
    assert on_disk.memory()["a"] == 0


def test_predict_takes_any_image_and_names_a_bad_one(pico):
    any_size = backbones.build("swinv2_pico", size=96, dynamic=True)
    any_size.load_state_dict(pico.state_dict())
    bank = TaskBank(any_size)
    bank.add(make_task(pico, head="pretrain")[0], "a")
    image = np.random.default_rng(0).integers(0, 255, (70, 120, 3), np.uint8)
    found = bank.predict("a", image)
    assert found["semantic"].shape == (1, 3, 70, 120) and found["depth"].shape == (1, 70, 120)
    assert bank.active is None
    for bad in (image.astype(np.float32), image[..., 0], image[:0]):
        with pytest.raises(ValueError, match=r"image: must be uint8 \[H, W, 3\], got"):
            bank.predict("a", bad)


def hammer(bank, expected, images, swaps, threads=4):
    """`swaps` uses of random tasks on several threads; returns how many gave other bits, and how many were made."""
    wrong, done, lock = [], [], threading.Lock()

    def work(seed):
        choose = random.Random(seed)
        while True:
            with lock:
                if len(done) >= swaps:
                    return
                done.append(seed)
            name = choose.choice(list(expected))
            with bank.task(name, stay=choose.random() < 0.8) as head:
                found = outputs(bank.backbone, head, images)
            if not equal(found, expected[name]):
                wrong.append(name)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong, len(done)


@pytest.mark.parametrize("swaps", [40, pytest.param(1000, marks=LONG)])
def test_random_switches_on_four_threads_give_each_task_its_own_bits(pico, images, swaps):
    bank, expected, images = TaskBank(copy.deepcopy(pico)), {}, images[:1]
    for seed, (name, method) in enumerate({"a": "sfa-s", "b": "sfa-b", "c": "full", "d": "frozen"}.items()):
        task, trained, head = make_task(pico, method, seed=seed)
        expected[name] = outputs(trained.eval(), head, images)
        bank.add(task, name)
    wrong, done = hammer(bank, expected, images, swaps)
    assert done == swaps and not wrong
    bank.deactivate()
    assert state_equal(bank.backbone.state_dict(), pico.state_dict())


def test_a_switch_waits_for_running_forwards_and_later_users_queue_behind_it(pico):
    bank = TaskBank(pico)
    for name in "ab":
        bank.add(make_task(pico)[0], name)
    order, inside, leave = [], threading.Event(), threading.Event()

    def first():
        with bank.task("a"):
            inside.set()
            leave.wait(20)
            order.append("first a done")

    def second():
        with bank.task("b"):
            order.append("b")

    def third():
        with bank.task("a"):
            order.append("second a")

    threads = [threading.Thread(target=t) for t in (first, second, third)]
    threads[0].start()
    inside.wait(20)
    for thread in threads[1:]:
        thread.start()
        time.sleep(0.2)
    assert order == [] and bank.active == "a"
    leave.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first a done", "b", "second a"]
