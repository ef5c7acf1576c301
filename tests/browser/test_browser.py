"""The node menu's Add Reuse and Diffuse in a real browser, help pages and labels as the frontend gets them."""

from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path

import examples
import pytest
from node_schemas import read_nodes
from page_graph import NODES, Graph, apart, own_complaints, press_run

PLAYING = """count => [...document.querySelectorAll("video")]
    .filter((video) => video.currentTime > 0 && !video.paused && video.videoWidth === 64).length >= count"""

pytest_plugins = ["comfy_browser"]
pytestmark = pytest.mark.browser
PLAYING_LONG = """count => [...document.querySelectorAll("video")]
    .some((video) => video.currentTime > 0 && !video.paused && Math.round(video.duration * 8) === count)"""


def test_two_clicks_append_two_wired_clips_and_the_decoder_moves_to_the_last(graph: Graph) -> None:
    first, decode, preview = graph.call("firstClip")
    (second,) = graph.call("take", first)
    (third,) = graph.call("take", second)
    before = graph.describe(first)
    for node, prior, seed in ((second, first, 8), (third, second, 9)):
        found = graph.describe(node)
        assert found["type"] == "VidRDReuseAndDiffuse"
        wanted = {name: before["wires"][name] for name in ("model", "positive", "negative")}
        assert found["wires"] == {**wanted, "prior": f"{prior}:0"}
        values = found["values"]
        assert (values["seed"], values["control_after_generate"], values["cfg"]) == (seed, "fixed", 4)
        assert (values["steps"], values["sampler_name"], values["scheduler"]) == (0, "from prior", "from prior")
    assert graph.describe(decode)["wires"]["samples"] == f"{third}:0"
    assert graph.describe(preview)["wires"] == {"images": f"{decode}:0"}
    lefts = [graph.describe(node)["box"][0] for node in (first, second, third, decode, preview)]
    assert lefts == sorted(lefts)
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    graph.call("fit")
    assert not own_complaints(graph.page)


def test_one_undo_takes_one_clip_back(graph: Graph) -> None:
    first, decode, _ = graph.call("firstClip")
    before = len(graph.call("ids"))
    (second,) = graph.call("take", first)
    graph.call("take", second)
    for wanted in (before + 1, before):
        graph.run("() => document.activeElement?.blur()")
        graph.go_to("Control+z", NODES, wanted)
    assert graph.describe(decode)["wires"]["samples"] == f"{first}:0"


def test_a_clip_that_is_already_continued_gets_a_branch_with_a_seed_of_its_own(graph: Graph) -> None:
    first, decode, _ = graph.call("firstClip")
    (second,) = graph.call("take", first)
    (branch,) = graph.call("take", first)
    assert graph.describe(branch)["wires"]["prior"] == f"{first}:0"
    assert graph.describe(branch)["values"]["seed"] == 9
    assert graph.describe(decode)["wires"]["samples"] == f"{second}:0"
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    graph.call("fit")


def test_many_clips_go_on_with_their_last_prompt(graph: Graph) -> None:
    many = graph.run("""() => { const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", 0, 100);
        const many = make("VidRDManyClips", 400, 100, { prompts: "one\\ntwo words\\n" });
        wire(load, 0, many, "model"); wire(load, 1, many, "clip");
        wire(many, 0, make("VAEDecode", 900, 100), "samples"); return String(many.id); }""")
    added = {graph.describe(node)["type"]: node for node in graph.call("take", many)}
    assert set(added) == {"VidRDReuseAndDiffuse", "CLIPTextEncode"}
    encoder = graph.describe(added["CLIPTextEncode"])
    assert encoder["values"]["text"] == "two words"
    assert encoder["wires"] == {"clip": graph.describe(many)["wires"]["clip"]}
    assert graph.describe(added["VidRDReuseAndDiffuse"])["wires"]["positive"] == f"{added['CLIPTextEncode']}:0"
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    graph.call("fit")


