"""Make the pictures of the Timeline node: docs/timeline.png for the README, and those of its help page.

    python tests/browser/make_timeline_pictures.py             # after a change of the look; minutes on a CPU
    python tests/browser/make_timeline_pictures.py --base DIR  # keeps ComfyUI's folders there, and what was sampled

They show example 13 after a run, with a second take of a clip. Needs what make_workflows.py needs.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import examples  # noqa: E402
import frontends  # noqa: E402
from comfy_browser import open_page  # noqa: E402
from comfy_server import PATIENCE, make_base, running_server  # noqa: E402
from page_graph import Graph, press_run  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

logger = logging.getLogger("make_timeline_pictures")

EXAMPLE = "13_timeline"
README = examples.ROOT / "docs" / "timeline.png"
HELP = examples.ROOT / "web" / "docs"
MARGIN = 6  # pixels around what is shown
FIT = """() => { const node = vidrdCheck.timeline(), { ds } = app.canvas;
    ds.scale = 1; ds.offset[0] = 120 - node.pos[0]; ds.offset[1] = 200 - node.pos[1]; app.canvas.setDirty(true, true);
    return [120, 170, node.size[0], node.size[1] + 30]; }"""  # with its title
STRIP = (
    "() => { const box = vidrdCheck.strip().getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; }"
)


def wait(page: Any, *states: str) -> None:
    """Until the cards show these states, with their pictures and, where all are finished, the video."""
    page.wait_for_function(
        """(states) => { const cards = [...vidrdCheck.strip().querySelectorAll(".vidrd-card")];
        const shown = cards.map((card) => card.querySelector(".vidrd-state").dataset.state);
        const loaded = [...vidrdCheck.strip().querySelectorAll("img")].every((one) => one.hidden || one.naturalWidth);
        return JSON.stringify(shown) === JSON.stringify(states) && loaded; }""",
        arg=list(states),
        timeout=PATIENCE * 1000,
    )
    page.wait_for_timeout(1500)


def save(page: Any, path: Path, what: str = STRIP) -> None:
    page.evaluate(FIT)
    page.mouse.move(5, 500)
    page.wait_for_timeout(1000)
    x, y, width, height = page.evaluate(what)
    box = {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB").save(path, optimize=True)
    logger.info("%s: %d kB", path.relative_to(examples.ROOT), path.stat().st_size // 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="where ComfyUI's folders are kept; by default they are deleted")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    static = frontends.find(frontends.CURRENT)
    if static is None:
        raise SystemExit(frontends.missing_version(frontends.CURRENT))
    with tempfile.TemporaryDirectory() as temporary:
        base = given.base or Path(temporary) / "base"
        if not base.exists():
            examples.prepare(make_base(base))
        with (
            running_server(base, str(static)) as server,
            sync_playwright() as playwright,
            open_page(playwright, str(frontends.find_chromium()), server.url) as page,
        ):
            page.set_viewport_size({"width": 1400, "height": 1300})
            graph = Graph(page)
            graph.run("async (workflow) => { await app.loadGraphData(workflow); }", examples.workflow(EXAMPLE))
            page.wait_for_selector(".vidrd-card")
            graph.run(FIT)
            press_run(graph)
            count = len(examples.CLIPS[EXAMPLE]) - 1
            wait(page, *["finished"] * count)
            cards, details = page.locator(".vidrd-card"), page.locator(".vidrd-details")
            cards.nth(count - 1).click()
            details.get_by_label("seed of the clip").fill("60")
            details.get_by_label("seed of the clip").press("Enter")
            page.wait_for_timeout(1500)
            press_run(graph)
            wait(page, *["finished"] * count)
            page.locator(".vidrd-seam").nth(2).click()
            save(page, README)
            cards.nth(2).click()
            details.get_by_role("button", name="New seed").click()
            cards.nth(4).click()
            details.get_by_role("button", name="Lock").click()
            wait(page, *["finished"] * 2, "changed", "changed", "finished")
            save(page, HELP / "timeline.png", FIT)
            cards.nth(count - 1).click()
            for take in page.locator(".vidrd-take").all():
                take.get_by_role("button", name="Compare").click()
            page.wait_for_timeout(2500)
            page.locator(".vidrd-bar button", has_text="Pause").click()
            save(page, HELP / "timeline_takes.png")


if __name__ == "__main__":
    main()
