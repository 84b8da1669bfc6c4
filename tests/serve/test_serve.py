"""`sfa serve`: the endpoint, what it refuses, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from browser import CHROMIUM, browser
from PIL import Image

import sfa_ext
from sfa_ext import backbones, cli, deltas, tasks
from sfa_ext.backbones import save_weights
from sfa_ext.serve import open_bank
from sfa_ext.serve.app import LARGEST_PICTURE, SIDE, create_app
from sfa_ext.training import recipe

RECIPE = """
backbone: {name: swinv2_pico}
method: {name: sfa}
task: {name: pretrain}
data: {name: scenes, crop: 96}
"""
CLASSES, PALETTE = ("floor", "ball"), [[120, 120, 120], [200, 30, 30]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bank's folder: one task as a file, one in the folder of a run."""
    folder = tmp_path_factory.mktemp("bank")
    (folder / "recipe.yaml").write_text(RECIPE)
    whole = recipe.load(folder / "recipe.yaml")
    backbone = backbones.build("swinv2_pico", size=96, pretrained=True)
    for seed, path in enumerate(("rooms.safetensors", "depth/task.safetensors")):
        torch.manual_seed(seed)
        adaptation = sfa_ext.adapt(backbone, "sfa-s", seed=seed)
        for parameter in adaptation.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        head = tasks.build("pretrain", {"width": 8}, backbone.feature_info.channels(), CLASSES)
        meta = {"head": {"name": "pretrain", "settings": {"width": 8}}, "classes": list(CLASSES), "crop": 96}
        task = deltas.collect(adaptation, head, **meta, palette=PALETTE, recipe=whole.as_dict())
        deltas.write(folder / path, task)
        adaptation.detach()
    return folder


@pytest.fixture(scope="module")
def client(folder):
    return create_app(open_bank(folder), limit=2_000_000).test_client()


def photo(size=(120, 80), kind="PNG"):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def large_png(width, height):
    """A small file that says it has width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def ask(client, data, task="rooms"):
    return client.post("/api/predict", data={"task": task, "image": (io.BytesIO(data), "photo")})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_picture_is_answered_with_its_overlay_latency_and_memory(client, kind):
    for task in ("rooms", "depth", "rooms"):
        answer = ask(client, photo(kind=kind), task)
        found = answer.get_json()
        assert answer.status_code == 200 and found["task"] == task and found["size"] == [80, 120]
        assert sum(found["shares"].values()) == pytest.approx(1) and set(found["shares"]) <= set(CLASSES)
        assert found["milliseconds"]["forward"] > 0 and found["memory"]["process"] > found["memory"]["backbone"] > 7e6
        picture = Image.open(urllib.request.urlopen(found["overlay"]))
        assert picture.format == "PNG" and picture.width >= 240


def test_tasks_are_listed_and_the_page_is_there(client):
    found = client.get("/api/tasks").get_json()
    assert [t["name"] for t in found["tasks"]] == ["rooms", "depth"] and set(found["memory"]["tasks"]) == {
        "rooms",
        "depth",
    }
    assert "api/predict" in client.get("/").get_data(as_text=True)


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"no picture at all", 422, "the upload is no picture; known kinds: JPEG, PNG"),
        (b"", 422, "the upload is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "the upload is no picture"),
        (photo()[:2000], 422, "the picture is cut off or damaged"),
        (photo(kind="JPEG")[:1500], 422, "the picture is cut off or damaged"),
        (large_png(10_000, 10_000), 413, "the picture has 100.0 megapixels; at most 40 are taken"),
        (large_png(100_000, 100_000), 413, "too many pixels; at most 40 M"),
        (bytes(2_100_000), 413, "the upload is larger than 2 MB"),
    ],
    ids=["text", "empty", "postscript", "cut-png", "cut-jpeg", "100-megapixels", "10-gigapixels", "large"],
)
def test_a_bad_upload_is_refused_with_a_reason_and_the_server_goes_on(client, data, status, reason):
    answer = ask(client, data)
    assert answer.status_code == status and reason in answer.get_json()["error"]
    assert ask(client, photo()).status_code == 200


def test_unknown_tasks_pages_and_missing_fields_are_named(client):
    assert ask(client, photo(), "magic").get_json()["error"] == "unknown task 'magic'; known: rooms, depth"
    answer = client.post("/api/predict", data={"task": "rooms"})
    assert answer.status_code == 400 and "form field 'image'" in answer.get_json()["error"]
    assert client.get("/etc/passwd").status_code == 404 and client.get("/api/predict").status_code == 405


def test_large_pictures_are_made_smaller_and_turned_upright(client):
    picture = Image.new("RGB", (2400, 1200))
    exif = picture.getexif()
    exif[274] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    assert 2400 * 1200 < LARGEST_PICTURE
    assert ask(client, file.getvalue()).get_json()["size"] == [SIDE, SIDE // 2]


def test_a_folder_is_taken_with_its_backbone_and_a_bad_one_is_named(folder, tmp_path, capsys):
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "rooms.safetensors").write_bytes((folder / "rooms.safetensors").read_bytes())
    assert open_bank(tmp_path / "bank", keep="disk").names == ["rooms"]
    save_weights(backbones.build("swinv2_pico", size=96), tmp_path / "bank" / "backbone.safetensors")
    for where, message in ((tmp_path / "bank", "belongs to another backbone"), (tmp_path, "no task file there")):
        assert cli.main(["serve", str(where)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line


@contextmanager
def server(folder, *arguments):
    """`sfa serve` in a process of its own; yields its address."""
    command = [sys.executable, "-W", "ignore", "-m", "sfa_ext.cli", "serve", str(folder), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield re.match(r"(http://127\.0\.0\.1:\d+)  tasks: rooms, depth", process.stdout.readline())[1]
        assert process.poll() is None, "the server ended"
    finally:
        process.terminate()
        process.wait(20)


def send_half(address):
    """Announces a large upload, sends a part of it and hangs up."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 900000\r\n\r\n--b\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nxx"
        )


