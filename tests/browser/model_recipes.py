"""What the example workflows with other video models hold; each grows out of ComfyUI's own template for its model.

As in recipes.py; the files, sizes and frame counts are those of tests/model_examples.py.
"""

from __future__ import annotations

from typing import Any

import animatediff_evolved
from browser.recipes import FIXED, Group, Node, Rows, note, text
from model_examples import MODELS, File, VideoModel

# Wan's own negative prompt, which the templates carry too.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)
LTX_NEGATIVE = (
    "low quality, worst quality, deformed, distorted, disfigured, motion smear, motion artifacts, fused fingers, bad "
    "anatomy, weird hand, ugly"
)
FOX = (
    "A red fox trots along a snowy forest path toward the camera. Its breath is visible in the cold air, snow dust "
    "rises from its paws. Low winter sun shines through the pines, the camera moves slowly backward before it."
)
SAIL = (
    "A small wooden sailing boat with a white sail glides across a calm bay at sunrise. The camera follows it from the "
    "side at the height of the water. Gentle waves run along the hull and break into small white crests, the sail "
    "fills in the breeze and its ropes swing lightly. Behind the boat lie green hills in thin morning mist; the light "
    "is warm and golden and glitters on the water. The scene appears to be real-life footage."
)
NOT_TRIED = "**Not tried with the real weights by us.** Small random models of the same classes ran this workflow."
SIZES = {
    "UNETLoader": (400, 0),
    "VAELoader": (400, 0),
    "DualCLIPLoader": (400, 0),
    "CheckpointLoaderSimple": (400, 0),
    "LoraLoaderModelOnly": (400, 0),
    "ModelSamplingSD3": (300, 0),
    "VidRDReusePrepare": (320, 0),
    "VidRDReuseJoin": (260, 0),
    "KSampler": (300, 0),
    "KSamplerAdvanced": (300, 0),
    "SamplerCustom": (300, 0),
    "SamplerCustomAdvanced": (300, 0),
    "ADE_LoadAnimateDiffModel": (400, 0),
}


def loader(key: str, kind: str, values: dict[str, Any], *files: File, **more: Any) -> Node:
    """A node that loads files, with what ComfyUI needs to offer their download."""
    models = [file.metadata for file in files if file.metadata]
    return Node(key, kind, values, properties={"models": models} if models else {}, **more)


def unet(key: str, file: File, title: str | None = None) -> Node:
    return loader(key, "UNETLoader", {"unet_name": file.name, "weight_dtype": "default"}, file, title=title)


def lora(key: str, file: File, model: str) -> Node:
    values = {"lora_name": file.name, "strength_model": 1.0}
    return loader(key, "LoraLoaderModelOnly", values, file, wires={"model": model})


def shifted(key: str, model: str, shift: float) -> Node:
    return Node(key, "ModelSamplingSD3", {"shift": shift}, {"model": model})


def vae(file: File) -> Node:
    return loader("vae", "VAELoader", {"vae_name": file.name}, file)


def text_encoder(file: File, kind: str) -> Node:
    return loader("clip", "CLIPLoader", {"clip_name": file.name, "type": kind}, file)


def prepare(number: int, model: str, low: str = "") -> Node:
    """Reuse: Prepare of a clip, which continues the one before; the first begins at the empty latent."""
    wires = {"model": model, "prior": f"join{number - 1}.0" if number > 1 else "empty.0"}
    wires |= {"model_low": low} if low else {}
    return Node(f"prepare{number}", "VidRDReusePrepare", {"preset": "auto"}, wires)


def join(number: int, latent: str) -> list[Node]:
    """Reuse: Join of a clip, and its report."""
    wires = {"latent": latent, "session": f"prepare{number}.3"}
    report = Node(f"report{number}", "PreviewAny", {}, {"source": f"join{number}.2"}, size=(360, 140))
    return [Node(f"join{number}", "VidRDReuseJoin", {}, wires), report]


def clip_title(model: VideoModel, number: int) -> str:
    frames = model.clip_frames if number == 1 else model.added_frames
    return f"Clip {number}: {frames} {'frames' if number == 1 else 'more frames'}"


