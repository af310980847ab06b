"""Feature extractors: from images to vectors between which distances are meaningful."""

from __future__ import annotations

import logging
import tempfile
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gancli.datasets.base import Dataset, to_unit
from gancli.errors import FeaturesUnavailable, InvalidTensorFile, SettingError, require_between, require_memory
from gancli.files import tensor_files
from gancli.files.digest import digest
from gancli.files.user_paths import expand
from gancli.networks.efficientnet import PRETRAINED_ON, SIDE, EfficientNetLite, is_installed
from gancli.progress import progress
from gancli.randomness import seeded

log = logging.getLogger(__name__)
INCEPTION = "inception-v3-compat"  # the extractor in which published values of FID, KID and Inception score are
_SHORT_NAMES = {INCEPTION: "inception", "dinov2-vit-b-14": "dinov2", "clip-vit-b-32": "clip"}
_BATCH_SIZE = 250


class Features(ABC):
    """A feature extractor. hash: of all that its features depend on. resize: how it changes the size of images.

    accuracy: on held-out images, of a classifier of this data set's own classes; None for other extractors.
    names_classes: whether it returns class logits. pretrained_on: the data set that its weights are from, if it is not
    that of the run.
    """

    name: str
    hash: str
    resize: str = "none"
    accuracy: float | None = None
    names_classes: bool = False
    pretrained_on: str | None = None

    @property
    def short_name(self) -> str:
        """Returns what stands for the extractor in the names of numbers, such as `random` in `fd_random`."""
        return _SHORT_NAMES.get(self.name, self.name.replace("-", "_"))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (N, C, H, W) to float32 on the CPU: "features" (N, F) and, from a classifier, "logits" (N, K)."""
        parts: dict[str, list[Tensor]] = {}
        with torch.inference_mode():
            batches = images.split(_BATCH_SIZE)
            for batch in progress(batches, title=f"{self.name} features of images", total=len(images), size=len):
                for name, value in self.extract(batch).items():
                    parts.setdefault(name, []).append(value.float().cpu())
        return {name: torch.cat(values).clone() for name, values in parts.items()}

    @abstractmethod
    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """Does the same for one batch, on any device."""


class Random(Features):
    """A fixed random convolutional network, which needs no weights and no labels.

    Distances in its features tell good samples of a data set from bad ones (Naeem et al., ICML 2020, section 4, use
    random embeddings likewise) and compare with numbers of no other extractor. width: number of features, a multiple
    of 4. Raises SettingError.
    """

    name = "random"

    def __init__(self, dataset: Dataset, *, device: torch.device, width: int = 128, seed: int = 0) -> None:
        self.check_settings(width=width)
        with torch.random.fork_rng(devices=[]):  # the layers draw initial weights, which are replaced below
            self.network = _random_network(dataset.shape, width)
        rng = seeded("random features", seed)
        with torch.no_grad():
            for layer in self.network:
                if isinstance(layer, nn.Conv2d):
                    std = (2 / layer.weight[0].numel()) ** 0.5
                    layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=rng))
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.network.eval().requires_grad_(False).to(device)
        self.device = device
        self.hash = digest(*self.network.state_dict().values())

    @staticmethod
    def check_settings(*, width: int | None = None, **_: Any) -> None:
        """Raises SettingError for values that are wrong whatever the data."""
        if width is not None and (width < 4 or width % 4):
            raise SettingError(f"width={width}: a multiple of 4, for the quarters of an image")
        require_memory(8 * (width or 0) ** 2, width=width or 0)  # for the covariance of the features

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network(to_unit(images.to(self.device)))}


def _random_network(shape: tuple[int, ...], width: int) -> nn.Sequential:
    """Images (B, *shape) to (B, width): width / 4 channels, averaged over each quarter of the image."""
    channels, height, side = shape
    layers: list[nn.Module] = []
    before, after, smaller = channels, 32, min(height, side)
    while smaller >= 8:
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before, after, smaller = after, min(2 * after, 128), smaller // 2
    layers += [nn.Conv2d(before, width // 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers)


class EfficientNet(Features):
    """EfficientNet-Lite0's features before its classifier (N, 1280), averaged over the image; pretrained on ImageNet.

    side: pixels to which the smaller side of an image is resized first (bilinear, antialiased). The network was
    pretrained at 224 pixels; below 128 its features tell pictures apart badly, above it a CPU is slow. Raises
    SettingError, and UserError where the weights are not installed.
    """

    name = "efficientnet"
    pretrained_on = PRETRAINED_ON

    def __init__(self, dataset: Dataset, *, device: torch.device, side: int = 128) -> None:
        self.check_settings(side=side)
        channels, height, width = dataset.shape
        if channels not in (1, 3):
            raise SettingError(f"metric/features=efficientnet: takes grey or RGB images, not {channels} channels")
        network = EfficientNetLite(0, needed_by="metric/features=efficientnet")
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.device = device
        scale = side / min(height, width)
        self.sides = (round(scale * height), round(scale * width))
        if self.sides != (height, width):
            self.resize = f"bilinear, antialiased, to {self.sides[0]}x{self.sides[1]}"
        self.hash = digest(network.get_buffer("hash_bytes"), torch.tensor(self.sides))

    @staticmethod
    def check_settings(*, side: int | None = None, **_: Any) -> None:
        """Raises SettingError for values that are wrong whatever the data."""
        if side is not None:
            require_between(SIDE, 1_024, side=side)

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        x = to_unit(images.to(self.device))
        if self.resize != "none":
            x = interpolate(x, size=self.sides, mode="bilinear", antialias=True)
        return {"features": self.network.pooled(x.contiguous(memory_format=torch.channels_last))}


class Auto(Features):
    """`EfficientNet` for photographs where its weights are installed, else `Random`.

    name, hash, resize, pretrained_on: of the chosen one.
    """

    def __init__(self, dataset: Dataset, *, device: torch.device) -> None:
        pretrained = dataset.photographs and dataset.shape[0] in (1, 3) and is_installed(0)
        self.chosen: Features = (EfficientNet if pretrained else Random)(dataset, device=device)
        self.name, self.hash, self.resize = self.chosen.name, self.chosen.hash, self.chosen.resize
        self.pretrained_on = self.chosen.pretrained_on

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return self.chosen.extract(images)


class Registered(Features):
    """An extractor of torch-fidelity's registry, such as inception-v3-compat. Its weights are never downloaded.

    extractor: the registered name. file: the name of its weights in torch hub's folder `checkpoints`. weights: their
    path, or None for that folder. Raises SettingError, and FeaturesUnavailable that says which file to put where.
    """

    def __init__(
        self, dataset: Dataset, *, device: torch.device, extractor: str, file: str, weights: str | None = None
    ) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        self.check_settings(extractor=extractor, file=file)
        if dataset.shape[0] not in (1, 3):
            raise SettingError(f"extractor={extractor}: takes grey or RGB images, not {dataset.shape[0]} channels")
        kind = FEATURE_EXTRACTORS_REGISTRY[extractor]
        path = self._find_weights(extractor, file, weights)
        layers = {metric: kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")}
        self.layers = list(dict.fromkeys(layers.values()))
        content = self._read_weights(path, is_own=weights is None)
        # The layers draw initial weights, which are replaced.
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
            given = {}  # torch-fidelity finds files of torch hub by itself, and some of its classes take no path
            if weights is not None:  # it would unpickle any file and run the code in it, so it gets one written here
                copy = Path(folder) / file
                torch.save(content, copy)
                given = {"feature_extractor_weights_path": str(copy)}
            try:
                self.network = kind(extractor, self.layers, verbose=False, **given).to(device)
            except Exception as error:  # torch-fidelity raises all sorts for foreign weights and for missing code
                raise FeaturesUnavailable(
                    f"metric.features.weights={weights}: torch-fidelity cannot build {extractor} from {path}: "
                    f"{str(error).partition(chr(10))[0]}; metric/features=random needs no weights"
                ) from None
        self.features_layer, self.logits_layer = layers["fid"], layers["isc"]
        self.names_classes = self.features_layer != self.logits_layer
        self.device, self.name = device, extractor
        self.pretrained_on = PRETRAINED_ON if extractor == INCEPTION else None
        self.hash = digest(*self.network.state_dict().values())
        self.resize = "as torch-fidelity's: bilinear of TensorFlow 1"

    @staticmethod
    def check_settings(*, extractor: str, file: str | None = None, **_: Any) -> None:
        """Raises SettingError for an extractor that torch-fidelity does not have, and for a file that is a path."""
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        if extractor not in FEATURE_EXTRACTORS_REGISTRY:
            choices = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))
            raise SettingError(f"extractor={extractor}: torch-fidelity has {choices}")
        if file is not None and Path(file).name != file:
            raise SettingError(f"file={file}: a name in torch hub's folder; weights=… takes a path")

    @staticmethod
    def _find_weights(extractor: str, file: str, weights: str | None) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / file if weights is None else expand(weights)
        if not path.is_file():
            raise FeaturesUnavailable(
                f"metric.features.weights={weights}: no weights of {extractor}; put {file} into {path.parent}, "
                f"or give the path of the file; metric/features=classifier and metric/features=random need none"
            )
        return path

    @staticmethod
    def _read_weights(path: Path, *, is_own: bool) -> dict[str, Any] | None:
        """Returns the weights in a file; None for TorchScript, which is taken from torch hub's own folder only."""
        if is_own and _is_torchscript(path):
            return None
        try:
            return tensor_files.read(path, dict[str, Tensor], legacy=True)
        except InvalidTensorFile as error:
            raise FeaturesUnavailable(f"metric.features.weights={path}: {error}") from None

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        rgb = images.expand(-1, 3, -1, -1).contiguous() if images.shape[1] == 1 else images
        values = dict(zip(self.layers, self.network(rgb.to(self.device)), strict=True))
        extracted = {"features": values[self.features_layer]}
        if self.names_classes:
            extracted["logits"] = values[self.logits_layer]
        return extracted


def _is_torchscript(path: Path) -> bool:
    """Decides as torch does: by an entry in the folder that the archive's first entry lies in."""
    if not tensor_files.begins_as_zip(path) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and names[0].partition("/")[0] + "/constants.pkl" in names
