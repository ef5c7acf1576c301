"""Make the example workflows and their thumbnails anew, in a real ComfyUI and its own frontend.

    python tests/browser/make_workflows.py                  # all; after a change of a recipe or of the bundled model
    python tests/browser/make_workflows.py 1_chained_demo   # only those named
    python tests/browser/make_workflows.py --thumbnails     # run what there is and renew the pictures alone

Each workflow is built on the page, saved as the frontend serialises it, run, and pictured by frames of its result;
those whose weights are not at hand are pictured by a diagram of their clips.
Needs what the browser tests need (see comfy_browser.py) and ComfyUI's interpreter or another with playwright.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import examples  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from browser import model_recipes, recipes  # noqa: E402
from browser.diagrams import diagram  # noqa: E402
from comfy_browser import open_page  # noqa: E402
from comfy_server import Server, make_base, running_server  # noqa: E402
from frontends import find_chromium  # noqa: E402
from model_examples import MODELS  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

logger = logging.getLogger("make_workflows")

RECIPES = {**recipes.RECIPES, **model_recipes.MODEL_RECIPES}
SIZES = {**recipes.SIZES, **model_recipes.SIZES}
COLUMNS, ROWS, CELL, GAP = 4, 4, 128, 4  # of a thumbnail; cells in pixels
STAND_IN = "made with the bundled model"


def build(page: Any, name: str) -> dict[str, Any]:
    """The workflow as the frontend writes it."""
    rows = [[dataclasses.asdict(group) for group in row] for row in RECIPES[name]()]
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"vidrd/example_workflows/{name}"))
    version = re.search(r'^version = "(.*)"', (examples.ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert version is not None
    properties = {"cnr_id": "vidrd", "ver": version[1]}  # so that a missing pack can be named
    return json.loads(page.evaluate("given => vidrdBuild(...given)", [identity, rows, SIZES, properties]))


def result(server: Server, name: str) -> torch.Tensor:
    """Run an example and give the frames of its longest video, ``[3, T, H, W]``."""
    prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
    if name == examples.RELEASED:
        prompt = examples.with_bundled_model(prompt)
    history = server.run(examples.with_everything_saved(prompt))
    if history["status"]["status_str"] != "success":
        raise RuntimeError(f"{name} failed: {history['status']['messages']}")
    return max(examples.frames(history, server.base / "output").values(), key=lambda video: video.shape[1])


def thumbnail(video: torch.Tensor, caption: str) -> Image.Image:
    """Evenly spaced frames of a video, line by line."""
    count = COLUMNS * ROWS
    shown = np.linspace(0, video.shape[1] - 1, count).round().astype(int)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, ROWS * (CELL + GAP) + GAP), "#1f2328")
    for place, number in enumerate(shown):
        pixels = ((video[:, number].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        picture = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (GAP + place % COLUMNS * (CELL + GAP), GAP + place // COLUMNS * (CELL + GAP)))
    if caption:
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
        place = (sheet.width / 2, sheet.height - 14)
        draw.text(place, caption, "#ffffff", font, "ms", stroke_width=3, stroke_fill="#000000")
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="examples to make; all by default")
    parser.add_argument("--thumbnails", action="store_true", help="leave the workflows as they are")
    parser.add_argument("--no-run", action="store_true", help="write the workflows alone")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = given.names or list(RECIPES)
    unknown = set(names) - set(RECIPES)
    if unknown:
        parser.error(f"there is no recipe for {sorted(unknown)}; there are {list(RECIPES)}")
    examples.FOLDER.mkdir(exist_ok=True)
    if not examples.OWN_VIDEO.is_file():
        examples.write_own_video(examples.OWN_VIDEO)
    with tempfile.TemporaryDirectory() as temporary:
        base = make_base(Path(temporary) / "base")
        examples.prepare(base)
        with running_server(base) as server:
            if not given.thumbnails:
                write_workflows(server.url, names)
            if not given.no_run:
                make_thumbnails(server, names)
    return 0


def write_workflows(url: str, names: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("there is no Chromium; set CHROMIUM to one")
    with sync_playwright() as playwright, open_page(playwright, chromium, url) as page:
        for script in ("graph.js", "build.js"):
            page.evaluate((HERE / script).read_text(encoding="utf-8"))
        for name in names:
            graph = build(page, name)
            path = examples.FOLDER / f"{name}.json"
            path.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
            logger.info("%s: %d nodes", path.name, len(graph["nodes"]))


def save_thumbnail(picture: Image.Image, name: str) -> None:
    picture.save(examples.FOLDER / f"{name}.jpg", quality=88, optimize=True)


def make_thumbnails(server: Server, names: list[str]) -> None:
    for name in filter(MODELS.__contains__, names):
        save_thumbnail(diagram(MODELS[name]), name)
    ordered = sorted(set(names) - set(MODELS))
    if "7_continue_a_saved_video" in ordered and "6_save_a_video_to_continue_later" not in ordered:
        result(server, "6_save_a_video_to_continue_later")  # saves what 7 continues
    for name in ordered:
        started = time.monotonic()
        video = result(server, name)
        save_thumbnail(thumbnail(video, STAND_IN if name == examples.RELEASED else ""), name)
        logger.info("%s: %d frames in %.0f s", name, video.shape[1], time.monotonic() - started)
        if name in examples.CLIPS:
            jumps = ", ".join(f"{jump:.1f}" for jump in examples.seam_jumps(name, video))
            logger.info("    the shape is off by %s pixels at the seams", jumps)


if __name__ == "__main__":
    raise SystemExit(main())
