"""Projection: the noise whose sample is nearest to a given image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from gancli.errors import UserError, require_at_least
from gancli.inference.sampling import classes_in_turn, generate, noise_rows
from gancli.networks.base import Generator
from gancli.networks.efficientnet import SIDE, EfficientNetLite, is_installed
from gancli.priors import Prior
from gancli.progress import progress

log = logging.getLogger(__name__)
Features = Callable[[Tensor], list[Tensor]]  # images (B, C, H, W) -> maps (B, C', H', W')
CANDIDATES = 2048  # samples among which the starts are chosen
_LEARNING_RATE = 0.1  # of Adam at the first step; it follows a cosine down to 0
_SHARE_OF_ALL = 4  # one step in so many is taken from all starts
_AT_ONCE = 16  # images, each with its starts
_TAIL = 1e-6  # of the prior's probability on either side, to which the noise is confined


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The noise found for N images.

    z: (N, dim). labels: int64 (N,), or None without classes. images: their samples, (N, C, H, W) in [-1, 1]. errors:
    (N,), root mean squared difference from the image, of values between 0 and 255.
    """

    z: Tensor
    labels: Tensor | None
    images: Tensor
    errors: Tensor


def project(
    generator: Generator,
    prior: Prior,
    targets: Tensor,
    *,
    labels: Sequence[int] | None = None,
    starts: int = 4,
    steps: int = 1000,
    seed: int = 0,
    features: Features | None = None,
) -> Projection:
    """Finds, for each of the images `targets` (N, C, H, W) in [-1, 1], the noise whose sample is nearest to it.

    Adam goes down from several starts, those of CANDIDATES random samples that are nearest already, by the squared
    difference of the pixels at several scales, and by that of `features`, if they are given, of unit length along
    their channels at each place (as LPIPS compares them: Zhang et al., CVPR 2018, without its learned weights). Noise
    stays within the prior's range. A quarter of the steps is taken from all starts, the others from the best one.

    labels: the classes to choose from, None for all. starts: from how many to go down, for each image. steps: of Adam,
    in all. seed: of the candidates. Raises UserError.
    """
    require_at_least(1, starts=starts)
    require_at_least(0, steps=steps)
    if len(generator.image_shape) != 3:
        raise UserError("this generator makes points, not images, to which nothing can be compared")
    if targets.ndim != 4 or tuple(targets.shape[1:]) != generator.image_shape:
        raise UserError(f"images of {tuple(targets.shape[1:])}: this generator's are {generator.image_shape}")
    if len(targets) == 0 or not bool(targets.isfinite().all()) or float(targets.abs().max()) > 1.001:
        raise UserError("images: at least one, of finite values in [-1, 1]")
    parts = [
        _project(generator, prior, part, labels=labels, starts=starts, steps=steps, seed=seed, features=features)
        for part in targets.split(_AT_ONCE)
    ]
    labels_found = [part.labels for part in parts if part.labels is not None]
    return Projection(
        z=torch.cat([part.z for part in parts]),
        labels=torch.cat(labels_found) if labels_found else None,
        images=torch.cat([part.images for part in parts]),
        errors=torch.cat([part.errors for part in parts]),
    )


def _project(
    generator: Generator,
    prior: Prior,
    targets: Tensor,
    *,
    labels: Sequence[int] | None,
    starts: int,
    steps: int,
    seed: int,
    features: Features | None,
) -> Projection:
    """Does the work of `project` for as many images as are held at once."""
    device = next(generator.parameters()).device
    targets, count = targets.to(device), len(targets)
    z, classes = _starts(generator, prior, targets, labels=labels, starts=starts, seed=seed)
    wanted = _Wanted(targets.repeat_interleave(starts, 0), features)
    low, high = prior.inverse_cdf(torch.tensor([_TAIL, 1 - _TAIL], device=device)).tolist()
    was_training = generator.training
    generator.eval()
    try:
        first = steps // _SHARE_OF_ALL
        z = _descend(generator, z, classes, wanted, steps=first, between=(low, high), title="projection, all starts")
        with torch.no_grad():
            losses = wanted.losses(generator(z, classes)).view(count, starts)
        best = losses.argmin(1) + starts * torch.arange(count, device=device)
        z, classes = z[best], None if classes is None else classes[best]
        wanted = _Wanted(targets, features)
        z = _descend(generator, z, classes, wanted, steps=steps - first, between=(low, high), title="projection")
        with torch.no_grad():
            images = generator(z, classes).clamp(-1, 1)
            errors = 127.5 * (images - targets).square().mean((1, 2, 3)).sqrt()
    finally:
        generator.train(was_training)
    labels_found = None if classes is None else classes.cpu()
    return Projection(z=z.cpu(), labels=labels_found, images=images.cpu(), errors=errors.cpu())


def _descend(
    generator: Generator,
    z: Tensor,
    classes: Tensor | None,
    wanted: _Wanted,
    *,
    steps: int,
    between: tuple[float, float],
    title: str,
) -> Tensor:
    """Returns noise from which samples are nearer than those of z (B, dim), after `steps` of Adam in an interval."""
    z = z.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=_LEARNING_RATE)
    for step in progress(range(steps), title=title, total=steps):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 + cos(pi * step / steps)) / 2
        (z.grad,) = torch.autograd.grad(wanted.losses(generator(z, classes)).sum(), z)
        optimizer.step()
        with torch.no_grad():
            z.clamp_(*between)
    return z.detach()


def pretrained_maps(image_shape: Sequence[int], device: torch.device) -> Features | None:
    """Returns the maps of EfficientNet-Lite0, to compare images by; None where it is not installed or does not suit."""
    if len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape[1:]) < SIDE or not is_installed(0):
        return None
    return EfficientNetLite(0, needed_by="features").to(device)


def _starts(
    generator: Generator, prior: Prior, targets: Tensor, *, labels: Sequence[int] | None, starts: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Returns noise (N * starts, dim) and labels of the random samples that are nearest to each target, in pixels."""
    count = max(CANDIDATES, starts)
    noise = noise_rows(prior, count, seed=seed, stream="projection")
    classes = None
    if generator.num_classes:
        classes = classes_in_turn(labels if labels is not None else range(generator.num_classes), count)
    coarse = [_coarse(batch) for batch in generate(generator, noise, classes)]
    distances = torch.cdist(_coarse(targets.cpu()), torch.cat(coarse))
    nearest = distances.topk(starts, largest=False).indices.flatten()
    device = targets.device
    return noise[nearest].to(device), None if classes is None else classes[nearest].to(device)


def _coarse(images: Tensor) -> Tensor:
    """Returns images of at most 16 pixels a side, as rows."""
    size = max(1, min(images.shape[2:]) // 16)
    return avg_pool2d(images, size).flatten(1)


class _Wanted:
    """The images to come near to, (B, C, H, W), and how far others are from them."""

    def __init__(self, targets: Tensor, features: Features | None) -> None:
        self.targets, self.features = targets, features
        with torch.no_grad():
            self.maps = [] if features is None else [normalize(each) for each in features(targets)]

    def losses(self, images: Tensor) -> Tensor:
        """Returns the distance of each image, (B,)."""
        difference = images - self.targets
        total, scales = difference.square().mean((1, 2, 3)), 1
        while min(difference.shape[2:]) >= 8:
            difference, scales = avg_pool2d(difference, 2), scales + 1
            total = total + difference.square().mean((1, 2, 3))
        total = total / scales
        if self.features is not None:
            maps = [normalize(each) for each in self.features(images)]
            total = total + sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(maps, self.maps, strict=True))
        return total
