"""A tab of a real Chromium, driven through its DevTools protocol."""

import json
import os
import subprocess
import time
from contextlib import contextmanager

from tests.http import http


class Tab:
    """errors: exceptions that the page did not catch."""

    def __init__(self, socket):
        self.socket, self.number, self.errors = socket, 0, []
        self.call("Runtime.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv(timeout=30))
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"])
            if said.get("id") == self.number:
                return said["result"]

    def value(self, expression: str):
        """What JavaScript makes of `expression`. Raises RuntimeError if that throws."""
        said = self.call("Runtime.evaluate", expression=expression)
        if "exceptionDetails" in said:
            raise RuntimeError(f"{expression}: {said['exceptionDetails']}")
        return said["result"].get("value")

    def wait(self, expression: str) -> bool:
        for _ in range(200):
            if self.value(expression) is True:
                return True
            time.sleep(0.05)
        return False

    def key(self, key: str, **more) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    def type(self, text: str) -> None:
        """Types into the focused element."""
        self.call("Input.insertText", text=text)


@contextmanager
def tab(browser: str, address: str, profile):
    """Opens `address`; `profile` is an empty folder for the browser's own files."""
    from websockets.sync.client import connect

    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"no_proxy": "127.0.0.1"},
    )  # fmt: skip
    try:
        for _ in range(300):
            if (profile / "DevToolsActivePort").exists() and (profile / "DevToolsActivePort").read_text():
                break  # it is created before it is written
            assert process.poll() is None
            time.sleep(0.1)
        port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
        for _ in range(100):
            tabs = [t for t in http.get(f"http://127.0.0.1:{port}/json").json() if t["type"] == "page"]
            if tabs and tabs[0]["url"].startswith("http"):
                break
            time.sleep(0.1)
        with connect(tabs[0]["webSocketDebuggerUrl"], proxy=None) as socket:
            shown = Tab(socket)  # a new tab starts with an empty document, which is complete too
            assert shown.wait("location.protocol === 'http:' && document.readyState === 'complete'"), address
            yield shown
    finally:
        process.terminate()
        process.wait()