DROP = """(() => {
  const bytes = Uint8Array.from(atob("%s"), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "photo.png", {type: "image/png"}));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
})()"""
SHOWN = "document.body.dataset.answered == %d && document.getElementById('overlay').complete"


def drop(page, data):
    page.run(DROP % base64.b64encode(data).decode())


@pytest.mark.timeout(600)
def test_the_command_serves_survives_a_hang_up_and_works_in_a_browser(folder, tmp_path):
    with server(folder, "--limit", "2") as address:
        send_half(address)
        listed = json.load(urllib.request.urlopen(f"{address}/api/tasks"))
        assert [t["name"] for t in listed["tasks"]] == ["rooms", "depth"]
        if CHROMIUM is None:
            pytest.skip("no chromium on this machine: the page was not opened")
        with browser() as page:
            page("Page.navigate", url=address)
            page.wait("document.querySelectorAll('#tasks button').length == 2 && !document.body.dataset.answered")
            drop(page, photo((300, 200)))
            page.wait(SHOWN % 1)
            first = page.run("document.getElementById('overlay').src")
            assert page.run("document.getElementById('overlay').naturalWidth") >= 600
            assert re.search(r"floor|ball", page.run("document.getElementById('overlay').alt"))
            page.run("document.querySelectorAll('#tasks button')[1].click()")
            page.wait(SHOWN % 2)
            assert page.run("document.getElementById('overlay').src") != first, "the other task shows something else"
            shown = page.run("document.body.innerText")
            assert re.search(r"forward\s+\d+ ms", shown) and re.search(r"backbone, once\s+7\.\d MB", shown)
            page.screenshot(tmp_path / "page.png")
            assert len(np.unique(np.asarray(Image.open(tmp_path / "page.png")).reshape(-1, 3), axis=0)) > 100
            drop(page, b"no picture at all")
            page.wait(SHOWN % 3)
            assert "the upload is no picture" in page.run("document.getElementById('error').textContent")
            assert page.run("document.getElementById('overlay').hidden")
