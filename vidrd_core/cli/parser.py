"""The options of the ``vidrd`` command and their help texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .. import __version__
from ..reuse.presets import PRESETS, SCHEDULERS
from .evaluate import EVALUATE
from .evaluate import add_options as _add_evaluate

Command = Callable[[argparse.Namespace], int]

EPILOG = """\
examples:
  vidrd generate --model demo --prompt "a red circle moves left over a dark blue background" --clips 4 --output out.mp4
  vidrd generate --model demo --videos prompts.txt --output videos --clips 4
  accelerate launch --num_processes 8 -m vidrd_core.cli generate --model demo --videos prompts.txt --output videos
  vidrd extend out.mp4.state --prompt "a red circle moves up over a dark blue background" --clips 2 --output longer.mp4
  vidrd generate --model demo --preset smooth --loop --prompt "a red circle bounces up and down" --output loop.mp4
  vidrd bridge before.mp4 after.mp4 --model demo --prompt "a red circle moves left" --output joined.mp4
  vidrd convert ModelT2V.pth ComfyUI/models/vidrd/released --base stable-diffusion-2-1-base --vae vae_finetuned
  vidrd info ComfyUI/models/vidrd/released
  vidrd evaluate out.mp4 --clip-length 8 --json out.json
"""
GENERATE = """\
Make a video of several chained clips. Finished clips are kept in a state folder: stopped or killed at any moment and
run again, the same command continues after the last finished clip. Another video under the same name is refused, so
that no clips are lost, unless --restart says to delete them. Settings that are not given are the model
folder's own ("defaults" in model_index.json) or else the released ones, which are named below.

With --videos FILE there are many videos: one per line, all into the folder OUTPUT, numbered from 00000. Several
processes may work on one folder, on one machine or on machines that share it; no video is made twice, a video is the
same whichever process makes it, and the same command continues where it was stopped. For all GPUs of a machine:
accelerate launch --num_processes 8 -m vidrd_core.cli generate --videos FILE --output FOLDER --model MODEL
"""
EXTEND = """\
Make more clips of a video. STATE is a state folder (the new video has all clips, old and new) or a state file in one
(state_00003.safetensors; the new video has the new clips only). Settings are those of the video.

A state that the ComfyUI node Save VidRD State saved (sampler euler or ddim) is extended too; name its model with
--model. The new clips are sampled by EulerDiscreteScheduler at the noise levels that the state stores. In the other
direction, the node Load VidRD State loads the states of a video made with --scheduler ddim, euler or dpmpp-2m.
"""
BRIDGE = """\
Join the videos A and B by new clips: the first begins as A ends, the last ends as B begins. OUTPUT is A, the new frames
and B, of the size of the new frames; A and B are scaled and cropped to it. Of C clips of N frames, N - 3 - 2 frames are
new with C = 1, and each further clip adds N - TRIM. A prompt says what the new clips show.

