"""Where models, states and runs lie in ComfyUI's folders, and which of them a node offers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import folder_paths

BUNDLED = "bundled demo model"
KIND = "vidrd"  # models/vidrd/: model folders in diffusers' layout
WEIGHTS = {".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin"}
# Files inside a component's folder, for which the folder is offered as a whole.
COMPONENT_FILE = re.compile(r"^(diffusion_pytorch_model|model|pytorch_model)([.-].*)?$")
STATES = "vidrd"  # output/vidrd/: states and runs
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "vidrd_core" / "demo_model"


def register_folders() -> None:
    """Let ComfyUI know models/vidrd, beside whatever extra_model_paths.yaml says of it."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND), is_default=True)
    extensions = folder_paths.folder_names_and_paths[KIND][1]
    if isinstance(extensions, set):
        extensions.update(WEIGHTS)


def model_folders() -> list[str]:
    """The bundled model and the model folders under models/vidrd, by their paths relative to it."""
    found = set()
    for root in folder_paths.get_folder_paths(KIND):
        if Path(root).is_dir():
            found |= {p.parent.relative_to(root).as_posix() for p in Path(root).glob("*/model_index.json")}
            found |= {p.parent.relative_to(root).as_posix() for p in Path(root).glob("*/*/model_index.json")}
    return [BUNDLED, *sorted(found)]


def model_folder(name: str) -> Path:
    """The model folder that a node was set to.

    Raises:
        FileNotFoundError: it is gone, with the place where it belongs.
    """
    roots = folder_paths.get_folder_paths(KIND)
    candidates = [BUNDLED_FOLDER] if name == BUNDLED else [Path(root) / name for root in roots]
    for folder in candidates:
        if (folder / "model_index.json").is_file():
            return folder
    where = str(BUNDLED_FOLDER) if name == BUNDLED else f"{name} in {' or '.join(roots)}"
    raise FileNotFoundError(
        f"there is no model folder with a model_index.json at {where}: put it there, or choose another"
    )


def weights(kind: str) -> list[str]:
    """Files of one of ComfyUI's model folders; the files of a diffusers component are offered as one folder."""
    names: dict[str, None] = {}
    for name in folder_paths.get_filename_list(kind):
        path = Path(name)
        inside = len(path.parts) > 1 and COMPONENT_FILE.match(path.stem)
        names[f"{path.parent.as_posix()}/" if inside else name] = None
    return list(names)


def weights_path(kind: str, name: str) -> Path:
    """The file or folder that a node was set to.

    Raises:
        FileNotFoundError: it is gone, with the place where it belongs.
    """
    for root in folder_paths.get_folder_paths(kind):
        path = Path(root) / name
        if path.exists() and name.strip("/"):
            return path
    where = " or ".join(folder_paths.get_folder_paths(kind))
    raise FileNotFoundError(f"{name} is not in {where}: put it there, or choose another")


def fingerprint(path: Path) -> str:
    """Changes when a file or a folder's files change, so that a loader runs again."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return ";".join(f"{p.name}:{p.stat().st_mtime_ns}:{p.stat().st_size}" for p in files)


def complaint(find: Callable[[], Path]) -> bool | str:
    """True, or the sentence that says what is missing where; ComfyUI shows it before anything runs."""
    try:
        find()
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return True


def output_path(name: str, suffix: str = "") -> Path:
    """A place under output/vidrd for a name that a user typed; sub-folders are allowed, leaving the folder is not.

    Raises:
        ValueError: the name is empty, leads elsewhere or holds characters that some systems forbid.
    """
    cleaned = name.strip().replace("\\", "/").removesuffix(suffix)
    parts = [p for p in cleaned.split("/") if p]
    if not parts or any(p in (".", "..") or re.search(r'[<>:"|?*\x00-\x1f]', p) or p != p.strip(" .") for p in parts):
        raise ValueError(
            f"the name {name!r} cannot be used: expected letters, digits, - and _, with / for a sub-folder"
        )
    path = Path(folder_paths.get_output_directory(), STATES, *parts)
    return path.with_name(path.name + suffix)


def saved_states() -> list[str]:
    """State files under output/vidrd and in the input folder."""
    root = Path(folder_paths.get_output_directory()) / STATES
    found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.safetensors")) if root.is_dir() else []
    given = Path(folder_paths.get_input_directory())
    found += sorted(f"input/{p.name}" for p in given.glob("*.safetensors")) if given.is_dir() else []
    return [name for name in found if "/clips/" not in f"/{name}"]


def state_path(name: str) -> Path:
    """The state file that Load VidRD State was set to.

    Raises:
        FileNotFoundError: it is gone.
    """
    if name.startswith("input/"):
        path = Path(folder_paths.get_input_directory()) / Path(name).name
    else:
        path = output_path(name, ".safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"there is no state {name} (looked for {path}): save one, or copy it there")
    return path
