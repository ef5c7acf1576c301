"""Fixtures: a real ComfyUI server with this pack, and a page of a headless Chromium on it.

The tree is COMFYUI_PATH, else ~/comfy/ComfyUI; its interpreter COMFYUI_PYTHON, else the tree's .venv, else this one;
the browser CHROMIUM, else what is installed. COMFYUI_FRONTEND names the ``static`` folder of another
comfyui-frontend-package, in which the checks are repeated. VIDRD_SCREENSHOTS names a folder that keeps the pictures.

This is no conftest.py, whose name would hide that of the folder above from ``from conftest import ...``.
"""

from __future__ import annotations

import json
import os
import shutil
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

import pytest

PACK = Path(__file__).resolve().parents[2]
TREE = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI")).expanduser()
PACK_NAME = "VidRD"
PATIENCE = 600  # seconds; only a broken server or page takes so long
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
}
READY = """() => window.app?.graph && window.app?.canvas
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""


def interpreter() -> str:
    own = [TREE / ".venv" / "bin" / "python", TREE / ".venv" / "Scripts" / "python.exe"]
    return os.environ.get("COMFYUI_PYTHON") or next((str(p) for p in own if p.is_file()), sys.executable)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/system_stats", timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def sync_playwright() -> Any:
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = find_chromium()
    if found is None:
        pytest.skip("there is no Chromium; set CHROMIUM to one")
    return found


def make_base(base: Path) -> Path:
    """Empty folders of a ComfyUI, with this pack linked in and the first visit's dialogs off."""
    for name in ("models", "custom_nodes", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK, target_is_directory=True)
    return base


class NoServer(Exception):
    """ComfyUI ended instead of starting; the message holds the end of its log."""


@contextmanager
def running_server(base: Path, frontend: str | None = None) -> Iterator[str]:
    """The address of a ComfyUI over the folders in ``base``, with its own frontend or another's ``static`` folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [interpreter(), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{(base / 'comfy.db').as_posix()}"]
    command += ["--front-end-root", frontend] if frontend else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    log = base / "server.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=TREE, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + PATIENCE
            while not answers(url):
                tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                if process.poll() is not None:
                    raise NoServer(f"ComfyUI at {TREE} does not start: {tail}")
                assert time.monotonic() < deadline, f"ComfyUI gave no answer: {tail}"
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def open_page(playwright: Any, chromium: str, url: str) -> Iterator[Any]:
    """A page on which the graph stands; ``page.lines`` are its console lines. It speaks to nothing but the server."""
    browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
    try:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE * 1000)
        page.lines = []
        page.on("console", lambda message: page.lines.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.lines.append(f"pageerror: {error} {error.stack}"))
        page.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda route: route.abort())
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(READY)
        page.wait_for_timeout(3000)  # extensions and settings arrive after the canvas
        yield page
    finally:
        browser.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the server."""
    try:
        return make_base(tmp_path_factory.mktemp("comfyui") / "base")
    except OSError as error:
        pytest.skip(f"this system makes no links for us: {error}")


@pytest.fixture(scope="session", params=["pinned", "other"])
def server(request: pytest.FixtureRequest, sync_playwright: Any, chromium: str, base: Path) -> Iterator[str]:
    """The address of a ComfyUI with the pack, with the frontend it was pinned to or with COMFYUI_FRONTEND."""
    if not (TREE / "main.py").is_file():
        pytest.skip(f"there is no ComfyUI at {TREE}; set COMFYUI_PATH")
    frontend = os.environ.get("COMFYUI_FRONTEND")
    if request.param == "other" and not frontend:
        pytest.skip("COMFYUI_FRONTEND names no other frontend")
    try:
        with running_server(base, frontend if request.param == "other" else None) as url:
            yield url
    except NoServer as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser_page(server: str, sync_playwright: Any, chromium: str) -> Iterator[Any]:
    """A page on the server, see ``open_page``."""
    with sync_playwright() as playwright, open_page(playwright, chromium, server) as page:
        yield page


@pytest.fixture
def comfy_page(browser_page: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with an empty graph; a picture is kept after the test where VIDRD_SCREENSHOTS asks for it."""
    browser_page.evaluate("() => { app.canvas.setGraph(app.rootGraph ?? app.graph); app.graph.clear(); }")
    browser_page.wait_for_timeout(300)
    browser_page.lines.clear()
    yield browser_page
    folder = os.environ.get("VIDRD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser_page.wait_for_timeout(1000)
        browser_page.screenshot(path=str(Path(folder) / f"{request.node.name.replace('[', '-').strip(']')}.png"))
