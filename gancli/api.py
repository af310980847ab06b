"""The Python interface: `gancli.load`, `gancli.train` and what they return. Everything else of the package is private.

import gancli

generator = gancli.load("outputs/train/2026-11-28/10-00-00")
images = generator.sample(16, seed=0)  # uint8 (16, H, W, C)
"""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.errors import Diverged, UserError
from gancli.files.user_paths import expand
from gancli.inference import loading, projection
from gancli.inference.directions import semantic_directions
from gancli.inference.loading import Loaded
from gancli.inference.projection import Projection
from gancli.inference.sampling import chosen_classes, classes_in_turn, generate, noise_rows
from gancli.networks.base import Generator
from gancli.reporting.image_grids import to_uint8
from gancli.training.run_folder import RunFolder

__all__ = ["Diverged", "Projection", "TrainedGenerator", "UserError", "load", "train"]

Labels = int | str | Sequence[int | str]


class TrainedGenerator:
    """A trained generator: noise in, samples out. Made by `gancli.load`.

    network: the torch module, in evaluation mode, whose parameters need no gradient. image_shape: (C, H, W) of an
    image, or (dims,) of a point. latent_dim: dimensions of the noise. num_classes: 0 without labels. class_names: in
    the order of the labels, empty where classes have numbers only. images: seen in training. file: of the weights.
    """

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.network: Generator = loaded.generator.to(device).to(memory_format=torch.channels_last)
        self.network.eval().requires_grad_(False)
        self.image_shape: tuple[int, ...] = self.network.image_shape
        self.latent_dim: int = self.network.latent_dim
        self.num_classes: int = self.network.num_classes
        self.class_names: list[str] = loaded.class_names
        self.images: int = loaded.images
        self.file: Path = loaded.file
        self._prior = loaded.prior

    def __repr__(self) -> str:
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return (
            f"<TrainedGenerator {self.image_shape}, noise of {self.latent_dim}{classes}, {self.images:,} images seen>"
        )

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self.network.parameters()).device

    def noise(self, count: int = 1, *, seed: int = 0, truncation: float | None = None) -> Tensor:
        """Returns noise (count, latent_dim) float32, on the CPU. Row i depends on `seed` and i alone.

        truncation: keeps only the middle of the prior, for normal noise |z| <= truncation. Raises UserError.
        """
        return noise_rows(self._prior, count, seed=seed, truncation=truncation)

    def labels(self, count: int, chosen: Labels | None = None) -> Tensor | None:
        """Returns the labels, int64 (count,), of the chosen classes in turn; None for a generator without labels.

        chosen: numbers or names; None for all classes. Raises UserError.
        """
        classes = chosen_classes(chosen, self.num_classes, self.class_names)
        return None if classes is None else classes_in_turn(classes, count)

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the samples of noise z (B, latent_dim): float32 (B, *image_shape), images in [-1, 1].

        labels: int64 (B,); or float (B, num_classes), shares of the classes, whose embeddings are mixed. Both may be on
        any device; the samples are on that of `network`. Gradients reach z where it needs one.
        """
        device = self.device
        samples: Tensor = self.network(z.to(device), None if labels is None else labels.to(device))
        return samples

    @overload
    def sample(
        self,
        count: int = ...,
        *,
        seed: int = ...,
        labels: Labels | None = ...,
        truncation: float | None = ...,
        as_tensor: Literal[False] = ...,
        batch_size: int = ...,
    ) -> NDArray[Any]: ...

    @overload
    def sample(
        self,
        count: int = ...,
        *,
        seed: int = ...,
        labels: Labels | None = ...,
        truncation: float | None = ...,
        as_tensor: Literal[True],
        batch_size: int = ...,
    ) -> Tensor: ...

    def sample(
        self,
        count: int = 1,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        truncation: float | None = None,
        as_tensor: bool = False,
        batch_size: int = 64,
    ) -> NDArray[Any] | Tensor:
        """Returns images, uint8 (count, H, W, C), the same as those of `gancli sample` with the same seed and labels.

        They are the same bit for bit on the same device in the same precision, which is float32 here. Points come as
        float32 (count, dims). labels: classes by number or name, taken in turn; None for all. truncation: as for
        `noise`. as_tensor: for float32 (count, *image_shape) on the CPU, images in [-1, 1]. batch_size: samples
        generated at once. Raises UserError.
        """
        noise = self.noise(count, seed=seed, truncation=truncation)
        batches = generate(self.network, noise, self.labels(count, labels), batch_size=batch_size)
        if as_tensor:
            return torch.cat(list(batches))
        arrays = [to_uint8(batch) if batch.ndim == 4 else batch.numpy() for batch in batches]
        return np.concatenate(arrays)

    def between(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Returns noise on the way from a to b, both (..., latent_dim): (steps, ..., latent_dim), with both ends.

        Normal noise goes along a great circle, other noise along a straight line. Raises UserError.
        """
        if steps < 2:
            raise UserError(f"steps={steps}: at least 2, for both ends")
        return torch.stack([self._prior.between(a, b, step / (steps - 1)) for step in range(steps)])

    def directions(self, count: int = 8) -> Tensor:
        """Returns the directions of the noise in which samples change most, (count, latent_dim), of unit length.

        They are SeFa's, from the weights alone (Shen & Zhou, CVPR 2021). Raises UserError.
        """
        return semantic_directions(self.network, count)[0]

    def project(
        self,
        images: Tensor | NDArray[np.uint8],
        *,
        labels: Labels | None = None,
        starts: int = 4,
        steps: int = 500,
        seed: int = 0,
        features: bool = True,
    ) -> Projection:
        """Returns the noise whose samples are nearest to `images`, with those samples and their errors.

        images: float (N, C, H, W) in [-1, 1], or uint8 (N, H, W, C). labels: classes to choose from, None for all.
        features: whether to compare pretrained features too, where gancli[pretrained] is installed and images have 32
        pixels or more. The other arguments are those of `gancli project`. Raises UserError.
        """
        if not isinstance(images, Tensor):
            images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        return projection.project(
            self.network,
            self._prior,
            images,
            labels=None if labels is None else chosen_classes(labels, self.num_classes, self.class_names),
            starts=starts,
            steps=steps,
            seed=seed,
            features=projection.pretrained_maps(self.image_shape, self.device) if features else None,
        )


