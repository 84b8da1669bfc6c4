"""A headless Chromium, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One page of the browser."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, os.fdopen(answers, "rb", buffering=0)
        self._number, self._buffer = 0, b""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Page.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        session = {"sessionId": self._session} if getattr(self, "_session", None) else {}
        message = {"id": self._number, "method": method, "params": params} | session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = self._answers.read(65536)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        result = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{code}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, code: str, seconds: float = 200) -> Any:
        """Waits until a JavaScript expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{code} did not become true; the page shows {self.run('document.body.innerText')!r}"
                )
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        image = self("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def browser(width: int = 900, height: int = 900) -> Iterator[Page]:
    """A browser with an empty profile."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def wire() -> None:  # the browser reads commands from descriptor 3 and answers on 4
        read, write = os.dup(to_browser), os.dup(from_browser)
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [CHROMIUM, *flags], preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(commands, answers)
        finally:
            process.kill()
            process.wait(20)
