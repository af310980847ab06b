"""A small classifier of a labelled data set: features that need no download, and the data set's own classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gancli.datasets.base import Dataset, epoch_indices, to_unit
from gancli.errors import UserError, require_at_least, require_memory
from gancli.files import tensor_files
from gancli.files.digest import digest
from gancli.files.user_paths import cache_folder
from gancli.metrics.features import Features
from gancli.progress import progress
from gancli.randomness import seeded

log = logging.getLogger(__name__)
_BATCH_SIZE = 128
_MAX_IMAGES = 300_000  # of the training part and of the held-out part that are read into memory


class Classifier(Features):
    """A classifier that is trained once on the data set's labels and kept with its accuracy on the held-out part.

    Its features are the `width` values before its last layer, after ReLU, not normalised. images: training images
    that it sees, in at most `epochs` passes. cache: folder for its weights (see `cache_folder`), which are found again
    by the content of the training data. Images with more channels than those it was trained on are classified a few
    channels at a time (stacked MNIST: by the digits of MNIST). Raises SettingError, and UserError for data without
    labels.
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
        cache: str | None = None,
    ) -> None:
        self.check_settings(width=width, images=images, epochs=epochs)
        if not dataset.num_classes:
            raise UserError("metric/features=classifier: the data set has no labels; use metric/features=random")
        train_images, labels = dataset.labelled("train", _MAX_IMAGES)
        classes = int(labels.max()) + 1
        self.device, self.channels = device, train_images.shape[1]
        steps = min(images, epochs * len(train_images)) // _BATCH_SIZE
        key = digest(train_images, labels, torch.tensor([width, steps]))
        file = cache_folder(cache, key="metric.features.cache") / f"classifier-{key}.pt"
        saved = tensor_files.read_cached(file, {"network": dict[str, Tensor], "accuracy": float})
        with torch.random.fork_rng(devices=[]):  # building an extractor must not change a training in this process
            torch.default_generator.manual_seed(0)
            self.network = network(train_images.shape[1:], classes, width).to(device)
        if saved is None:
            log.info("training a classifier for the metrics, once: %s images", f"{steps * _BATCH_SIZE:,}")
            train(self.network, train_images, labels, steps=steps)
        else:
            self.network.load_state_dict(saved["network"])
        self.network.eval().requires_grad_(False)
        if saved is None:
            weights = {name: value.cpu() for name, value in self.network.state_dict().items()}
            saved = {"network": weights, "accuracy": self._accuracy(*dataset.labelled("holdout", _MAX_IMAGES))}
            tensor_files.write_cached(file, saved)
            log.info("the classifier's accuracy on the held-out part: %.2f %% (%s)", 100 * saved["accuracy"], file)
        self.accuracy = float(saved["accuracy"])
        self.hash = digest(*self.network.state_dict().values())

    @staticmethod
    def check_settings(
        *, width: int | None = None, images: int | None = None, epochs: int | None = None, **_: Any
    ) -> None:
        """Raises SettingError for values that are wrong whatever the data."""
        require_at_least(1, width=width, images=images, epochs=epochs)
        require_memory(8 * (width or 0) ** 2, width=width or 0)  # for the covariance of the features

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        separate = images.to(self.device).reshape(-1, self.channels, *images.shape[2:])
        features = self.network[:-1](to_unit(separate))
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
    """Trains by Adam with a decaying step on images shifted by up to a fourteenth of their side, at least a pixel."""
    device = next(classifier.parameters()).device
    reach = max(1, min(images.shape[2:]) // 14)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3, fused=True)
    for step in progress(range(steps), title="training the classifier, in steps", total=steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        rows = epoch_indices(len(images), step * _BATCH_SIZE, _BATCH_SIZE, seed=0)
        batch, targets = to_unit(images[rows].to(device)), labels[rows].to(device)
        shifts = torch.randint(-reach, reach + 1, (2,), generator=seeded("shift", step)).tolist()
        loss = cross_entropy(classifier(batch.roll(shifts, (2, 3))), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
