"""The graph on the page, as the browser tests read and change it; graph.js does it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_server import PATIENCE

HELPERS = (Path(__file__).parent / "graph.js").read_text(encoding="utf-8")
TITLE = 30  # pixels of a node above its position
RESTORING = "app.extensionManager.workflow.activeWorkflow?.changeTracker?._restoringState"
NODES = "app.canvas.graph.nodes.length"


class Graph:
    """The graph on the page."""

    def __init__(self, page: Any):
        self.page = page
        page.evaluate(HELPERS)

    def call(self, function: str, *arguments: Any) -> Any:
        return json.loads(
            self.page.evaluate(
                "([name, given]) => JSON.stringify(vidrdCheck[name](...given) ?? null)", [function, list(arguments)]
            )
        )

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def comes(self, test: str, seconds: float) -> bool:
        """Whether an expression of the page becomes true in that time."""
        for _ in range(round(10 * seconds)):
            if self.run(f"() => {test}"):
                return True
            self.page.wait_for_timeout(100)
        return False

    def go_to(self, key: str, state: str, wanted: Any) -> None:
        """Press undo or redo, which leads to this state, the value of an expression of the page.

        On a busy machine the old frontend loses such a key, and one that comes while the state before is put back.
        """
        before = self.run(f"() => {state}")
        for _ in range(5):
            self.page.keyboard.press(key)
            if self.comes(f"{state} !== {json.dumps(before)}", seconds=5):
                self.page.wait_for_function(f"(wanted) => {state} === wanted && !{RESTORING}", arg=wanted)
                self.page.wait_for_timeout(400)
                return
        raise AssertionError(f"{key} does nothing")

    def describe(self, node: str) -> dict[str, Any]:
        return self.call("describe", node)

    def boxes(self) -> list[list[float]]:
        return [self.describe(node)["box"] for node in self.call("ids")]


def apart(a: list[float], b: list[float]) -> bool:
    return (
        a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] - TITLE or b[1] + b[3] <= a[1] - TITLE
    )  # fmt: skip


def own_complaints(page: Any) -> list[str]:
    """Console lines that this pack's script may have caused."""
    words = (
        "add_reuse_and_diffuse",
        "around_samplers",
        "play_previews",
        "widgets.js",
        "clip_lengths",
        "model_settings",
        "VidRD",
        ".links is deprecated",
    )
    words += (".link is deprecated", "getExtraMenuOptions")
    return [line for line in page.lines if any(word in line for word in words)]


def press_run(graph: Graph) -> dict[str, int]:
    """Press Run and wait; how many pictures or videos each type of output node showed."""
    graph.run("""() => { window.vidrdShown = {}; window.vidrdEnd = null;
        const type = (id) => app.graph.nodes.find((node) => String(node.id) === String(id))?.type;
        app.api.addEventListener("executed", ({ detail }) => {
            const count = detail.output?.images?.length;
            if (count) window.vidrdShown[type(detail.display_node ?? detail.node)] = count; });
        for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            app.api.addEventListener(kind, ({ detail }) => { window.vidrdEnd = { kind, ...detail }; });
        app.queuePrompt(0, 1); }""")
    graph.page.wait_for_function("() => window.vidrdEnd", timeout=PATIENCE * 1000)
    end = json.loads(graph.run("() => JSON.stringify(window.vidrdEnd)"))
    assert end["kind"] == "execution_success", end
    return graph.run("() => window.vidrdShown")
