"""The paper's zero-shot evaluation on UCF-101: FVD, inception score, CLIP similarity, frame consistency.

10,000 videos whose classes are distributed as in the training split, made from one descriptive prompt per class. The
prompts are ours, as are the number of frames, their rate and the splits of the score: the paper leaves them open.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..files import write_json
from ..pipeline import VidRDPipeline
from ..reuse.settings import ReuseSettings
from ..video import ContactSheet, read_video, to_uint8
from .detectors import C3D, C3D_HINT, CLIP_HINT, I3D, I3D_HINT, MIN_I3D_FRAMES, Clip, MissingWeights, file_digest
from .identity import NEGATIVE_PROMPT, model_identity
from .measuring import Detectors, Measurements, measure_all
from .moments import frechet_distance

logger = logging.getLogger(__name__)

CLASSES = 101
PAPER_ROWS = (  # arXiv 2309.03549: method, training videos, IS, FVD
    ("CogVideo", "5.4M", "25.27", "701.59"),
    ("MagicVideo", "27.0M", "-", "699.00"),
    ("LVDM", "2.0M", "-", "641.80"),
    ("ModelScope", "-", "-", "639.90"),
    ("Video LDM", "10.7M", "33.45", "550.61"),
    ("Make-A-Video", "20.0M", "33.00", "367.23"),
    ("VideoFactory", "140.7M", "-", "410.00"),
    ("VidRD, plain VAE (paper)", "5.3M", "39.24", "369.48"),
    ("VidRD, fine-tuned decoder (paper)", "5.3M", "39.37", "363.19"),
)
SAMPLES = 12  # videos shown in samples.png


@dataclass(frozen=True)
class Ucf101Settings:
    """What to measure and with which files."""

    output: Path  # for results.json, results.md, samples.png and the state to resume from; machines must share it
    trainlist: Path  # the training split, trainlist01.txt: gives the class distribution and the real videos
    videos: Path | None = None  # folder of UCF-101, one folder per class; without it no FVD
    i3d: Path | None = None  # i3d_torchscript.pt; without it no FVD
    c3d: Path | None = None  # c3d_ucf101.pt; without it no inception score
    clip: Path | None = None  # folder of a transformers CLIPModel; without it no CLIP measures
    real_statistics: Path | None = None  # folder that caches the real videos' statistics (shared too); None: in output
    count: int = 10_000  # videos to make
    frames: int = 16  # of each video, generated and real, that are measured
    real_fps: float | None = None  # of real videos, as far as their length allows; None: as filmed, 25
    splits: int = 10  # of the inception score
    batch: int = 8  # videos at a time
    steps: int | None = None  # denoising steps; None: the model's default or 50
    guidance_scale: float | None = None  # None: the model's default or 10
    overlap_frames: int = 4  # the released settings of reuse
    noise_alpha: float = 4.0
    guidance_beta: float = 0.4
    seed: int = 0


def read_prompts(path: Path) -> dict[str, str]:
    """Prompt by class from a file of lines ``ClassName: prompt``; # begins a comment."""
    prompts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, prompt = line.partition(":")
        if not colon or not prompt.strip() or name.strip() in prompts:
            raise ValueError(f"{path}, line {number}: expected `ClassName: prompt`, each class once, got {line!r}")
        prompts[name.strip()] = prompt.strip()
    if not prompts:
        raise ValueError(f"{path} has no prompts; expected lines `ClassName: prompt`")
    return prompts


