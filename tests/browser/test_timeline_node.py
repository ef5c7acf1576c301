"""The strip of the Timeline node in a real browser: every gesture, keyboard, undo, copy and paste, a stopped server.

Most takes are written by the tests as the node writes them, so that nothing need be sampled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_graph import Graph
from PIL import Image
from test_browser import run as press_run

from vidrd_core.jobs.takes import TakeFolder
from vidrd_core.jobs.timeline import Settings, Surroundings, Timeline, plan
from vidrd_core.video import write_video

logger = logging.getLogger(__name__)

pytest_plugins = ["comfy_browser"]
pytestmark = pytest.mark.browser

AROUND = Surroundings("model", "text", "", True, {"auto": 1, "paper": 2, "smooth": 3})
SETTINGS = {"negative_prompt": "watermark", "width": 64, "height": 64, "cfg": 4, "steps": 4, "sampler_name": "ddim",
            "scheduler": "ddim_uniform", "preset": "smooth"}  # fmt: skip
PROMPTS = ("a red circle moves right over a dark blue background", "it stops and turns green", "it bounces away")
COLOURS = ((200, 60, 50), (60, 160, 80), (70, 90, 200), (210, 160, 50))
STRIP = "[...document.querySelectorAll('.vidrd-card')].map"
STATES = f"() => {STRIP}((card) => card.querySelector('.vidrd-state').dataset.state)"
SCREENS = "[...document.querySelectorAll('.vidrd-screens video')]"
RELOAD = "async () => { const saved = app.graph.serialize(); app.graph.clear(); await app.loadGraphData(saved); }"
SPOIL = """() => { const text = app.graph.nodes[0].widgets.find((widget) => widget.name === "timeline");
    text.value = "{oh"; }"""


def clips(count: int) -> list[dict[str, Any]]:
    return [{"id": f"c{n}", "prompt": PROMPTS[n % 3], "seed": n + 1} for n in range(count)]


def text_of(listed: list[dict[str, Any]], **more: Any) -> str:
    return Timeline.parse(json.dumps({"version": 1, "clips": listed, **more})).text()


def moving(colour: tuple[int, int, int], frames: int) -> np.ndarray:
    """A square of a colour that moves right, ``[T, 64, 64, 3]``."""
    made = np.full((frames, 64, 64, 3), 30, np.uint8)
    for number in range(frames):
        left = 4 + number * 40 // frames
        made[number, 24:40, left : left + 16] = colour
    return made


def finish(base: Path, name: str, text: str) -> TakeFolder:
    """Write the takes of a timeline, and its joined video, as a run of the node does."""
    folder = TakeFolder(base / "output" / "vidrd" / name)
    timeline, settings = Timeline.parse(text), Settings.of(SETTINGS)
    ids = [clip.id for clip in timeline.clips]
    folder.remember(ids[0], ids, {"around": asdict(AROUND), "settings": asdict(settings), "fps": 8})
    before, pieces, used = None, [], []
    for number, one in enumerate(plan(timeline, settings, AROUND, folder.records(), folder.is_finished)):
        pixels = moving(COLOURS[(number + one.clip.seed) % len(COLOURS)], 8 if not number else 3)
        pieces.append(pixels)
        if not folder.is_finished(one.take):
            folder.takes_path.mkdir(parents=True, exist_ok=True)
            write_video(folder.file(one.take, ".mp4"), pixels, 8)
            Image.fromarray(pixels[len(pixels) // 2]).save(folder.file(one.take, ".jpg"))
            folder.file(one.take, ".safetensors").write_bytes(b"state")
            values = {"clip": one.clip.id, "prompt": one.clip.prompt, "seed": one.clip.seed, "frames": one.clip.frames}
            folder.finish(one.take, {**values, "follows": before, "new_frames": len(pixels)})
        before = one.take
        used.append(one.take)
    video = hashlib.sha256(json.dumps([*used, 8.0]).encode()).hexdigest()[:16]
    folder.videos_path.mkdir(parents=True, exist_ok=True)
    write_video(folder.video_file(video), np.concatenate(pieces), 8)
    seams = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
    record = {"takes": used, "seams": seams, "frames": sum(map(len, pieces)), "fps": 8}
    folder.finish_video(video, record)
    return folder


class Strip:
    """A Timeline node on the page."""

    def __init__(self, graph: Graph, run_name: str, text: str):
        self.graph, self.page = graph, graph.page
        values = {**SETTINGS, "run_name": run_name, "timeline": text}
        self.id = graph.run("(values) => String(vidrdCheck.make('VidRDTimeline', 60, 60, values).id)", values)
        self.page.wait_for_selector(".vidrd-card")
        graph.call("fit")

    def text(self) -> str:
        find = "app.canvas.graph.nodes.find((node) => node.type === 'VidRDTimeline')"
        return self.page.evaluate(f"() => {find}.widgets.find((widget) => widget.name === 'timeline').value")

    def data(self) -> Timeline:
        return Timeline.parse(self.text())

    def shown(self) -> list[str]:
        return self.page.evaluate(f"() => {STRIP}((card) => card.dataset.clip)")

    def states(self) -> list[str]:
        return self.page.evaluate(STATES)

    def wait(self, *states: str) -> None:
        wanted = json.dumps(states, separators=(",", ":"))
        self.page.wait_for_function(f"(wanted) => JSON.stringify(({STATES})()) === wanted", arg=wanted)

    def chosen(self) -> str:
        return self.page.evaluate("() => document.querySelector('.vidrd-card[aria-selected=true]').dataset.clip")

    def choose(self, number: int) -> None:
        self.page.locator(".vidrd-card").nth(number).click()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(60)

    def button(self, name: str) -> Any:
        return self.page.locator(".vidrd-details .vidrd-row").get_by_role("button", name=name, exact=True)


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("VIDRD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1200)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture
def strip(graph: Graph, base: Path, request: pytest.FixtureRequest) -> Strip:
    """Three finished clips, in a run of the test's own."""
    name = request.node.name.split("[")[0].replace("test_", "")[:40]
    text = text_of(clips(3))
    finish(base, name, text)
    made = Strip(graph, name, text)
    made.name = name
    made.wait("finished", "finished", "finished")
    return made


