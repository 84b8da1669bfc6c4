"""The web application: GET / (the page), GET /api/tasks, POST /api/predict (form fields "image" and "task")."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from flask import Flask, Response, current_app, jsonify, request
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, RequestEntityTooLarge, UnprocessableEntity

from sfa_ext.deltas import TaskBank
from sfa_ext.tasks.inference import labels
from sfa_ext.tasks.pictures import draw

LARGEST_PICTURE = 40_000_000  # pixels that are decoded at all
SIDE = 1024  # longer pictures are made smaller before they are looked at
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def create_app(bank: TaskBank, limit: int = 20_000_000) -> Flask:
    """The application over a bank. limit: bytes of the largest request body. Every failure answers with {"error"}."""
    app = Flask(__name__, static_folder=None)
    app.config.update(BANK=bank, MAX_CONTENT_LENGTH=limit)
    app.add_url_rule("/", view_func=_page)
    app.add_url_rule("/api/tasks", view_func=_tasks)
    app.add_url_rule("/api/predict", view_func=_predict, methods=["POST"])
    app.register_error_handler(HTTPException, _failure)
    return app


def _bank() -> TaskBank:
    return current_app.config["BANK"]


def _failure(error: HTTPException) -> tuple[Response, int]:
    text = error.description
    if isinstance(error, RequestEntityTooLarge) and text == RequestEntityTooLarge.description:
        text = f"the upload is larger than {current_app.config['MAX_CONTENT_LENGTH'] / 1e6:g} MB"
    return jsonify(error=text), error.code or 500


def _page() -> Response:
    return Response((Path(__file__).parent / "page.html").read_text(encoding="utf-8"), mimetype="text/html")


def _tasks() -> Response:
    bank = _bank()
    tasks = [{"name": n, "classes": bank.meta(n)["classes"], "palette": bank.meta(n)["palette"]} for n in bank.names]
    return jsonify(tasks=tasks, active=bank.active, memory=_memory(bank))


def _predict() -> Response:
    bank, name, upload = _bank(), request.form.get("task", ""), request.files.get("image")
    if name not in bank:
        raise NotFound(f"unknown task {name!r}; known: {', '.join(bank.names)}")
    if upload is None:
        raise BadRequest("the form field 'image' with a file is missing")
    picture = read_picture(upload.stream)
    started = time.perf_counter()
    with torch.inference_mode(), bank.task(name, stay=True):
        ready = time.perf_counter()
        found = bank.predict(name, picture, stay=True)
        done = time.perf_counter()
    meta = bank.meta(name)
    names, palette = meta["classes"], meta["palette"]
    drawn = io.BytesIO()
    draw(picture, found, names, palette).save(drawn, "PNG")
    return jsonify(
        task=name,
        size=list(picture.shape[:2]),
        shares=_shares(found, names),
        milliseconds={"switch": 1e3 * (ready - started), "forward": 1e3 * (done - ready)},
        memory=_memory(bank),
        overlay="data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode(),
    )


def _shares(prediction: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    """Share of the picture that each class covers, the largest first; empty where the task finds no classes."""
    if "semantic" not in prediction:
        return {}
    found = labels(prediction)
    counts = np.bincount(found.ravel(), minlength=len(names))
    return {names[c]: float(counts[c] / found.size) for c in np.argsort(-counts, kind="stable") if counts[c]}


def read_picture(stream: IO[bytes]) -> np.ndarray:
    """The uploaded picture, uint8 [H, W, 3], upright, its longer side at most SIDE.

    Raises an HTTPException of status 4xx, with the reason, for what is no whole picture or is too large.
    """
    try:
        with Image.open(stream, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise RequestEntityTooLarge(_too_many(picture.width * picture.height))
            picture.draft("RGB", (SIDE, SIDE))  # lets JPEG decode a smaller version
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError as error:
        raise RequestEntityTooLarge(f"the picture has too many pixels; at most {LARGEST_PICTURE / 1e6:g} M") from error
    except UnidentifiedImageError as error:
        raise UnprocessableEntity(f"the upload is no picture; known kinds: {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnprocessableEntity(f"the picture is cut off or damaged ({error})") from error
    upright.thumbnail((SIDE, SIDE))
    return np.asarray(upright)


def _too_many(pixels: int) -> str:
    return f"the picture has {pixels / 1e6:.1f} megapixels; at most {LARGEST_PICTURE / 1e6:g} are taken"


def _memory(bank: TaskBank) -> dict[str, Any]:
    """Bytes: of the backbone, of each task, and of the whole process."""
    held = bank.memory()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"backbone": held.pop("backbone"), "tasks": held, "process": resident}
