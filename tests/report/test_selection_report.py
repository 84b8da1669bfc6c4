"""`sfa selection`: where selected weights are and what two runs share, as tables and pictures."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import sfa_ext
from sfa_ext import cli, deltas
from sfa_ext.report import plots, selection


def task(model, path, seed, **settings):
    """A task file of one round of an internal adapter."""
    adaptation = sfa_ext.adapt(model, sfa_ext.SFA(budget=0.05, rho=0.0, rounds=1, interval=1, **settings))
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    optimizer = adaptation.optimizer(1e-2)
    sum(m.square().mean() for m in model(images)).backward()
    optimizer.step()
    deltas.write(path, deltas.collect(adaptation))
    chosen = {name: entries.index.clone() for name, entries in adaptation.selection}
    adaptation.detach()
    return chosen


def numbers(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_show_prints_every_matrix_of_every_block(backbone, tmp_path, capsys):
    chosen = task(backbone, tmp_path / "a.safetensors", 0)
    assert cli.main(["selection", "show", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert numbers(lines[0]) == ["block", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "all", "selected"]
    assert len(lines) == 2 + len(chosen) // 4 + 1
    assert numbers(lines[-1])[-1] == f"{sum(map(len, chosen.values())):,}"
    name, index = next((n, i) for n, i in chosen.items() if n.endswith("blocks.1.mlp.fc1.weight") and len(i))
    row = next(numbers(line) for line in lines if numbers(line)[0] == plots.place(name)[0])
    assert float(row[3]) == pytest.approx(100 * len(index) / backbone.get_parameter(name).numel(), abs=0.006)
    assert Image.open(tmp_path / "out" / "selection.png").size[0] > 300


def test_compare_counts_what_both_select_against_chance(pico, tmp_path, capsys):
    one, two = (task(pico, tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    files = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    assert cli.main(["selection", "compare", *files, "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    whole = numbers(lines[-1])
    both = sum(len(set(one[n].tolist()) & set(two[n].tolist())) for n in one)
    either = sum(len(set(one[n].tolist()) | set(two[n].tolist())) for n in one)
    assert whole[0] == "all" and whole[3] == f"{both:,}" and float(whole[5]) == pytest.approx(both / either, abs=1e-4)
    assert float(whole[7]) > 1, "two batches of noise ask for the same weights more often than chance"
    assert Image.open(tmp_path / "out" / "overlap.png").size[0] > 300


def test_what_cannot_be_compared_is_one_line(pico, tmp_path, capsys):
    first, fewer, none = (tmp_path / f"{name}.safetensors" for name in ("first", "fewer", "none"))
    task(pico, first, 0)
    task(pico, fewer, 0, targets=("mlp.fc1.weight",))
    adaptation = sfa_ext.adapt(pico, "frozen")
    deltas.write(none, deltas.collect(adaptation))
    for arguments, message in (
        (["compare", first, fewer], "the two tasks select from different weights"),
        (["show", none], "selects no weights; its method has no internal adapter"),
        (["show", tmp_path / "nowhere"], "no task file there"),
    ):
        assert cli.main(["selection", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_blocks_with_and_without_stages():
    assert plots.place("model.layers.2.blocks.10.mlp.fc2.weight") == ("3.11", "mlp.fc2")
    assert plots.place("model.blocks.3.attn.qkv.weight") == ("4", "attn.qkv")
    assert selection.shares({"blocks.0.attn.qkv.weight": (1, 4)})["all"]["all"] == (1, 4)
