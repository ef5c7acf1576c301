"""The node pack without ComfyUI, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import animatediff_evolved
import examples
from archive import archived, imported_files, reached_modules
from browser.model_recipes import MODEL_RECIPES
from browser.recipes import RECIPES
from model_examples import MODELS
from node_schemas import read_nodes

ROOT = Path(__file__).resolve().parents[1]
# ComfyUI's own nodes that the examples use; all are in 0.3.64.
STOCK = {
    "BasicGuider", "BasicScheduler", "CLIPLoader", "CLIPTextEncode", "CheckpointLoaderSimple", "CreateVideo",
    "DualCLIPLoader", "EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo", "EmptyLatentImage", "FluxGuidance",
    "GetVideoComponents", "ImageScale", "ImageUpscaleWithModel", "KSampler", "KSamplerAdvanced", "KSamplerSelect",
    "LTXVConditioning", "LTXVScheduler", "LoadVideo", "LoraLoaderModelOnly", "MarkdownNote", "ModelSamplingSD3",
    "PreviewAny", "RandomNoise", "SamplerCustom", "SamplerCustomAdvanced", "SaveVideo", "UNETLoader",
    "UpscaleModelLoader", "VAEDecode", "VAEDecodeTiled", "VAEEncode", "VAELoader", "Wan22ImageToVideoLatent",
}  # fmt: skip

LOAD = """
import importlib.util, sys
root = r"{root}"
options = dict(submodule_search_locations=[root])
spec = importlib.util.spec_from_file_location("custom_nodes.VidRD", root + "/__init__.py", **options)
module = importlib.util.module_from_spec(spec)
sys.modules["custom_nodes.VidRD"] = module
spec.loader.exec_module(module)
print(sorted(n for n in ("torch", "diffusers", "transformers", "custom_nodes.VidRD.nodes") if n in sys.modules))
print(hasattr(module, "comfy_entrypoint"))
"""


def test_the_root_package_imports_harmlessly_without_comfyui(tmp_path: Path) -> None:
    code = LOAD.format(root=ROOT)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.split("\n")[:2] == ["[]", "False"]


def test_the_pack_installs_no_opencv_which_would_break_another_pack_s() -> None:
    """Both of OpenCV's packages write into one folder; nodes that need it say so themselves."""
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = project.partition("\ndependencies = [")[2].partition("]")[0]
    assert "diffusers" in wanted and "diffusers" in dependencies
    assert "opencv" not in wanted and "opencv" not in dependencies


def test_only_nodes_import_comfy() -> None:
    for path in (ROOT / "vidrd_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(n.split(".")[0] in ("comfy", "comfy_api", "folder_paths") for n in names), path


def test_modules_that_comfyui_imports_at_its_start_import_nothing_heavy() -> None:
    """The registered files import only ComfyUI's own modules, which it has loaded anyway, and light ones of ours."""
    pending, seen = ["extension"], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        tree = ast.parse((ROOT / "nodes" / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] in ("diffusers", "transformers", "cv2") for a in node.names), name
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert not (node.module or "").startswith("native"), name
                pending += [node.module] if node.module else [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                light = ("vidrd_core.sampling.seeds", "vidrd_core.jobs.takes", "vidrd_core.jobs.timeline")
                assert (node.module or "").startswith("vidrd_core.reuse.") or node.module in light, name


def test_the_registry_archive_holds_the_modules_that_nodes_import_and_no_others() -> None:
    reached = reached_modules()
    modules = {file for folder in ("nodes", "vidrd_core") for file in (ROOT / folder).rglob("*.py")}
    assert ROOT / "vidrd_core" / "models" / "unet.py" in reached and len(reached) > 40
    assert sorted(file for file in reached if not archived(file)) == []
    assert sorted(file for file in modules - reached if archived(file)) == []


def test_the_registry_archive_holds_help_pages_labels_examples_and_the_bundled_model() -> None:
    for folder in ("web", "locales", "example_workflows", "vidrd_core/demo_model", "vidrd_core/demo_flow"):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file()]
        assert files and all(map(archived, files)), folder
    for name in ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        assert archived(ROOT / name), name
    for name in ("docs/demo.png", "tests/test_pack.py", "training/common.py", "benchmarks/memory.py"):
        assert not archived(ROOT / name), name


def test_imports_in_functions_are_followed_and_those_for_type_checkers_are_not() -> None:
    metrics = ROOT / "vidrd_core" / "metrics"
    assert metrics / "anyvideo.py" in imported_files(ROOT / "nodes" / "report_nodes.py")  # in a function
    assert metrics / "detectors.py" not in imported_files(metrics / "anyvideo.py")  # under TYPE_CHECKING


def test_every_node_file_stays_readable() -> None:
    for path in (ROOT / "nodes").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, path
        assert lines[0].startswith('"""'), path


def test_every_workflow_fits_the_schemas_and_needs_no_other_pack_but_animatediff_s() -> None:
    known = read_nodes()
    assert len(examples.NAMES) >= 6
    for name in examples.NAMES:
        graph = examples.workflow(name)
        for node in graph["nodes"]:
            if node["type"] in animatediff_evolved.SCHEMAS:
                assert name == "12_animatediff_evolved"
                assert node["properties"]["cnr_id"] == "comfyui-animatediff-evolved"
                continue
            if not node["type"].startswith("VidRD"):
                assert node["type"] in STOCK, (name, node["type"])
                continue
            assert node["properties"]["cnr_id"] == "vidrd"
            schema = known[node["type"]]
            widgets = [slot for slot in schema.inputs if slot.type in examples.WIDGETS]
            with_control = sum(bool(slot.values.get("control_after_generate")) for slot in widgets)
            assert len(node.get("widgets_values", [])) == len(widgets) + with_control, (name, node["type"])
            assert {entry["name"] for entry in node["inputs"]} == {slot.id for slot in schema.inputs}
            assert [entry["type"] for entry in node["outputs"]] == [slot.type for slot in schema.outputs]


def test_every_wire_of_a_workflow_is_known_at_both_ends() -> None:
    for name in examples.NAMES:
        graph = examples.workflow(name)
        nodes = {node["id"]: node for node in graph["nodes"]}
        for link, origin, output, target, slot, _ in graph["links"]:
            assert link in nodes[origin]["outputs"][output]["links"], name
            assert nodes[target]["inputs"][slot]["link"] == link, name
        wired = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry.get("link") is not None]
        assert sorted(wired) == sorted(link[0] for link in graph["links"])


