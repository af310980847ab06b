"""The Python interface: `gancli.load`, `gancli.train` and what they return. Everything else of the package is private.

import gancli

generator = gancli.load("outputs/train/2026-11-28/10-00-00")
images = generator.sample(16, seed=0)  # uint8 (16, H, W, C)
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancli.commands.latest_run import latest_run
from gancli.errors import Diverged, UserError, require_at_least
from gancli.files.user_paths import expand
from gancli.inference import loading, projection
from gancli.inference.directions import semantic_directions
from gancli.inference.loading import Loaded
from gancli.inference.projection import Projection
from gancli.inference.sampling import chosen_classes, classes_in_turn, generate, line_between, noise_rows
from gancli.networks.base import Generator
from gancli.reporting.image_grids import to_uint8
from gancli.reporting.streams import LogFormatter
from gancli.training.run_folder import RunFolder

__all__ = ["Diverged", "Projection", "TrainedGenerator", "UserError", "load", "train"]

Labels = int | str | Sequence[int | str] | NDArray[np.integer[Any]] | Tensor


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
        require_at_least(1, count=count)
        return noise_rows(self._prior, count, seed=seed, truncation=truncation)

    def labels(self, count: int, chosen: Labels | None = None) -> Tensor | None:
        """Returns the labels, int64 (count,), of the chosen classes in turn; None for a generator without labels.

        chosen: numbers or names; None for all classes. Raises UserError.
        """
        require_at_least(1, count=count)
        classes = self._classes(chosen)
        return None if classes is None else classes_in_turn(classes, count)

    def _classes(self, chosen: Labels | None) -> list[int] | None:
        given = chosen.tolist() if isinstance(chosen, (np.ndarray, np.generic, Tensor)) else chosen
        each = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
        wrong = [label for label in each if isinstance(label, bool) or not isinstance(label, (int, str, np.integer))]
        if given is not None and wrong:
            raise UserError(f"labels={wrong[0]!r}: classes are whole numbers or names")
        plain = [label if isinstance(label, str) else int(cast(int, label)) for label in each if label is not None]
        return chosen_classes(None if given is None else plain, self.num_classes, self.class_names)

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

        They are the same bit for bit on a CPU in float32, and up to rounding on a GPU. Points come as
        float32 (count, dims). labels: classes by number or name, taken in turn; None for all. truncation: as for
        `noise`. as_tensor: for float32 (count, *image_shape) on the CPU, images in [-1, 1]. batch_size: samples
        generated at once. Raises UserError.
        """
        require_at_least(1, batch_size=batch_size)
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
        if a.shape != b.shape or a.shape[-1:] != (self.latent_dim,):
            raise UserError(f"noise of {tuple(a.shape)} and {tuple(b.shape)}: both of (..., {self.latent_dim})")
        require_at_least(2, steps=steps)
        return line_between(self._prior, a, b, steps)

    def directions(self, count: int = 8) -> Tensor:
        """Returns the directions of the noise in which samples change most, (count, latent_dim), of unit length.

        They are SeFa's, from the weights alone (Shen & Zhou, CVPR 2021). Raises UserError.
        """
        require_at_least(1, count=count)
        return semantic_directions(self.network, count)[0]

    def project(
        self,
        images: Tensor | NDArray[np.uint8],
        *,
        labels: Labels | None = None,
        starts: int = 4,
        steps: int = 1000,
        seed: int = 0,
        features: bool = True,
    ) -> Projection:
        """Returns the noise whose samples are nearest to `images`, with those samples and their errors.

        images: float (N, C, H, W) in [-1, 1], or uint8 (N, H, W, C). labels: classes to choose from, None for all.
        features: whether to compare pretrained features too, where gancli[pretrained] is installed and images have 32
        pixels or more. The other arguments are those of `gancli project`. Raises UserError.
        """
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4:
            images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise UserError("images: a float tensor (N, C, H, W) in [-1, 1], or a numpy array uint8 (N, H, W, C)")
        return projection.project(
            self.network,
            self._prior,
            images,
            labels=None if labels is None else self._classes(labels),
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

    path: "latest" is the run below outputs with the newest checkpoint. checkpoint: "last", "best" or a number of
    images. weights: "ema" for the averaged generator, "raw" for the one in training. trust: packages of your own whose
    classes the folder may name. Whatever the folder holds, no other code is run. Raises UserError.
    """
    where = latest_run() if str(path) == "latest" else expand(str(path), key="path")
    if where is None:
        raise UserError("path=latest: no run below outputs has a checkpoint; name a run folder")
    found = loading.load(where, checkpoint=checkpoint, weights=weights, trust=list(trust))
    return TrainedGenerator(found, _device(device))


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: not available here: {str(error).splitlines()[0]}") from None
    return found


def train(overrides: Sequence[str] = ()) -> Path:
    """Trains as `gancli train` with these words does, and returns the run folder.

    overrides: such as ["experiment=mnist", "train.minutes=5", "hydra.run.dir=runs/a"]; no sweep, and no flag that
    begins with a dash. Messages go to Python's logging, and to train.log in the run folder. Raises UserError, Diverged,
    OSError, and KeyboardInterrupt after Ctrl-C, when a checkpoint was saved.
    """
    from gancli.commands import train as command
    from gancli.commands.hydra_callbacks import remember_start, undo_start

    if threading.current_thread() is not threading.main_thread():
        raise UserError("gancli.train: only in the main thread, where Ctrl-C and other signals arrive")
    settings, folder, words, by_budget = _composed(overrides)
    remember_start(folder)
    try:
        with _logged(folder):
            trainer = command.run(settings, folder=folder, overrides=words, by_budget=by_budget)
    except UserError:
        undo_start()
        raise
    if trainer.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    return folder


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], Path, list[str], list[str]]:
    """Returns the settings, the run folder, the words as the command line takes them, and the keys that are left to the
    budget. Raises UserError.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gancli.cli import words_for_hydra
    from gancli.commands import messages
    from gancli.config import compose_run

    if isinstance(overrides, str):
        raise UserError(f"gancli.train: takes a list of settings, such as [{overrides!r}]")
    given = [str(word) for word in overrides]
    flags = [word for word in given if word.startswith("-")]
    if flags:
        raise UserError(f"{flags[0]}: a flag of the command line; gancli.train takes settings, such as seed=1")
    try:
        words = words_for_hydra("train", given)
        if any(word.startswith("-") for word in words):
            raise UserError("gancli.train: one run at a time; a sweep or a launcher starts from the shell")
        settings, folder, by_budget = compose_run("train", words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(messages.explain(error, "train", given)) from None
    words = [word.removeprefix("++") for word in words if not word.startswith("hydra")]
    return settings, folder, words, by_budget


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Writes what gancli says to train.log in the run folder."""
    file = RunFolder(folder).log
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(LogFormatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
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
