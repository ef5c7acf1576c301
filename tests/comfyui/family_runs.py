"""Running ComfyUI's own sampling nodes on the tiny models, and looking at what a sampler and a network get to see."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import tiny_models
import torch
from tiny_models import FAMILIES
from torch import Tensor

STEPS, CFG, SEED = 4, 3.0, 11


@functools.cache
def model_of(name: str, seed: int = 0) -> Any:
    """The tiny MODEL of a family; nodes clone what they are given."""
    return tiny_models.tiny(name, seed)


@functools.cache
def prompts(name: str) -> tuple[Any, Any, Any]:
    """Two prompts and a negative one, each as CONDITIONING."""
    return tuple(tiny_models.conditioning(name, seed) for seed in (1, 2, 3))  # type: ignore[return-value]


def samples_of(latent: dict[str, Any]) -> Tensor:
    """The video of a LATENT; of audio and video together the video."""
    samples = latent["samples"]
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def audio_of(latent: dict[str, Any]) -> Tensor:
    return latent["samples"].unbind()[1]


def frames(name: str, samples: Tensor, start: int, end: int | None = None) -> Tensor:
    """The latents ``start`` to ``end`` of a family's samples, counted along its frames."""
    time = FAMILIES[name].time
    length = samples.shape[time]
    first, last, _ = slice(start, end).indices(length)
    return samples.narrow(time, first, last - first)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of ``b`` where that is above 1."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.float() - b.float()).abs().max() / max(1.0, float(b.abs().max())))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two LATENTs hold the same samples, to the bit."""
    if getattr(a["samples"], "is_nested", False):
        return all(torch.equal(x, y) for x, y in zip(a["samples"].unbind(), b["samples"].unbind(), strict=True))
    return torch.equal(a["samples"], b["samples"])


