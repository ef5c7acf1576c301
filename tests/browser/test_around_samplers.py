"""Add Reuse and Diffuse on ComfyUI's own samplers: Reuse: Prepare, copies of the samplers, Reuse: Join."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import examples
import pytest
from model_examples import MODELS
from page_graph import NODES, Graph, apart, own_complaints

pytest_plugins = ["comfy_browser"]
pytestmark = pytest.mark.browser
HIGH = {"add_noise": "enable", "noise_seed": 7, "steps": 4, "end_at_step": 2, "return_with_leftover_noise": "enable"}
LOW = {"add_noise": "disable", "noise_seed": 0, "steps": 4, "start_at_step": 2, "control_after_generate": "fixed"}
NOT_RECORDED = "was not recorded"


def taken(graph: Graph, node: str) -> dict[str, list[str]]:
    """The new nodes by their types."""
    found: dict[str, list[str]] = {}
    for added in graph.call("take", node):
        found.setdefault(graph.describe(added)["type"], []).append(added)
    return found


def same_settings(graph: Graph, copy: str, source: str, but: tuple[str, ...] = ()) -> bool:
    after, before = (graph.describe(node)["values"] for node in (copy, source))
    return {n: v for n, v in after.items() if n not in but} == {n: v for n, v in before.items() if n not in but}


def said(graph: Graph) -> str:
    graph.page.wait_for_function("() => vidrdCheck.toasts().length > 0", timeout=20_000)
    return graph.call("toasts")[-1]


@pytest.mark.parametrize(("kind", "seed"), [("KSampler", "seed"), ("SamplerCustom", "noise_seed")])
def test_behind_a_sampler_a_copy_of_it_stands_between_prepare_and_join(graph: Graph, kind: str, seed: str) -> None:
    sampler, decode = graph.call("stockClip", [[kind, {seed: 7}]])
    before = graph.describe(sampler)
    added = taken(graph, sampler)
    (prepare,), (join,), (copy,) = (added.pop(name) for name in ("VidRDReusePrepare", "VidRDReuseJoin", kind))
    assert not added
    assert graph.describe(prepare)["wires"] == {"model": before["wires"]["model"], "prior": f"{sampler}:0"}
    wires = {**before["wires"], "model": f"{prepare}:0", "latent_image": f"{prepare}:2"}
    assert graph.describe(copy)["wires"] == wires
    assert same_settings(graph, copy, sampler, (seed,)) and graph.describe(copy)["values"][seed] == 8
    assert graph.describe(join)["wires"] == {"latent": f"{copy}:0", "session": f"{prepare}:3"}
    assert graph.describe(sampler) == before
    assert graph.describe(decode)["wires"]["samples"] == f"{join}:0"
    assert NOT_RECORDED in said(graph)
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))
    lefts = [graph.describe(node)["box"][0] for node in (sampler, prepare, copy, join, decode)]
    assert lefts == sorted(lefts)
    assert not own_complaints(graph.page)


@pytest.mark.parametrize("clicked", ["sampler", "join"])
def test_a_recorded_clip_is_continued_from_its_join_with_its_settings(graph: Graph, clicked: str) -> None:
    sampler, decode = graph.call("stockClip", [["KSampler", {"seed": 7}]])
    model = graph.describe(sampler)["wires"]["model"]
    first = taken(graph, sampler)
    (prepare,), (join,), (copy,) = first["VidRDReusePrepare"], first["VidRDReuseJoin"], first["KSampler"]
    graph.run("""(id) => { const node = app.canvas.graph.nodes.find((one) => String(one.id) === id);
        node.widgets.find((one) => one.name === "preset").value = "custom";
        node.widgets.find((one) => one.name === "overlap_frames").value = 9; }""", prepare)  # fmt: skip
    second = taken(graph, copy if clicked == "sampler" else join)
    names = ("VidRDReusePrepare", "VidRDReuseJoin", "KSampler")
    (next_prepare,), (next_join,), (next_copy,) = (second[name] for name in names)
    assert graph.describe(next_prepare)["wires"] == {"model": model, "prior": f"{join}:0"}
    assert same_settings(graph, next_prepare, prepare)
    assert graph.describe(next_copy)["wires"]["model"] == f"{next_prepare}:0"
    assert graph.describe(next_copy)["values"]["seed"] == 9
    assert graph.describe(decode)["wires"]["samples"] == f"{next_join}:0"
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


@pytest.mark.parametrize("clicked", [0, 1])
def test_two_samplers_in_a_row_with_two_models_are_copied_together(graph: Graph, clicked: int) -> None:
    kinds = [["KSamplerAdvanced", HIGH], ["KSamplerAdvanced", LOW]]
    *samplers, decode = graph.call("stockClip", kinds, "EmptyHunyuanLatentVideo", 2)
    added = taken(graph, samplers[clicked])
    (prepare,), (join,) = added["VidRDReusePrepare"], added["VidRDReuseJoin"]
    high, low = added["KSamplerAdvanced"]
    models = [graph.describe(sampler)["wires"]["model"] for sampler in samplers]
    wanted = {"model": models[0], "model_low": models[1], "prior": f"{samplers[1]}:0"}
    assert graph.describe(prepare)["wires"] == wanted
    assert graph.describe(high)["wires"]["model"] == f"{prepare}:0"
    assert graph.describe(high)["wires"]["latent_image"] == f"{prepare}:2"
    assert graph.describe(low)["wires"]["model"] == f"{prepare}:1"
    assert graph.describe(low)["wires"]["latent_image"] == f"{high}:0"
    assert graph.describe(join)["wires"]["latent"] == f"{low}:0"
    assert graph.describe(decode)["wires"]["samples"] == f"{join}:0"
    assert same_settings(graph, high, samplers[0], ("noise_seed",)) and same_settings(graph, low, samplers[1])
    assert graph.describe(high)["values"]["noise_seed"] == 8

    third = taken(graph, low)
    assert graph.describe(third["VidRDReusePrepare"][0])["wires"] == {**wanted, "prior": f"{join}:0"}
    assert [graph.describe(node)["wires"]["model"][-1] for node in third["KSamplerAdvanced"]] == ["0", "1"]
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


def test_a_guider_and_noise_are_copied_and_sampler_and_sigmas_shared(graph: Graph) -> None:
    sampler, _ = graph.call("stockClip", [["SamplerCustomAdvanced", {}]])
    graph.run("""(id) => { const { make, wire } = vidrdCheck, byId = (one) => String(one.id) === id;
        const node = app.canvas.graph.nodes.find(byId);
        wire(make("KSamplerSelect", 0, 900), 0, node, "sampler");
        wire(make("BasicScheduler", 0, 1100), 0, node, "sigmas");
    }""", sampler)  # fmt: skip
    before = graph.describe(sampler)["wires"]
    guider = graph.describe(before["guider"].partition(":")[0])["wires"]
    added = taken(graph, sampler)
    (prepare,), (copy,) = added["VidRDReusePrepare"], added["SamplerCustomAdvanced"]
    (own_guider,), (noise,) = added["BasicGuider"], added["RandomNoise"]
    assert graph.describe(prepare)["wires"]["model"] == guider["model"]
    assert graph.describe(own_guider)["wires"] == {**guider, "model": f"{prepare}:0"}
    own = {"guider": f"{own_guider}:0", "noise": f"{noise}:0", "latent_image": f"{prepare}:2"}
    assert graph.describe(copy)["wires"] == {**before, **own}
    assert graph.describe(noise)["values"] == {"noise_seed": 8, "control_after_generate": "fixed"}
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


def test_patches_between_prepare_and_the_sampler_are_copied_too(graph: Graph) -> None:
    sampler, _ = graph.call("stockClip", [["KSampler", {}]])
    first = taken(graph, sampler)
    (prepare,), (copy,) = first["VidRDReusePrepare"], first["KSampler"]
    patch = graph.run("""([prepare, sampler]) => {
        const { make, wire } = vidrdCheck, patch = make("RescaleCFG", 0, 1500);
        const [from, to] = [prepare, sampler].map((id) => app.canvas.graph.nodes.find((one) => String(one.id) === id));
        wire(from, 0, patch, "model"); wire(patch, 0, to, "model");
        return String(patch.id); }""", [prepare, copy])  # fmt: skip
    second = taken(graph, copy)
    (own_patch,) = second["RescaleCFG"]
    assert graph.describe(own_patch)["wires"] == {"model": f"{second['VidRDReusePrepare'][0]}:0"}
    assert graph.describe(second["KSampler"][0])["wires"]["model"] == f"{own_patch}:0"
    assert graph.describe(patch)["wires"] == {"model": f"{prepare}:0"}


def test_one_undo_takes_the_whole_clip_back(graph: Graph) -> None:
    sampler, decode = graph.call("stockClip", [["KSampler", {}]])
    before = len(graph.call("ids"))
    graph.call("take", sampler)
    graph.run("() => document.activeElement?.blur()")
    graph.go_to("Control+z", NODES, before)
    assert graph.describe(decode)["wires"]["samples"] == f"{sampler}:0"


def test_what_is_continued_already_gets_a_branch(graph: Graph) -> None:
    sampler, decode = graph.call("stockClip", [["KSampler", {"seed": 7}]])
    (join,) = taken(graph, sampler)["VidRDReuseJoin"]
    branch = taken(graph, sampler)
    assert graph.describe(branch["VidRDReusePrepare"][0])["wires"]["prior"] == f"{sampler}:0"
    assert graph.describe(branch["KSampler"][0])["values"]["seed"] == 9
    assert graph.describe(decode)["wires"]["samples"] == f"{join}:0"
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


def test_a_sampler_of_images_has_no_entry_unless_a_motion_module_makes_videos_of_them(graph: Graph) -> None:
    sampler, _ = graph.call("stockClip", [["KSampler", {}]], "EmptyLatentImage")
    assert not graph.call("entries", sampler)
    graph.run("""(id) => {
        const { make, wire } = vidrdCheck, node = app.canvas.graph.nodes.find((one) => String(one.id) === id);
        const evolved = make("ADE_UseEvolvedSampling", 300, 1500), link = node.getInputLink(0);
        app.canvas.graph.getNodeById(link.origin_id).connect(link.origin_slot, evolved, 0);
        wire(evolved, 0, node, "model"); }""", sampler)  # fmt: skip
    assert len(graph.call("entries", sampler)) == 1


def test_with_a_model_of_ours_what_was_recorded_is_continued_so_and_other_samplers_have_no_entry(graph: Graph) -> None:
    sampler, _ = graph.call("stockClip", [["KSampler", {}]])
    first = taken(graph, sampler)
    (prepare,), (copy,) = first["VidRDReusePrepare"], first["KSampler"]
    custom, _ = graph.call("stockClip", [["SamplerCustom", {}]])
    graph.run("""(ids) => { const load = vidrdCheck.make("VidRDLoadModel", 0, 1900);
        for (const id of ids) {
            vidrdCheck.wire(load, 0, app.canvas.graph.nodes.find((one) => String(one.id) === id), "model");
        } }""", [prepare, custom])  # fmt: skip
    assert not graph.call("entries", custom)
    assert set(taken(graph, copy)) == {"VidRDReusePrepare", "KSampler", "VidRDReuseJoin"}


def test_inside_a_subgraph_the_model_comes_from_its_input_and_its_output_moves(graph: Graph) -> None:
    sampler, _ = graph.call("stockClip", [["KSampler", {}]])
    found = json.loads(
        graph.run(f"""() => {{ const first = app.graph.nodes.find((node) => String(node.id) === "{sampler}");
        app.canvas.draw(true, true); // the frontend places the subgraph's outputs by sizes that drawing gives
        app.canvas.selectItems([first]);
        const {{ subgraph }} = app.graph.convertToSubgraph(new Set([first])); app.canvas.setGraph(subgraph);
        const inner = subgraph.nodes[0], added = vidrdCheck.take(inner.id);
        const out = subgraph.outputNode.slots.flatMap((slot) => slot.linkIds.map((id) => subgraph.getLink(id)));
        return JSON.stringify({{ from: String(inner.id), inner: vidrdCheck.describe(inner.id),
            added: added.map((id) => [id, vidrdCheck.describe(id)]),
            out: out.map((link) => `${{link.origin_id}}:${{link.origin_slot}}`) }}); }}""")
    )
    kinds = {node["type"]: (identity, node) for identity, node in found["added"]}
    prepare, join = kinds["VidRDReusePrepare"], kinds["VidRDReuseJoin"]
    assert found["inner"]["wires"]["model"].startswith("-10:")
    assert prepare[1]["wires"] == {"model": found["inner"]["wires"]["model"], "prior": f"{found['from']}:0"}
    assert kinds["KSampler"][1]["wires"]["positive"] == found["inner"]["wires"]["positive"]
    assert found["out"] == [f"{join[0]}:0"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "9_wan2_2_5B"])  # which has our own samplers
def test_an_example_grows_by_a_clip_like_its_last(graph: Graph, name: str) -> None:
    graph.run("(given) => app.loadGraphData(JSON.parse(given))", (examples.FOLDER / f"{name}.json").read_text("utf-8"))
    graph.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(examples.workflow(name)["nodes"]))
    joins = graph.run("() => app.graph.nodes.filter((n) => n.type === 'VidRDReuseJoin').map((n) => String(n.id))")
    *_, before, last = sorted(joins, key=lambda node: graph.describe(node)["box"][0])
    (join,) = taken(graph, last)["VidRDReuseJoin"]
    assert steps_back(graph, join, last) == steps_back(graph, last, before)
    assert all(apart(a, b) for a, b in combinations(graph.boxes(), 2))


def steps_back(graph: Graph, join: str, prior: str) -> list[Any]:
    """Types and settings of the nodes on the way from a clip's Join back to its prior, without seeds."""
    found: list[Any] = []
    pending, seen = [join], {prior}
    while pending:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        described = graph.describe(node)
        settings = {name: value for name, value in described["values"].items() if "seed" not in name}
        found.append((described["type"], settings, sorted(described["wires"])))
        pending += [wire.partition(":")[0] for wire in described["wires"].values()]
    return found
