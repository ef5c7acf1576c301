"""Fixtures: a real ComfyUI server with this pack (see comfy_server.py), and a page of a headless Chromium on it.

The browser is CHROMIUM, else what is installed. The tests run in two versions of the frontend (see frontends.py), and
in that whose ``static`` folder COMFYUI_FRONTEND names. VIDRD_SCREENSHOTS names a folder that keeps the pictures.

This is no conftest.py, whose name would hide that of the folder above from ``from conftest import ...``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import examples
import frontends
import pytest
from comfy_server import Server, make_base, missing, running_server
from page_graph import Graph

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
ELEMENTS = "Comfy.VueNodes.Enabled"  # the setting of Nodes 2.0
READY = """() => window.app?.graph && window.app?.canvas
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""


OTHER = "COMFYUI_FRONTEND"
VERSIONS = [*frontends.versions(), *([OTHER] if os.environ.get(OTHER) else [])]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program. Without it, or without ComfyUI or playwright, the browser tests are skipped."""
    lacks = missing() or frontends.missing_tool()
    if lacks:
        pytest.skip(lacks)
    return str(frontends.find_chromium())


@contextmanager
def open_page(playwright: Any, chromium: str, url: str) -> Iterator[Any]:
    """A page on which the graph stands; ``page.lines`` are its console lines. It speaks to nothing but the server."""
    browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
    try:
        page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()  # may open tabs
        page.set_default_timeout(120_000)  # so that what never comes does not take a whole run's time
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


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest, chromium: str, base: Path) -> Iterator[Server]:
    """A ComfyUI with the pack, with one version of the frontend."""
    if request.param != OTHER and (lacks := frontends.missing_version(request.param)):
        pytest.skip(lacks)
    static = os.environ[OTHER] if request.param == OTHER else str(frontends.find(request.param))
    with running_server(base, static) as server:
        yield server


@pytest.fixture(scope="session")
def browser_page(server: Server, chromium: str) -> Iterator[Any]:
    """A page on the server, see ``open_page``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, open_page(playwright, chromium, server.url) as page:
        yield page


@pytest.fixture
def comfy_page(browser_page: Any) -> Any:
    """The page with an empty graph."""
    browser_page.evaluate("() => { app.canvas.setGraph(app.rootGraph ?? app.graph); app.graph.clear(); }")
    browser_page.wait_for_timeout(300)
    browser_page.lines.clear()
    return browser_page


@pytest.fixture
def graph(comfy_page: Any) -> Graph:
    return Graph(comfy_page)


@pytest.fixture(params=["drawn", "elements"])
def kind(request: pytest.FixtureRequest, server: Server, comfy_page: Any) -> Iterator[str]:
    """How the frontend shows nodes."""
    elements = request.param == "elements"
    version = comfy_page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    if elements and version == frontends.OLDEST:
        pytest.skip("this frontend's nodes of elements are an experiment")
    choose = "([name, on]) => app.extensionManager.setting.set(name, on)"
    comfy_page.evaluate(choose, [ELEMENTS, elements])
    comfy_page.wait_for_timeout(1000)
    yield request.param
    comfy_page.evaluate(choose, [ELEMENTS, False])