def test_a_second_expert_and_noise_levels_of_a_scheduler_node_come_along(graph: Graph) -> None:
    first, *_ = graph.call("firstClip")
    graph.run("""(id) => {
        const { make, wire } = vidrdCheck, first = app.graph.nodes.find((one) => String(one.id) === id);
        wire(make("VidRDLoadModel", 0, 900), 0, first, "model_low");
        wire(make("BasicScheduler", 0, 1100), 0, first, "sigmas"); }""", first)  # fmt: skip
    (second,) = graph.call("take", first)
    wanted, found = (graph.describe(node)["wires"] for node in (first, second))
    assert all(found[name] == wanted[name] for name in ("model", "model_low", "sigmas"))


def test_a_stock_sampler_is_continued_in_one_node_with_a_model_of_ours_and_not_without_a_model(graph: Graph) -> None:
    ours, other = graph.run("""() => { const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", 0, 100);
        const lora = make("LoraLoaderModelOnly", 350, 100);
        const ours = make("KSampler", 700, 100), other = make("KSampler", 700, 500);
        wire(load, 0, lora, "model"); wire(lora, 0, ours, "model"); return [String(ours.id), String(other.id)]; }""")
    assert len(graph.call("entries", ours)) == 1 and not graph.call("entries", other)
    (node,) = graph.call("take", ours)
    before, after = graph.describe(ours)["values"], graph.describe(node)["values"]
    assert all(after[name] == before[name] for name in ("steps", "cfg", "sampler_name", "scheduler"))


def test_inside_a_subgraph_the_wires_come_from_its_inputs_and_its_output_moves(graph: Graph) -> None:
    first, *_ = graph.call("firstClip")
    found = json.loads(
        graph.run(f"""() => {{ const first = app.graph.nodes.find((node) => String(node.id) === "{first}");
        app.canvas.draw(true, true); // the frontend places the subgraph's outputs by sizes that drawing gives
        app.canvas.selectItems([first]);
        const {{ subgraph }} = app.graph.convertToSubgraph(new Set([first])); app.canvas.setGraph(subgraph);
        const inner = subgraph.nodes[0], [added] = vidrdCheck.take(inner.id);
        const out = subgraph.outputNode.slots.flatMap((slot) => slot.linkIds.map((id) => subgraph.getLink(id)));
        return JSON.stringify({{ inner: vidrdCheck.describe(inner.id), added: vidrdCheck.describe(added), id: added,
            from: String(inner.id), box: subgraph.outputNode.pos[0],
            out: out.map((link) => `${{link.origin_id}}:${{link.origin_slot}}`) }}); }}""")
    )
    wanted = {name: found["inner"]["wires"][name] for name in ("model", "positive", "negative")}
    assert all(origin.startswith("-10:") for origin in wanted.values())
    assert found["added"]["wires"] == {**wanted, "prior": f"{found['from']}:0"}
    assert found["out"] == [f"{found['id']}:0"]
    left, _, width, _ = found["added"]["box"]
    assert found["box"] >= left + width
    assert not own_complaints(graph.page)


def test_the_server_gives_help_pages_and_labels(graph: Graph) -> None:
    answer = graph.run("""async () => { const get = async (path) => (await fetch(path)).ok, nodes = [];
        for (const name of Object.keys(LiteGraph.registered_node_types).filter((name) => name.startsWith("VidRD")))
            nodes.push([name, await get(`/extensions/VidRD/docs/${name}.md`)]);
        return { nodes, labels: (await (await fetch("/api/i18n")).json()) }; }""")
    assert {name for name, _ in answer["nodes"]} == set(read_nodes()) and all(found for _, found in answer["nodes"])
    for language in ("en", "zh"):
        assert set(answer["labels"][language]["nodeDefs"]) >= {name for name, _ in answer["nodes"]}


def test_the_grown_graph_runs(graph: Graph) -> None:
    first, *_ = graph.call("firstClip", {"steps": 4})
    (second,) = graph.call("take", first)
    graph.call("take", second)
    graph.call("fit")
    assert press_run(graph) == {"PreviewImage": examples.seams(2)[-1]}  # auto: as the bundled model asks for


