"""Feature extractors: images to vectors among which distances mean something."""

from __future__ import annotations

import logging
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from gancli.datasets.base import Dataset, to_unit
from gancli.errors import FeaturesUnavailable, SettingError
from gancli.metrics.base import digest
from gancli.randomness import seeded

log = logging.getLogger(__name__)
_BATCH = 250


class Features(ABC):
    """name, hash: of the extractor with its weights. resize: what it does to the size of images.

    accuracy: of a classifier of this data set's own classes, on held-out images; None for others.
    names_classes: whether it gives logits.
    """

    name: str
    hash: str
    resize: str = "none"
    accuracy: float | None = None
    names_classes: bool = False

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (N, C, H, W) to float32 "features" (N, F) and, from a classifier, "logits" (N, K); on the CPU."""
        parts: dict[str, list[Tensor]] = {}
        with torch.inference_mode():
            for batch in images.split(_BATCH):
                for name, value in self.extract(batch).items():
                    parts.setdefault(name, []).append(value.float().cpu())
        return {name: torch.cat(values).clone() for name, values in parts.items()}

    @abstractmethod
    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """One batch."""


class Random(Features):
    """A fixed random convolutional network: no weights to fetch, no labels, any images.

    Its distances tell good samples from bad ones of the same data set (Naeem et al., ICML 2020, section
    4 use random embeddings likewise); they compare with nothing else. width: of the features.
    """

    name = "random"

    def __init__(self, dataset: Dataset, *, device: torch.device, width: int = 128, seed: int = 0) -> None:
        if width < 4 or width % 4:
            raise SettingError(f"width={width}: a multiple of 4, for the quarters of an image")
        with torch.random.fork_rng(devices=[]):  # its layers draw weights, which are not the ones
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

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network(to_unit(images.to(self.device)))}


def _random_network(shape: tuple[int, ...], width: int) -> nn.Sequential:
    channels, height, side = shape
    layers: list[nn.Module] = []
    before, after, smaller = channels, 32, min(height, side)
    while smaller >= 8:
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before, after, smaller = after, min(2 * after, 128), smaller // 2
    layers += [nn.Conv2d(before, width // 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers)


class Auto(Features):
    """`Classifier` where the data set has labels, else `Random`. cache: as for `Classifier`."""

    def __init__(self, dataset: Dataset, *, device: torch.device, cache: str = "~/.cache/gancli") -> None:
        from gancli.metrics.classifier import Classifier

        chosen = Classifier(dataset, device=device, cache=cache) if dataset.num_classes else None
        self.chosen: Features = chosen or Random(dataset, device=device)
        self.name, self.hash, self.accuracy = self.chosen.name, self.chosen.hash, self.chosen.accuracy
        self.names_classes = self.chosen.names_classes

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return self.chosen.extract(images)


class Registered(Features):
    """An extractor of torch-fidelity's registry, such as inception-v3-compat; its weights are never downloaded.

    extractor: the registered name. file: what its weights are called in torch hub's folder `checkpoints`.
    weights: their path, or None for that folder. Raises UserError that says which file to put where.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        device: torch.device,
        extractor: str = "inception-v3-compat",
        file: str = "weights-inception-2015-12-05-6726825d.pth",
        weights: str | None = None,
    ) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        if extractor not in FEATURE_EXTRACTORS_REGISTRY:
            known = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))
            raise SettingError(f"extractor={extractor}: torch-fidelity knows {known}")
        if dataset.shape[0] not in (1, 3):
            raise SettingError(f"extractor={extractor}: takes grey or RGB images, not {dataset.shape[0]} channels")
        kind = FEATURE_EXTRACTORS_REGISTRY[extractor]
        path = self._found(extractor, file, weights)
        layers = {use: kind.get_default_feature_layer_for_metric(use) for use in ("fid", "isc")}
        self.order = list(dict.fromkeys(layers.values()))
        # torch-fidelity finds files of torch hub by itself, and some of its classes take no path.
        given = {} if weights is None else {"feature_extractor_weights_path": str(path)}
        with torch.random.fork_rng(devices=[]):  # its layers draw weights before they are given some
            try:
                self.network = kind(extractor, self.order, verbose=False, **given).to(device)
            except Exception as error:  # whatever it says of weights that are not its own, or of code that it lacks
                raise FeaturesUnavailable(
                    f"metric.features.weights={weights}: torch-fidelity cannot make {extractor} of {path}: "
                    f"{str(error).partition(chr(10))[0]}; metric/features=random needs none"
                ) from None
        self.features_layer, self.logits_layer = layers["fid"], layers["isc"]
        self.names_classes = self.features_layer != self.logits_layer
        self.device, self.name = device, extractor
        self.hash = digest(*self.network.state_dict().values())
        self.resize = "as torch-fidelity's: bilinear of TensorFlow 1"

    @staticmethod
    def _found(extractor: str, file: str, weights: str | None) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / file if weights is None else Path(weights).expanduser()
        if not path.is_file():
            raise FeaturesUnavailable(
                f"metric.features.weights={weights}: no weights of {extractor}; put {file} into {path.parent}, "
                f"or give the path of the file; metric/features=classifier and metric/features=random need none"
            )
        try:  # torch-fidelity itself would run whatever a pickle asks for
            if not _is_torchscript(path):  # whose programs are not Python's
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FeaturesUnavailable(
                f"metric.features.weights={path}: holds more than weights, or is damaged: "
                f"{str(error).partition(chr(10))[0]}"
            ) from None
        return path

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        colour = images.expand(-1, 3, -1, -1).contiguous() if images.shape[1] == 1 else images
        values = dict(zip(self.order, self.network(colour.to(self.device)), strict=True))
        found = {"features": values[self.features_layer]}
        if self.names_classes:
            found["logits"] = values[self.logits_layer]
        return found


def _is_torchscript(path: Path) -> bool:
    """Decided as torch does: by an entry in the folder that the archive's first entry lies in."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and names[0].partition("/")[0] + "/constants.pkl" in names