def call(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """What a stock node of either kind returns."""
    with torch.inference_mode():
        if hasattr(node, "define_schema"):
            return node.execute(**inputs).args
        return getattr(node(), node.FUNCTION)(**inputs)


def ksampler(model: Any, conds: Any, latent: Any, **changes: Any) -> Any:
    import nodes as stock

    given = {"seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = {name: value for name, value in latent.items() if name != "vidrd_trajectory"}
    made = call(
        stock.KSampler, model=model, positive=conds[0], negative=conds[1], latent_image=latent, **{**given, **changes}
    )
    return made[0]


def two_ksamplers(model: Any, low: Any, conds: Any, latent: Any, split: int, **changes: Any) -> Any:
    """Two KSamplerAdvanced, as in the workflows for Wan 2.2: the second goes on with what noise the first left."""
    import nodes as stock

    given = {"noise_seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple",
             "positive": conds[0], "negative": conds[1], **changes}  # fmt: skip
    (half,) = call(stock.KSamplerAdvanced, model=model, latent_image=latent, add_noise="enable", start_at_step=0,
                   end_at_step=split, return_with_leftover_noise="enable", **given)  # fmt: skip
    return call(stock.KSamplerAdvanced, model=low, latent_image=half, add_noise="disable", start_at_step=split,
                end_at_step=10000, return_with_leftover_noise="disable", **given)[0]  # fmt: skip


def sigmas_of(model: Any, steps: int = STEPS, scheduler: str = "simple") -> Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def sampler_custom_advanced(model: Any, conds: Any, latent: Any, sampler: Any = "euler", sigmas: Any = None) -> Any:
    """SamplerCustomAdvanced with a BasicGuider, as in the workflows for HunyuanVideo."""
    import comfy_extras.nodes_custom_sampler as custom

    (guider,) = call(custom.BasicGuider, model=model, conditioning=conds[0])
    sigmas = sigmas_of(model) if sigmas is None else sigmas
    chosen = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    noise = custom.Noise_RandomNoise(SEED)
    given = {"noise": noise, "guider": guider, "sampler": chosen, "sigmas": sigmas, "latent_image": latent}
    return call(custom.SamplerCustomAdvanced, **given)[0]


def sampler_custom(model: Any, conds: Any, latent: Any, sampler: Any = "euler", sigmas: Any = None) -> Any:
    """SamplerCustom, as in the workflows for LTXV."""
    import comfy_extras.nodes_custom_sampler as custom

    chosen = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    given = {"add_noise": True, "noise_seed": SEED, "cfg": CFG, "positive": conds[0], "negative": conds[1]}
    sigmas = sigmas_of(model) if sigmas is None else sigmas
    return call(custom.SamplerCustom, model=model, sampler=chosen, sigmas=sigmas, latent_image=latent, **given)[0]


def ltxv_sigmas(latent: Any, steps: int = STEPS) -> Tensor:
    import comfy_extras.nodes_lt as ltx

    given = {"steps": steps, "max_shift": 2.05, "base_shift": 0.95, "stretch": True, "terminal": 0.1}
    return call(ltx.LTXVScheduler, latent=latent, **given)[0]


class MidpointSampler:
    """A SAMPLER of another pack: no KSAMPLER, with its own loop and a second model call between two levels."""

    def max_denoise(self, wrapped: Any, sigmas: Tensor) -> bool:
        return float(sigmas[0]) >= float(wrapped.inner_model.model_sampling.sigma_max) * (1 - 1e-5)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        ones = x.new_ones([x.shape[0]])
        for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
            slope = (x - model_wrap(x, here * ones, **extra_args)) / here
            if there > 0:
                middle = (here + there) / 2
                between = x + slope * (middle - here)
                slope = (between - model_wrap(between, middle * ones, **extra_args)) / middle
            x = x + slope * (there - here)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def with_context_windows(model: Any, name: str) -> Any:
    """The MODEL with ComfyUI's own context windows of 3 latents."""
    import comfy_extras.nodes_context_windows as windows

    given = {"context_length": 3, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
             "closed_loop": False, "fuse_method": "pyramid", "dim": FAMILIES[name].time}  # fmt: skip
    node = windows.ContextWindowsManualNode
    wanted = {one.id for one in node.define_schema().inputs}
    more = {one.id: one.default for one in node.define_schema().inputs if one.id not in {*given, "model"}}
    return call(node, model=model, **{n: v for n, v in {**more, **given}.items() if n in wanted})[0]


def with_shift(model: Any, shift: float) -> Any:
    import comfy_extras.nodes_model_advanced as advanced

    return call(advanced.ModelSamplingSD3, model=model, shift=shift)[0]


@dataclass
class Calls:
    """What a sampler held and was handed at each of its model calls, whatever steers it."""

    sigmas: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def sampler_calls() -> Iterator[Calls]:
    """What ComfyUI's samplers hold and are handed while this is open, whatever stands between them and the model."""
    calls, inner = Calls(), comfy.samplers.KSAMPLER.sample

    class Wrapped:
        def __init__(self, wrapped: Any) -> None:
            self.wrapped = wrapped

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

        def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.sigmas.append(float(sigma.flatten()[0]))
            calls.states.append(x.clone())
            made = self.wrapped(x, sigma, *args, **kwargs)
            calls.predictions.append(made.clone())
            return made

    def sample(self: Any, model_wrap: Any, *args: Any, **kwargs: Any) -> Tensor:
        return inner(self, Wrapped(model_wrap), *args, **kwargs)

    comfy.samplers.KSAMPLER.sample = sample
    try:
        yield calls
    finally:
        comfy.samplers.KSAMPLER.sample = inner


@dataclass
class Seen:
    """What a network was called with: x with the channels added to it, the timesteps, and the rest."""

    x: Tensor
    timestep: Tensor
    more: dict[str, Any]


@contextlib.contextmanager
def network_inputs(model: Any) -> Iterator[list[Seen]]:
    """What the innermost part of the network is called with while this is open."""
    network, seen = model.model.diffusion_model, []
    name = "_forward" if hasattr(network, "_forward") else "forward"
    inner = getattr(network, name)

    def look(x: Any, timesteps: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = x[0] if isinstance(x, (list, tuple)) else x
        seen.append(Seen(first.clone(), copy.deepcopy(timesteps), {"args": args, **kwargs}))
        return inner(x, timesteps, *args, **kwargs)

    setattr(network, name, look)
    try:
        yield seen
    finally:
        delattr(network, name)


def seen_frames(name: str, seen: Seen, start: int, end: int, row: int = 0) -> Tensor:
    """The latents ``start`` to ``end`` that a network saw of its first (or row-th) conditioning, ``[C, m, h, w]``."""
    family = FAMILIES[name]
    if family.time:
        return seen.x[row, :, start:end]
    return seen.x[row * family.length + start : row * family.length + end].movedim(0, 1)


def overlap_of(name: str) -> int:
    """M, the latents of overlap in these checks: 2, or 3 where a latent is one frame."""
    return 2 if FAMILIES[name].frames > 1 else 3


def overlap_in(name: str, clip: dict[str, Any]) -> Tensor:
    """The overlap of a clip that follows another."""
    at = FAMILIES[name].lead_in
    return frames(name, samples_of(clip), at, at + overlap_of(name))


def new_in(name: str, clip: dict[str, Any]) -> Tensor:
    """The latents that a clip adds to its video."""
    return frames(name, samples_of(clip), FAMILIES[name].lead_in + overlap_of(name))


def tail_of(name: str, video: dict[str, Any]) -> Tensor:
    """The last latents of a video, which the next clip's overlap repeats."""
    return frames(name, samples_of(video), -overlap_of(name))


def reuse(name: str, **changes: Any) -> dict[str, Any]:
    """The overlap in its own order, steered to the end, equally noisy; the rest fresh noise."""
    family, overlap = FAMILIES[name], overlap_of(name)
    given = {"preset": "custom", "overlap_frames": family.frames * overlap, "noise_alpha": 0.0, "guidance_beta": 1.0,
             "order": "forward", "trim_frames": 0 if family.frames > 1 else overlap, "stages": "uniform",
             "guidance_lead": 0.0, "tell_levels": "off"}  # fmt: skip
    return {**given, **changes}


@dataclass
class Chain:
    """The pack's nodes on the tiny models.

    Args:
        nodes: by id, as in the fixture of that name.
    """

    nodes: dict[str, Any]
    priors: dict[str, tuple[dict[str, Any], Calls]] = field(default_factory=dict)

    def first(self, name: str, prompt: int = 0, model: Any = None, **changes: Any) -> dict[str, Any]:
        conds = prompts(name)
        given = {"model": model or model_of(name), "positive": conds[prompt], "negative": conds[2], "seed": SEED,
                 "latent": tiny_models.empty_latent(name), "steps": STEPS, "cfg": CFG, "sampler_name": "euler",
                 "scheduler": "simple"}  # fmt: skip
        return self.nodes["VidRDSampleFirstClip"](**{**given, **changes})[0]

    def prior(self, name: str) -> tuple[dict[str, Any], Calls]:
        """The same first clip for all checks that need nothing special, and what its sampler held."""
        if name not in self.priors:
            with sampler_calls() as calls:
                self.priors[name] = self.first(name), calls
        return self.priors[name]

    def next(
        self, name: str, prior: dict[str, Any], prompt: int = 1, model: Any = None, **changes: Any
    ) -> tuple[Any, ...]:
        """Video so far, new clip, report. Another prompt and seed than the prior's, unless told otherwise."""
        conds = prompts(name)
        given = {"model": model or model_of(name), "positive": conds[prompt], "negative": conds[2], "prior": prior,
                 "seed": SEED + 1, "cfg": CFG, **reuse(name)}  # fmt: skip
        return self.nodes["VidRDReuseAndDiffuse"](**{**given, **changes})

    def prepare(self, name: str, prior: dict[str, Any], model: Any = None, **changes: Any) -> tuple[Any, ...]:
        """MODEL, MODEL low, LATENT, session, report."""
        given = {"model": model or model_of(name), "prior": prior, **reuse(name)}
        return self.nodes["VidRDReusePrepare"](**{**given, **changes})

    def join(self, latent: dict[str, Any], session: Any) -> tuple[Any, ...]:
        """Video so far, new clip, report."""
        return self.nodes["VidRDReuseJoin"](latent=latent, session=session)
