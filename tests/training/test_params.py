"""The paper's parameter table, row by row, and what the table says of files and optimizers."""

from __future__ import annotations

import copy

import pytest
import torch

import sfa_ext
from sfa_ext import backbones, deltas
from sfa_ext.deltas import account
from sfa_ext.methods import resolve
from sfa_ext.training import params, recipe


@pytest.fixture(scope="module")
def rows():
    return {(r.backbone.split("_")[1], r.method): r for r in params.account_methods()}


@pytest.mark.parametrize(
    ("method", "base", "large", "digits"),
    [
        ("frozen", 0.0, 0.0, 1),
        ("ssf", 0.3, 0.2, 1),
        ("vpt", 0.68, 0.46, 2),
        ("lora", 1.75, 1.17, 2),
        ("adaptformer", 13.5, 9.2, 1),
        ("sfa-s", 4.8, 4.5, 2),
        ("sfa-b", 19.5, 19.0, 2),
    ],
)
def test_the_papers_percentages(rows, method, base, large, digits):
    shares = [round(100 * rows[size, method].share, digits) for size in ("base", "large")]
    assert shares == [base, large]


def test_the_exact_counts_behind_them(rows):
    widths = {"base": 12_032, "large": 18_048}
    for size, total in widths.items():
        assert rows[size, "vpt"].external == 50 * total
        assert rows[size, "lora"].external == 2 * 2 * 32 * total
        assert rows[size, "sfa-s"].external == 4 * 64 * total
    assert rows["base", "adaptformer"].external == 11_862_016 and rows["large", "adaptformer"].external == 18_038_784
    assert rows["base", "full"].internal + rows["base", "full"].biases + 2 * 1024 == 86_893_816


@pytest.mark.parametrize(
    ("name", "share"), list(zip(params.BACKBONES, (0.31, 0.21), strict=True)), ids=["base", "large"]
)
def test_ssf_on_a_whole_model_has_the_last_norm_too(name, share):
    import timm

    with torch.device("meta"):
        report = sfa_ext.adapt(timm.create_model(name), "ssf").report()
    assert round(100 * report.share, 2) == share and report.biases == 0


def test_table_4_of_adaptformer_and_the_external_adapter():
    millions = {"adaptformer": {}, "sfa": {}}
    with torch.device("meta"):
        model = backbones.build("swinv2_base_window8_256")
        for method, sizes in (("adaptformer", (32, 64, 128, 256, 512)), ("sfa", (32, 64, 128, 256))):
            for dim in sizes:
                settings = {"dim": dim} | ({"budget": 0.2} if method == "sfa" else {})
                adaptation = sfa_ext.adapt(model, resolve(method, model, settings))
                millions[method][dim] = round(adaptation.report().external / 1e6, 3)
                adaptation.detach()
    assert millions["adaptformer"] == {32: 0.770, 64: 1.540, 128: 3.080, 256: 6.095, 512: 11.862}
    assert millions["sfa"] == {32: 1.540, 64: 3.080, 128: 6.160, 256: 12.190}


def test_optimizer_bytes_are_those_of_a_real_optimizer(backbone):
    for method in ("lora", "sfa-s"):
        model = copy.deepcopy(backbone)
        settings = {"rounds": 1, "interval": 2} if "sfa" in method else {}
        adaptation = sfa_ext.adapt(model, resolve(method, model, settings))
        optimizer = adaptation.optimizer()
        scores = sum(t.nbytes for t in adaptation.search.scores.values()) if "sfa" in method else 0
        for _ in range(2):
            sum(m.square().mean() for m in model(torch.randn(1, 3, 96, 96))).backward()
            optimizer.step()
            optimizer.zero_grad()
        whole = optimizer.whole if "sfa" in method else optimizer
        kept = [t for state in whole.state.values() for n, t in state.items() if n != "step"]
        kept += [t for n, t in adaptation.optimizer_state(optimizer).items() if "exp_avg" in n]
        moments = sum(t.nbytes for t in kept)
        assert adaptation.optimizer_bytes() == (moments, moments + scores)


# Bytes of a file for each tensor's name, type, shape and place, and for all that is said of the whole.
NAMED, DESCRIBED = 200, 4000


@pytest.mark.parametrize(
    ("name", "method"),
    [(f"{n}_pico", m) for n in ("swinv2", "vit") for m in ("frozen", "lora", "ssf", "sfa-s", "full")],
)
def test_task_bytes_are_those_of_a_file(name, method, tmp_path):
    values = [f"method.name={method}", f"backbone.name={name}", "backbone.pretrained=false"]
    values += ["method.settings.rounds=1", "method.settings.interval=1"] if "sfa" in method else []
    chosen = recipe.load("scenes", values)
    backbone = backbones.build(name, size=chosen.data.crop, pretrained=name == "swinv2_pico")
    adaptation = sfa_ext.adapt(backbone, resolve(method, backbone, chosen.method.settings))
    head = torch.nn.Linear(1, 1)
    optimizer = adaptation.optimizer(head=head.parameters(), steps=2)
    for _ in range(2):
        loss = sum(m.square().mean() for m in backbone(torch.randn(1, 3, 96, 96)))
        (loss + head.weight.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path / "task.safetensors"
    deltas.write(path, deltas.collect(adaptation))
    parts, row = account.account(path)["bytes"], params.account("scenes", chosen)
    tensors = len(deltas.read(path).tensors) + len(deltas.read(path).selected)
    assert path.stat().st_size == sum(parts.values()) and parts["description"] < NAMED * tensors + DESCRIBED
    trained = parts["method"] + parts["values"]
    assert trained == 4 * (row.external + row.internal + row.biases)
    # Positions are told at the entropy of a choice that favours no layer. A real one does, and takes less.
    assert 0.5 * (row.task_bytes - trained) <= parts["positions"] <= 1.02 * (row.task_bytes - trained)


def test_a_table_of_chosen_methods_and_backbones_prints_sizes():
    rows = list(params.account_methods(["lora", "sfa-internal"], ["swinv2_pico", "vit_pico"], {"budget": 0.05}))
    text = params.table(rows)
    assert [r.backbone for r in rows] == ["swinv2_pico"] * 2 + ["vit_pico"] * 2
    assert "rank=" in text and "recipe" not in text and len(text.splitlines()) == 5
    assert all(0.04 < r.share <= 0.05 for r in rows)
    internal = rows[1]
    assert 4 * internal.internal < internal.task_bytes < 5 * internal.internal
