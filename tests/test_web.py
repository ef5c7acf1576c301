"""Help pages, labels and registry entry against the nodes' schemas, without ComfyUI."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from node_schemas import PAGES, ROOT, Node, read_nodes

from vidrd_core.reuse.goal import MOST_REPEATED, GoalSettings, choices, closing
from vidrd_core.reuse.presets import PRESETS
from vidrd_core.reuse.settings import ReuseSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

NODES = read_nodes()
LANGUAGES = ("en", "zh")


def locale(language: str, file: str) -> Any:
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    return [value]


def numbers(text: str) -> set[str]:
    """The numbers that stand alone; not those inside names such as fp16."""
    return set(re.findall(r"(?<![A-Za-z0-9_.])\d+(?:\.\d+)?(?![A-Za-z0-9_])", text.replace(" percent", "%")))


@pytest.fixture(params=NODES.values(), ids=NODES.keys())
def node(request: pytest.FixtureRequest) -> Node:
    return request.param


def test_every_registered_node_was_read() -> None:
    extension = (ROOT / "nodes" / "extension.py").read_text(encoding="utf-8")
    registered = re.findall(r"^    (\w+),$", extension, re.MULTILINE)
    assert len(NODES) == len(registered) > 0


def test_every_node_has_a_help_page_and_no_page_is_left_over() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(NODES)


def test_a_help_page_has_the_tables_of_the_schema(node: Node) -> None:
    page = (PAGES / f"{node.id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {node.display_name}\n")
    for table in node.tables():
        assert table in page, f"run python tests/node_schemas.py to renew the tables of {node.id}.md"


def test_every_input_and_output_has_a_tooltip_and_a_name_of_its_own(node: Node) -> None:
    for slot in (*node.inputs, *node.outputs):
        assert slot.tooltip.endswith("."), slot.id
    ids = [slot.id for slot in (*node.inputs, *node.outputs)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("page", ["VidRDReuseAndDiffuse", "VidRDManyClips", "VidRDEmptyLatent"])
def test_a_help_page_gives_the_frame_arithmetic(page: str) -> None:
    assert "N + (K - 1) * (N - trimmed)" in (PAGES / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_name_every_node_input_and_output_and_nothing_else(language: str) -> None:
    labels = locale(language, "nodeDefs.json")
    assert set(labels) == set(NODES)
    for node in NODES.values():
        label = labels[node.id]
        assert list(label["inputs"]) == [slot.id for slot in node.inputs]
        assert list(label["outputs"]) == [str(number) for number in range(len(node.outputs))]
        assert all(entry["name"] for entry in [*label["inputs"].values(), *label["outputs"].values()])


def test_english_labels_leave_the_tooltips_to_the_schema() -> None:
    for node_id, label in locale("en", "nodeDefs.json").items():
        assert label["display_name"] == NODES[node_id].display_name
        assert "description" not in label
        assert all(set(entry) == {"name"} for entry in label["inputs"].values())


def test_chinese_tooltips_give_the_numbers_of_the_english_ones(node: Node) -> None:
    label = locale("zh", "nodeDefs.json")[node.id]
    translated = [*label["inputs"].values(), *label["outputs"].values()]
    for slot, entry in zip((*node.inputs, *node.outputs), translated):
        assert numbers(entry["tooltip"]) == numbers(slot.tooltip), f"{slot.id}: {entry['tooltip']}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_hold_nothing_that_the_translator_takes_for_a_command(language: str) -> None:
    for text in [*strings(locale(language, "nodeDefs.json")), *strings(locale(language, "main.json"))]:
        assert not re.search(r"[{}@|]", text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_menu_entry_is_translated_under_the_text_that_the_script_gives_it(language: str) -> None:
    script = (ROOT / "web" / "js" / "add_reuse_and_diffuse.js").read_text(encoding="utf-8")
    (label,) = re.findall(r'^const LABEL = "(.*)";$', script, re.MULTILINE)
    assert set(locale(language, "main.json")["contextMenu"]) == {label}


def test_the_scripts_name_only_nodes_and_inputs_that_exist() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*.js")}
    for script in scripts.values():
        assert set(re.findall(r'"(VidRD\w+)"', script)) <= set(NODES)
    script = scripts["add_reuse_and_diffuse"]
    (settings,) = re.findall(r"^const SETTINGS = \[([^\]]*)\];$", script, re.MULTILINE)
    known = {slot.id for slot in NODES["VidRDReuseAndDiffuse"].inputs}
    assert set(re.findall(r"\w+", settings)) <= known and {"model", "positive", "negative", "prior", "seed"} <= known


def test_what_a_preset_shows_and_a_new_node_takes_are_inputs_of_the_nodes() -> None:
    script = (ROOT / "web" / "js" / "widgets.js").read_text(encoding="utf-8")
    (settings,) = re.findall(r"^const SETTINGS = \{([^}]*)\};$", script, re.MULTILINE)
    shown = dict(re.findall(r'(\w+): "(\w+)"', settings))
    assert set(shown) == {field.name for field in fields(ReuseSettings)}
    assert set(shown.values()) <= {slot.id for slot in NODES["VidRDReuseAndDiffuse"].inputs}
    for node, taken in re.findall(r"^  (VidRD\w+): \[\w+, \{(.*)\}\],$", script, re.MULTILINE):
        assert {name for _, name in re.findall(r'(\w+): "(\w+)"', taken)} <= {s.id for s in NODES[node].inputs}


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, which runs the script")
@pytest.mark.parametrize("clip", [1, 4, 8, 16])
@pytest.mark.parametrize("preset", ["paper", "smooth"])
def test_the_browser_fits_a_preset_to_a_clip_as_the_server_does(preset: str, clip: int) -> None:
    script = (ROOT / "web" / "js" / "clip_lengths.js").read_text(encoding="utf-8")
    (function,) = re.findall(r"^export (function fitted\(.*?^})$", script, re.MULTILINE | re.DOTALL)
    settings = PRESETS[preset].reuse
    code = f"{function}\nconsole.log(JSON.stringify(fitted({json.dumps(asdict(settings))}, {clip})))"
    ran = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == asdict(settings.fitted(clip))


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, which runs the script")
def test_the_browser_knows_how_a_loop_closes_as_the_server_does() -> None:
    script = (ROOT / "web" / "js" / "clip_lengths.js").read_text(encoding="utf-8")
    (function,) = re.findall(r"^export (function closing\(.*?^})$", script, re.MULTILINE | re.DOTALL)
    rules = {"most_repeated": MOST_REPEATED, "least_overlap": GoalSettings.start_frames}
    cases = [(clip, overlap) for clip in (2, 4, 6, 8, 16) for overlap in range(clip)]
    expected = []
    for clip, overlap in cases:
        own = closing(ReuseSettings(overlap, trim_frames=overlap), clip)
        most = choices(clip, own.overlap_frames)[-1]
        expected.append({"overlap_frames": own.overlap_frames, "trim_frames": own.trim_frames, "repeated": most})
    given = "{ overlap_frames: overlap, trim_frames: overlap }"
    found = f"{json.dumps(cases)}.map(([clip, overlap]) => closing({given}, clip, {json.dumps(rules)}))"
    code = f"{function}\nconsole.log(JSON.stringify({found}))"
    ran = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == expected


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, which runs the script")
@pytest.mark.parametrize(
    ("seeds", "expected"),
    [([7], 8), ([7, 9, 8], 10), ([2**53 - 1], 2), ([2**53 - 1, 2], 3), ([2**63 - 1], 1025), ([2**63 - 1, 1025], 1026)],
)
def test_the_seed_of_an_added_clip_is_none_of_those_there_are(seeds: list[int], expected: int) -> None:
    script = (ROOT / "web" / "js" / "graph.js").read_text(encoding="utf-8")
    (function,) = re.findall(r"^export (function seedAfter\(.*?^})$", script, re.MULTILINE | re.DOTALL)
    ran = subprocess.run(
        ["node", "-e", f"{function}\nconsole.log(seedAfter({seeds}))"], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == expected


def test_the_registry_entry_names_an_icon_and_the_oldest_comfyui() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    entry = project["tool"]["comfy"]
    assert entry["requires-comfyui"] == ">=0.3.64"
    assert entry["PublisherId"] and entry["DisplayName"]
    assert (ROOT / "web" / "icon.svg").is_file() and entry["Icon"].endswith("web/icon.svg")
    assert "web" not in entry, "WEB_DIRECTORY serves the folder; both would load the script twice"


def test_the_root_package_serves_the_web_folder() -> None:
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert Path(ROOT / "web").is_dir()
