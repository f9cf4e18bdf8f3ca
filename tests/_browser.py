"""Headless Chromium, told what to do over a pipe (the DevTools protocol): it opens a page and says what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
SMALLEST = 12
"""Pixels of a letter's height that can still be read."""
HANGS = 60
"""Seconds without a word from the browser after which it is given up."""
FLAGS = (
    # The sandbox does not start as root in a container; the pages are our own.
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--remote-debugging-pipe",
)  # fmt: skip
LOOK = """(async () => {
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
  const found = [];
  for (const e of document.querySelectorAll("img, svg image")) {
    const image = new Image();
    image.src = e.src ?? e.href.baseVal;
    await image.decode().catch(() => found.push(`broken picture ${image.src.slice(0, 80)}`));
  }
  if (document.documentElement.scrollWidth > innerWidth)
    found.push(`the body is ${document.documentElement.scrollWidth} pixels wide`);
  const scrolls = (e) => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, words = texts.currentNode.textContent.trim();
    if (!words || !e.checkVisibility() || !e.getClientRects().length) continue;
    const scale = e.ownerSVGElement ? e.getScreenCTM().a : 1;  // a drawing shrinks, its letters too
    const size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (size < SMALLEST) found.push(`${size.toFixed(1)} pixels: ${words.slice(0, 40)}`);
    range.selectNodeContents(texts.currentNode);
    const { left, right } = range.getBoundingClientRect();
    const lines = new Set([...range.getClientRects()].map((r) => r.top)).size, parts = words.split(/[^!-~]|[-/]/);
    if (lines > parts.length && parts.every((part) => part.length < 20)) found.push(`torn apart: ${words}`);
    if ((left < 0 || right > innerWidth + 1) && !scrolls(e)) found.push(`beyond the screen: ${words.slice(0, 40)}`);
  }
  return found;
})()""".replace("SMALLEST", str(SMALLEST))
RUN_AXE = """axe.run(document, {resultTypes: ["violations"]}).then((result) => result.violations
  .filter((v) => ["serious", "critical"].includes(v.impact))
  .map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 120)).slice(0, 3).join(" ")}`))"""


def missing() -> str:
    """Why there is no browser test here; empty where there can be one."""
    if not any(map(shutil.which, PROGRAMS)):
        return "no Chromium (apt-get install chromium)"
    return "" if AXE.is_file() else "no axe-core (npm install --prefix . --no-save axe-core)"


@dataclass(frozen=True)
class Seen:
    """What is wrong with a page at a width."""

    requests: tuple[str, ...]
    """Addresses that it asked for, beside itself."""
    console: tuple[str, ...]
    """Errors and warnings: what failed to load, what the page's policy stopped, what a script threw."""
    faults: tuple[str, ...]
    """Broken pictures, text that is too small, torn into letters or beyond the screen, a body that scrolls sideways."""
    axe: tuple[str, ...]
    """Serious and critical findings of axe-core."""


class Browser:
    """One browser with one tab."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)))
        (theirs, self._out), (self._in, answers) = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        self._process = subprocess.Popen(
            ["sh", "-c", f'exec "$0" "$@" 3</dev/fd/{theirs} 4>/dev/fd/{answers}', program, *FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(theirs, answers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(answers)
        self._numbers, self._read, self._session = itertools.count(1), b"", ""
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{room}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def look(self, page: Path, width: int, *, dark: bool = False) -> Seen:
        """Open a file, on a screen `width` pixels wide."""
        address = page.resolve().as_uri()
        phone = width < 500
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        faults = self._value(LOOK)
        asked = [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        requests = [url for url in asked if url != address and not url.startswith("data:")]
        console = [text for event in self._events if (text := _complaint(event))]
        self._value(AXE.read_text(encoding="utf-8"), None)
        return Seen(tuple(requests), tuple(console), tuple(faults), tuple(self._value(RUN_AXE)))

    def shot(self, file: Path) -> None:
        """A PNG of the whole page as it is now."""
        import base64

        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def _value(self, script: str, default: Any = ()) -> Any:
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value", default)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._out, rest) :]
        while (answer := self._next()).get("id") != number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], HANGS)
            part = os.read(self._in, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError(f"the browser {'has ended' if ready else 'hangs'}")
            self._read += part
        line, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


def _complaint(event: dict[str, Any]) -> str:
    params = event.get("params", {})
    if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
        return str(params["entry"]["text"])
    if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
        return " ".join(str(arg.get("value", "")) for arg in params["args"])
    return str(params["exceptionDetails"]["text"]) if event["method"] == "Runtime.exceptionThrown" else ""
