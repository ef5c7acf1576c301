"""A real ComfyUI server with this pack, for tests and tools: where it is, how it starts, how prompts are run on it.

The tree is COMFYUI_PATH, else ~/comfy/ComfyUI; the interpreter is COMFYUI_PYTHON, else the tree's .venv, else this one.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
TREE = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI")).expanduser()
PACK_NAME = "VidRD"
# Of ComfyUI, of this pack and of the checks: a sample of each.
NEEDED = "aiohttp, torchsde, torchvision, diffusers, imageio, matplotlib, cv2, pytest"
PATIENCE = 900  # seconds; only a broken server or page takes so long
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # text also where the whole graph is in view
}


def interpreter() -> str:
    own = [TREE / ".venv" / "bin" / "python", TREE / ".venv" / "Scripts" / "python.exe"]
    return os.environ.get("COMFYUI_PYTHON") or next((str(p) for p in own if p.is_file()), sys.executable)


@functools.cache
def missing() -> str | None:
    """What ComfyUI or its interpreter lacks, as a sentence that says what to do; None where both are complete."""
    if not (TREE / "main.py").is_file() or not (TREE / "comfy" / "sd.py").is_file():
        return f"there is no ComfyUI at {TREE}: clone https://github.com/comfyanonymous/ComfyUI, or set COMFYUI_PATH"
    tried = subprocess.run([interpreter(), "-c", f"import {NEEDED}"], capture_output=True, text=True, cwd=TREE)
    if tried.returncode == 0:
        return None
    error = tried.stderr.strip().splitlines()[-1:] or ["it does not run"]
    files = f"-r {TREE / 'requirements.txt'} -r {PACK / 'requirements.txt'}"
    return f"{error[0]}: run `{interpreter()} -m pip install {files} pytest`, or set COMFYUI_PYTHON to another"


class NoServer(Exception):
    """ComfyUI ended instead of starting; the message holds the end of its log."""


class Server:
    """A running server over the folders in ``base``."""

    def __init__(self, url: str, base: Path):
        self.url, self.base, self.log = url, base, base / "server.log"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        with self.opener.open(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, OSError):
            return False

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Queue a prompt, wait for its end, give its history.

        Raises:
            urllib.error.HTTPError: the prompt is refused.
        """
        request = urllib.request.Request(
            f"{self.url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
        )
        with self.opener.open(request, timeout=60) as answer:
            identity = json.load(answer)["prompt_id"]
        deadline = time.monotonic() + PATIENCE
        while identity not in (history := self.get(f"/history/{identity}")):
            assert time.monotonic() < deadline, "the prompt did not end"
            time.sleep(0.25)
        return history[identity]


def make_base(base: Path) -> Path:
    """Empty folders of a ComfyUI, with this pack linked in and the first visit's dialogs off.

    Raises:
        OSError: the system makes no links for us.
    """
    for name in ("models", "custom_nodes", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK, target_is_directory=True)
    return base


@contextmanager
def running_server(base: Path, frontend: str | None = None, port: int = 0) -> Iterator[Server]:
    """A ComfyUI on the CPU, with its own frontend or another's ``static`` folder.

    Args:
        port: 0: any that is free.

    Raises:
        NoServer: it does not start.
    """
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    server = Server(f"http://127.0.0.1:{port}", base)
    command = [interpreter(), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{(base / 'comfy.db').as_posix()}"]
    command += ["--front-end-root", frontend] if frontend else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    with server.log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=TREE, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + PATIENCE
            while not server.answers():
                tail = server.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                if process.poll() is not None:
                    raise NoServer(f"ComfyUI at {TREE} does not start: {tail}")
                assert time.monotonic() < deadline, f"ComfyUI gave no answer: {tail}"
                time.sleep(1)
            yield server
        finally:
            process.terminate()
            process.wait(60)
