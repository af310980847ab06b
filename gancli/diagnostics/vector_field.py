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

from gancli.diagnostics.base import Run
from gancli.game import PLAYERS
from gancli.randomness import Stream, seeded

NOISE = 1e-6  # of the largest absolute value: below it an eigenvalue is the rounding of one that is 0
_DENSE = 400  # parameters up to which all eigenvalues are computed at once
_BASIS, _RESTARTS = 60, 100  # of the Arnoldi iteration: vectors at least, and how often it begins again at most


class VectorField:
    """The direction in which simultaneous gradient descent moves all n parameters, G's first, at one batch.

    Of copies of the networks in float64, with the penalties and the augmentation as they are now; what these draw at
    random is the same at every point. An optimizer's own steps, momentum or a look ahead, are no part of it.
    count: samples in the batch.
    """

    def __init__(self, run: Run, *, count: int) -> None:
        game, self.progress = run.trainer.game, run.trainer.progress
        players: dict[str, Any] = {player: copy.deepcopy(game.network(player)).double().eval() for player in PLAYERS}
        self.game = replace(game, **players, augment=copy.deepcopy(game.augment), autocast=nullcontext)
        self.game.augment.prepare(self.progress)
        self.seed = run.trainer.seed
        self.samples, self.labels = run.real(count)
        self.samples, self.noise = self.samples.double(), run.noise(len(self.samples)).double()
        self.weights = [weight for player in PLAYERS for weight in self.game.weights[player]]
        self.size = sum(weight.numel() for weight in self.weights)

    def point(self) -> Tensor:
        """The parameters (n,), detached."""
        return torch.cat([weight.detach().flatten() for weight in self.weights])

    def move(self, point: Tensor) -> None:
        """Sets the parameters to (n,)."""
        with torch.no_grad():
            for weight, part in zip(
                self.weights, point.split([weight.numel() for weight in self.weights]), strict=True
            ):
                weight.copy_(part.view_as(weight))

    def at_point(self) -> Tensor:
        """v at the parameters of now: (n,), differentiable in them."""
        self.game.stream = Stream(seeded(self.seed, "field"), device=self.samples.device)
        images = self.game.generator(self.noise, self.labels)
        gradients = self.game.gradients(self.samples, images, self.labels, progress=self.progress)
        return -torch.cat([gradient.flatten() for player in PLAYERS for gradient in gradients[player]])

    def jacobian(self) -> Tensor:
        """dv / dw, (n, n), a row for each component of v."""
        field = self.at_point()
        return torch.stack(
            [self._flat(grad(component, self.weights, retain_graph=True, allow_unused=True)) for component in field]
        )

    def eigenvalues(self, count: int, *, dense: bool | None = None) -> tuple[NDArray[np.complex128], int]:
        """Of the Jacobian: all of them in a small game, in a larger one the `count` largest, and the `count` with
        the largest real parts, by Arnoldi iteration on products (Lehoucq, Sorensen & Yang, 1998), so that no matrix is
        formed. dense: True or False where the size of the game shall not decide.

        Returns those found, largest first, and how many of the `count` twice over the iteration did not find.
        """
        if self.size <= _DENSE if dense is None else dense:
            found, missing = np.linalg.eigvals(self.jacobian().cpu().numpy()), 0
        else:
            count = min(count, self.size - 2)  # an iteration finds no more
            found, most_real = (self._arnoldi(which, count) for which in ("LM", "LR"))
            missing = 2 * count - len(found) - len(most_real)
            near = NOISE * np.abs([*found, *most_real]).max(initial=0.0)
            found = np.append(found, [value for value in most_real if np.abs(found - value).min(initial=np.inf) > near])
        return found[np.argsort(-np.abs(found))], missing

    def _arnoldi(self, which: str, count: int) -> NDArray[np.complex128]:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

        field = self.at_point()
        dual = torch.zeros_like(field, requires_grad=True)
        back = self._flat(grad(field, self.weights, dual, create_graph=True, allow_unused=True))  # J^T dual

        def product(direction: NDArray[np.float64]) -> NDArray[np.float64]:
            along = torch.from_numpy(direction.ravel()).to(back)
            (result,) = grad(back, dual, along, retain_graph=True)  # (J^T)^T along
            return np.asarray(result.cpu().numpy())

        operator = LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)
        start = torch.randn(self.size, generator=seeded(self.seed, "arnoldi"), dtype=torch.float64).numpy()
        basis = min(self.size, max(2 * count + 1, _BASIS))
        try:
            return np.asarray(
                eigs(operator, k=count, which=which, v0=start, ncv=basis, maxiter=_RESTARTS, return_eigenvectors=False)
            )
        except ArpackNoConvergence as error:
            return np.asarray(error.eigenvalues)

    def _flat(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        pairs = zip(parts, self.weights, strict=True)
        return torch.cat([(torch.zeros_like(weight) if part is None else part).flatten() for part, weight in pairs])
