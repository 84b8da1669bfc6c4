"""The weights that ship with the package: whole, small, recorded, and good enough to be worth adapting."""

from __future__ import annotations

import hashlib
import json

from safetensors import safe_open

from sfa_ext import backbones
from sfa_ext.backbones.build import embedded_checkpoint

PATH = embedded_checkpoint("swinv2_pico")


def test_it_is_the_file_that_was_recorded():
    assert PATH.stat().st_size <= 8_000_000
    recorded, name = PATH.with_suffix(".sha256").read_text().split()
    assert name == PATH.name and hashlib.sha256(PATH.read_bytes()).hexdigest() == recorded


def test_its_log_ends_with_the_figures_it_states_and_they_pass_the_gate():
    with safe_open(PATH, "pt") as file:
        stated = file.metadata()
    last = [json.loads(line) for line in PATH.with_suffix(".jsonl").read_text().splitlines()][-1]
    assert last["kind"] == "val" and last["step"] == int(stated["steps"])
    assert f"{last['accuracy']:.4f}" == stated["accuracy"] and last["accuracy"] >= 0.8


def test_the_embedded_backbone_is_built_from_it():
    built = backbones.build("swinv2_pico", size=96, pretrained=True)
    given = backbones.build("swinv2_pico", size=96, checkpoint=PATH)
    assert all((a == b).all() for a, b in zip(built.parameters(), given.parameters(), strict=True))
