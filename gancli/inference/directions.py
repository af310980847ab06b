"""Directions of the noise in which samples change most, from the weights alone (SeFa; Shen & Zhou, CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from gancli.errors import UserError
from gancli.networks.base import Generator


def semantic_directions(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` first directions, (count, latent_dim) of unit length, and how strong each is, (count,).

    They are the eigenvectors with the largest eigenvalues of A^T A, where A is the weight that noise is multiplied by
    first (equation 6 of the paper), in other words A's right singular vectors; the strengths are its singular values.
    The largest number of each direction is positive, so that the sign is always the same. Raises UserError where the
    network has no such weight, or fewer dimensions than `count`.
    """
    weight = generator.first_weight()
    if weight is None:
        raise UserError("directions: this generator's noise does not go through a linear map first; use vary=noise")
    if count > generator.latent_dim:
        raise UserError(f"count={count}: the noise has {generator.latent_dim} dimensions, and as many directions")
    strengths, vectors = torch.linalg.eigh(weight.detach().double().cpu().T @ weight.detach().double().cpu())
    vectors = vectors.flip(1).T[:count]
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return (vectors * signs).float(), strengths.flip(0)[:count].clamp(min=0).sqrt().float()


def walk_along(noise: Tensor, directions: Tensor, steps: int, *, reach: float) -> Tensor:
    """Returns noise (steps, K, dim) along each of K directions (K, dim): from -reach to reach around `noise` (dim,)."""
    distances = torch.linspace(-reach, reach, steps)[:, None, None]
    return noise + distances * directions
