"""`sfa delta`: what it prints and writes, and that what it writes works."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from small_tasks import make_task

from sfa_ext import backbones, cli, deltas
from sfa_ext.backbones.build import PICO
from sfa_ext.deltas import TaskBank
from sfa_ext.training import recipe
from sfa_ext.training.model import build_backbone

RECIPE = """
backbone: {name: swinv2_pico}
method: {name: sfa}
task: {name: pretrain}
data: {name: scenes, crop: 96}
seed: 5
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tasks of one backbone as files: internal weights alone, internal and external, full fine-tuning, LoRA and SSF."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "recipe.yaml").write_text(RECIPE)
    whole = recipe.load(folder / "recipe.yaml")
    backbone = build_backbone(whole, dynamic=False).eval()
    methods = {
        "inner": ("sfa", {"rho": 0.0}),
        "both": ("sfa-s", {}),
        "full": ("full", {}),
        "lora": ("lora", {"rank": 4}),
        "ssf": ("ssf", {}),
    }
    found = {}
    for seed, (name, (method, settings)) in enumerate(methods.items()):
        task, trained, head = make_task(backbone, method, seed=seed, **settings)
        task.meta |= {"recipe": whole.as_dict(), "results": {"val": {"miou": 0.1 + seed / 10, "iou/ball": 0.5}}}
        deltas.write(folder / f"{name}.safetensors", task)
        found[name] = (task, trained.eval(), head)
    return folder, backbone, found


def run(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def maps(model, images):
    with torch.no_grad():
        return model(images)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_export_writes_another_dtype(made, tmp_path, capsys):
    folder, _, found = made
    run(capsys, "delta", "export", folder / "both.safetensors", "--dtype", "bfloat16", "--out", tmp_path / "half")
    half, task = deltas.read(tmp_path / "half"), found["both"][0]
    assert all(torch.equal(s.values, task.selected[n].values.bfloat16()) for n, s in half.selected.items())
    assert (tmp_path / "half").stat().st_size < 0.62 * (folder / "both.safetensors").stat().st_size


def test_info_says_where_bytes_and_weights_are(made, tmp_path, capsys):
    folder, _, found = made
    text = run(capsys, "delta", "info", folder / "both.safetensors", "--picture", tmp_path / "share.png")
    assert "layers.2.blocks.3" in text and "positions" in text and "miou 0.2000" in text
    assert Image.open(tmp_path / "share.png").width > 300
    facts = json.loads(run(capsys, "delta", "info", folder / "both.safetensors", "--json"))
    assert sum(facts["bytes"].values()) == (folder / "both.safetensors").stat().st_size
    assert facts["selected"] == sum(len(s.index) for s in found["both"][0].selected.values())
    assert sum(count for count, _ in facts["layers"].values()) == facts["selected"]
    assert 1 <= facts["over_bound"] < 1.05


def test_verify_checks_the_file_and_the_backbone(made, tmp_path, capsys):
    folder, backbone, _ = made
    assert "fits its backbone" in run(capsys, "delta", "verify", folder / "both.safetensors")
    data = bytearray((folder / "both.safetensors").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "bad.safetensors").write_bytes(bytes(data))
    assert "bad.safetensors: cannot be read, it is truncated or altered" in fails(
        capsys, "delta", "verify", tmp_path / "bad.safetensors"
    )
    backbones.save_weights(backbones.build("swinv2_pico", size=96), tmp_path / "other.safetensors")
    line = fails(capsys, "delta", "verify", folder / "both.safetensors", "--backbone", tmp_path / "other.safetensors")
    assert "belongs to another backbone" in line
    assert "no task file there" in fails(capsys, "delta", "verify", tmp_path)


@pytest.mark.parametrize("name", ["inner", "full", "lora"])
def test_apply_writes_a_checkpoint_that_plain_timm_loads(made, tmp_path, capsys, images, name):
    folder, backbone, found = made
    run(capsys, "delta", "apply", folder / f"{name}.safetensors", "--out", tmp_path / "merged.safetensors")
    model = timm.create_model("swinv2_tiny_window8_256", img_size=96, num_classes=0, **PICO).eval()
    missing, unexpected = model.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=False)
    assert not unexpected and set(missing) == {"norm.weight", "norm.bias"}
    expected = maps(found[name][1], images)
    got = model.forward_intermediates(images, intermediates_only=True)
    if name == "lora":
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    else:
        assert equal(got, expected)
    assert not torch.allclose(maps(backbone, images)[-1], expected[-1], atol=1e-2)


