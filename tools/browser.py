"""A small driver for headless Chromium, over the pipe of its DevTools protocol; needs no package.

The browser reads commands on file descriptor 3 and answers on 4, as JSON ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing outside is asked, only counted
)  # fmt: skip


class BrowserError(RuntimeError):
    """The browser did not do what was asked."""


def find_chromium() -> str | None:
    """The browser's program: $CHROMIUM, one on the path, or a macOS application."""
    wished = os.environ.get("CHROMIUM")
    found = [wished] if wished else [shutil.which(name) for name in NAMES]
    found += [app for app in APPS if os.path.exists(app)]
    return next((path for path in found if path), None)


class Browser:
    """A running headless Chromium with one page; a context manager."""

    def __init__(self, program: str | None = None, timeout: float = 180.0) -> None:
        program = program or find_chromium()
        if program is None:
            raise BrowserError("no Chromium found; on Debian and Ubuntu: apt-get install chromium")
        self.timeout = timeout
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._buffer = b""
        self._profile = tempfile.mkdtemp(prefix="payattn-browser-")
        self._start(program)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Network.setCacheDisabled", cacheDisabled=False)

    def _start(self, program: str) -> None:
        # High numbers first, so that moving them to 3 and 4 in the child cannot overwrite one another.
        down = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in os.pipe()]
        up = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in os.pipe()]
        moves: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, down[0], 3),
            (os.POSIX_SPAWN_DUP2, up[1], 4),
        ]
        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = os.posix_spawn(program, command, dict(os.environ), file_actions=moves, setpgroup=0)
        os.close(down[0])
        os.close(up[1])
        self._write, self._read = down[1], up[0]

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        for fd in (self._write, self._read):
            os.close(fd)
        try:
            os.killpg(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        shutil.rmtree(self._profile, ignore_errors=True)

    def _receive(self, wait: float) -> dict[str, Any] | None:
        """The next message, or None when none came in time."""
        end = time.monotonic() + wait
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                return None
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise BrowserError("the browser ended unexpectedly")
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if not method.startswith("Target."):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        end = time.monotonic() + self.timeout
        while (answer := self._receive(end - time.monotonic())) is not None:
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)
        raise BrowserError(f"{method}: no answer in {self.timeout:.0f} s")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in done:
            detail = done["exceptionDetails"]
            raise BrowserError(detail.get("exception", {}).get("description", detail["text"]))
        return done["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded; the events before it are forgotten."""
        self.drain()
        self.events.clear()
        answer = self.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise BrowserError(f"{url}: {answer['errorText']}")
        self.until("document.readyState === 'complete'")

    def until(self, condition: str, wait: float | None = None) -> None:
        """Wait until a JavaScript condition holds."""
        end = time.monotonic() + (wait or self.timeout)
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise BrowserError(f"still false after {wait or self.timeout:.0f} s: {condition}")
            time.sleep(0.03)

    def drain(self) -> None:
        """Take in the events that have arrived."""
        while (message := self._receive(0.0)) is not None:
            if "method" in message:
                self.events.append(message)

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str) -> None:
        """Set the reader's preference: `light` or `dark`, without motion."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """Press and release one key, such as `ArrowRight`."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, " ": 32, "Enter": 13}
        code = {"windowsVirtualKeyCode": codes[key], "key": key, "code": "Space" if key == " " else key}
        text = {" ": {"text": " "}, "Enter": {"text": "\r"}}.get(key, {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def screenshot(self, path: Path, full: bool = True) -> None:
        """Write the page as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """Addresses the page asked for since it was opened."""
        self.drain()
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def failures(self) -> list[str]:
        """Addresses of this page that could not be loaded."""
        self.drain()
        bad = [e["params"]["response"] for e in self.events if e["method"] == "Network.responseReceived"]
        return [r["url"] for r in bad if r["status"] >= 400]

    def errors(self) -> list[str]:
        """Errors of the console and uncaught exceptions since the page was opened."""
        self.drain()
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                detail = params["exceptionDetails"]
                found.append(detail.get("exception", {}).get("description", detail["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in {"error", "assert"}:
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Server:
    """The built site on a local address; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