def files_of(model: VideoModel) -> str:
    """The note's tree of folders and its list of downloads."""
    folders: dict[str, list[str]] = {}
    for file in model.files:
        folders.setdefault(file.directory, []).append(file.name)
    tree = "\n".join(f"  {folder}/\n" + "\n".join(f"    {name}" for name in names) for folder, names in folders.items())
    links = "\n".join(f"- [{file.name}]({file.url})" for file in model.files)
    return f"```\nComfyUI/models/\n{tree}\n```\n\n{links}\n\n"


def chain_note(name: str, how: str, costs: str, height: int) -> Group:
    """The note of an example: files, what happens to frames, what is known of memory and time."""
    model = MODELS[name]
    kept, one = model.overlap_frames, model.frames_per_latent
    if one > 1:
        frames = (
            f"A latent of {model.title} holds {one} frames after the first, which has one alone. A new clip of "
            f"{model.clip_frames} frames ({model.clip_latents} latents) is laid out as a lead-in of 1 frame, the "
            f"last {kept} frames of the video ({model.overlap_latents} latents), and {model.added_frames} new ones. "
            f"The "
            "first two parts are dropped when the clip joins the video; nothing is decoded and encoded again on the "
            "way."
        )
    else:
        frames = (
            f"Each frame has a latent. A new clip of {model.clip_frames} frames begins with the last {kept} of the "
            f"video and adds {model.added_frames}; the repeated ones are dropped when it joins the video."
        )
    lengths = ", ".join(map(str, model.lengths))
    words = (
        f"# {model.title}, clip by clip\n\n{files_of(model)}{how}\n\n{frames} The video has {lengths} frames after "
        f"each clip.\n\n- Not happy with a clip? Change its seed or prompt and run again: only that clip and those "
        f"after it "
        "are sampled anew.\n- One clip more: right-click the last sampler and choose **Add Reuse and Diffuse**.\n"
        f"{costs}\n- {NOT_TRIED}"
    )
    return note(words, (480, height))


def ending(name: str, samples: str, vae_of: str = "vae.0", decoder: Node | None = None) -> Group:
    """Decode once, then create and save the video."""
    decode = decoder or Node("decode", "VAEDecode", {}, {"samples": samples, "vae": vae_of})
    video = Node("video", "CreateVideo", {"fps": float(MODELS[name].fps)}, {"images": "decode.0"})
    save = Node("save", "SaveVideo", {"filename_prefix": f"video/{name.partition('_')[2]}"}, {"video": "video.0"})
    return Group("Decode once and save", [[decode, video, save]])


def empty(kind: str, model: VideoModel) -> Node:
    values = {"width": model.width, "height": model.height, "length": model.clip_frames, "batch_size": 1}
    return Node("empty", kind, values)


def wan_14b() -> Rows:
    name = "8_wan2_2_14B"
    model = MODELS[name]
    high, low, high_lora, low_lora, umt5, wan_vae = model.files
    notes = chain_note(
        name,
        "Wan 2.2 14B has two experts: one for high noise, one for low noise. *Reuse: Prepare* takes both and hands "
        "both on; the two *KSampler (Advanced)* between it and *Reuse: Join* are those of ComfyUI's template (4 steps "
        "with the lightx2v LoRAs, split after 2, cfg 1, shift 5). Any split will do, but all clips need the same.",
        "- Without the LoRAs: bypass their nodes, set shift 8, and in every sampler 20 steps, split after 10, and cfg "
        "3.5. More motion, five times the time.\n"
        "- ComfyUI's template states for one such clip on an RTX 4090D with 24 GB: 89% of the memory and 108 s, 71 s "
        "when repeated (20 steps: 84%, 536 s).",
        600,
    )
    loaders = [
        *(unet("high", high, "High noise"), lora("high_lora", high_lora, "high.0")),
        shifted("high_shift", "high_lora.0", 5.0),
        *(unet("low", low, "Low noise"), lora("low_lora", low_lora, "low.0")),
        shifted("low_shift", "low_lora.0", 5.0),
        *(text_encoder(umt5, "wan"), vae(wan_vae)),
    ]
    prompts = [text("positive", FOX, "clip.0"), text("negative", WAN_NEGATIVE, "clip.0", "Negative prompt")]
    inputs = Group("2 - Prompts and size", [[*prompts, empty("EmptyHunyuanLatentVideo", model)]])
    clips = [wan_14b_clip(number, clip_title(model, number)) for number in (1, 2, 3)]
    return [[notes, Group("1 - Models", [loaders]), inputs, *clips, ending(name, "join3.0")]]


