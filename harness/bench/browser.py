"""A real browser for pages: Chromium without a window, driven over its own pipe, by benches and by tests.

Only the standard library: the protocol is JSON, a NUL after each message, on file descriptors 3 and 4.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60
FLAGS = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
FLAGS += [f"--disable-{what}" for what in ("gpu", "dev-shm-usage", "background-networking", "extensions")]


def chromium() -> str:
    """The browser's program, the first of NAMES on the PATH. Raises HarnessError where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        what = "no Chromium on the PATH, to open a page in"
        raise HarnessError(what, f"one of {', '.join(NAMES)}", "apt-get install chromium, and the same command again")
    return found


class Tab:
    """One open page. `said` is what its console and its errors said, `asked` every address that it asked for.

    Every method raises HarnessError when the browser ends, refuses, or says nothing for PATIENCE_S.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._read = send, receive, b""
        self._last, self._session = 0, ""
        self._events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The command's result, once its answer is there."""
        return self._call(method, parameters, self._session)

    def cpu_s(self) -> float:
        """CPU seconds of all the browser's processes since it began."""
        found = self._call("SystemInfo.getProcessInfo", {}, "")["processInfo"]
        return sum(process["cpuTime"] for process in found)

    def _call(self, method: str, parameters: dict[str, Any], session: str) -> dict[str, Any]:
        """Of the page with that session, or of the whole browser."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        content = json.dumps(message).encode() + b"\0"
        try:
            while content:
                content = content[os.write(self._send, content) :]
        except BrokenPipeError:
            raise _ended() from None
        while (answer := self._next()).get("id") != self._last:
            self._note(answer)
        if "error" in answer:
            raise HarnessError(f"the browser refused {method}: {answer['error']}", "an answer")
        return answer["result"]

    def open(self, page: Path, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        """Load the file in a window of that size, in pixels, and wait until it is loaded."""
        self.window(width, height, dark)
        self.go(page.resolve().as_uri())

    def window(self, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        """The window of this page and of those after it, in pixels."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, address: str) -> None:
        """Load the address, and wait for its load event."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._note(self._next())

    def js(self, expression: str) -> Any:
        """The value of the expression in the page; of a promise, what it came to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise HarnessError(f"the page raised {found['exceptionDetails']}", f"a value of {expression}")
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, as a keyboard would give it."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            if not select.select([self._receive], [], [], PATIENCE_S)[0]:
                raise HarnessError(f"the browser was silent for {PATIENCE_S} s", "an answer", "the same command again")
            content = os.read(self._receive, 1 << 16)
            if not content:
                raise _ended()
            self._read += content
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method:
            self._events.append(event)
        if method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str(about["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(about["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(about["entry"]["text"])


def _ended() -> HarnessError:
    check = f"{NAMES[0]} --headless=new --no-sandbox --dump-dom about:blank, to see why"
    return HarnessError("the browser ended", "one that answers until it is told to end", check)


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with a profile of its own in `folder`, ended with the block.

    Raises HarnessError where there is no browser, and where it does not start.
    """
    program = chromium()
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The shell puts the ends where the browser looks for them; high numbers, so that neither is in the other's way.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
    words = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
    command = ["bash", "-c", words, "bash", program, *FLAGS, f"--user-data-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=ends, start_new_session=True, **quiet)
    for end in (theirs_in, theirs_out, *ends):
        os.close(end)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
