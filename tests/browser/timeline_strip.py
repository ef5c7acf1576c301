"""A Timeline node on the page, and takes as its runs write them, so that nothing need be sampled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from page_graph import RESTORING, Graph
from PIL import Image

from vidrd_core.jobs.takes import TakeFolder
from vidrd_core.jobs.timeline import Settings, Surroundings, Timeline, plan
from vidrd_core.video import write_video

AROUND = Surroundings("model", "text", "", True, {"auto": 1, "paper": 2, "smooth": 3})
SETTINGS = {"negative_prompt": "watermark", "width": 64, "height": 64, "cfg": 4, "steps": 4, "sampler_name": "ddim",
            "scheduler": "ddim_uniform", "preset": "smooth"}  # fmt: skip
PROMPTS = ("a red circle moves right over a dark blue background", "it stops and turns green", "it bounces away")
COLOURS = ((200, 60, 50), (60, 160, 80), (70, 90, 200), (210, 160, 50))
CARDS = "[...vidrdCheck.strip().querySelectorAll('.vidrd-card')].map"
TEXT = "vidrdCheck.timeline()?.widgets.find((one) => one.name === 'timeline').value"
STATES = f"() => {CARDS}((card) => card.querySelector('.vidrd-state').dataset.state)"


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
    """Write the takes of a timeline, and its joined video, as a run of the node does; gives their folder."""
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
        self.graph, self.page, self.name = graph, graph.page, run_name
        values = {**SETTINGS, "run_name": run_name, "timeline": text}
        self.id = graph.run("(values) => String(vidrdCheck.make('VidRDTimeline', 60, 60, values).id)", values)
        self.root = self.page.locator(".vidrd-timeline:visible")
        self.root.locator(".vidrd-card").first.wait_for()
        self.into_view()
        # What was built by script becomes a state that undo can come back to.
        graph.run("() => { app.canvas.emitBeforeChange(); app.canvas.emitAfterChange(); }")

    def into_view(self) -> None:
        """Nodes 2.0 makes the node higher than the graph says."""
        self.graph.call("fit")
        self.page.wait_for_timeout(300)
        self.graph.run("""() => { const { ds } = app.canvas, { bottom } = vidrdCheck.strip().getBoundingClientRect();
            ds.offset[1] -= Math.max(0, bottom - innerHeight + 15) / ds.scale; app.canvas.setDirty(true, true); }""")
        self.page.wait_for_timeout(100)

    def text(self) -> str:
        return self.graph.run(f"() => {TEXT}")

    def data(self) -> Timeline:
        return Timeline.parse(self.text())

    def shown(self) -> list[str]:
        return self.graph.run(f"() => {CARDS}((card) => card.dataset.clip)")

    def wait(self, *states: str) -> None:
        """Until the cards show these states."""
        wanted = json.dumps(states, separators=(",", ":"))
        self.page.wait_for_function(f"(wanted) => JSON.stringify(({STATES})()) === wanted", arg=wanted)

    def wait_text(self, text: str) -> None:
        """Until the node holds this text, and nothing is being put back."""
        self.page.wait_for_function(f"(text) => {TEXT} === text && !{RESTORING}", arg=text)

    def go_to(self, key: str, wanted: str) -> None:
        """Press undo or redo, which leads to this text."""
        self.graph.go_to(key, TEXT, wanted)

    def chosen(self) -> str:
        return self.graph.run("() => vidrdCheck.strip().querySelector('.vidrd-card[aria-selected=true]').dataset.clip")

    def choose(self, number: int) -> None:
        self.card(number).click()

    def card(self, number: int) -> Any:
        return self.root.locator(".vidrd-card").nth(number)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(60)

    def button(self, name: str) -> Any:
        return self.root.locator(".vidrd-details .vidrd-row").get_by_role("button", name=name, exact=True)

    def field(self, label: str) -> Any:
        return self.root.get_by_label(label, exact=True)

    def set_field(self, label: str, value: str) -> None:
        """Write into a field and leave it by Enter."""
        self.field(label).fill(value)
        self.field(label).press("Enter")
        self.page.wait_for_timeout(100)

    def look_again(self) -> None:
        """As at the end of a run in this browser."""
        self.graph.run("() => app.api.dispatchEvent(new CustomEvent('execution_success', { detail: {} }))")
