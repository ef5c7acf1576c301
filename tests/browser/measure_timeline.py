"""How long the Timeline node takes from a gesture to the painted frame, with 60 finished clips, in each frontend.

    python tests/browser/measure_timeline.py

Prints the median and the longest of several times each, in milliseconds, and the size of the workflow. Needs what the
browser tests need.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import frontends  # noqa: E402
from comfy_browser import open_page  # noqa: E402
from comfy_server import make_base, running_server  # noqa: E402
from page_graph import Graph  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from timeline_strip import Strip, clips, finish, text_of  # noqa: E402

logger = logging.getLogger("measure_timeline")

CLIPS = 60
TIMES = 7
MEASURE = """async (times) => {
    const strip = vidrdCheck.strip(), cards = () => strip.querySelectorAll(".vidrd-card");
    const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const type = () => { const box = strip.querySelector("textarea"); box.value += "x";
        box.dispatchEvent(new Event("input")); };
    const gestures = { "choose": () => press("ArrowRight"), "new seed": () => press("n"), "lock": () => press("l"),
        "insert": () => press("i"), "delete": () => press("Delete"), "branch": () => press("b"),
        "type a letter": type };
    const taken = {};
    for (let time = 0; time < times; time++) {
        for (const [name, gesture] of Object.entries(gestures)) {
            const list = strip.querySelector("select"); // back to the first branch, which has all the clips
            if (list.selectedIndex > 0) { list.selectedIndex = 0; list.dispatchEvent(new Event("change")); }
            cards()[10 + time].focus();
            await new Promise((done) => setTimeout(done, 1500)); // until the server has answered
            const begun = performance.now();
            gesture();
            await painted();
            (taken[name] ??= []).push(performance.now() - begun);
        }
    }
    return taken; }"""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for version in frontends.versions():
        with tempfile.TemporaryDirectory() as temporary:
            base = make_base(Path(temporary) / "base")
            text = text_of(clips(CLIPS))
            finish(base, "sixty", text)
            with (
                running_server(base, str(frontends.find(version))) as server,
                sync_playwright() as playwright,
                open_page(playwright, str(frontends.find_chromium()), server.url) as page,
            ):
                graph = Graph(page)
                strip = Strip(graph, "sixty", text)
                strip.wait(*["finished"] * CLIPS)
                size = len(graph.run("() => JSON.stringify(app.graph.serialize())"))
                taken = graph.run(MEASURE, TIMES)
        logger.info("frontend %s, %d clips, workflow of %d characters", version, CLIPS, size)
        for name, times in taken.items():
            middle = sorted(times)[len(times) // 2]
            logger.info("  %-14s %4.0f ms, longest %4.0f ms", name, middle, max(times))


if __name__ == "__main__":
    main()
