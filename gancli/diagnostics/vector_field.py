"""The vector field of a game, v = -(d loss_G / d w_G, d loss_D / d w_D), and its Jacobian."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import grad

from gancli.diagnostics.base import TrainedRun
from gancli.game import PLAYERS
from gancli.randomness import Stream, seeded

ROUNDING = 1e-6  # times the largest absolute eigenvalue: smaller ones may be rounding errors of 0
_DENSE_SIZE = 400  # parameters up to which the Jacobian is formed and all eigenvalues are computed
_MIN_BASIS, _MAX_RESTARTS = 60, 100  # of the Arnoldi iteration: fewest vectors, most restarts


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

    def eigenvalues(self, count: int, *, dense: bool | None = None) -> tuple[NDArray[np.complex128], int]:
        """Returns eigenvalues of the Jacobian, the largest absolute value first, and how many were not found.

        Of a game of at most 400 parameters these are all eigenvalues; of a larger one, the `count` with the largest
        absolute value and the `count` with the largest real part, by Arnoldi iteration on Jacobian-vector products
        (Lehoucq, Sorensen & Yang, ARPACK Users' Guide, 1998). dense: overrides the choice by size.
        """
        if self.size <= _DENSE_SIZE if dense is None else dense:
            values, missing = np.linalg.eigvals(self.jacobian().cpu().numpy()), 0
        else:
            count = min(count, self.size - 2)  # ARPACK's limit
            values, most_real = (self._arnoldi(which, count) for which in ("LM", "LR"))
            missing = 2 * count - len(values) - len(most_real)
            tolerance = ROUNDING * np.abs([*values, *most_real]).max(initial=0.0)
            distinct = [v for v in most_real if np.abs(values - v).min(initial=np.inf) > tolerance]
            values = np.append(values, distinct)
        return values[np.argsort(-np.abs(values))], missing

    def _arnoldi(self, which: str, count: int) -> NDArray[np.complex128]:
        """Returns the eigenvalues that converged. which: "LM" for the largest absolute values, "LR" for real parts."""
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

        v = self.evaluate()
        dual = torch.zeros_like(v, requires_grad=True)
        transposed = self._flatten(grad(v, self.weights, dual, create_graph=True, allow_unused=True))  # J^T dual

        def product(direction: NDArray[np.float64]) -> NDArray[np.float64]:
            tangent = torch.from_numpy(direction.ravel()).to(transposed)
            (result,) = grad(transposed, dual, tangent, retain_graph=True)  # (J^T)^T tangent
            return np.asarray(result.cpu().numpy())

        operator = LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)
        start = torch.randn(self.size, generator=seeded(self.seed, "arnoldi"), dtype=torch.float64).numpy()
        basis = min(self.size, max(2 * count + 1, _MIN_BASIS))
        options = {"v0": start, "ncv": basis, "maxiter": _MAX_RESTARTS, "return_eigenvectors": False}
        try:
            return np.asarray(eigs(operator, k=count, which=which, **options))
        except ArpackNoConvergence as error:
            return np.asarray(error.eigenvalues)

    def _flatten(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        """Returns one vector (n,) of a tensor per parameter; None counts as 0."""
        pairs = zip(parts, self.weights, strict=True)
        return torch.cat([(torch.zeros_like(weight) if part is None else part).flatten() for part, weight in pairs])