def version(graph: Graph) -> str:
    return graph.run("() => (window.__COMFYUI_FRONTEND_VERSION__ ?? 'old').slice(0, 6)")


def test_edits_by_mouse_change_the_text_and_mark_what_is_stale(strip: Strip) -> None:
    page = strip.page
    picture(page, f"timeline_{version(strip.graph)}")
    strip.choose(1)
    prompt = page.get_by_label("prompt of the clip")
    assert prompt.input_value() == PROMPTS[1]
    prompt.fill("it turns yellow")
    prompt.blur()
    strip.wait("finished", "changed", "changed")
    assert strip.data().clips[1].prompt == "it turns yellow"
    seed = strip.data().clips[1].seed
    strip.button("New seed").click()
    assert strip.data().clips[1].seed != seed
    page.get_by_label("seed of the clip").fill("9223372036854775807")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert strip.data().clips[1].seed == 2**63 - 1
    strip.button("Insert after").click()
    assert len(strip.shown()) == 4 and strip.chosen() == strip.shown()[2]
    strip.button("Insert before").click()
    assert len(strip.shown()) == 5 and strip.chosen() == strip.shown()[2]
    strip.button("Delete").click()
    strip.button("Delete").click()
    assert strip.shown() == ["c0", "c1", "c2"]
    page.get_by_label("Add a clip at the end").click()
    assert len(strip.shown()) == 4 and strip.shown()[:3] == ["c0", "c1", "c2"]
    strip.wait("finished", "changed", "changed", "waiting")


def test_a_locked_clip_keeps_its_take(strip: Strip) -> None:
    strip.choose(1)
    strip.button("Lock").click()
    clip = strip.data().clips[1]
    assert clip.lock and len(clip.take) == 16
    strip.choose(0)
    strip.button("New seed").click()
    strip.wait("changed", "finished", "finished")
    strip.page.get_by_text("locked, seam may show").wait_for()
    strip.choose(1)
    strip.button("Unlock").click()
    strip.wait("changed", "changed", "changed")
    assert strip.text().count("lock") == 0


def test_a_branch_shares_the_beginning_and_the_choice_goes_back(strip: Strip) -> None:
    strip.choose(0)
    strip.button("Branch").click()
    assert strip.shown()[0] == "c0" and len(strip.shown()) == 2
    strip.wait("finished", "waiting")
    strip.page.get_by_label("branch", exact=True).select_option("main")
    assert strip.shown() == ["c0", "c1", "c2"]
    strip.wait("finished", "finished", "finished")
    assert [clip.after for clip in strip.data().clips] == [None, None, None, "c0"]


