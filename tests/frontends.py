"""The versions of ComfyUI's frontend that tests/browser runs in: which, where they are, and how they get there.

    python tests/frontends.py   # downloads those that are not here; make setup-browser does it

They are the one that the ComfyUI under test pins and a current one. A frontend is a package of static files, so that
several lie side by side: in this environment, in that of ComfyUI, and in the folder ``frontends`` of this environment.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from comfy_server import TREE, interpreter

PACKAGE = "comfyui-frontend-package"
OLDEST = "1.27.10"  # pinned by ComfyUI 0.3.64, the oldest that this pack runs in; pyproject.toml asks for it
CURRENT = "1.58.1"  # the newest of November 2026; raise it from time to time
FOLDER = Path(sys.prefix) / "frontends"
ASK = (
    "import importlib.metadata as m, comfyui_frontend_package as p; "
    f"print(m.version({PACKAGE!r}) + '\\n' + p.__path__[0])"
)


def versions() -> list[str]:
    """The versions to test, the one that ComfyUI pins first; without a ComfyUI the one of 0.3.64."""
    try:
        pinned = re.search(rf"^{PACKAGE}==([\d.]+)", (TREE / "requirements.txt").read_text(encoding="utf-8"), re.M)
    except OSError:
        pinned = None
    return list(dict.fromkeys((pinned[1] if pinned else OLDEST, CURRENT)))


def find(version: str) -> Path | None:
    """The ``static`` folder of a version, or None where it is not on this machine."""
    places = [*installed(), (version, FOLDER / version / "comfyui_frontend_package" / "static")]
    return next((static for found, static in places if found == version and (static / "index.html").is_file()), None)


@functools.cache
def installed() -> tuple[tuple[str, Path], ...]:
    """The versions in this environment and in ComfyUI's, with their ``static`` folders."""
    found = []
    spec = importlib.util.find_spec("comfyui_frontend_package")
    if spec is not None and spec.submodule_search_locations:
        found.append((metadata.version(PACKAGE), Path(spec.submodule_search_locations[0]) / "static"))
    asked = subprocess.run([interpreter(), "-c", ASK], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        version, folder = asked.stdout.strip().splitlines()[-2:]
        found.append((version, Path(folder) / "static"))
    return tuple(found)


def install(version: str) -> None:
    """Download a version into ``FOLDER``.

    Raises:
        subprocess.CalledProcessError: pip cannot.
    """
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        target = Path(temporary) / version
        subprocess.run([*command, "--target", str(target), f"{PACKAGE}=={version}"], check=True)
        os.replace(target, FOLDER / version)


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


def missing_tool() -> str | None:
    """The first of the tools that the browser tests lack, as a sentence that says what to do."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: run `make setup-browser`"
    if find_chromium() is None:
        return "there is no Chromium: install one (chromium or google-chrome), or set CHROMIUM to its program"
    return None


def missing_version(version: str) -> str | None:
    return None if find(version) else f"{PACKAGE} {version} is not on this machine: run `make setup-browser`"


def main() -> None:
    for version in versions():
        if find(version) is None:
            install(version)


if __name__ == "__main__":
    main()
