"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sfa_ext.files import write_text
from sfa_ext.training.folder import METRICS


class Log:
    """Writes one JSON object a line to metrics.jsonl, the same numbers to TensorBoard, and shows a progress bar.

    A run resumed at `step` keeps the lines that `is_past` says true of, so the file reads as if the run had never been
    killed.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        step: int,
        is_past: Callable[[dict[str, Any]], bool],
        quiet: bool = False,
        title: str = "",
    ):
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        kept = [record for record in read(folder) if step and is_past(record)]
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._bar = tqdm(
            total=steps,
            initial=step,
            disable=quiet or None,
            desc=title,
            file=sys.stderr,
            dynamic_ncols=True,
            unit="step",
        )
        self._shown: dict[str, str] = {}

    def write(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """Records `numbers` of `kind` ("train", "val", "test", "unreadable") at optimizer step `step`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def warn(self, kind: str, step: int, message: str) -> None:
        """Says `message` above the progress bar and records it."""
        self.say(message)
        self.write(kind, step, {"message": message})

    def say(self, message: str) -> None:
        """Writes a line above the progress bar."""
        self._bar.write(f"sfa: warning: {message}", file=sys.stderr)

    def show(self, advance: int = 0, **shown: str) -> None:
        """Moves the bar on and updates the numbers beside it."""
        self._shown |= shown
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(advance)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self._bar.close()


class Silence:
    """A Log that keeps everything to itself: that of all ranks but the first."""

    def write(self, kind: str, step: int, numbers: dict[str, Any]) -> None: ...

    def warn(self, kind: str, step: int, message: str) -> None: ...

    def say(self, message: str) -> None: ...

    def show(self, advance: int = 0, **shown: str) -> None: ...

    def close(self) -> None: ...


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut off by a kill is left out."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) != float("inf")]


class Rate:
    """Images per second since the last reading."""

    def __init__(self) -> None:
        self._images, self._since = 0, time.perf_counter()

    def add(self, images: int) -> None:
        self._images += images

    def take(self) -> float:
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return rate
