"""A discriminator on pretrained features (Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gancli.errors import SettingError, require_at_least, require_between
from gancli.networks.base import Discriminator
from gancli.networks.convolution import Conv2d
from gancli.networks.dcgan import DCGANDiscriminator
from gancli.networks.efficientnet import PRETRAINED_ON, SIDE, STRIDES, EfficientNetLite
from gancli.networks.layers import ProjectionHead, apply_spectral_norm, he_, widths_for
from gancli.networks.resampling import bilinear

_SLOPE = 0.2
_COARSEST = 4  # pixels of the smaller side of the map from which a head computes its logit, or fewer


class ProjectedDiscriminator(Discriminator):
    """A head on each of four mixtures of frozen features of EfficientNet-Lite1, of strides 4 to 32, and one on pixels.

    The logits are (B, 5), or (B, 4) without the last.

    Frozen random convolutions mix the features, 1x1 ones across channels and 3x3 ones from each scale into the next
    finer one (section 3.2 of the paper), so that no head can attend to a few features only. The heads are spectrally
    normalised. Use it with loss=hinge, no penalty and augment=diffaugment, as the paper does.

    Pretrained features hardly see colours and contrast, which the head on pixels judges (Kumari et al., CVPR 2022, keep
    a discriminator of pixels beside those on features).

    channels: of the finest mixture and of a head's finest map, doubled at each coarser one up to `max_channels`.
    pixels: channels of the finest map of the head on pixels, 0 for none. side: images whose smaller side is shorter are
    enlarged to it for the features. Raises SettingError, and UserError where the pretrained weights are not installed.
    """

    pretrained_on = PRETRAINED_ON

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 128,
        pixels: int = 32,
        side: int = SIDE,
    ) -> None:
        super().__init__(image_shape=image_shape, num_classes=num_classes)
        if len(self.image_shape) != 3 or self.image_shape[0] not in (1, 3):
            raise SettingError(
                f"image_shape={self.image_shape}: pretrained features are of images with 1 channel or 3; "
                "try another network/discriminator, or pack=1"
            )
        require_between(SIDE, 1_024, side=side)
        height, width = self.image_shape[1:]
        scale = max(1.0, side / min(height, width))
        larger = (round(scale * height), round(scale * width))
        self.enlarge = nn.Identity() if scale == 1 else bilinear((height, width), larger)
        widths = widths_for(len(STRIDES), channels=channels, max_channels=max_channels)
        self.features = EfficientNetLite(1, needed_by="network/discriminator=projected")
        self.across_channels = nn.ModuleList(
            _frozen(nn.Conv2d(before, after, 1)) for before, after in zip(self.features.channels, widths, strict=True)
        )
        self.across_scales = nn.ModuleList(
            _frozen(nn.Conv2d(coarse, fine, 3, padding=1)) for fine, coarse in pairwise(widths)
        )
        sides = [(-(-larger[0] // stride), -(-larger[1] // stride)) for stride in STRIDES]  # the maps' (height, width)
        self.upsample = nn.ModuleList(bilinear(coarse, fine) for fine, coarse in pairwise(sides))
        self.heads = nn.ModuleList(
            _Head(*of_scale, num_classes, max_channels=max_channels) for of_scale in zip(widths, sides, strict=True)
        )
        require_at_least(0, pixels=pixels)
        self.on_pixels = (
            DCGANDiscriminator(
                image_shape=self.image_shape,
                num_classes=num_classes,
                channels=pixels,
                max_channels=max(pixels, max_channels),
                spectral_norm=True,
            )
            if pixels
            else None
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = [head(each, labels) for head, each in zip(self.heads, self._mixtures(x), strict=True)]
        if self.on_pixels is not None:
            logits.append(self.on_pixels(x, labels))
        return torch.stack(logits, 1)

    def _mixtures(self, x: Tensor) -> list[Tensor]:
        """Returns the mixed features of images (B, C, H, W), the finest first, each (B, widths[i], H', W')."""
        features = self.features(self.enlarge(x))
        maps = [mix(each) for mix, each in zip(self.across_channels, features, strict=True)]
        for index in reversed(range(len(self.across_scales))):
            coarser = self.upsample[index](self.across_scales[index](maps[index + 1]))
            maps[index] = (maps[index] + coarser) * 0.5**0.5  # keeps the scale
        return maps


class _Head(nn.Module):
    """Convolutions down to `_COARSEST` pixels, at least one, and a projection head: maps (B, C, H, W) to logits (B,).

    side: (H, W).
    """

    def __init__(self, channels: int, side: tuple[int, int], num_classes: int, *, max_channels: int) -> None:
        super().__init__()
        height, width = side
        layers: list[nn.Module] = []
        while min(height, width) > _COARSEST:
            after = min(2 * channels, max_channels)
            layers += [Conv2d(channels, after, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
            channels, height, width = after, height // 2, width // 2
        if not layers:
            layers = [Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
        self.stages = he_(nn.Sequential(*layers), slope=_SLOPE)
        self.head = ProjectionHead(channels * height * width, num_classes)
        apply_spectral_norm(self)

    def forward(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.head(self.stages(maps).flatten(1), labels)
        return logits


def _frozen(convolution: nn.Conv2d) -> nn.Conv2d:
    """Draws weights that keep the scale of their input, and makes them buffers: in checkpoints, not trained."""
    he_(nn.Sequential(convolution), slope=1)
    for name in ("weight", "bias"):
        value = getattr(convolution, name).detach()
        delattr(convolution, name)
        convolution.register_buffer(name, value)
    return convolution