def wan_14b_clip(number: int, title: str) -> Group:
    shared = {"steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    conds = {"positive": "positive.0", "negative": "negative.0"}
    first = {"add_noise": "enable", "noise_seed": number, **FIXED, **shared}
    first |= {"start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    then = {"add_noise": "disable", "noise_seed": 0, **FIXED, **shared}
    then |= {"start_at_step": 2, "end_at_step": 4, "return_with_leftover_noise": "disable"}
    wires = {"model": f"prepare{number}.0", **conds, "latent_image": f"prepare{number}.2"}
    low = {"model": f"prepare{number}.1", **conds, "latent_image": f"high{number}.0"}
    samplers = [
        Node(f"high{number}", "KSamplerAdvanced", first, wires, f"High noise, clip {number}"),
        Node(f"low{number}", "KSamplerAdvanced", then, low, f"Low noise, clip {number}"),
    ]
    columns = [[prepare(number, "high_shift.0", "low_shift.0")], samplers, join(number, f"low{number}.0")]
    return Group(f"{number + 2} - {title}", columns)


def wan_5b() -> Rows:
    name = "9_wan2_2_5B"
    model = MODELS[name]
    weights, umt5, wan_vae = model.files
    notes = chain_note(
        name,
        "One model and one sampler, so that our own nodes sample: *Sample First Clip* and *Reuse and Diffuse*, with "
        "the settings of ComfyUI's template (uni_pc, simple, 20 steps, cfg 5, shift 8). Steps, sampler and scheduler "
        "of the later clips are those of the first. Each clip has a prompt of its own here.",
        "- ComfyUI's documentation says that this model fits on a card with 8 GB, with its own offloading "
        "(docs.comfy.org, Wan 2.2).\n- From an image: connect *Load Image* to *start_image* of "
        "*Wan22ImageToVideoLatent*.",
        540,
    )
    words = [
        FOX,
        "A red fox leaves the snowy forest path and jumps over a fallen trunk. Snow falls from the branches, low "
        "winter sun shines through the pines.",
        "A red fox stops in a snowy clearing, lifts its head and looks around. Low winter sun shines through the "
        "pines.",
    ]
    loaders = [[unet("unet", weights), shifted("shift", "unet.0", 8.0), text_encoder(umt5, "wan"), vae(wan_vae)]]
    size = {"width": model.width, "height": model.height, "length": model.clip_frames, "batch_size": 1}
    start = Node("empty", "Wan22ImageToVideoLatent", size, {"vae": "vae.0"})
    prompts = [text(f"positive{n}", words[n - 1], "clip.0", f"Prompt of clip {n}") for n in (1, 2, 3)]
    inputs = [prompts, [text("negative", WAN_NEGATIVE, "clip.0", "Negative prompt"), start]]
    sampling = {"seed": 1, **FIXED, "steps": 20, "cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple"}
    wires = {"model": "shift.0", "negative": "negative.0"}
    first = Node("clip1", "VidRDSampleFirstClip", sampling, {**wires, "positive": "positive1.0", "latent": "empty.0"})
    clips = [Group(f"3 - {clip_title(model, 1)}", [[first]])]
    for number in (2, 3):
        values = {"seed": number, **FIXED, "cfg": 5.0, "preset": "auto"}
        given = {**wires, "positive": f"positive{number}.0", "prior": f"clip{number - 1}.0"}
        report = Node(f"report{number}", "PreviewAny", {}, {"source": f"clip{number}.2"}, size=(300, 140))
        node = Node(f"clip{number}", "VidRDReuseAndDiffuse", values, given)
        clips.append(Group(f"{number + 2} - {clip_title(model, number)}", [[node, report]]))
    head = [notes, Group("1 - Model", loaders), Group("2 - Prompts and size", inputs)]
    return [[*head, *clips, ending(name, "clip3.0")]]


def ltx_video() -> Rows:
    name = "10_ltx_video"
    model = MODELS[name]
    weights, t5 = model.files
    notes = chain_note(
        name,
        "The sampler is that of ComfyUI's template: *SamplerCustom* with euler, 30 steps of *LTXVScheduler*, cfg 3. It "
        "stands between *Reuse: Prepare* and *Reuse: Join*, once for each clip; all share one schedule. LTX-Video "
        "takes a noise level for every token, so the overlap is shown cleaner, and the model is told so.",
        "- LTX-Video wants long descriptions.\n- Its decoder looks ahead, so that the frames right before a seam "
        "change a little when the next clip is there: decode once, at the end.\n- Memory of the decoder grows with "
        "the length. ComfyUI goes over to tiles by itself where it does not suffice; *VAE Decode (Tiled)* does so "
        "from the start.\n"
        "- Later versions of the model (0.9.5 and on) work the same: choose the file.",
        540,
    )
    loaders = [
        loader("load", "CheckpointLoaderSimple", {"ckpt_name": weights.name}, weights),
        text_encoder(t5, "ltxv"),
        Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
    ]
    prompts = [text("positive", SAIL, "clip.0"), text("negative", LTX_NEGATIVE, "clip.0", "Negative prompt")]
    rate = {"positive": "positive.0", "negative": "negative.0"}
    settings = [
        Node("rate", "LTXVConditioning", {"frame_rate": 25.0}, rate),
        empty("EmptyLTXVLatentVideo", model),
        Node(
            "sigmas", "LTXVScheduler",
            {"steps": 30, "max_shift": 2.05, "base_shift": 0.95, "stretch": True, "terminal": 0.1},
            {"latent": "empty.0"},
        ),
    ]  # fmt: skip
    clips = []
    for number in (1, 2, 3):
        wires = {"model": f"prepare{number}.0", "positive": "rate.0", "negative": "rate.1", "sampler": "sampler.0"}
        wires |= {"sigmas": "sigmas.0", "latent_image": f"prepare{number}.2"}
        values = {"add_noise": True, "noise_seed": number, **FIXED, "cfg": 3.0}
        sample = Node(f"sample{number}", "SamplerCustom", values, wires)
        columns = [[prepare(number, "load.0")], [sample, *join(number, f"sample{number}.0")]]
        clips.append(Group(f"{number + 2} - {clip_title(model, number)}", columns))
    head = [notes, Group("1 - Model", [loaders]), Group("2 - Prompts, size and schedule", [prompts, settings])]
    return [[*head, *clips, ending(name, "join3.0", "load.2")]]


def hunyuan_video() -> Rows:
    name = "11_hunyuan_video"
    model = MODELS[name]
    weights, clip_l, llava, hunyuan_vae = model.files
    notes = chain_note(
        name,
        "The sampler is that of ComfyUI's template: *SamplerCustomAdvanced* with *BasicGuider* (there is no negative "
        "prompt), euler, 20 steps, simple, shift 7, guidance 6. Each clip has a guider of its own, because the model "
        "that it guides with comes from the clip's *Reuse: Prepare*.",
        "- As in the template the video is decoded in tiles, which most cards need. Tiles in time overlap by 16 frames "
        "here (4 latents) in place of 8, so that no tile begins visibly. This decoder looks at all frames of a tile: "
        "frames near a seam change a little with what follows.\n- Short of memory? Load the weights as fp8 "
        "(*weight_dtype*), smaller tiles.",
        540,
    )
    values = {"clip_name1": clip_l.name, "clip_name2": llava.name, "type": "hunyuan_video"}
    loaders = [
        unet("unet", weights),
        loader("clip", "DualCLIPLoader", values, clip_l, llava),
        vae(hunyuan_vae),
        shifted("shift", "unet.0", 7.0),
    ]
    settings = [
        text("positive", FOX, "clip.0"),
        Node("guidance", "FluxGuidance", {"guidance": 6.0}, {"conditioning": "positive.0"}),
        empty("EmptyHunyuanLatentVideo", model),
        Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
        Node("sigmas", "BasicScheduler", {"scheduler": "simple", "steps": 20, "denoise": 1.0}, {"model": "shift.0"}),
    ]
    clips = []
    for number in (1, 2, 3):
        guider = Node(
            f"guider{number}", "BasicGuider", {}, {"model": f"prepare{number}.0", "conditioning": "guidance.0"}
        )
        noise = Node(f"noise{number}", "RandomNoise", {"noise_seed": number, **FIXED})
        wires = {"noise": f"noise{number}.0", "guider": f"guider{number}.0", "sampler": "sampler.0"}
        wires |= {"sigmas": "sigmas.0", "latent_image": f"prepare{number}.2"}
        sample = Node(f"sample{number}", "SamplerCustomAdvanced", {}, wires)
        columns = [[prepare(number, "shift.0")], [noise, guider, sample], join(number, f"sample{number}.0")]
        clips.append(Group(f"{number + 2} - {clip_title(model, number)}", columns))
    tiles = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 16}
    decode = Node("decode", "VAEDecodeTiled", tiles, {"samples": "join3.0", "vae": "vae.0"})
    head = [notes, Group("1 - Model", [loaders]), Group("2 - Prompt, size and schedule", [settings])]
    return [[*head, *clips, ending(name, "join3.0", decoder=decode)]]


def animatediff() -> Rows:
    name = "12_animatediff_evolved"
    model = MODELS[name]
    weights, motion = model.files
    notes = chain_note(
        name,
        "Needs the nodes of [AnimateDiff-Evolved](https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved). They "
        "put a motion module into any Stable Diffusion 1.5 checkpoint; the frames of a clip lie in the batch of an "
        "*Empty Latent Image*. The *KSampler* between *Reuse: Prepare* and *Reuse: Join* is the stock one.",
        "- Any motion module will do; 16 frames are what they were trained on (HotshotXL: 8).\n- No context options "
        "are needed: every clip is as long as the motion module likes it.\n- The motion module is a .ckpt, which "
        "ComfyUI does not offer to download: put it into the folder yourself. The same weights as safetensors are at "
        "[conrevo/AnimateDiff-A1111](https://huggingface.co/conrevo/AnimateDiff-A1111/tree/main/motion_module).",
        540,
    )
    ade = {"cnr_id": animatediff_evolved.CNR_ID, "ver": animatediff_evolved.VERSION}
    loaders = [
        loader("load", "CheckpointLoaderSimple", {"ckpt_name": weights.name}, weights),
        Node("motion", "ADE_LoadAnimateDiffModel", {"model_name": motion.name}, properties=ade),
        Node("apply", "ADE_ApplyAnimateDiffModelSimple", {}, {"motion_model": "motion.0"}, properties=ade),
        Node(
            "evolved", "ADE_UseEvolvedSampling", {"beta_schedule": "autoselect"},
            {"model": "load.0", "m_models": "apply.0"}, properties=ade,
        ),
    ]  # fmt: skip
    size = {"width": model.width, "height": model.height, "batch_size": model.clip_frames}
    settings = [
        text("positive", "a red fox walks through a snowy forest, winter sun, best quality", "load.1"),
        text("negative", "worst quality, low quality, watermark, text", "load.1", "Negative prompt"),
        Node("empty", "EmptyLatentImage", size, title="Size, and frames as batch_size"),
    ]
    clips = []
    for number in (1, 2, 3):
        values = {"seed": number, **FIXED, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal"}
        wires = {"model": f"prepare{number}.0", "positive": "positive.0", "negative": "negative.0"}
        sample = Node(f"sample{number}", "KSampler", values, {**wires, "latent_image": f"prepare{number}.2"})
        columns = [[prepare(number, "evolved.0")], [sample, *join(number, f"sample{number}.0")]]
        clips.append(Group(f"{number + 2} - {clip_title(model, number)}", columns))
    head = [notes, Group("1 - Model", [loaders]), Group("2 - Prompts and size", [settings])]
    return [[*head, *clips, ending(name, "join3.0", "load.2")]]


MODEL_RECIPES = {
    "8_wan2_2_14B": wan_14b,
    "9_wan2_2_5B": wan_5b,
    "10_ltx_video": ltx_video,
    "11_hunyuan_video": hunyuan_video,
    "12_animatediff_evolved": animatediff,
}
