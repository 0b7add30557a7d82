"""A headless Chromium, spoken to over a pipe in the DevTools protocol: what a page looks like, and what it asks the network for.

Source: the Chrome DevTools Protocol, --remote-debugging-pipe: messages are JSON that end with a zero byte; the browser reads
them on its descriptor 3 and writes on 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)


@dataclass
class Tab:
    """One page. requests: every address that it asked for."""

    sending: int
    receiving: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    _number: int = 0
    _rest: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def show(self, page: Path, *, width: int, dark: bool) -> None:
        """Opens a file in a window of that width, and waits until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.value(
            "new Promise(done => document.readyState === 'complete' ? done(1) : addEventListener('load', () => done(1)))"
        )

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives, of a promise its result."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self.receiving, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextlib.contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """A browser with an empty tab and a profile of its own, ended afterwards."""
    assert CHROMIUM is not None
    to_browser, sending = os.pipe()
    receiving, from_browser = os.pipe()
    # The browser wants its ends at 3 and 4; far from there first, so that one is not put over the other.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]

    def put_in_place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    words = [
        CHROMIUM, "--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        words, pass_fds=(3, 4), preexec_fn=put_in_place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in ends:
        os.close(end)
    os.close(to_browser)
    os.close(from_browser)
    try:
        tab = Tab(sending, receiving)
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab.call("Page.enable")
        tab.call("Network.enable")
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(sending)
        os.close(receiving)