def test_every_workflow_has_a_note_titled_groups_and_a_thumbnail() -> None:
    for name in examples.NAMES:
        graph = examples.workflow(name)
        assert any(node["type"] == "MarkdownNote" for node in graph["nodes"]), name
        assert graph["groups"] and all(group["title"] for group in graph["groups"]), name
        assert (examples.FOLDER / f"{name}.jpg").read_bytes()[:2] == b"\xff\xd8", name


def test_every_workflow_says_what_its_recipe_says() -> None:
    """The recipes take the numbers in notes and titles from the presets; tests/comfyui compares them with a run."""
    for name, recipe in {**RECIPES, **MODEL_RECIPES}.items():
        groups = [group for row in recipe() for group in row]
        nodes = [node for group in groups for column in group.columns for node in column]
        notes = [node.values[""] for node in nodes if node.type == "MarkdownNote"]
        titles = [item.title for item in (*groups, *nodes) if item.title]
        said = examples.words(examples.workflow(name))
        assert said[: len(notes)] == notes, f"{name}: run tests/browser/make_workflows.py"
        assert set(titles) <= set(said[len(notes) :]), f"{name}: run tests/browser/make_workflows.py"
    stating = [name for name in examples.OWN_NAMES if "frames" in examples.stated_numbers(name)]
    assert stating == [examples.OWN_NAMES[n] for n in (0, 2, 3, 4, 7)]


def test_an_example_with_another_model_offers_the_download_of_every_safetensors_file_that_it_loads() -> None:
    assert list(MODELS) == list(MODEL_RECIPES) == [name for name in examples.NAMES if name not in examples.OWN_NAMES]
    for name, model in MODELS.items():
        nodes = examples.workflow(name)["nodes"]
        offered = [entry for node in nodes for entry in node["properties"].get("models", [])]
        assert sorted(entry["name"] for entry in offered) == sorted(f.name for f in model.files if f.metadata), name
        for node in nodes:
            loaded = [value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")]
            named = [entry["name"] for entry in node["properties"].get("models", [])]
            assert named == loaded, (name, node["type"])
        (notes,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
        for file in model.files:
            assert f"[{file.name}]({file.url})" in notes and f"  {file.directory}/\n" in notes
            assert file.url.startswith("https://huggingface.co/") and file.url.endswith(file.name)
        assert "Not tried with the real weights by us" in notes


def test_nodes_of_a_workflow_lie_apart_and_each_in_one_group() -> None:
    title = 30  # pixels of a node above its position
    for name in examples.NAMES:
        graph = examples.workflow(name)
        boxes = [(x, y - title, x + w, y + h) for (x, y), (w, h) in ((n["pos"], n["size"]) for n in graph["nodes"])]
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], name
        groups = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in graph["groups"])]
        for a, b in combinations(groups, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], name
        for box in boxes:
            inside = [g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3] for g in groups]
            assert sum(inside) == 1, name
