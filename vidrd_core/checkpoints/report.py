"""Say what a file or folder is, which parts it has and whether they are complete."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..weight_files import CheckpointError
from .configs import describe, is_temporal, unsupported_model
from .loading import PART_LABELS, empty_model, installed_name, resolve_config
from .recognition import KINDS, PART_NAMES, Part, recognise


@dataclass(frozen=True)
class PartReport:
    """One model in a checkpoint."""

    name: str  # unet, vae or text_encoder
    description: str
    source: Path
    parameters: int
    temporal_parameters: int
    dtypes: dict[str, int]  # number of tensors of each type
    size: int  # bytes of its tensors
    config: dict[str, Any] | None  # constructor configuration, where one could be found
    config_source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    problem: str | None = None  # why it cannot be used here at all

    @property
    def is_whole(self) -> bool:
        """Whether our model can be made of it."""
        return not (self.missing or self.unexpected or self.misshapen or self.problem)


@dataclass(frozen=True)
class CheckpointReport:
    """What :func:`inspect` found; ``str()`` is what ``vidrd info`` prints."""

    path: Path
    kind: str  # key of KINDS
    parts: dict[str, PartReport]
    absent: list[str]  # of what a pipeline needs
    other: list[str]  # names of weights that belong to no part
    size: int  # bytes on disk

    def __str__(self) -> str:
        lines = [str(self.path), f"  {KINDS[self.kind]}, {_bytes(self.size)} on disk"]
        for part in self.parts.values():
            lines += _part_lines(part)
        if self.absent:
            lines.append(f"  not in it: {', '.join(PART_LABELS.get(n, n) for n in self.absent)}")
        if self.other:
            lines.append(f"  not used: {len(self.other)} other weights, for example {', '.join(self.other[:3])}")
        return "\n".join(lines)


def inspect(path: str | Path) -> CheckpointReport:
    """Look into a weights file or folder without loading it.

    Knows the released ``ModelT2V.pth`` and ``vae_finetuned/``, the folder that holds both, diffusers folders of a whole
    model or of one component, safetensors files and pickles of a U-Net or VAE, and Stable Diffusion's single files.

    Raises:
        CheckpointError: it does not exist, cannot be read safely, or holds nothing known.
    """
    checkpoint = recognise(path)
    parts: dict[str, PartReport] = {}
    files: set[Path] = set()
    for name in checkpoint.names:
        part = checkpoint.part(name)
        if part is None:
            continue
        parts[name] = _inspect_part(part)
        files.update(part.stored.files)
    absent = [n for n in PART_NAMES if n not in parts]
    absent += [n for n in ("tokenizer", "scheduler") if n not in checkpoint.part_paths]
    size = sum(f.stat().st_size for f in files)
    return CheckpointReport(checkpoint.path, checkpoint.kind, parts, absent, checkpoint.other, size)


def _inspect_part(part: Part) -> PartReport:
    try:
        state = part.state()
    except CheckpointError as error:  # names that no layout has
        state = part.select(part.stored.tensors())
        return dataclasses.replace(_measure(part, state), problem=str(error))
    report = _measure(part, state)
    family = unsupported_model(part.name, state)
    if family:
        return dataclasses.replace(report, problem=f"{family}: no VidRD {PART_LABELS[part.name]}")
    try:
        # An image U-Net is reported as one, not as an error: it is what training starts from.
        config = resolve_config(part, state, inflate=part.name == "unet")
        return _compare(part, report, config, state)
    except CheckpointError as error:
        return dataclasses.replace(report, problem=str(error))


def _measure(part: Part, state: Mapping[str, Tensor]) -> PartReport:
    return PartReport(
        name=part.name,
        description=describe(part.name, {k: tuple(v.shape) for k, v in state.items()}),
        source=part.stored.path,
        parameters=sum(v.numel() for v in state.values()),
        temporal_parameters=sum(v.numel() for k, v in state.items() if "temp_" in k),
        dtypes=dict(Counter(str(v.dtype).removeprefix("torch.") for v in state.values())),
        size=sum(v.nbytes for v in state.values()),
        config=None,
        config_source=part.config_source,
    )


def _compare(part: Part, report: PartReport, config: dict[str, Any], state: Mapping[str, Tensor]) -> PartReport:
    from ..models.inflate import compare

    model = empty_model(part.name, config)
    fit = compare(model, {installed_name(model, k): tuple(v.shape) for k, v in state.items()})
    # A model without any temporal layer is an image model, which is another thing than a damaged video model.
    missing = fit.missing + (fit.missing_temporal if is_temporal(state) else [])
    return dataclasses.replace(
        report, config=config, missing=missing, unexpected=fit.unexpected, misshapen=fit.misshapen
    )


def _part_lines(part: PartReport) -> list[str]:
    temporal = f", {part.temporal_parameters / 1e6:.1f} M of them temporal" if part.temporal_parameters else ""
    dtypes = (
        ", ".join(part.dtypes) if len(part.dtypes) == 1 else ", ".join(f"{d} ({n})" for d, n in part.dtypes.items())
    )
    lines = [
        f"  {PART_LABELS[part.name]}: {part.description}",
        f"    {part.parameters / 1e6:.1f} M parameters{temporal}; {dtypes}; {_bytes(part.size)}",
        f"    from {part.source}; configuration from {part.config_source}",
    ]
    for title, names in (
        ("missing", part.missing),
        ("unexpected", part.unexpected),
        ("with wrong shapes", part.misshapen),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            lines.append(f"    {len(names)} {title}: {', '.join(names[:4])}{more}")
    if part.problem:
        lines.append(f"    cannot be used: {part.problem}")
    else:
        lines.append(f"    {'complete' if part.is_whole else 'incomplete or damaged'}")
    return lines


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
