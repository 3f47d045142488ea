"""A headless Chromium that a test drives over the DevTools protocol, with a file as its microphone.

Only what the tests of the page need; every wait is for something that the page does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--remote-debugging-port=0",
]
PATIENCE_S = 60.0  # a bound for a broken test on a busy machine, not a figure

KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
}


def executable() -> str:
    """The browser's path; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


class Page:
    """One tab.

    Attributes:
        complaints: what the page wrote to the console as a warning or an error, and what it raised.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._commands = 0
        self._loaded = asyncio.Event()

    async def listen(self) -> None:
        """Take what the browser tells, until it goes."""
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if not answer.done():
                    answer.set_result(message)
            elif message["method"] == "Page.loadEventFired":
                self._loaded.set()
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(facts["exceptionDetails"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(facts["args"]))

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; raises RuntimeError with the browser's words if it fails."""
        self._commands += 1
        number = self._commands
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(PATIENCE_S):
            told = await answer
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        result: dict[str, Any] = told["result"]
        return result

    async def go(self, url: str) -> None:
        """Open `url` and wait until it is loaded."""
        self._loaded.clear()
        await self.command("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE_S):
            await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or of the body of an async function that has a `return` in it."""
        body = f"(async () => {{ {script} }})()" if "return " in script else f"(async () => ({script}))()"
        told = await self.command(
            "Runtime.evaluate", expression=body, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"]))
        return told["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait in the page until a JavaScript expression is true; returns its value."""
        try:
            return await self.run(
                f"for (;;) {{ const value = ({condition}); if (value) return value; "
                "await new Promise((resolve) => setTimeout(resolve, 20)); }"
            )
        except TimeoutError:
            raise AssertionError(f"never true in {PATIENCE_S:g} s: {condition}\n{await self.text()}") from None

    async def text(self) -> str:
        """What is to be read on the page."""
        return str(await self.run("document.body.innerText"))

    async def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element."""
        where = await self.run(
            f"const box = document.querySelector({selector!r}).getBoundingClientRect(); "
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    async def key(self, name: str, *, down: bool = True, up: bool = True, shift: bool = False) -> None:
        """Press a key of `KEYS`, hold it or let it go."""
        facts = {**KEYS[name], "modifiers": 8 if shift else 0}
        if down:
            await self.command("Input.dispatchKeyEvent", type="keyDown", **facts)
        if up:
            facts.pop("text", None)
            await self.command("Input.dispatchKeyEvent", type="keyUp", **facts)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.command("Input.insertText", text=text)

    async def look(self, width: int, height: int, *, dark: bool = False, still: bool = True, scale: float = 1) -> None:
        """Give the tab a size and the user's wishes."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 500
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.command("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self) -> bytes:
        """What is seen, as a PNG."""
        told = await self.command("Page.captureScreenshot", format="png")
        return base64.b64decode(told["data"])


@contextmanager
def chromium(microphone: Path | None = None) -> Iterator[str]:
    """A fresh browser: gives its DevTools address. `microphone` is a WAV file that each getUserMedia hears once."""
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else FLAGS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        told = Path(profile) / "told"
        with told.open("wb") as log:
            command = [executable(), *flags, f"--user-data-dir={profile}", "about:blank"]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield _address(process, told)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Page]:
    """A new tab of the browser at `address`."""
    async with connect(address, max_size=None, compression=None, proxy=None) as control:
        await control.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        while "result" not in (told := json.loads(await control.recv())):
            pass
        target = told["result"]["targetId"]
        where = f"{address.split('/devtools')[0]}/devtools/page/{target}"
        async with connect(where, max_size=None, compression=None, proxy=None, ping_interval=None) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            try:
                for domain in ("Page", "Runtime", "Log", "Accessibility"):
                    await page.command(f"{domain}.enable")
                yield page
            finally:
                listening.cancel()
        await control.send(json.dumps({"id": 2, "method": "Target.closeTarget", "params": {"targetId": target}}))
        while json.loads(await control.recv()).get("id") != 2:
            pass


def _address(process: subprocess.Popen[bytes], told: Path) -> str:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up and process.poll() is None:
        if found := re.search(rb"DevTools listening on (ws://\S+)", told.read_bytes()):
            return found[1].decode()
        time.sleep(0.02)
    raise RuntimeError(f"Chromium did not start: {told.read_text(errors='replace')[-2000:]}")
