"""An adversarial loss for video: a spatio-temporal patch discriminator trained against the decoder.

The recipe of VQGAN (arXiv 2012.09841, section 3.1): hinge loss, a late start, and an adaptive weight that gives
the adversarial gradient the norm of the reconstruction's at the decoder's last layer; here its last temporal
convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

MAX_WEIGHT = 1e4  # of the adaptive weight


@dataclass(frozen=True)
class AdversarySettings:
    """The discriminator and its loss; our own defaults."""

    weight: float = 0.0  # of the adversarial loss, times the adaptive weight; 0: none
    start_samples: int = 0  # samples after which the adversarial loss starts
    channels: int = 64  # of the discriminator's first layer
    layers: int = 3  # that halve the resolution


class PatchDiscriminator(nn.Module):
    """Clips ``[B, 3, T, H, W]`` to a score for every patch of a few frames, ``[B, 1, T', h, w]``; high means real."""

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [3, *(channels * min(2**n, 8) for n in range(layers))]
        blocks: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:])):
            blocks.append(nn.Conv3d(before, after, (3, 4, 4), (1, 2, 2), 1))
            if number:
                blocks.append(nn.GroupNorm(min(8, after), after))
            blocks.append(nn.LeakyReLU(0.2))
        self.blocks = nn.Sequential(*blocks, nn.Conv3d(widths[-1], 1, 3, padding=1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.blocks(clips)


class Adversary:
    """The discriminator, with the generator's and the discriminator's loss."""

    def __init__(self, settings: AdversarySettings):
        self.settings = settings
        self.discriminator = PatchDiscriminator(settings.channels, settings.layers)

    def losses(
        self, call: nn.Module, reconstruction: Tensor, output: Tensor, target: Tensor, last: nn.Parameter
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Generator and discriminator loss, added up, so that one backward pass trains both against each other.

        Args:
            call: the discriminator, perhaps wrapped for several processes.
            reconstruction: sum of the decoder's other losses.
            output, target: clips ``[B, 3, T, H, W]``.
            last: the parameter at which the norms of the gradients are compared.
        """
        # Generator loss: gradients flow through the discriminator, not into its weights.
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        generator = -torch.func.functional_call(self.discriminator, fixed, (output,)).mean()
        weight = self.settings.weight * _adaptive_weight(reconstruction, generator, last)

        # Discriminator loss on real and decoded clips; the latter are detached.
        real, fake = call(torch.cat((target, output.detach().to(target.dtype)))).chunk(2)
        discriminator = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        # Only the gradient of the generator loss is kept: its value may be far below zero and says nothing of the fit.
        gradient_only = weight * (generator - generator.detach())
        figures: dict[str, float | Tensor] = {
            "adversarial": generator.item(),
            "adversarial_weight": float(weight),
            "discriminator": discriminator.item(),
        }
        return gradient_only + discriminator, figures


def _adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter) -> Tensor:
    """||gradient of the reconstruction|| / ||gradient of the adversarial loss||, of the means over all processes."""
    lengths = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last, retain_graph=True)
        mean: Tensor = reduce(gradient, "mean")  # type: ignore[assignment]
        lengths.append(mean.norm())
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(0, MAX_WEIGHT).detach()