def test_takes_are_chosen_compared_branched_from_and_deleted(strip: Strip, base: Path) -> None:
    page = strip.page
    strip.choose(2)
    page.get_by_label("seed of the clip").fill("77")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    folder = finish(base, strip.name, strip.text())
    strip.graph.run("() => app.api.dispatchEvent(new CustomEvent('execution_success', { detail: {} }))")
    strip.wait("finished", "finished", "finished")
    takes = page.locator(".vidrd-take")
    assert takes.count() == 2
    takes.nth(0).get_by_role("button", name="Compare").click()
    takes.nth(1).get_by_role("button", name="Compare").click()
    page.wait_for_function(f"() => {SCREENS}.length === 2")
    page.wait_for_function(f"() => {SCREENS}.every((video) => video.currentTime > 0)")
    picture(page, f"timeline_compare_{version(strip.graph)}")
    page.get_by_role("button", name="Back to the video").click()
    takes.nth(0).get_by_role("button", name="Use", exact=True).click()
    assert strip.data().clips[2].seed == 3 and not strip.data().clips[2].lock
    strip.wait("finished", "finished", "finished")
    other = takes.nth(1).get_attribute("data-take")
    takes.nth(1).get_by_role("button", name="Branch").click()
    strip.wait("finished", "finished", "finished", "waiting")
    assert strip.data().shown()[2].take == other
    strip.choose(2)
    page.get_by_label("branch", exact=True).select_option("main")
    strip.choose(2)
    page.locator(f"[data-take='{other}']").get_by_role("button", name="Delete").click()
    page.wait_for_function("() => document.querySelectorAll('.vidrd-take').length === 1")
    assert not folder.is_finished(other)


def test_the_keyboard_does_it_all_and_the_node_stays(strip: Strip) -> None:
    strip.choose(0)
    strip.press("ArrowRight")
    assert strip.chosen() == "c1"
    strip.press("n")
    assert strip.data().clips[1].seed != 2
    strip.press("End")
    assert strip.chosen() == "c2"
    strip.press("i")
    assert len(strip.shown()) == 4
    strip.press("Delete")
    assert strip.shown() == ["c0", "c1", "c2"]
    strip.press("Home", "Shift+I")
    assert len(strip.shown()) == 4 and strip.shown()[1] == "c0" and strip.chosen() == strip.shown()[0]
    strip.press("Delete", "Home", "Enter")
    strip.page.keyboard.type(" X")
    strip.press("Escape")
    assert strip.data().clips[0].prompt == PROMPTS[0] + " X" and strip.chosen() == "c0"
    strip.press("b")
    assert len(strip.shown()) == 2
    assert strip.graph.run("() => app.canvas.graph.nodes.length") == 1  # Delete took no node


def test_undo_takes_back_one_edit_after_the_other_and_redo_brings_it_again(strip: Strip) -> None:
    before = strip.text()
    strip.choose(1)
    strip.press("n")
    strip.page.wait_for_timeout(300)
    once = strip.text()
    strip.press("Delete")
    strip.page.wait_for_timeout(300)
    twice = strip.text()
    assert len({before, once, twice}) == 3
    for wanted in (once, before):
        strip.press("Control+z")
        strip.page.wait_for_timeout(1500)
        assert strip.text() == wanted
        assert len(strip.shown()) == 3
    strip.press("Control+y")
    strip.page.wait_for_timeout(1500)
    assert strip.text() == once


def test_copies_subgraphs_and_files_hold_the_timeline(strip: Strip) -> None:
    strip.choose(1)
    strip.press("n")
    strip.page.wait_for_timeout(600)
    text = strip.text()
    found = strip.graph.run("""async () => {
        const [node] = app.graph.nodes, saved = node.serialize();
        app.canvas.selectItems([node]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard();
        const value = (one) => one.widgets.find((widget) => widget.name === "timeline").value;
        const pasted = app.graph.nodes.map(value);
        const file = JSON.stringify(app.graph.serialize());
        return { pasted, values: saved.widgets_values, size: file.length }; }""")
    assert found["pasted"] == [text, text] and found["values"].count(text) == 1
    assert sum(isinstance(value, str) and "clips" in value for value in found["values"]) == 1
    inside = strip.graph.run("""async () => { const node = app.graph.nodes[1];
        app.graph.remove(app.graph.nodes[0]); app.canvas.draw(true, true); app.canvas.selectItems([node]);
        const { subgraph } = app.graph.convertToSubgraph(new Set([node]));
        const saved = app.graph.serialize(); await app.loadGraphData(saved);
        const inner = [...app.graph.subgraphs.values()][0].nodes[0];
        return inner.widgets.find((widget) => widget.name === "timeline").value; }""")
    assert inside == text


def test_a_reloaded_workflow_shows_the_same(strip: Strip) -> None:
    strip.choose(1)
    strip.press("n")
    strip.wait("finished", "changed", "changed")
    text = strip.text()
    strip.graph.run(RELOAD)
    strip.page.wait_for_selector(".vidrd-card")
    strip.wait("finished", "changed", "changed")
    assert strip.text() == text


