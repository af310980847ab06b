"""What the rest of the program knows of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gancli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from gancli.errors import SettingError


class Generator(nn.Module, ABC):
    """Noise to samples.

    latent_dim: dimensions of the noise. image_shape: (C, H, W) of an image or (dims,) of a point.
    num_classes: 0 where samples have no class. Raises ValueError.
    """

    def __init__(self, *, latent_dim: int, image_shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        if latent_dim < 1:
            raise SettingError(f"latent_dim={latent_dim}: noise needs at least 1 dimension")
        self.latent_dim = latent_dim
        self.image_shape, self.num_classes = _checked(image_shape, num_classes)

    @abstractmethod
    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise (B, latent_dim) and int64 labels (B,) to (B, *image_shape): images in [-1, 1], points anywhere.

        A network without a last tanh learns the range of images and may leave it. Raises ValueError where
        there are classes but no labels; without classes labels are ignored.
        """

    def logged_parameters(self) -> dict[str, Tensor]:
        """Numbers to log beside the losses, by name; for networks of few parameters."""
        return {}


class CrossSampleLayer(nn.Module):
    """A layer whose output for a sample depends on the other samples of its batch.

    process_group: the processes that share the batch in training; set by `share_batches`.
    """

    process_group: ProcessGroup = SINGLE_PROCESS

    @property
    def active_group(self) -> ProcessGroup:
        """The processes whose samples count: all of them in training, this one in evaluation mode."""
        return self.process_group if self.training else SINGLE_PROCESS


def share_batches(network: nn.Module, process_group: ProcessGroup) -> None:
    """Lets every layer that mixes samples look at the whole batch of `process_group`."""
    for layer in network.modules():
        if isinstance(layer, CrossSampleLayer):
            layer.process_group = process_group


class Discriminator(nn.Module, ABC):
    """Samples to logits, high for real. Arguments as for `Generator`."""

    def __init__(self, *, image_shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        self.image_shape, self.num_classes = _checked(image_shape, num_classes)

    @property
    def per_sample(self) -> bool:
        """Whether a sample's logit is independent of the others in its batch.

        Batch normalisation mixes samples, and every layer that derives from `CrossSampleLayer`.
        """
        return not any(isinstance(module, (_BatchNorm, CrossSampleLayer)) for module in self.modules())

    @abstractmethod
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Samples (B, *image_shape) and int64 labels (B,) to logits (B,); labels as for `Generator`."""

    def logged_parameters(self) -> dict[str, Tensor]:
        """As the generator's."""
        return {}


def _checked(image_shape: Sequence[int], num_classes: int) -> tuple[tuple[int, ...], int]:
    shape = tuple(image_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise SettingError(f"image_shape={shape}: expected (channels, height, width) or (dims,), each at least 1")
    if num_classes < 0:
        raise SettingError(f"num_classes={num_classes}: 0 for unlabelled data, or the number of classes")
    return shape, num_classes