@pytest.mark.parametrize("name", examples.NAMES)
def test_an_example_opens_from_the_template_browser_with_every_node_and_wire(graph: Graph, name: str) -> None:
    open_template(graph, name)
    workflow = examples.workflow(name)
    kinds = graph.run("() => app.graph.nodes.map((node) => node.type)")
    assert sorted(kinds) == sorted(node["type"] for node in workflow["nodes"])
    assert not graph.run("() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    wires = graph.run("() => app.graph.nodes.flatMap((n) => n.inputs.filter((i) => i.link != null)).length")
    assert wires == len(workflow["links"])
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


@pytest.mark.parametrize("name", examples.NAMES)
def test_the_frontend_makes_of_an_example_the_prompt_that_the_server_checks_run(graph: Graph, name: str) -> None:
    open_template(graph, name)
    made = json.loads(graph.run("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    definitions = graph.run("async () => (await fetch('/object_info')).json()")
    for node in made.values():
        node.pop("_meta")
        known = set().union(*definitions.get(node["class_type"], {"input": {}})["input"].values())
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key in known}  # no buttons, previews
    ran = {identity: node for identity, node in made.items() if node["class_type"] not in examples.ONLY_SHOWN}
    assert ran == examples.to_prompt(examples.workflow(name), definitions)


def test_the_first_example_runs_its_preview_plays_and_it_grows_by_a_click(graph: Graph) -> None:
    open_template(graph, examples.NAMES[0])
    graph.call("fit")
    shown = press_run(graph)
    assert shown["VidRDPreviewClip"] == 1 and shown["SaveVideo"] == 1
    graph.page.wait_for_function(PLAYING, arg=4, timeout=120_000)
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    picture(graph, "comfyui_chained_demo")

    last = graph.run("() => String(app.graph.nodes.filter((n) => n.type === 'VidRDReuseAndDiffuse').at(-1).id)")
    x, y = graph.run(
        """(id) => { const node = app.graph.nodes.find((n) => String(n.id) === id), { ds } = app.canvas;
        const place = (i) => (node.pos[i] + ds.offset[i]) * ds.scale, box = app.canvas.canvas.getBoundingClientRect();
        return [box.left + place(0) + 30 * ds.scale, box.top + place(1) - 15 * ds.scale]; }""",
        last,
    )
    graph.page.mouse.click(x, y, button="right")
    entry = graph.page.get_by_role("menuitem", name="Add Reuse and Diffuse")
    entry.wait_for()
    picture(graph, "comfyui_menu")
    entry.click()
    graph.page.wait_for_function("() => app.graph.nodes.filter((n) => n.type === 'VidRDReuseAndDiffuse').length === 3")
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    loose = graph.run("""() => app.graph.nodes.filter((n) => !app.graph.groups.some((g) => [0, 1].every((i) =>
        n.pos[i] >= g.pos[i] && n.pos[i] + n.size[i] <= g.pos[i] + g.size[i]))).length""")
    assert loose == 1  # all but the new node keep their groups
    graph.call("fit")
    press_run(graph)
    graph.page.wait_for_function(PLAYING_LONG, arg=examples.seams(3)[-1], timeout=120_000)
    picture(graph, "comfyui_grown_by_a_clip")


def open_template(graph: Graph, name: str) -> None:
    """Take an example from the template browser, as a person does."""
    graph.run("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    graph.page.get_by_text("VidRD", exact=True).first.click()
    first, card = (graph.page.get_by_test_id(f"template-workflow-{one}") for one in (examples.NAMES[0], name))
    cards = graph.page.locator("[data-testid^='template-workflow-']:visible")
    first.wait_for()  # before it come those of another category
    for _ in examples.NAMES:  # further ones come as one scrolls
        if not card.count():
            cards.last.scroll_into_view_if_needed()
            graph.page.wait_for_timeout(500)
    card.wait_for()
    if name == examples.NAMES[0]:
        graph.page.wait_for_timeout(2000)  # for the thumbnails
        picture(graph, "comfyui_templates")
    count = len(examples.workflow(name)["nodes"])
    for _ in range(3):  # a click on a list that is still being drawn is lost
        if card.is_visible():
            card.click()
        if graph.comes(f"{NODES} === {count}", seconds=20):
            break
    assert graph.run(f"() => {NODES}") == count
    card.wait_for(state="hidden")
    graph.page.wait_for_timeout(1000)


def picture(graph: Graph, name: str) -> None:
    """Keep a picture of the page where VIDRD_SCREENSHOTS names a folder."""
    folder = os.environ.get("VIDRD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        graph.page.wait_for_timeout(1000)
        graph.page.screenshot(path=str(Path(folder) / f"{name}.jpg"), quality=82)