Preset smooth is used where no other is named. Finished clips are kept, and the same command continues, as in generate.
"""


def build(**commands: Command) -> argparse.ArgumentParser:
    """The parser; each command's function is the namespace's ``run``."""
    parser = argparse.ArgumentParser(
        prog="vidrd",
        description="VidRD, Reuse and Diffuse: text-to-video of any length, clip by clip.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidrd {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    texts = {
        "generate": ("make a video from prompts", GENERATE, _add_generate),
        "extend": ("make more clips of a video", EXTEND, _add_extend),
        "bridge": ("join two videos by new clips", BRIDGE, _add_bridge),
        "convert": ("write a model folder from checkpoints", "Write a model folder, safetensors only.", _add_convert),
        "info": ("describe a file or folder", "Describe models, states, state folders and videos.", _add_info),
        "evaluate": ("measure a video's seams, motion and drift", EVALUATE, _add_evaluate),
    }
    for name, (summary, description, add) in texts.items():
        command = subparsers.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(run=commands[name])
        command.add_argument("--verbose", action="store_true", help="log more, and show tracebacks of errors")
        add(command)
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_prompts(parser)
    group = parser.add_argument_group("many videos")
    group.add_argument(
        "--videos",
        metavar="FILE",
        help="a UTF-8 file with one video per line, | between the prompts of its clips; # begins a comment",
    )
    group.add_argument(
        "--format", choices=("mp4", "webm", "gif", "png"), default="mp4", help="of each video; png is a folder (mp4)"
    )
    group.add_argument(
        "--keep-states", action="store_true", help="keep finished videos' state folders, for vidrd extend"
    )
    group = parser.add_argument_group("video")
    group.add_argument("--clips", type=_positive, metavar="N", help="clips to chain (as many as prompts; 4 for one)")
    _add_size(group)
    _add_output(group)
    group = parser.add_argument_group("given frames")
    group.add_argument(
        "--start-image",
        metavar="FILE",
        help="an image that the video begins with, or a video whose last 3 frames it repeats and goes on from",
    )
    group.add_argument(
        "--end-image",
        metavar="FILE",
        help="an image that the video ends with, or a video at whose first 2 frames it arrives",
    )
    group.add_argument(
        "--loop",
        action="store_true",
        help="the last clip arrives at the first one's beginning, and is cut there: the frame after the last is the "
        "first. It is sampled up to 4 times, to arrive where the motion is most even, and 1 to 4 frames of the "
        "beginning are left out of its end. An overlap that leaves no room for that is shortened in that clip, and its "
        "trim with it (to 3 of 8 frames)",
    )
    _add_sampling(parser)
    _add_model(parser, required=True)
    _add_job(parser)
    _add_again(parser)


def _add_bridge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a video, or a folder of PNGs, that the new clips follow")
    parser.add_argument("second", metavar="B", help="the video that they lead to")
    _add_prompts(parser)
    group = parser.add_argument_group("video")
    group.add_argument("--clips", type=_positive, metavar="N", help="clips between the videos (as many as prompts)")
    _add_size(group)
    _add_output(group)
    _add_sampling(parser)
    _add_model(parser, required=True)
    _add_job(parser)
    _add_again(parser)


def _add_size(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--frames", dest="num_frames", type=int, metavar="N", help="frames per clip, 1 to 32 (8)")
    group.add_argument("--height", type=int, metavar="PIXELS", help="(what the model was trained on)")
    group.add_argument("--width", type=int, metavar="PIXELS", help="(what the model was trained on)")


def _add_again(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redo", action="store_true", help="make the clips again whose prompt, seed or goal changed")
    parser.add_argument("--restart", action="store_true", help="delete the finished clips and start over")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items()).replace("%", "%%"),
    )
    group.add_argument(
        "--steps", dest="num_inference_steps", type=int, metavar="N", help="denoising steps per clip (50)"
    )
    group.add_argument("--guidance-scale", type=float, metavar="X", help="weight of the prompt, 1 is off (10)")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from (watermark)")
    group.add_argument(
        "--guidance-interval",
        type=_interval,
        metavar="FROM:TO",
        help="share of the steps in which guidance runs; the others run the prompt alone in half the time (0:1)",
    )
    group.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="X",
        help="give guided predictions the contrast of the prompt's own, 0 is off, 1 all the way (0)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the video, the next video's is one more; each clip's derives from it (0)",
    )
    group.add_argument(
        "--clip-seed",
        type=_clip_seed,
        action="append",
        default=[],
        metavar="CLIP=SEED",
        help="give one clip, counted from 0, a seed of its own; may be repeated",
    )
    group = parser.add_argument_group("how a clip reuses the one before")
    group.add_argument("--overlap-frames", type=int, metavar="M", help="first frames steered by the clip before (4)")
    group.add_argument("--noise-alpha", type=float, metavar="A", help="noise kept: 0 is none, inf all of it (4)")
    group.add_argument("--guidance-beta", type=float, metavar="B", help="share of steps that are steered, 0 to 1 (0.4)")
    group.add_argument("--order", choices=("reverse", "forward"), help="reverse as in the paper, or forward")
    group.add_argument("--trim-frames", type=int, metavar="N", help="frames cut from the start of later clips (0)")
    group.add_argument(
        "--stages",
        choices=("linear", "uniform"),
        help="linear as in the paper: each overlap frame is steered for fewer steps; uniform: all for as many",
    )
    group.add_argument(
        "--cleaner-overlap",
        "--guidance-lead",  # its name in earlier versions
        type=float,
        metavar="X",
        help="how much cleaner than the new frames the overlap is: 0 equally noisy, 0.8 nearly clean (0)",
    )


def _add_extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="STATE", help="a state folder or a state file")
    _add_prompts(parser)
    group = parser.add_argument_group("video")
    group.add_argument("--clips", type=_positive, metavar="N", help="clips to add (as many as prompts)")
    _add_output(group)
    _add_model(parser, required=False)
    _add_job(parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a checkpoint, its folder, or several")
    parser.add_argument("output", metavar="OUTPUT", help="the model folder to write, new or empty")
    parser.add_argument("--base", metavar="PATH", help="a Stable Diffusion 2.1 folder or file for what is missing")
    parser.add_argument("--vae", metavar="PATH", help="a VAE in place of the checkpoint's")
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer folder, where no source has one")
    parser.add_argument("--dtype", choices=("keep", "float32", "float16", "bfloat16"), default="keep", help="(keep)")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", metavar="PATH", help="a model, checkpoint, state, state folder or video")


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated: one per clip, the last serves the others"
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="a UTF-8 file with one prompt per line, or with blank lines in it one per paragraph; # begins a comment",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output", required=True, metavar="PATH", help=".mp4, .webm or .gif; a folder for PNGs or for many videos"
    )
    group.add_argument("--fps", type=float, metavar="X", help="frames per second (4; 8 for the demo model)")
    group.add_argument("--contact-sheet", metavar="FILE", help="also a picture with one row of frames per clip (.png)")


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    group = parser.add_argument_group("model")
    remark = "" if required else " (the one that made the video)"
    group.add_argument(
        "--model", required=required, metavar="PATH", help=f'a model folder, a checkpoint, or "demo"{remark}'
    )
    group.add_argument("--base", metavar="PATH", help="a Stable Diffusion 2.1 folder for what a checkpoint lacks")
    group.add_argument("--vae", metavar="PATH", help="a VAE in place of the model's")
    group.add_argument(
        "--scheduler",
        choices=tuple(SCHEDULERS),
        help="the sampler (the model's own; ddim for the released weights)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="precision of the models (auto: float16 on CUDA, else float32)",
    )
    group.add_argument("--device", default="auto", metavar="NAME", help="cuda, mps or cpu (auto)")
    group = parser.add_argument_group("memory and speed")
    group.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="what waits in host memory: the models that are not at work, or all but the layer at work (slow) (none)",
    )
    group.add_argument(
        "--storage",
        choices=("same", "fp8"),
        help="keep the U-Net's weights in 8 bits, half of float16; changes the result a little (same)",
    )
    group.add_argument(
        "--split-guidance", action="store_true", help="guidance one half after the other: half a step's memory"
    )
    group.add_argument(
        "--background-decoding",
        action="store_true",
        help="decode a clip while the next one is sampled; same result; for a GPU, on a CPU it takes longer",
    )
    group.add_argument(
        "--compile",
        dest="compile_mode",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "graphs"),
        help="run the U-Net compiled: the first step takes minutes, the others are faster; graphs: nothing is "
        "compiled, but a GPU does not wait for the processor (not compiled)",
    )


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", metavar="FOLDER", help="where finished clips are kept (beside the output: out.mp4.state for out.mp4)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _interval(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO, for example 0.1:0.8")
    return float(first), float(last)


def _clip_seed(text: str) -> tuple[int, int]:
    clip, equals, seed = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not CLIP=SEED, for example 2=1234")
    return int(clip), int(seed)
