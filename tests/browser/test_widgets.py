"""Widgets that tell what is used, by a person's gestures: presets, advanced inputs, lengths, what suits the model.

On the drawn nodes of both frontends, and on the current one's nodes of elements ("Nodes 2.0").
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from comfy_server import PATIENCE
from page_graph import Graph, own_complaints

pytest_plugins = ["comfy_browser"]
pytestmark = pytest.mark.browser

# By hand, every default left alone: model, size, two prompts, a first clip, a second; the model is connected last.
BUILD = """(values) => {
    const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", 0, 60);
    const empty = make("VidRDEmptyLatent", 0, 300, values ?? {});
    const positive = make("CLIPTextEncode", 350, 60), negative = make("CLIPTextEncode", 350, 350);
    const first = make("VidRDSampleFirstClip", 800, 60), next = make("VidRDReuseAndDiffuse", 1150, 60);
    const decode = make("VAEDecode", 1500, 60), play = make("VidRDPreviewClip", 1500, 200);
    const video = make("CreateVideo", 1500, 600);
    wire(load, 1, positive, "clip"); wire(load, 1, negative, "clip"); wire(empty, 0, first, "latent");
    for (const node of [first, next]) { wire(positive, 0, node, "positive"); wire(negative, 0, node, "negative"); }
    wire(first, 0, next, "prior"); wire(next, 0, decode, "samples"); wire(load, 2, decode, "vae");
    wire(decode, 0, play, "images"); wire(decode, 0, video, "images");
    for (const node of [first, next]) wire(load, 0, node, "model");
    app.canvas.ds.scale = 1; app.canvas.ds.offset = [-700, 60];
    return Object.fromEntries(Object.entries({ load, empty, negative, first, next, play, video })
        .map(([name, node]) => [name, String(node.id)])); }"""
PLACE = """([id, name, share]) => {
    const node = app.canvas.graph.nodes.find((one) => String(one.id) === id), { ds } = app.canvas;
    const widget = node.widgets.find((one) => one.name === name), box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + (node.pos[0] + node.size[0] * share + ds.offset[0]) * ds.scale,
        box.top + (node.pos[1] + widget.y + 10 + ds.offset[1]) * ds.scale]; }"""
SHOWN = """(id) => {
    const node = app.canvas.graph.nodes.find((one) => String(one.id) === id);
    return node.widgets.filter((one) => node.isWidgetVisible(one)).map((one) => one.name); }"""


@pytest.fixture
def built(kind: str, graph: Graph) -> dict[str, str]:
    ids = graph.run(BUILD)
    graph.page.wait_for_timeout(1000)
    return ids


def values(graph: Graph, node: str) -> dict[str, Any]:
    return graph.describe(node)["values"]


def told(graph: Graph, node: str) -> list[str]:
    """The lines below a node's widgets."""
    return graph.run(
        """(id) => { const node = app.canvas.graph.nodes.find((one) => String(one.id) === id);
        const { element } = node.widgets.find((one) => one.name === "vidrd_told");
        return [...element.children].map((line) => line.textContent); }""",
        node,
    )


def click(graph: Graph, node: str, widget: str, share: float = 0.5) -> None:
    """Click on a drawn widget, so far across its node."""
    graph.run("() => app.canvas.draw(true, true)")
    graph.page.mouse.click(*graph.run(PLACE, [node, widget, share]))
    graph.page.wait_for_timeout(500)


def element(graph: Graph, node: str) -> Any:
    return graph.page.locator(f'[data-node-id="{node}"]')


def choose(graph: Graph, kind: str, node: str, widget: str, entry: str) -> None:
    """Choose an entry of a widget's list."""
    if kind == "drawn":
        click(graph, node, widget)
        graph.page.locator(".litemenu-entry", has_text=entry).first.click()
    else:
        now = values(graph, node)[widget]
        element(graph, node).get_by_role("combobox").filter(has_text=now).first.click()
        graph.page.get_by_role("option", name=entry, exact=True).click()
    graph.page.wait_for_timeout(500)


def unfold(graph: Graph, kind: str, node: str) -> None:
    if kind == "drawn":
        click(graph, node, "vidrd_advanced")
    else:
        element(graph, node).get_by_test_id("advanced-inputs-button").click()
        graph.page.wait_for_timeout(500)