def test_apply_refuses_what_timm_would_leave_out(made, tmp_path, capsys):
    folder, _, _ = made
    line = fails(capsys, "delta", "apply", folder / "ssf.safetensors", "--out", tmp_path / "x.safetensors")
    assert "k_bias', which timm's model does not load; write the whole model instead (apply --module)" in line
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.timeout(900)
def test_a_task_beside_the_weights_is_written_as_a_module_that_needs_torch_alone(made, tmp_path, capsys, images):
    folder, _, found = made
    assert "write the whole model (apply --module)" in fails(
        capsys, "delta", "apply", folder / "both.safetensors", "--out", tmp_path / "x.safetensors"
    )
    run(capsys, "delta", "apply", folder / "both.safetensors", "--module", "--out", tmp_path / "whole.pt2")
    torch.save(images[:1], tmp_path / "images.pt")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module(); "
        "torch.save(program(torch.load(sys.argv[2], weights_only=True)), sys.argv[3]); "
        "assert not [m for m in sys.modules if m.startswith(('timm', 'sfa_ext', 'transformers'))]"
    )
    arguments = [str(tmp_path / n) for n in ("whole.pt2", "images.pt", "out.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=True)
    _, trained, head = found["both"]
    with torch.no_grad():
        expected = head.predict(trained(images[:1]), (96, 96))
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-4, atol=1e-5)


def test_diff_tells_selection_results_and_tensors_apart(made, capsys):
    folder, _, found = made
    text = run(capsys, "delta", "diff", folder / "inner.safetensors", folder / "both.safetensors")
    assert "val miou: 0.1000 | 0.2000" in text and "by chance" in text and "only in the second" in text
    inner, both = found["inner"][0], found["both"][0]
    shared = sum(int(torch.isin(s.index, both.selected[n].index).sum()) for n, s in inner.selected.items())
    rows = json.loads(
        run(capsys, "delta", "diff", folder / "inner.safetensors", folder / "both.safetensors", "--json")
    )["selection"]
    assert sum(row[2] for row in rows.values()) == shared > 0
    same = json.loads(run(capsys, "delta", "diff", folder / "both.safetensors", folder / "both.safetensors", "--json"))
    assert same["about"] == {} and same["tensors"] == {} and same["values"] == 0


def test_fold_makes_a_selection_part_of_the_backbone_and_carries_other_tasks_over(made, tmp_path, capsys, images):
    folder, _, found = made
    paths = {name: folder / f"{name}.safetensors" for name in found}
    out = tmp_path / "folded"
    others = [path for name, path in paths.items() if name != "inner"]
    run(capsys, "delta", "fold", paths["inner"], "--out", out, "--rebase", *others)
    backbone = backbones.build("swinv2_pico", size=96, checkpoint=out / "backbone.safetensors", dynamic=False).eval()
    assert equal(maps(backbone, images), maps(found["inner"][1], images)), "the backbone now is task inner's"
    bank = TaskBank(backbone)
    for name, (_, trained, head) in found.items():
        bank.add(out / f"{name}.safetensors")
        with bank.task(name) as loaded:
            assert equal(maps(backbone, images), maps(trained, images)), name
            with torch.no_grad():
                pairs = [h.predict(maps(trained, images), (96, 96))["semantic"] for h in (loaded, head)]
            assert torch.equal(*pairs)
    assert not sum(len(s.index) for s in deltas.read(out / "inner.safetensors").selected.values())
    assert "fits its backbone" in run(capsys, "delta", "verify", out / "both.safetensors")
    assert "there is nothing to fold" in fails(capsys, "delta", "fold", paths["full"], "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()
