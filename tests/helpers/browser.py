"""A real browser for tests of pages: headless Chromium over its debugging pipe, nothing else to install.

A test that needs it takes the fixture ``browser`` of the conftest beside it, and skips where there is no Chromium.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from queue import Empty, Queue

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    """The browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process; ``open`` gives a page."""

    def __init__(self, path: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="browser-")
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()

        def arrange() -> None:
            os.dup2(to_read, 13)
            os.dup2(to_write, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
                 "--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
                 "--remote-debugging-pipe", f"--user-data-dir={self.folder}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            [path, *flags], preexec_fn=arrange, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.count, self.answers, self.events = 0, {}, Queue()
        self.got = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(self.read_end, 2**16):
            *whole, rest = (rest + piece).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    with self.got:
                        self.answers[message["id"]] = message
                        self.got.notify_all()
                else:
                    self.events.put(message)

    def ask(self, method: str, session: str | None = None, timeout: float = 120.0, **params):
        """One command of the protocol and its result."""
        self.count += 1
        number = self.count
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        with self.got:
            assert self.got.wait_for(lambda: number in self.answers, timeout), f"no answer to {method}"
            answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """A page at this address, loaded."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        page.resize(width, height, dark=dark)
        page.ask("Page.enable")
        page.ask("Runtime.enable")
        page.go(address)
        return page

    def close(self) -> None:
        """End the process that was started here."""
        with contextlib.suppress(Exception):
            self.ask("Browser.close", timeout=5)
        self.process.terminate()
        self.process.wait(20)
        os.close(self.write_end)
        shutil.rmtree(self.folder, ignore_errors=True)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session, self.errors = browser, target, session, []

    def ask(self, method: str, **params):
        """One command to this tab."""
        return self.browser.ask(method, self.session, **params)

    def resize(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """The window, and the ground that its user prefers."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)

    def go(self, address: str, timeout: float = 60.0) -> None:
        """Load an address until it has its first answer; what its scripts complain about is kept in ``errors``."""
        self.ask("Page.navigate", url=address)
        while True:
            event = self.event(timeout)
            if event["method"] == "Page.loadEventFired":
                self.evaluate("typeof settled === 'undefined' || settled")
                return

    def event(self, timeout: float):
        """The next event of this tab."""
        while True:
            event = self.browser.events.get(timeout=timeout)
            if event.get("sessionId") == self.session:
                if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                    self.errors.append(event["params"])
                return event

    def evaluate(self, expression: str):
        """The value of an expression, as JSON has it; promises are waited for."""
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def complaints(self) -> list:
        """What scripts threw or wrote to the console so far."""
        with contextlib.suppress(Empty):
            while True:
                self.event(0.05)
        return self.errors

    def key(self, name: str, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            words = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **words)

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """A PNG of the page."""
        clip = {}
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=whole, **clip)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it prints, on A4."""
        data = self.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def close(self) -> None:
        """Close the tab."""
        self.browser.ask("Target.closeTarget", targetId=self.target)
