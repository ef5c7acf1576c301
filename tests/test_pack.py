"""The node pack without ComfyUI, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

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
                assert node.module in ("vidrd_core.reuse", "vidrd_core.seeds"), name


def test_every_node_file_stays_readable() -> None:
    for path in (ROOT / "nodes").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, path
        assert lines[0].startswith('"""'), path
