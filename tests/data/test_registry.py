"""Data sets by name."""

import subprocess
import sys

import pytest

from sfa_ext import data


def test_scenes_are_built_by_name():
    dataset = data.build("scenes", domain="source", split="val", count=2, size=16, cache=None)
    assert len(dataset) == 2 and dataset[1]["name"] == "source-val-0-000001"


def test_an_unknown_name_or_setting_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown data set 'ade'; the known ones are ade20k, cityscapes, coco, "):
        data.build("ade")
    with pytest.raises(ValueError, match="unknown setting 'path' of data set 'ade20k'; the known ones are root, split"):
        data.build("ade20k", path="/x")
    with pytest.raises(ValueError, match="data set 'ade20k' needs the setting 'root'"):
        data.build("ade20k", split="val")


def test_rendering_loads_neither_torch_vision_nor_scikit_image():
    code = """
import sys
from sfa_ext.data.scenes.render import render_index
render_index("target", "val", 0, 0, 16)
print([name for name in ("torchvision", "skimage") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