def read_trainlist(path: Path) -> list[str]:
    """Files ``Class/v_Class_g08_c01.avi`` of a split's list, whose lines may end in a class number."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; get trainlist01.txt from UCF-101's train/test splits for action recognition, it "
            "says how the classes are distributed"
        )
    files = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [file for file in files if "/" not in file]
    if wrong or not files:
        raise ValueError(f"{path}: expected lines like `Archery/v_Archery_g08_c01.avi 3`, got {wrong[:1] or 'nothing'}")
    return files


def plan_classes(counts: Mapping[str, int], total: int, seed: int) -> list[str]:
    """The class of every video: ``total`` of them distributed like ``counts`` (largest remainders), in a mixed order.

    The order is mixed because the inception score is taken over consecutive splits, each of which needs all classes.
    """
    whole = sum(counts.values())
    shares = {name: total * count / whole for name, count in sorted(counts.items())}
    chosen = {name: int(share) for name, share in shares.items()}
    left = total - sum(chosen.values())
    for name in sorted(shares, key=lambda n: (chosen[n] - shares[n], n))[:left]:
        chosen[name] += 1
    classes = [name for name, count in chosen.items() for _ in range(count)]
    return [classes[i] for i in torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()]


def evaluate_ucf101(pipe: VidRDPipeline, prompts: Path, settings: Ucf101Settings, name: str) -> dict[str, Any]:
    """Make the videos, measure them and the real ones, write results; resumes when called again.

    Under ``accelerate launch`` the processes share the videos; the results are the main process's.
    """
    from accelerate import PartialState

    # Without an accelerator, several processes only connect where cpu is set.
    process = PartialState(cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()))
    files = read_trainlist(settings.trainlist)
    texts = read_prompts(prompts)
    counts = Counter(file.partition("/")[0] for file in files)
    without = sorted(set(counts) - set(texts))
    if without:
        raise ValueError(f"{prompts} has no prompt for the classes {', '.join(without)} of {settings.trainlist}")
    detectors = load_detectors(settings, process.device)
    real_videos: RealVideos | None = None
    if settings.videos is not None:
        real_videos = RealVideos(settings.videos, files, texts, settings, (pipe.default_size, pipe.default_size))
    pipe.to(process.device)

    classes = plan_classes(counts, settings.count, settings.seed)
    generator = Generated(pipe, [texts[c] for c in classes], settings)
    identity = generator.identity | {
        "judges": detectors.identity,  # the key of stored states
        "prompts": file_digest(prompts),
        "trainlist": file_digest(settings.trainlist),
        "splits": detectors.splits,
    }
    real: Measurements | None = None
    if real_videos is not None:  # first, as it is faster and may find videos that cannot be used
        cache = settings.real_statistics or settings.output / "real"
        compared = {"judges": detectors.identity, "splits": detectors.splits}
        if detectors.clip is not None:
            compared["prompts"] = identity["prompts"]
        real = measure_all(
            real_videos, len(files), settings.batch, detectors, cache, real_videos.identity | compared, process
        )
    state = settings.output / "state"
    made = measure_all(generator, settings.count, settings.batch, detectors, state, identity, process)
    results = {
        "model": name,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "sampling": generator.identity,
        "figures": figures(made, real),
        "real": None if real is None else figures(real, None),
    }
    if process.is_main_process:
        settings.output.mkdir(parents=True, exist_ok=True)
        write_json(settings.output / "results.json", results, indent=None)
        (settings.output / "results.md").write_text(markdown(results), encoding="utf-8")
        generator.sheet().save(settings.output / "samples.png")
        logger.info("\n%s", markdown(results))
    process.wait_for_everyone()
    return results


def load_detectors(settings: Ucf101Settings, device: torch.device | str) -> Detectors:
    """The networks whose files were named.

    Raises:
        MissingWeights: a file is missing, or none was named.
        ValueError: I3D without real videos.
    """
    if settings.videos is not None and settings.i3d is None:
        raise MissingWeights(f"real videos are for FVD, but no I3D was named; {I3D_HINT}")
    if settings.i3d is not None and settings.videos is None:
        raise ValueError("--i3d was given without --videos; FVD needs the real videos of UCF-101, name their folder")
    if settings.i3d is None and settings.c3d is None and settings.clip is None:
        raise MissingWeights(f"no network was named: {I3D_HINT}; {C3D_HINT}; {CLIP_HINT}")
    paths = [path for path in (settings.i3d, settings.c3d, settings.clip) if path is not None]
    return Detectors(
        i3d=None if settings.i3d is None else I3D.load(settings.i3d, device),
        c3d=None if settings.c3d is None else C3D.load(settings.c3d, device),
        clip=None if settings.clip is None else Clip(settings.clip, device),
        splits=settings.splits,
        identity=[file_digest(path) for path in paths],
    )


class Generated:
    """The generated videos: number i from prompt i and seed + i, whatever the batch or the process.

    The first few are kept as pictures in ``output/samples``.
    """

    def __init__(self, pipe: VidRDPipeline, prompts: Sequence[str], settings: Ucf101Settings):
        defaults = dict(pipe.config["defaults"])
        self.pipe, self.prompts, self.settings = pipe, list(prompts), settings
        self.reuse = ReuseSettings(settings.overlap_frames, settings.noise_alpha, settings.guidance_beta)
        self.num_frames = int(defaults.get("num_frames", 8))
        self.steps = settings.steps or int(defaults.get("num_inference_steps", 50))
        scale = defaults.get("guidance_scale", 10.0) if settings.guidance_scale is None else settings.guidance_scale
        self.guidance_scale = float(scale)
        self.negative = str(defaults.get("negative_prompt", NEGATIVE_PROMPT))

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that determine the videos."""
        settings = self.settings
        return {
            **model_identity(self.pipe),
            "size": self.pipe.default_size,
            "count": settings.count,
            "frames": settings.frames,
            "num_frames": self.num_frames,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative,
            "reuse": asdict(self.reuse),
            "seed": settings.seed,
        }

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
        prompts = [self.prompts[i] for i in numbers]
        embeds = torch.cat([self.pipe.encode_text(prompt) for prompt in prompts])
        frames = self.pipe(
            prompt_embeds=embeds,
            negative_prompt=self.negative,
            num_clips=-(-self.settings.frames // self.num_frames),
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            reuse=self.reuse,
            seed=[self.settings.seed + i for i in numbers],
            output_type="pt",
        ).frames
        frames = torch.as_tensor(frames)[:, :, : self.settings.frames]
        for number, video in zip(numbers, frames, strict=True):
            if number < SAMPLES:
                path = self._sample(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.concatenate(list(to_uint8(video)), axis=1)).save(path)
        return frames, prompts

    def _sample(self, number: int) -> Path:
        return self.settings.output / "samples" / f"{number:05d}.png"

    def sheet(self) -> Image.Image:
        """The sample videos, a row each, under their prompts."""
        sheet = ContactSheet(max_rows=SAMPLES)
        for number in range(min(SAMPLES, self.settings.count)):
            with Image.open(self._sample(number)) as image:
                strip = np.asarray(image.convert("RGB"))
            sheet.add_row(np.stack(np.split(strip, self.settings.frames, axis=1)), self.prompts[number])
        return sheet.render()


class RealVideos:
    """Videos of the training split: ``frames`` of each, from its middle, at ``real_fps``.

    A video too short for that rate is read at the rate that fits: its frames are spread over its whole length.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        texts: Mapping[str, str],
        settings: Ucf101Settings,
        size: tuple[int, int],
    ):
        # Mixed, as the score's splits need all classes, and always in the same way, whatever seed videos are made from.
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        self.files = [files[i] for i in order]
        self.folder, self.texts, self.settings, self.size = folder, texts, settings, size
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of {len(files)} training videos, the first is {missing[0]}; "
                "name the folder that holds one folder per class"
            )

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "trainlist": file_digest(self.settings.trainlist),
            "frames": self.settings.frames,
            "fps": self.settings.real_fps,
            "size": list(self.size),
        }

    def __call__(self, numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
        videos, prompts = [], []
        for number in numbers:
            frames = self._read(self.folder / self.files[number])
            videos.append(rearrange(torch.from_numpy(frames), "t h w c -> c t h w") / 127.5 - 1)
            prompts.append(self.texts[self.files[number].partition("/")[0]])
        return torch.stack(videos), prompts

    def _read(self, path: Path) -> np.ndarray:
        count = self.settings.frames
        frames = read_video(path, size=self.size, fps=self.settings.real_fps).frames
        if len(frames) >= count:
            start = (len(frames) - count) // 2
            return frames[start : start + count].copy()
        if self.settings.real_fps is not None:
            frames = read_video(path, size=self.size).frames
        if len(frames) < count:
            raise ValueError(
                f"{path} has {len(frames)} frames, {count} are wanted: take it out of {self.settings.trainlist}, or "
                f"give fewer --frames (I3D needs at least {MIN_I3D_FRAMES}, C3D was made for 16)"
            )
        return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]


def figures(found: Measurements, real: Measurements | None) -> dict[str, float | None]:
    """The numbers of the table; None where a network or the real videos were not given."""
    score = None if found.predictions is None else found.predictions.score()
    fvd = None
    if found.features is not None and real is not None and real.features is not None:
        fvd = frechet_distance(found.features, real.features)
    return {
        "videos": found.videos,
        "IS": None if score is None else score.mean,
        "IS deviation": None if score is None else score.deviation,
        "FVD": fvd,
        "CLIP similarity": found.similarity.mean if found.similarity.count else None,
        "frame consistency": found.consistency.mean if found.consistency.count else None,
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The paper's table with this model's row below."""

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [
        "| UCF-101, zero-shot | training videos | IS (up) | FVD (down) | CLIP similarity | frame consistency |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {videos} | {score} | {fvd} | - | - |" for name, videos, score, fvd in PAPER_ROWS),
    ]
    rows = {f"**{results['model']}** (measured here)": results["figures"], "real videos": results["real"]}
    for name, values in rows.items():
        if values is None:
            continue
        deviation = "" if values["IS"] is None else f" +- {values['IS deviation']:.2f}"
        lines.append(
            f"| {name} | - | {shown(values['IS'], 2)}{deviation} | {shown(values['FVD'], 2)} | "
            f"{shown(values['CLIP similarity'], 4)} | {shown(values['frame consistency'], 4)} |"
        )
    sampling = results["sampling"]
    note = (
        f"{results['figures']['videos']} videos of {sampling['frames']} frames, {sampling['steps']} steps, "
        f"guidance scale {sampling['guidance_scale']:g}. "
        "Prompts, frames, their rate and the splits of the score are ours; real videos too short for the rate are read "
        "at the rate that fits."
    )
    return "\n".join(lines) + f"\n\n{note}\n"
