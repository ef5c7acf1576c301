"""The strip of the Timeline node in a real browser: every gesture, keyboard, undo, copy and paste, a stopped server.

On the drawn nodes of both frontends, and on the current one's nodes of elements ("Nodes 2.0"). Most takes are written
by the tests as the node writes them, so that nothing need be sampled.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import frontends
import pytest
from comfy_browser import READY
from comfy_server import Server, make_base, running_server
from page_graph import HELPERS, Graph, own_complaints, press_run
from timeline_strip import PROMPTS, Strip, clips, finish, text_of

logger = logging.getLogger(__name__)

pytest_plugins = ["comfy_browser"]
pytestmark = pytest.mark.browser

SCREENS = "[...vidrdCheck.strip().querySelectorAll('.vidrd-screens video')]"
RELOAD = "async () => { const saved = app.graph.serialize(); app.graph.clear(); await app.loadGraphData(saved); }"
SPOIL = """() => { vidrdCheck.timeline().widgets.find((widget) => widget.name === "timeline").value = "{oh"; }"""
# WCAG's contrast of the text of elements with what is behind it: selector -> ratio, of those that are there.
CONTRAST = """(selectors) => {
    const parse = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
        const most = colour.startsWith("color(") ? 255 : 1; // of color(srgb 0.5 0.5 0.5)
        return { rgb: [r, g, b].map((value) => value * most), a }; };
    const over = (front, back) => front.rgb.map((value, n) => value * front.a + back[n] * (1 - front.a));
    const behind = (element) => { const seen = [];
        for (let one = element; one; one = one.parentElement) seen.push(parse(getComputedStyle(one).backgroundColor));
        return seen.reverse().reduce((back, colour) => over(colour, back), [255, 255, 255]); };
    const light = (rgb) => { const [r, g, b] = rgb.map((value) => { const v = value / 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const found = {};
    for (const selector of selectors) for (const element of vidrdCheck.strip().querySelectorAll(selector)) {
        if (!element.offsetParent) continue;
        const back = behind(element), front = over(parse(getComputedStyle(element).color), back);
        const [a, b] = [light(front), light(back)].sort((one, other) => other - one);
        found[selector] = Math.min(found[selector] ?? 99, Math.round(100 * (a + 0.05) / (b + 0.05)) / 100);
    }
    return found; }"""
READ = (".vidrd-words", ".vidrd-facts span", ".vidrd-sum", ".vidrd-row label", "button:not(:disabled)", "textarea",
        "input", ".vidrd-take small", ".vidrd-message")  # fmt: skip


@pytest.fixture
def strip(kind: str, graph: Graph, base: Path, request: pytest.FixtureRequest) -> Strip:
    """Three finished clips, in a run of the test's own."""
    name = f"{request.node.originalname[5:40]}_{uuid.uuid4().hex[:6]}"
    text = text_of(clips(3))
    finish(base, name, text)
    made = Strip(graph, name, text)
    made.wait("finished", "finished", "finished")
    return made


def test_edits_by_mouse_change_the_text_and_mark_what_is_stale(strip: Strip) -> None:
    strip.choose(1)
    prompt = strip.field("prompt of the clip")
    assert prompt.input_value() == PROMPTS[1]
    prompt.fill("it turns yellow")
    prompt.blur()
    strip.wait("finished", "changed", "changed")
    assert strip.data().clips[1].prompt == "it turns yellow"
    seed = strip.data().clips[1].seed
    strip.button("New seed").click()
    assert strip.data().clips[1].seed != seed
    strip.set_field("seed of the clip", "9223372036854775807")
    assert strip.data().clips[1].seed == 2**63 - 1
    strip.set_field("seed of the clip", "none")
    assert strip.data().clips[1].seed == 2**63 - 1
    assert strip.field("seed of the clip").input_value() == "9223372036854775807"
    strip.set_field("new frames", "5")
    assert strip.data().clips[1].frames == 5
    strip.button("Insert after").click()
    assert len(strip.shown()) == 4 and strip.chosen() == strip.shown()[2]
    strip.button("Insert before").click()
    assert len(strip.shown()) == 5 and strip.chosen() == strip.shown()[2]
    strip.button("Delete").click()
    strip.button("Delete").click()
    assert strip.shown() == ["c0", "c1", "c2"]
    strip.field("Add a clip at the end").click()
    assert len(strip.shown()) == 4 and strip.shown()[:3] == ["c0", "c1", "c2"]
    strip.wait("finished", "changed", "changed", "waiting")
    assert not own_complaints(strip.page)


def test_what_is_typed_stays_when_the_server_answers(strip: Strip) -> None:
    strip.choose(1)
    strip.field("seed of the clip").fill("1234")
    strip.field("new frames").fill("6")
    with strip.page.expect_response("**/vidrd/timeline"):
        strip.look_again()
    strip.page.wait_for_timeout(300)
    assert strip.field("new frames").input_value() == "6"
    strip.field("seed of the clip").focus()
    assert strip.data().clips[1].frames == 6 and strip.data().clips[1].seed == 1234


def test_a_locked_clip_keeps_its_take(strip: Strip) -> None:
    strip.choose(1)
    strip.button("Lock").click()
    clip = strip.data().clips[1]
    assert clip.lock and len(clip.take) == 16
    strip.choose(0)
    strip.button("New seed").click()
    strip.wait("changed", "finished", "finished")
    strip.root.get_by_text("locked, seam may show").wait_for()
    strip.choose(1)
    strip.button("Unlock").click()
    strip.wait("changed", "changed", "changed")
    assert strip.text().count("lock") == 0


def test_a_branch_shares_the_beginning_and_the_choice_goes_back(strip: Strip) -> None:
    strip.choose(0)
    strip.button("Branch").click()
    assert strip.shown()[0] == "c0" and len(strip.shown()) == 2
    strip.wait("finished", "waiting")
    strip.field("branch").select_option("main")
    assert strip.shown() == ["c0", "c1", "c2"]
    strip.wait("finished", "finished", "finished")
    assert [clip.after for clip in strip.data().clips] == [None, None, None, "c0"]


def test_takes_are_chosen_compared_branched_from_and_deleted(strip: Strip, base: Path) -> None:
    page = strip.page
    strip.choose(2)
    strip.set_field("seed of the clip", "77")
    strip.wait("finished", "finished", "changed")
    folder = finish(base, strip.name, strip.text())
    strip.look_again()
    strip.wait("finished", "finished", "finished")
    takes = strip.root.locator(".vidrd-take")
    page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-take').length === 2")
    takes.nth(0).get_by_role("button", name="Compare").click()
    takes.nth(1).get_by_role("button", name="Compare").click()
    page.wait_for_function(f"() => {SCREENS}.length === 2")
    page.wait_for_function(f"() => {SCREENS}.every((video) => video.currentTime > 0)")
    strip.root.get_by_role("button", name="Back to the video").click()
    page.wait_for_function(f"() => {SCREENS}.length === 1")
    takes.nth(0).get_by_role("button", name="Use", exact=True).click()
    assert strip.data().clips[2].seed == 3 and not strip.data().clips[2].lock
    strip.wait("finished", "finished", "finished")
    other = takes.nth(1).get_attribute("data-take")
    takes.nth(1).get_by_role("button", name="Branch").click()
    strip.wait("finished", "finished", "finished", "waiting")
    assert strip.data().shown()[2].take == other
    strip.field("branch").select_option("main")
    strip.choose(2)
    strip.root.locator(f"[data-take='{other}']").get_by_role("button", name="Delete").click()
    page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-take').length === 1")
    assert not folder.is_finished(other)


def test_the_keyboard_does_it_all_and_the_node_stays(strip: Strip) -> None:
    strip.choose(0)
    strip.press("ArrowRight")
    assert strip.chosen() == "c1"
    strip.press("n")
    assert strip.data().clips[1].seed != 2
    strip.press("l")
    assert strip.data().clips[1].lock
    strip.press("l", "End")
    assert strip.chosen() == "c2" and not strip.data().clips[1].lock
    strip.press("i")
    assert len(strip.shown()) == 4
    strip.press("Delete")
    assert strip.shown() == ["c0", "c1", "c2"]
    strip.press("Home", "Shift+I")
    assert len(strip.shown()) == 4 and strip.shown()[1] == "c0" and strip.chosen() == strip.shown()[0]
    strip.press("Backspace", "Home", "Enter")
    strip.page.keyboard.type(" X")
    strip.press("Escape")
    assert strip.data().clips[0].prompt == PROMPTS[0] + " X" and strip.chosen() == "c0"
    strip.press("b")
    assert len(strip.shown()) == 2
    assert strip.graph.run("() => app.canvas.graph.nodes.length") == 1  # Delete took no node


def test_undo_takes_back_one_edit_after_the_other_and_redo_brings_it_again(strip: Strip) -> None:
    texts = [strip.text()]
    strip.choose(1)
    for key in ("n", "n", "Delete", "i"):  # one right after the other
        strip.page.keyboard.press(key)
        texts.append(strip.text())
    strip.field("prompt of the clip").fill("it turns yellow")
    strip.field("prompt of the clip").blur()
    texts.append(strip.text())
    assert len(set(texts)) == 6
    for wanted in texts[-2::-1]:
        strip.go_to("Control+z", wanted)
    for wanted in texts[1:]:
        strip.go_to("Control+y", wanted)
    assert strip.shown() == [clip.id for clip in strip.data().shown()]


def test_a_copy_holds_the_timeline_and_goes_its_own_way(strip: Strip) -> None:
    strip.choose(1)
    strip.press("n")
    text = strip.text()
    values = "app.graph.nodes.map((node) => node.widgets.find((one) => one.name === 'timeline').value)"
    pasted = strip.graph.run(f"""() => {{ const [node] = app.graph.nodes;
        app.canvas.selectItems([node]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard();
        const [, copy] = app.graph.nodes; copy.pos = [node.pos[0] + node.size[0] + 60, node.pos[1]];
        return {values}; }}""")
    assert pasted == [text, text]
    strip.into_view()
    strip.page.wait_for_timeout(800)
    copy = strip.root.nth(1)
    copy.locator(".vidrd-card").nth(0).click()
    strip.press("n")
    first, second = strip.graph.run(f"() => {values}")
    assert first == text and second != text
    held = strip.graph.run("() => app.graph.serialize().nodes[0].widgets_values")
    assert held.count(text) == 1
    assert sum(isinstance(value, str) and "clips" in value for value in held) == 1  # the strip saves nothing itself


def test_in_a_subgraph_it_edits_and_is_queued(strip: Strip) -> None:
    page, graph = strip.page, strip.graph
    strip.choose(1)
    strip.press("n")
    text = strip.text()
    graph.run("""() => { const node = app.graph.nodes[0]; app.canvas.draw(true, true); app.canvas.selectItems([node]);
        const { subgraph } = app.graph.convertToSubgraph(new Set([node])); app.canvas.setGraph(subgraph); }""")
    page.wait_for_timeout(800)
    assert strip.text() == text
    strip.into_view()
    strip.wait("finished", "changed", "changed")
    strip.choose(2)
    strip.press("i")
    edited = strip.text()
    assert edited != text and len(strip.shown()) == 4
    strip.go_to("Control+z", text)
    strip.go_to("Control+y", edited)
    sent = graph.run("async () => { const { output } = await app.graphToPrompt(); return output; }")
    [inside] = [node["inputs"] for node in sent.values() if node["class_type"] == "VidRDTimeline"]
    assert inside["timeline"] == edited and inside["run_name"] == strip.name and "strip" not in inside
    graph.run("async () => { await app.loadGraphData(app.graph.serialize()); }")
    kept = graph.run("""() => { const inner = [...app.graph.subgraphs.values()][0].nodes[0];
        return inner.widgets.find((widget) => widget.name === "timeline").value; }""")
    assert kept == edited


def test_a_workflow_that_is_loaded_shows_the_same(strip: Strip) -> None:
    strip.choose(1)
    strip.press("n")
    strip.wait("finished", "changed", "changed")
    text = strip.text()
    strip.graph.run(RELOAD)
    strip.root.locator(".vidrd-card").first.wait_for()
    strip.wait("finished", "changed", "changed")
    assert strip.text() == text


def test_the_video_plays_and_a_click_on_a_seam_goes_there(strip: Strip) -> None:
    page = strip.page
    marks = strip.root.locator(".vidrd-seam")
    page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-seam').length === 2")
    page.wait_for_function(f"() => {SCREENS}[0].readyState >= 2")
    assert [mark.get_attribute("data-frame") for mark in marks.all()] == ["8", "11"]
    marks.nth(0).click()
    assert page.evaluate(f"() => {SCREENS}[0].currentTime") == pytest.approx(8.5 / 8)
    strip.choose(0)
    strip.press("Space")
    page.wait_for_function(f"() => !{SCREENS}[0].paused")
    strip.press("Space")
    page.wait_for_function(f"() => {SCREENS}[0].paused")
    strip.root.get_by_role("button", name="Measure seams").click()
    strip.root.locator(".vidrd-figures td").first.wait_for()
    shown = strip.root.locator(".vidrd-figures").inner_text()
    assert "seam 2, frame 11" in shown or "OpenCV" in shown


def test_a_picture_plays_under_the_pointer(strip: Strip) -> None:
    strip.card(1).hover()
    strip.page.wait_for_function("() => vidrdCheck.strip().querySelector('.vidrd-card video')?.currentTime > 0")
    strip.page.mouse.move(5, 5)
    strip.page.wait_for_function("() => !vidrdCheck.strip().querySelector('.vidrd-card video')")


def test_a_text_that_is_no_timeline_is_named_and_left_alone(strip: Strip) -> None:
    strip.choose(1)
    strip.graph.run(SPOIL)
    strip.root.get_by_text("cannot be read").wait_for()
    strip.press("n")
    assert strip.text() == "{oh"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_in_both_themes(strip: Strip, theme: str) -> None:
    strip.page.route("**/vidrd/timeline*", lambda route: route.abort())  # so that the message is there, too
    set_theme = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
    try:
        strip.graph.run(set_theme, theme)
        strip.choose(1)
        strip.press("n")
        strip.root.get_by_text("the server does not answer").wait_for()
        strip.page.wait_for_timeout(500)
        found = strip.graph.run(CONTRAST, list(READ))
    finally:
        strip.page.unroute("**/vidrd/timeline*")
        strip.graph.run(set_theme, "dark")
    logger.info("contrast, %s: %s", theme, found)
    assert set(found) == set(READ)
    assert min(found.values()) >= 4.5, found  # of WCAG 2.1, level AA


def test_sixty_clips_redraw_only_what_an_edit_changes_and_the_file_stays_small(
    kind: str, graph: Graph, base: Path
) -> None:
    name, text = f"sixty_{uuid.uuid4().hex[:6]}", text_of(clips(60))
    finish(base, name, text)
    strip = Strip(graph, name, text)
    strip.wait(*["finished"] * 60)
    strip.choose(0)
    graph.run("""() => { window.vidrdTouched = new Set(); window.vidrdAdded = 0;
        new MutationObserver((changes) => { for (const { target, addedNodes, type } of changes) {
            const element = target.nodeType === 1 ? target : target.parentElement;
            const card = element?.closest(".vidrd-card");
            if (card) vidrdTouched.add(card.dataset.clip);
            const cards = [...addedNodes].filter((one) => one.matches?.(".vidrd-card"));
            if (type === "childList") vidrdAdded += cards.length;
        } }).observe(vidrdCheck.strip().querySelector(".vidrd-strip"),
            { subtree: true, childList: true, attributes: true, characterData: true }); }""")

    def touched() -> tuple[set[str], int]:
        graph.page.wait_for_timeout(200)
        found = graph.run("() => { const found = [...vidrdTouched]; vidrdTouched.clear(); return found; }")
        added = graph.run("() => { const added = vidrdAdded; vidrdAdded = 0; return added; }")
        return set(found), added

    strip.press("ArrowRight")
    assert touched() == ({"c0", "c1"}, 0)
    strip.press("End", "ArrowLeft")
    touched()
    strip.press("n")
    strip.wait(*["finished"] * 58, "changed", "changed")
    assert touched() == ({"c58", "c59"}, 0)
    strip.press("i")
    inserted = strip.chosen()
    strip.wait(*["finished"] * 58, "changed", "waiting", "changed")
    seen, added = touched()
    assert added == 1 and seen <= {"c58", "c59", inserted}
    strip.press("Delete")
    strip.wait(*["finished"] * 58, "changed", "changed")
    assert touched()[1] == 0 and len(strip.shown()) == 60
    assert len(graph.run("() => JSON.stringify(app.graph.serialize())")) < 20_000


def test_two_tabs_on_one_run_keep_each_other_s_takes(strip: Strip, base: Path, server: Server) -> None:
    """The other tab is a page of its own: another workflow over the same run, whose takes both may use and delete."""
    here, opened = strip, strip.page.context.new_page()
    try:
        opened.goto(server.url, wait_until="domcontentloaded")
        opened.wait_for_function(READY)
        opened.wait_for_timeout(3000)
        opened.evaluate("() => app.graph.clear()")
        there = Strip(Graph(opened), here.name, here.text())
        there.wait("finished", "finished", "finished")
        begun = {path.name: path.read_bytes() for path in (base / "output" / "vidrd" / here.name / "takes").iterdir()}
        for tab, seed in ((here, "70"), (there, "71")):
            tab.choose(1)
            tab.set_field("seed of the clip", seed)
            tab.wait("finished", "changed", "changed")
        assert [tab.data().clips[1].seed for tab in (here, there)] == [70, 71]
        for tab in (here, there):
            folder = finish(base, here.name, tab.text())
        assert all((folder.takes_path / name).read_bytes() == content for name, content in begun.items())
        for tab in (here, there):
            tab.look_again()
            tab.wait("finished", "finished", "finished")
            tab.page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-take').length === 3")
        used = here.root.locator(".vidrd-take[data-used=true]").get_attribute("data-take")
        there.root.locator(f"[data-take='{used}']").get_by_role("button", name="Delete").click()
        there.page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-take').length === 2")
        there.wait("finished", "finished", "finished")
        here.look_again()
        here.wait("finished", "changed", "finished")
        assert here.data().clips[1].seed == 70  # which makes it again
    finally:
        opened.close()


def test_a_page_that_is_reloaded_shows_the_same(strip: Strip) -> None:
    page = strip.page
    strip.choose(1)
    strip.press("n")
    strip.wait("finished", "changed", "changed")
    text = strip.text()
    page.wait_for_timeout(2000)  # the frontend keeps the workflow a moment after a change
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(READY)
    page.evaluate(HELPERS)
    strip.wait_text(text)
    strip.wait("finished", "changed", "changed")


def test_the_node_runs_with_the_bundled_model_and_shows_it(graph: Graph) -> None:
    strip = Strip(graph, f"real_{uuid.uuid4().hex[:6]}", text_of(clips(2)))
    graph.run("""() => { const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", -400, 60);
        const node = vidrdCheck.timeline();
        for (const [slot, name] of [[0, "model"], [1, "clip"], [2, "vae"]]) wire(load, slot, node, name);
        window.vidrdTexts = [];
        app.api.addEventListener("progress_text", ({ detail }) => vidrdTexts.push(detail.text)); }""")
    graph.page.wait_for_timeout(1000)  # the node takes what suits the model
    press_run(graph)
    strip.wait("finished", "finished")
    graph.page.wait_for_function("() => vidrdCheck.strip().querySelectorAll('.vidrd-seam').length === 1")
    texts = graph.run("() => window.vidrdTexts")
    assert "clip 1 of 2, step 1 of 4" in texts and "clip 2 of 2, step 4 of 4" in texts
    strip.choose(1)
    strip.button("New seed").click()
    strip.wait("finished", "changed")


def test_a_new_node_takes_what_suits_the_model(graph: Graph) -> None:
    found = graph.run("""async () => { const { make, wire } = vidrdCheck, load = make("VidRDLoadModel", 0, 0);
        const node = make("VidRDTimeline", 400, 0); wire(load, 0, node, "model");
        await new Promise((done) => setTimeout(done, 1000));
        return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value])); }""")
    assert (found["width"], found["height"], found["cfg"], found["steps"]) == (64, 64, 4, 25)
    assert found["negative_prompt"] == ""


def test_a_server_that_is_stopped_and_started_again_loses_no_edit(
    browser_page: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    own = make_base(tmp_path / "base")
    text = text_of(clips(3))
    finish(own, "stopped", text)
    static = str(frontends.find(request.node.callspec.params["server"]))
    page = browser_page.context.new_page()
    try:
        with running_server(own, static) as first:
            page.goto(first.url, wait_until="domcontentloaded")
            page.wait_for_function(READY)
            page.wait_for_timeout(3000)
            strip = Strip(Graph(page), "stopped", text)
            strip.wait("finished", "finished", "finished")
        strip.choose(1)
        strip.press("n")
        strip.root.get_by_text("the server does not answer").wait_for()
        strip.press("i")
        edited = strip.text()
        assert len(strip.shown()) == 4 and strip.data().clips[1].seed != 2
        with running_server(own, static, port=int(first.url.rsplit(":", 1)[1])):
            strip.wait("finished", "changed", "waiting", "changed")
            assert strip.text() == edited and not strip.root.locator(".vidrd-message").inner_text()
    finally:
        page.close()