def test_a_graph_of_defaults_starts_with_what_suits_the_model(graph: Graph, built: dict[str, str]) -> None:
    empty, first = values(graph, built["empty"]), values(graph, built["first"])
    assert (empty["width"], empty["height"], empty["frames"]) == (64, 64, 8)
    assert (first["steps"], first["cfg"]) == (25, 4) and values(graph, built["next"])["cfg"] == 4
    assert values(graph, built["play"])["fps"] == 8 and values(graph, built["video"])["fps"] == 8
    assert told(graph, built["first"]) == ["8 frames, 1.0 s"]
    assert told(graph, built["next"]) == [
        "adds 3 frames, video so far 11 frames, 1.4 s",
        "auto: as the model's folder says",
    ]
    assert values(graph, built["next"])["overlap_frames"] == 5
    assert not own_complaints(graph.page)


def set_value(graph: Graph, node: str, widget: str, value: Any) -> None:
    """Change a widget as the frontend does after a click."""
    graph.run(
        """([id, name, value]) => { const node = app.canvas.graph.nodes.find((one) => String(one.id) === id);
        const widget = node.widgets.find((one) => one.name === name);
        widget.value = value; widget.callback?.(value); node.onWidgetChanged?.(name, value, undefined, widget); }""",
        [node, widget, value],
    )
    graph.page.wait_for_timeout(500)


def test_a_loop_says_how_long_it_can_be_and_that_it_is_found_when_it_is_made(graph: Graph, kind: str) -> None:
    ids = graph.run("""() => {
        const { make, wire } = vidrdCheck;
        const load = make("VidRDLoadModel", 0, 60), empty = make("VidRDEmptyLatent", 0, 300);
        const many = make("VidRDManyClips", 400, 60, { num_clips: 3 });
        wire(empty, 0, many, "prior"); wire(load, 0, many, "model");
        return { load: String(load.id), empty: String(empty.id), many: String(many.id) }; }""")
    graph.page.wait_for_timeout(1000)
    node = ids["many"]
    assert told(graph, node)[0] == "14 frames, 1.8 s" and not any("loop" in line for line in told(graph, node))
    set_value(graph, node, "loop", True)
    even = "where the motion is most even"
    assert told(graph, node)[:2] == ["16 frames, 2.0 s", f"loop: 1 to 4 frames fewer, {even}"]  # the last clip adds 5
    for frames, lines in (
        (6, ["12 frames, 1.5 s", f"loop: 1 to 2 frames fewer, {even}"]),
        (5, ["9 frames, 1.1 s", f"loop: 1 frame fewer, {even}"]),
    ):
        set_value(graph, ids["empty"], "frames", frames)
        assert told(graph, node)[:2] == lines
    set_value(graph, ids["empty"], "frames", 8)
    set_value(graph, node, "preset", "custom")
    set_value(graph, node, "overlap_frames", 2)
    set_value(graph, node, "trim_frames", 2)
    assert told(graph, node)[:2] == ["20 frames, 2.5 s", f"loop: 1 to 4 frames fewer, {even}"]
    set_value(graph, ids["load"], "model_name", "bundled flow model")
    graph.page.wait_for_timeout(1000)
    assert told(graph, node)[0] == "loop: 2 latents fewer"
    assert not own_complaints(graph.page)


def test_what_was_chosen_before_the_model_came_stays(graph: Graph, kind: str) -> None:
    ids = graph.run(BUILD, {"width": 128, "frames": 16})
    graph.page.wait_for_timeout(1000)
    empty = values(graph, ids["empty"])
    assert (empty["width"], empty["height"], empty["frames"]) == (128, 64, 16)
    assert told(graph, ids["first"]) == ["16 frames, 2.0 s"]


def test_a_preset_shows_its_values_and_an_edit_chooses_custom(graph: Graph, kind: str, built: dict[str, str]) -> None:
    node = built["next"]
    choose(graph, kind, node, "preset", "paper")
    found = values(graph, node)
    assert (found["preset"], found["overlap_frames"], found["order"]) == ("paper", 4, "reverse")
    assert (found["noise_alpha"], found["guidance_beta"], found["guidance_lead"]) == (4, 0.4, 0)
    assert told(graph, node) == ["adds 8 frames, video so far 16 frames, 2.0 s"]
    choose(graph, kind, node, "preset", "smooth")
    found = values(graph, node)
    assert (found["overlap_frames"], found["trim_frames"], found["order"]) == (5, 5, "forward")
    unfold(graph, kind, node)
    choose(graph, kind, node, "order", "reverse")
    found = values(graph, node)
    assert (found["preset"], found["order"], found["overlap_frames"]) == ("custom", "reverse", 5)


