"""A local web page and a JSON endpoint that try the tasks of a bank on a user's own images."""

from __future__ import annotations

from pathlib import Path

from sfa_ext.deltas import TaskBank, read
from sfa_ext.training.run import backbone_of

BACKBONE = "backbone.safetensors"  # as `sfa delta fold` calls it


def open_bank(
    folder: str | Path, checkpoint: str | None = None, keep: str = "device", device: str = "auto"
) -> TaskBank:
    """A bank of the task files in `folder` (*.safetensors, and task.safetensors in folders of runs).

    checkpoint: the backbone's weights; by default backbone.safetensors in the folder, else what the recipe of the first
    task says. Raises FileNotFoundError where there is no task, ValueError for a damaged or foreign one.
    """
    folder = Path(folder)
    found = [p for p in sorted(folder.glob("*.safetensors")) if p.name != BACKBONE]
    found += sorted(folder.glob("*/task.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder}: no task file there; `sfa delta export RUN --out` writes one")
    if checkpoint is None and (folder / BACKBONE).is_file():
        checkpoint = str(folder / BACKBONE)
    bank = TaskBank(backbone_of(read(found[0]), str(found[0]), checkpoint, device), keep=keep)
    for path in found:
        bank.add(path)
    return bank


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    checkpoint: str | None = None,
    keep: str = "device",
    limit: int = 20_000_000,
    device: str = "auto",
) -> None:
    """Serves the bank in `folder` until it is interrupted. limit: bytes of the largest upload.

    Raises as `open_bank`, and OSError for an address that cannot be listened on.
    """
    from waitress.server import create_server

    from sfa_ext.serve.app import create_app

    app = create_app(open_bank(folder, checkpoint, keep, device), limit)
    # Somewhat larger uploads are read to the end, so that the answer that refuses them arrives.
    server = create_server(app, host=host, port=port, threads=4, max_request_body_size=4 * limit)
    names = ", ".join(app.config["BANK"].names)
    print(f"http://{server.effective_host}:{server.effective_port}  tasks: {names}  (Ctrl-C ends)", flush=True)
    server.run()
