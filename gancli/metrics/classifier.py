"""A small classifier of a labelled data set: features that work offline and know what the classes are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gancli.atomic_files import read_cached_tensors, write_cached_tensors
from gancli.datasets.base import Dataset, epoch_indices, to_unit
from gancli.errors import SettingError, UserError
from gancli.metrics.base import digest
from gancli.metrics.features import Features
from gancli.randomness import seeded

log = logging.getLogger(__name__)
_BATCH = 128
_MOST = 300_000  # images of either part that are taken into memory


class Classifier(Features):
    """Trained once on the data set's own labels and kept with its accuracy on the held-out part.

    features: the `width` values before its last layer, after ReLU, unnormalised. images: training images
    seen, in at most `epochs` passes. cache: folder for its weights, which are found again by the content
    of the training data. Images with more channels than those it was trained on are classified a few
    channels at a time (stacked MNIST: by the digits of MNIST). Raises UserError.
    """

    name = "classifier"
    names_classes = True

    def __init__(
        self,
        dataset: Dataset,
        *,
        device: torch.device,
        width: int = 128,
        images: int = 300_000,
        epochs: int = 60,
        cache: str = "~/.cache/gancli",
    ) -> None:
        for name, value in {"width": width, "images": images, "epochs": epochs}.items():
            if value < 1:
                raise SettingError(f"{name}={value}: at least 1")
        if not dataset.num_classes:
            raise UserError("metric/features=classifier: the data set has no labels; use metric/features=random")
        pictures, labels = dataset.labelled("train", _MOST)
        classes = int(labels.max()) + 1
        self.device, self.channels = device, pictures.shape[1]
        steps = min(images, epochs * len(pictures)) // _BATCH
        key = digest(pictures, labels, torch.tensor([width, steps]))
        file = Path(cache).expanduser() / f"classifier-{key}.pt"
        saved = read_cached_tensors(file)
        with torch.random.fork_rng(devices=[]):  # whoever asks for a number must not change a training beside it
            torch.default_generator.manual_seed(0)
            self.network = network(pictures.shape[1:], classes, width).to(device)
        if saved is None:
            log.info("a classifier for the metrics is trained once: %s images", f"{steps * _BATCH:,}")
            train(self.network, pictures, labels, steps=steps)
        else:
            self.network.load_state_dict(saved["network"])
        self.network.eval().requires_grad_(False)
        if saved is None:
            weights = {name: value.cpu() for name, value in self.network.state_dict().items()}
            saved = {"network": weights, "accuracy": self._accuracy(*dataset.labelled("holdout", _MOST))}
            write_cached_tensors(file, saved)
            log.info("its accuracy on the held-out part: %.2f %% (%s)", 100 * saved["accuracy"], file)
        self.accuracy = float(saved["accuracy"])
        self.hash = digest(*self.network.state_dict().values())

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        apart = images.to(self.device).reshape(-1, self.channels, *images.shape[2:])
        features = self.network[:-1](to_unit(apart))
        logits = self.network[-1](features)
        return {"features": features.view(len(images), -1), "logits": logits.view(len(images), -1)}

    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        return float((self(images)["logits"].argmax(1) == labels.cpu()).float().mean())


def network(shape: Sequence[int], classes: int, width: int) -> nn.Sequential:
    """Images (B, *shape) to logits (B, classes): strided convolutions down to 8 pixels or less, two linear layers."""
    channels, height, side = shape
    layers: list[nn.Module] = []
    before, after, rows, columns = channels, 32, height, side
    while min(rows, columns) > 8 or not layers:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before, after, rows, columns = after, min(2 * after, 256), (rows + 1) // 2, (columns + 1) // 2
    layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.Flatten()]
    head = [nn.Linear(after * rows * columns, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(*layers, *head)


def train(classifier: nn.Sequential, images: Tensor, labels: Tensor, *, steps: int) -> None:
    """Adam with a decaying step on images moved about by up to a fourteenth of their side, at least a pixel."""
    device = next(classifier.parameters()).device
    reach = max(1, min(images.shape[2:]) // 14)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        rows = epoch_indices(len(images), step * _BATCH, _BATCH, seed=0)
        batch, wanted = to_unit(images[rows].to(device)), labels[rows].to(device)
        moves = torch.randint(-reach, reach + 1, (2,), generator=seeded("shift", step)).tolist()
        loss = cross_entropy(classifier(batch.roll(moves, (2, 3))), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
