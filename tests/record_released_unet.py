"""Record what the authors' released U-Net gives at the sizes of test_parity_larger.py.

    pip install --no-deps --target FOLDER diffusers==0.14.0 huggingface_hub==0.25.2 transformers==4.44.2 \\
        tokenizers==0.19.1
    PYTHONPATH=FOLDER python tests/record_released_unet.py CHECKOUT

CHECKOUT is a clone of the authors' repository. The weights are those of the recordings at 8x8 latents. Inputs are drawn
in float16, outputs are those of float32.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data"
SHAPES = {
    "16x16": (2, 4, 8, 16, 16),
    "24x16": (2, 4, 8, 24, 16),
    "17x19": (1, 4, 5, 17, 19),
    "48x48": (1, 4, 8, 48, 48),
}


def released_unet(checkout: Path, name: str) -> torch.nn.Module:
    """The released U-Net with the weights of a recording at 8x8 latents."""
    package = types.ModuleType("model")  # the package's own __init__ wants the authors' trainer
    package.__path__ = [str(checkout / "model")]
    sys.modules["model"] = package
    from model.modules.unet import UNet3DConditionModel  # type: ignore[import-not-found]

    with safe_open(DATA / f"vidrd_official_{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["unet_config"])
        keys = [key for key in file.keys() if key.startswith("unet.")]  # noqa: SIM118 (not a mapping)
        weights = {key.removeprefix("unet."): file.get_tensor(key).float() for key in keys}
    levels = len(config["block_out_channels"]) - 1
    unet = UNet3DConditionModel(
        **config,
        down_block_types=("CrossAttnDownBlock3D",) * levels + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * levels,
    )
    unet.load_state_dict(weights)
    return unet.eval()


@torch.no_grad()
def main(checkout: Path) -> None:
    torch.manual_seed(0)
    tensors = {}
    for size, shape in SHAPES.items():
        tensors[f"{size}.in.sample"] = torch.randn(shape).half()
        tensors[f"{size}.in.timestep"] = torch.randint(0, 1000, shape[:1])
        tensors[f"{size}.in.encoder_hidden_states"] = torch.randn(shape[0], 7, 32).half()
    for name in ("a", "c"):
        unet = released_unet(checkout, name)
        for size in SHAPES:
            sample, text = (tensors[f"{size}.in.{key}"].float() for key in ("sample", "encoder_hidden_states"))
            tensors[f"{size}.out.{name}"] = unet(sample, tensors[f"{size}.in.timestep"], text).sample.contiguous()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    save_file(tensors, DATA / "vidrd_official_larger.safetensors", versions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