def test_the_video_plays_and_a_click_on_a_seam_goes_there(strip: Strip) -> None:
    page = strip.page
    marks = page.locator(".vidrd-seam")
    page.wait_for_function("() => document.querySelectorAll('.vidrd-seam').length === 2")
    page.wait_for_function("() => document.querySelector('.vidrd-screens video').readyState >= 2")
    assert [mark.get_attribute("data-frame") for mark in marks.all()] == ["8", "11"]
    marks.nth(0).click()
    assert page.evaluate("() => document.querySelector('.vidrd-screens video').currentTime") == pytest.approx(8.5 / 8)
    strip.choose(0)
    strip.press("Space")
    page.wait_for_function("() => !document.querySelector('.vidrd-screens video').paused")
    page.get_by_role("button", name="Measure seams").click()
    page.wait_for_selector(".vidrd-figures td")
    shown = page.locator(".vidrd-figures").inner_text()
    assert "seam 2, frame 11" in shown or "OpenCV" in shown
    picture(page, f"timeline_seams_{version(strip.graph)}")


def test_a_poster_plays_under_the_pointer(strip: Strip) -> None:
    strip.page.locator(".vidrd-card").nth(1).hover()
    strip.page.wait_for_function("() => document.querySelector('.vidrd-card video')?.currentTime > 0")
    strip.page.mouse.move(5, 5)
    strip.page.wait_for_function("() => !document.querySelector('.vidrd-card video')")


def test_a_stopped_server_loses_no_edit(strip: Strip) -> None:
    page = strip.page
    page.route("**/vidrd/timeline*", lambda route: route.abort())
    try:
        strip.choose(1)
        strip.press("n")
        page.get_by_text("the server does not answer").wait_for()
        assert strip.data().clips[1].seed != 2 and len(strip.shown()) == 3
    finally:
        page.unroute("**/vidrd/timeline*")
    strip.choose(2)
    strip.press("n")
    strip.wait("finished", "changed", "changed")
    assert not page.locator(".vidrd-message").inner_text()


def test_a_text_that_is_no_timeline_is_named_and_left_alone(strip: Strip) -> None:
    strip.graph.run(SPOIL)
    strip.page.get_by_text("cannot be read").wait_for()
    strip.press("n")
    assert strip.text() == "{oh"


def test_sixty_clips_stay_fluid_and_the_file_small(graph: Graph, base: Path) -> None:
    text = text_of(clips(60))
    finish(base, "sixty", text)
    strip = Strip(graph, "sixty", text)
    strip.wait(*["finished"] * 60)
    took = graph.run("""async () => {
        const paint = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        const cards = [...document.querySelectorAll(".vidrd-card")], took = {};
        const timed = async (name, work) => { const begun = performance.now(); work(); await paint();
            took[name] = Math.round(performance.now() - begun); };
        const buttons = [...document.querySelectorAll(".vidrd-details button")];
        const button = (name) => buttons.find((one) => one.textContent === name);
        await paint();
        await timed("choose", () => cards[30].click());
        await timed("new seed", () => button("New seed").click());
        await timed("insert", () => button("Insert after").click());
        await timed("delete", () => button("Delete").click());
        return took; }""")
    size = len(graph.run("() => JSON.stringify(app.graph.serialize())"))
    logger.info("60 clips: milliseconds to the next frame %s, workflow %d characters", took, size)
    assert len(strip.shown()) == 60 and size < 20_000
    picture(graph.page, f"timeline_sixty_{version(graph)}")


def test_light_theme(strip: Strip) -> None:
    strip.graph.run("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    strip.page.wait_for_timeout(800)
    picture(strip.page, f"timeline_light_{version(strip.graph)}")
    colours = strip.page.evaluate("""() => { const look = getComputedStyle(document.querySelector(".vidrd-card"));
        return [look.backgroundColor, getComputedStyle(document.querySelector(".vidrd-words")).color]; }""")
    strip.graph.run("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    back, front = ([int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]] for colour in colours)
    assert abs(sum(back) - sum(front)) > 250  # text can be read on the cards


def test_the_node_runs_with_the_bundled_model_and_shows_it(graph: Graph) -> None:
    strip = Strip(graph, "real", text_of(clips(2)))
    graph.run("""() => { const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", -400, 60);
        const node = app.graph.nodes.find((one) => one.type === "VidRDTimeline");
        for (const [slot, name] of [[0, "model"], [1, "clip"], [2, "vae"]]) wire(load, slot, node, name); }""")
    press_run(graph)
    strip.wait("finished", "finished")
    graph.page.wait_for_function("() => document.querySelectorAll('.vidrd-seam').length === 1")
    strip.choose(1)
    strip.button("New seed").click()
    strip.wait("finished", "changed")
