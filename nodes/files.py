"""Where models, states and runs lie in ComfyUI's folders, and which of them a node offers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import folder_paths

from ..vidrd_core.reuse.presets import FEW_STEPS

BUNDLED = "bundled demo model"
BUNDLED_FEW = "bundled demo model, 4 steps"
BUNDLED_FLOW = "bundled flow model"
KIND = "vidrd"  # models/vidrd/: model folders in diffusers' layout
WEIGHTS = {".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin"}
# Files inside a component's folder, for which the folder is offered as a whole.
COMPONENT_FILE = re.compile(r"^(diffusion_pytorch_model|model|pytorch_model)([.-].*)?$")
STATES = "vidrd"  # output/vidrd/: states and runs
GIVEN = " [input]"  # ends the name of a state that lies in the input folder, as ComfyUI marks files
RUN_CLIP = re.compile(r"(^|/)clips/[0-9a-f]{12}/clip_\d{4}(_[0-9a-f]{12})?\.safetensors$")  # see clip_store.ClipStore
TAKE = re.compile(r"(^|/)takes/[0-9a-f]{16}\.safetensors$")  # of a timeline, see vidrd_core.jobs.takes
JOB_CLIP = re.compile(r"(^|/)clip_\d{5,}\.safetensors$")  # of a job of the vidrd command, beside its state
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, with any ending
LONGEST = 200  # bytes of a file name, which the endings make longer; file systems allow 255
CORE = Path(__file__).resolve().parent.parent / "vidrd_core"
BUNDLED_FOLDERS = {
    BUNDLED: CORE / "demo_model",
    BUNDLED_FEW: CORE / "demo_model" / FEW_STEPS,
    BUNDLED_FLOW: CORE / "demo_flow",
}


def register_folders() -> None:
    """Let ComfyUI know models/vidrd, beside whatever extra_model_paths.yaml says of it."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND), is_default=True)
    extensions = folder_paths.folder_names_and_paths[KIND][1]
    if isinstance(extensions, set):
        extensions.update(WEIGHTS)


def model_folders() -> list[str]:
    """The bundled models and the model folders under models/vidrd, by their paths relative to it."""
    found = set()
    for root in folder_paths.get_folder_paths(KIND):
        if Path(root).is_dir():
            found |= {p.parent.relative_to(root).as_posix() for p in Path(root).glob("*/model_index.json")}
            found |= {p.parent.relative_to(root).as_posix() for p in Path(root).glob("*/*/model_index.json")}
    return [*BUNDLED_FOLDERS, *sorted(found)]


def check_inside(name: str) -> None:
    """Raise ``ValueError`` where a name would lead out of the folder that it belongs in, before anything looks there.

    A workflow from elsewhere may hold any name; on Windows looking at a network path already contacts its host.
    """
    path = PureWindowsPath(name)  # knows both separators, drives and network paths
    if path.drive or path.root or not path.parts or ".." in path.parts:
        raise ValueError(f"the name {name!r} leads out of ComfyUI's folder: choose one of the list")


def model_folder(name: str) -> Path:
    """The model folder that a node was set to.

    Raises:
        ValueError: the name leads elsewhere.
        FileNotFoundError: it is gone, with the place where it belongs.
    """
    check_inside(name)
    roots = folder_paths.get_folder_paths(KIND)
    candidates = [BUNDLED_FOLDERS[name]] if name in BUNDLED_FOLDERS else [Path(root) / name for root in roots]
    for folder in candidates:
        if (folder / "model_index.json").is_file():
            return folder
    where = str(BUNDLED_FOLDERS[name]) if name in BUNDLED_FOLDERS else f"{name} in {' or '.join(roots)}"
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
        ValueError: the name leads elsewhere.
        FileNotFoundError: it is gone, with the place where it belongs.
    """
    check_inside(name)
    for root in folder_paths.get_folder_paths(kind):
        path = Path(root) / name
        if path.exists():
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
        ValueError: the name is empty or too long, leads elsewhere, or is one that some systems forbid.
    """
    cleaned = name.strip().replace("\\", "/").removesuffix(suffix)
    parts = [p for p in cleaned.split("/") if p]
    if not parts or any(part in (".", "..") or part != part.strip(" .") or FORBIDDEN.search(part) for part in parts):
        raise ValueError(
            f"the name {name!r} cannot be used: expected letters, digits, - and _, with / for a sub-folder"
        )
    for part in parts:
        if RESERVED.fullmatch(part):
            raise ValueError(f"the name {name!r} cannot be used: Windows reserves {part} for a device, choose another")
        if len(part.encode()) > LONGEST:
            raise ValueError(
                f"the name {name[:40]!r}... cannot be used: it is {len(part.encode())} bytes long, expected at most "
                f"{LONGEST}"
            )
    path = Path(folder_paths.get_output_directory(), STATES, *parts)
    return path.with_name(path.name + suffix)


def temporary_folder() -> Path:
    """A place for what has no name, which ComfyUI empties when it starts."""
    return Path(folder_paths.get_temp_directory(), STATES)


def saved_states() -> list[str]:
    """State files under output/vidrd, and in the input folder with a mark behind their names."""
    root = Path(folder_paths.get_output_directory()) / STATES
    files = [p.relative_to(root).as_posix() for p in root.rglob("*.safetensors") if p.is_file()]
    found = sorted(name for name in files if not any(kind.search(name) for kind in (RUN_CLIP, TAKE, JOB_CLIP)))
    return found + sorted(p.name + GIVEN for p in Path(folder_paths.get_input_directory()).glob("*.safetensors"))


def state_path(name: str) -> Path:
    """The state file that Load VidRD State was set to.

    Raises:
        ValueError: the name leads elsewhere.
        FileNotFoundError: it is gone.
    """
    given = Path(folder_paths.get_input_directory())
    if name.endswith(GIVEN):
        name = name.removesuffix(GIVEN)
        check_inside(name)
        path = given / name
    else:
        path = output_path(name, ".safetensors")
        if name.startswith("input/") and not path.is_file():  # as earlier versions named those in the input folder
            path = given / path.name
    if not path.is_file():
        raise FileNotFoundError(f"there is no state {name} (looked for {path}): save one, or copy it there")
    return path