def test_advanced_inputs_are_folded_until_they_are_asked_for(graph: Graph, kind: str, built: dict[str, str]) -> None:
    node = built["next"]
    folded = graph.describe(node)["box"][3]
    assert "overlap_frames" not in graph.run(SHOWN, node) and "preset" in graph.run(SHOWN, node)
    unfold(graph, kind, node)
    assert {"overlap_frames", "clip_frames"} <= set(graph.run(SHOWN, node))
    assert graph.describe(node)["box"][3] > folded + 200
    if kind == "elements":
        element(graph, node).get_by_text("overlap frames").wait_for()
    unfold(graph, kind, node)
    assert "overlap_frames" not in graph.run(SHOWN, node)
    if kind == "drawn":  # Nodes 2.0 folds by its own button, and leaves the node as high as it was
        assert graph.describe(node)["box"][3] < folded + 60


def test_a_loaded_workflow_keeps_its_values_and_opens_what_was_set_by_hand(graph: Graph, built: dict[str, str]) -> None:
    found = graph.run("""async () => {
        const of = (graph, type) => graph.nodes.find((one) => one.type === type);
        const set = (type, name, value) => of(app.graph, type).widgets.find((one) => one.name === name).value = value;
        set("VidRDEmptyLatent", "width", 256); set("VidRDSampleFirstClip", "cfg", 10);
        set("VidRDReuseAndDiffuse", "preset", "custom"); set("VidRDReuseAndDiffuse", "overlap_frames", 2);
        await app.loadGraphData(app.graph.serialize());
        await new Promise((done) => setTimeout(done, 1500));
        const value = (type, name) => of(app.graph, type).widgets.find((one) => one.name === name).value;
        return { width: value("VidRDEmptyLatent", "width"), cfg: value("VidRDSampleFirstClip", "cfg"),
            overlap: value("VidRDReuseAndDiffuse", "overlap_frames"),
            shown: !!of(app.graph, "VidRDReuseAndDiffuse").showAdvanced }; }""")
    assert found == {"width": 256, "cfg": 10, "overlap": 2, "shown": True}


def test_a_run_tells_what_it_took_and_where_it_is(graph: Graph, built: dict[str, str]) -> None:
    graph.run(
        """(ids) => { window.vidrdTexts = []; window.vidrdEnd = null;
        const widget = (id, name) => app.graph.nodes.find((one) => String(one.id) === id)
            .widgets.find((one) => one.name === name);
        for (const id of [ids.first, ids.next]) widget(id, "control_after_generate").value = "fixed";
        widget(ids.first, "steps").value = 4;
        widget(ids.first, "seed").value = Math.floor(Math.random() * 1e9);  // so that no run before is found again
        app.api.addEventListener("progress_text", ({ detail }) => window.vidrdTexts.push(detail.text));
        for (const kind of ["execution_success", "execution_error"])
            app.api.addEventListener(kind, ({ detail }) => { window.vidrdEnd = { kind, ...detail }; });
        app.queuePrompt(0, 1); }""",
        built,
    )
    graph.page.wait_for_function("() => window.vidrdEnd", timeout=PATIENCE * 1000)
    end = json.loads(graph.run("() => JSON.stringify(window.vidrdEnd)"))
    assert end["kind"] == "execution_success", end
    graph.page.wait_for_timeout(1000)
    assert "step 3 of 4" in graph.run("() => window.vidrdTexts")
    assert told(graph, built["first"]) == ["8 frames, 1.0 s"]
    length, took = told(graph, built["next"])
    assert length == "added 3 frames, video so far 11 frames, 1.4 s"
    assert took.startswith("auto took overlap_frames 5, noise_alpha 0") and took.endswith("cleaner_overlap 0.8")


def test_the_template_browser_lists_the_examples_in_reading_order(graph: Graph) -> None:
    names = graph.run("async () => (await app.api.getWorkflowTemplates()).VidRD")
    assert len(names) > 9
    assert [int(name.partition("_")[0]) for name in names] == list(range(1, len(names) + 1))
