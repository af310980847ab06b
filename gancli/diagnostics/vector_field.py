"""The vector field of a game, v = -(d loss_G / d w_G, d loss_D / d w_D), and its Jacobian."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import grad

from gancli.diagnostics.base import TrainedRun
from gancli.errors import UserError
from gancli.game import PLAYERS, Player
from gancli.progress import progress
from gancli.randomness import Stream, seeded

ROUNDING = 1e-6  # times the largest absolute eigenvalue: smaller ones may be rounding errors of 0
_DENSE_SIZE = 400  # parameters up to which the Jacobian is formed and all eigenvalues are computed
_TOLERANCE = 1e-3  # largest residual of a converged eigenvalue, times the largest absolute eigenvalue
_CHECK_EVERY = 10  # products between two tests of convergence


class VectorField:
    """The direction in which simultaneous gradient descent moves all n parameters, the generator's first, on one batch.

    It is that of float64 copies of the networks, with the penalties and the augmentation in their present state; what
    those draw at random is the same at every point. The optimizer is no part of it. count: samples in the batch.
    """

    def __init__(self, run: TrainedRun, *, count: int) -> None:
        game, self.progress = run.trainer.game, run.trainer.progress
        players: dict[str, Any] = {player: copy.deepcopy(game.network(player)).double().eval() for player in PLAYERS}
        self.game = replace(game, **players, augment=copy.deepcopy(game.augment), autocast=nullcontext)
        self.game.augment.prepare(self.progress)
        self.seed = run.trainer.seed
        self.samples, self.labels = run.real_samples(count)
        self.samples, self.noise = self.samples.double(), run.noise(len(self.samples)).double()
        self.weights = [weight for player in PLAYERS for weight in self.game.weights[player]]
        self.size = sum(weight.numel() for weight in self.weights)

    def parameters(self) -> Tensor:
        """Returns a copy of all parameters, (n,)."""
        return torch.cat([weight.detach().flatten() for weight in self.weights])

    def set_parameters(self, parameters: Tensor) -> None:
        """Sets all parameters to `parameters` (n,)."""
        parts = parameters.split([weight.numel() for weight in self.weights])
        with torch.no_grad():
            for weight, part in zip(self.weights, parts, strict=True):
                weight.copy_(part.view_as(weight))

    def evaluate(self) -> Tensor:
        """Returns v at the present parameters, (n,), in a graph with them."""
        self.game.stream = Stream(seeded(self.seed, "field"), device=self.samples.device)
        images = self.game.generator(self.noise, self.labels)
        gradients = self.game.gradients(self.samples, images, self.labels, progress=self.progress)
        return -torch.cat([gradient.flatten() for player in PLAYERS for gradient in gradients[player]])

    def jacobian(self) -> Tensor:
        """Returns dv / dw, (n, n), with a row for each component of v."""
        v = self.evaluate()
        return torch.stack(
            [self._flatten(grad(component, self.weights, retain_graph=True, allow_unused=True)) for component in v]
        )

    def eigenvalues(
        self, count: int, *, player: Player | None = None, products: int = 80, dense: bool | None = None
    ) -> tuple[NDArray[np.complex128], int]:
        """Returns eigenvalues of the Jacobian, the largest absolute value first, and how many were not found.

        Of a game of at most 400 parameters these are all eigenvalues. Of a larger one they are the `count` with the
        largest absolute value and the `count` with the largest real part, as far as they converge in `products`
        Jacobian-vector products. player: of that player's own block of the Jacobian only, which is the negative Hessian
        of its loss in its own parameters. dense: overrides the choice by size. Raises UserError where v is not finite.
        """
        block = self.block(player)
        size = len(range(self.size)[block])
        if size <= _DENSE_SIZE if dense is None else dense:
            self._require_finite(self.evaluate())
            values, missing = np.linalg.eigvals(self.jacobian()[block, block].cpu().numpy()), 0
        else:
            values, missing = self._arnoldi(block, min(count, size), min(products, size))
        return values[np.argsort(-np.abs(values))], missing

    def block(self, player: Player | None) -> slice:
        """Returns the place of a player's parameters among all of them; None for all."""
        first = sum(weight.numel() for weight in self.game.weights["generator"])
        return {None: slice(None), "generator": slice(first), "discriminator": slice(first, None)}[player]

    def _arnoldi(self, block: slice, count: int, products: int) -> tuple[NDArray[np.complex128], int]:
        """Returns those wanted eigenvalues that converged, each once, and the number of the others.

        Arnoldi's iteration (Saad, Numerical Methods for Large Eigenvalue Problems, 2011, section 6.2) builds one
        orthonormal basis of `products` vectors, whose Ritz values approach the outermost eigenvalues on every side:
        those of the largest absolute value and those of the largest real part at once.
        """
        product = self._jacobian_product(block)
        start = torch.randn(self.size, generator=seeded(self.seed, "arnoldi"), dtype=torch.float64)[block]
        basis = torch.empty(products + 1, len(start), dtype=torch.float64, device=self.samples.device)
        basis[0] = start / start.norm()
        hessenberg = np.zeros((products + 1, products))
        for k in progress(range(products), title="eigenvalues: Jacobian-vector products", total=products):
            vector = product(basis[k])
            scale = float(vector.norm())
            for _ in range(2):  # once more against rounding errors
                coefficients = basis[: k + 1] @ vector
                vector = vector - coefficients @ basis[: k + 1]
                hessenberg[: k + 1, k] += coefficients.cpu().numpy()
            remainder = float(vector.norm())
            hessenberg[k + 1, k] = remainder
            exact = remainder <= 1e-12 * scale or k + 1 == len(start)  # the basis spans an invariant subspace
            if exact or k + 1 == products or (k + 1) % _CHECK_EVERY == 0:
                values, converged = _ritz_values(hessenberg[: k + 2, : k + 1], exact=exact)
                largest, most_real = (np.argsort(-order)[:count] for order in (np.abs(values), values.real))
                wanted = np.union1d(largest, most_real)
                if exact or converged[wanted].all():
                    break
            basis[k + 1] = vector / remainder
        return values[wanted[converged[wanted]]], int((~converged[wanted]).sum())

    def _jacobian_product(self, block: slice) -> Callable[[Tensor], Tensor]:
        """Returns the function from w (m,) to the Jacobian's block times w, at the present parameters."""
        v = self._require_finite(self.evaluate())
        dual = torch.zeros_like(v, requires_grad=True)
        transposed = self._flatten(grad(v, self.weights, dual, create_graph=True, allow_unused=True))  # J^T dual

        def product(vector: Tensor) -> Tensor:
            tangent = torch.zeros_like(v)
            tangent[block] = vector
            return grad(transposed, dual, tangent, retain_graph=True)[0][block]  # (J^T)^T tangent

        return product

    def _require_finite(self, v: Tensor) -> Tensor:
        if not v.isfinite().all():
            raise UserError("the gradients of the game are not finite at these weights; diagnose another checkpoint")
        return v

    def _flatten(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        """Returns one vector (n,) of a tensor per parameter; None counts as 0."""
        pairs = zip(parts, self.weights, strict=True)
        return torch.cat([(torch.zeros_like(weight) if part is None else part).flatten() for part, weight in pairs])


def _ritz_values(hessenberg: NDArray[np.float64], *, exact: bool) -> tuple[NDArray[np.complex128], NDArray[np.bool_]]:
    """Returns the eigenvalues (k,) of the upper square of a Hessenberg matrix (k + 1, k), and which have converged.

    A Ritz value has converged if its residual, the last subdiagonal entry times the last entry of its eigenvector, is
    small beside the largest one (Saad, 2011, proposition 6.8). exact: whether all have.
    """
    values, vectors = np.linalg.eig(hessenberg[:-1])
    residuals = hessenberg[-1, -1] * np.abs(vectors[-1])  # the eigenvectors have norm 1
    return values, (residuals <= _TOLERANCE * np.abs(values).max()) | exact