def load(
    path: str | Path,
    *,
    checkpoint: str | int = "last",
    weights: Literal["ema", "raw"] = "ema",
    device: str | torch.device = "cpu",
    trust: Sequence[str] = (),
) -> TrainedGenerator:
    """Loads the generator of a run folder, or of a folder that `gancli export` wrote.

    checkpoint: "last", "best" or a number of images. weights: "ema" for the averaged generator, "raw" for the one in
    training. trust: packages of your own whose classes the folder may name. Whatever the folder holds, no other code
    is run. Raises UserError.
    """
    found = loading.load(expand(str(path), key="path"), checkpoint=checkpoint, weights=weights, trust=list(trust))
    return TrainedGenerator(found, torch.device(device))


def train(overrides: Sequence[str] = ()) -> Path:
    """Trains as `gancli train` with these words does, and returns the run folder.

    overrides: such as ["experiment=mnist", "train.minutes=5", "hydra.run.dir=runs/a"]; no sweep, and no flag that
    begins with a dash. Messages go to Python's logging, and to train.log in the run folder. Raises UserError, Diverged,
    OSError, and KeyboardInterrupt after Ctrl-C, when a checkpoint was saved.
    """
    from gancli.commands import train as command

    settings, folder, words = _composed(overrides)
    is_new = not folder.exists()
    try:
        with _logged(folder):
            trainer = command.run(settings, folder=folder, overrides=words)
    except UserError:
        if is_new and not RunFolder(folder).exists():  # refused before it began
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if trainer.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    return folder


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], Path, list[str]]:
    """Returns the settings, the run folder and the words as the command line takes them. Raises UserError."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import setup_globals
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gancli import budget
    from gancli.cli import words_for_hydra
    from gancli.commands import messages
    from gancli.config import config_dir

    given = [str(word) for word in overrides]
    flags = [word for word in given if word.startswith("-")]
    if flags:
        raise UserError(f"{flags[0]}: a flag of the command line; gancli.train takes settings, such as seed=1")
    try:
        words = words_for_hydra("train", given)
        if any(word.startswith("-") for word in words):
            raise UserError("gancli.train: one run at a time; a sweep or a launcher starts from the shell")
        budget.register()
        setup_globals()  # ${now:…} in the name of the run folder
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = hydra.compose("train", words, return_hydra_config=True)
        GlobalHydra.instance().clear()
        folder = Path(composed.hydra.run.dir)
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        settings: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(messages.explain(error, "train", given)) from None
    settings |= {word.removesuffix("=[]"): {} for word in words if word.endswith("=[]")}
    return settings, folder, [word.removeprefix("++") for word in words if not word.startswith("hydra")]


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Writes what gancli says to train.log in the run folder."""
    file = RunFolder(folder).log
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logger = logging.getLogger("gancli")
    before = logger.level
    logger.setLevel(min(before, logging.INFO) if before else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
