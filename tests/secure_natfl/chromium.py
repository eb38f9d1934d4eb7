"""A headless Chromium driven over its DevTools pipe: pages with their messages and requests."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
SEEN = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@dataclass
class Chromium:
    """One tab. `messages` and `requests` are those of the page that was opened last."""

    to: int
    out: int
    session: str = ""
    messages: list[str] = field(default_factory=list)
    _asked: list[tuple[str, str]] = field(default_factory=list)
    _shown: str = ""
    _loaded: bool = False
    _counted: int = 0
    _rest: bytes = b""

    @property
    def requests(self) -> list[str]:
        """Addresses that the open page asked for, its own first."""
        return [url for loader, url in self._asked if loader == self._shown]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._counted += 1
        command = {"id": self._counted, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.to, json.dumps(command).encode() + b"\0")
        while (said := self._read()).get("id") != self._counted:
            self._note(said)
        assert "error" not in said, said
        return dict(said["result"])

    def open(
        self, page: Path, *, width: int = 1280, theme: str = "light", paper: bool = False
    ) -> None:
        """Load a file at a width in CSS pixels; `paper`: as it is printed."""
        self.messages.clear()
        self._asked.clear()
        feature = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", media="print" * paper, features=feature)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        # What the tab showed before may still be loading.
        self._shown = ""
        loader = self.call("Page.navigate", url=page.as_uri())["loaderId"]
        while (self._shown, self._loaded) != (loader, True):
            self._note(self._read())

    def run(self, script: str) -> Any:
        """The value of an expression, awaited, in the open page; its policy does not bind it."""
        told = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def picture(self, kind: Literal["png", "pdf"]) -> bytes:
        """The whole page as a PNG, or as it prints on paper."""
        if kind == "pdf":
            told = self.call("Page.printToPDF", preferCSSPageSize=True)
        else:
            told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self.out, 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        said, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(said))

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("method") in SEEN:
            self.messages.append(json.dumps(said["params"]))
        elif said.get("method") == "Network.requestWillBeSent":
            self._asked.append((said["params"]["loaderId"], said["params"]["request"]["url"]))
        elif said.get("method") == "Page.frameNavigated":
            frame = said["params"]["frame"]
            if "parentId" not in frame:
                self._shown, self._loaded = frame["loaderId"], False
        elif said.get("method") == "Page.loadEventFired":
            self._loaded = True


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser with one tab; it ends with the block."""
    assert BROWSER is not None
    ours, theirs = os.pipe(), os.pipe()
    for end in (ours[0], theirs[1]):
        os.set_inheritable(end, True)
    pipes = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
    process = subprocess.Popen(
        ["bash", "-c", pipes, "bash", BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(ours[0], theirs[1]),
        stderr=subprocess.DEVNULL,
    )
    os.close(ours[0])
    os.close(theirs[1])
    try:
        tab = Chromium(ours[1], theirs[0])
        (target,) = (
            one for one in tab.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        )
        attached = tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(ours[1])
        os.close(theirs[0])
