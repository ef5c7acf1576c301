"""Fixtures: a real ComfyUI server with this pack (see comfy_server.py), and a page of a headless Chromium on it.

The browser is CHROMIUM, else what is installed. COMFYUI_FRONTEND names the ``static`` folder of another
comfyui-frontend-package, in which the checks are repeated. VIDRD_SCREENSHOTS names a folder that keeps the pictures.

This is no conftest.py, whose name would hide that of the folder above from ``from conftest import ...``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import examples
import pytest
from comfy_server import TREE, NoServer, Server, make_base, running_server

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
READY = """() => window.app?.graph && window.app?.canvas
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""


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


@contextmanager
def open_page(playwright: Any, chromium: str, url: str) -> Iterator[Any]:
    """A page on which the graph stands; ``page.lines`` are its console lines. It speaks to nothing but the server."""
    browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
    try:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(300_000)
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
        made = make_base(tmp_path_factory.mktemp("comfyui") / "base")
    except OSError as error:
        pytest.skip(f"this system makes no links for us: {error}")
    examples.prepare(made)
    examples.name_missing_files(made)
    return made


@pytest.fixture(scope="session", params=["pinned", "other"])
def server(request: pytest.FixtureRequest, sync_playwright: Any, chromium: str, base: Path) -> Iterator[Server]:
    """A ComfyUI with the pack, with the frontend it was pinned to or with COMFYUI_FRONTEND."""
    if not (TREE / "main.py").is_file():
        pytest.skip(f"there is no ComfyUI at {TREE}; set COMFYUI_PATH")
    frontend = os.environ.get("COMFYUI_FRONTEND")
    if request.param == "other" and not frontend:
        pytest.skip("COMFYUI_FRONTEND names no other frontend")
    try:
        with running_server(base, frontend if request.param == "other" else None) as server:
            yield server
    except NoServer as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser_page(server: Server, sync_playwright: Any, chromium: str) -> Iterator[Any]:
    """A page on the server, see ``open_page``."""
    with sync_playwright() as playwright, open_page(playwright, chromium, server.url) as page:
        yield page


@pytest.fixture
def comfy_page(browser_page: Any) -> Any:
    """The page with an empty graph."""
    browser_page.evaluate("() => { app.canvas.setGraph(app.rootGraph ?? app.graph); app.graph.clear(); }")
    browser_page.wait_for_timeout(300)
    browser_page.lines.clear()
    return browser_page
