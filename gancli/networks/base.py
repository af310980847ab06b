"""Base classes of all networks, and of the layers that mix the samples of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gancli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from gancli.errors import SettingError, require_at_least

_PIXELS_AT_ONCE = 2**20  # in a pass without gradients


class Generator(nn.Module, ABC):
    """Maps noise to samples.

    latent_dim: number of dimensions of the noise. image_shape: (C, H, W) of an image or (dims,) of a point.
    num_classes: number of classes of the labels, 0 for unlabelled data. Raises SettingError.
    """

    def __init__(self, *, latent_dim: int, image_shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        require_at_least(1, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.image_shape, self.num_classes = _validated(image_shape, num_classes)

    def at_once(self, most: int) -> int:
        """Returns how many samples, at most `most`, a pass without gradients makes: few of large images, for memory."""
        return max(1, min(most, _PIXELS_AT_ONCE // prod(self.image_shape[1:])))

    @abstractmethod
    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns samples (B, *image_shape) for noise (B, latent_dim) and int64 labels (B,).

        Images are in [-1, 1] where the network ends in a tanh; without one it has to learn that range. Points are
        unbounded. Raises ValueError where the network has classes and `labels` is None; without classes, labels are
        ignored. Networks of gancli also take float labels (B, num_classes), shares of classes (see `ClassEmbedding`).
        """

    def first_weight(self) -> Tensor | None:
        """Returns the weight (features, latent_dim) of the linear maps that the noise goes through first, if any.

        The directions in which samples change most are computed from it (see `inference.directions`).
        """
        return None

    def logged_parameters(self) -> dict[str, Tensor]:
        """Returns name -> 0-dim tensor to log beside the losses, for networks of few parameters."""
        return {}


class CrossSampleLayer(nn.Module):
    """Base of the layers whose output for a sample depends on the other samples of its batch.

    process_group: the processes that share each training batch; set by `share_batches`.
    """

    process_group: ProcessGroup = SINGLE_PROCESS

    @property
    def active_group(self) -> ProcessGroup:
        """The processes whose samples belong to the batch: all in training mode, only this one in evaluation mode."""
        return self.process_group if self.training else SINGLE_PROCESS


def share_batches(network: nn.Module, process_group: ProcessGroup) -> None:
    """Makes every `CrossSampleLayer` of `network` compute over the batches of all processes in `process_group`."""
    for layer in network.modules():
        if isinstance(layer, CrossSampleLayer):
            layer.process_group = process_group


class Discriminator(nn.Module, ABC):
    """Maps samples to logits, high for real samples. Arguments and errors as for `Generator`.

    pretrained_on: the data that frozen features of it were trained on, if any.
    """

    pretrained_on: str | None = None

    def __init__(self, *, image_shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        self.image_shape, self.num_classes = _validated(image_shape, num_classes)

    @property
    def per_sample(self) -> bool:
        """Whether each logit depends on its own sample only.

        It does not with batch normalisation or any other layer that derives from `CrossSampleLayer`.
        """
        return not any(isinstance(module, (_BatchNorm, CrossSampleLayer)) for module in self.modules())

    @abstractmethod
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns logits of samples (B, *image_shape) with int64 labels (B,); labels as for `Generator`.

        They are (B,), or (B, K) of K heads; a loss is then the mean of the losses of the heads.
        """

    def logged_parameters(self) -> dict[str, Tensor]:
        """Returns name -> 0-dim tensor to log beside the losses, for networks of few parameters."""
        return {}


def _validated(image_shape: Sequence[int], num_classes: int) -> tuple[tuple[int, ...], int]:
    shape = tuple(image_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise SettingError(f"image_shape={shape}: expected (channels, height, width) or (dims,), each at least 1")
    require_at_least(0, num_classes=num_classes)
    return shape, num_classes
