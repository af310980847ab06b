"""Adversarial losses, as functions of logits with one value per logit.

Notation: D = sigmoid(logit) and softplus(x) = log(1 + e^x), so that -log D = softplus(-logit) and
-log(1 - D) = softplus(logit).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import relu, softplus


class Loss(ABC):
    """The losses of both players, which each player minimises.

    threshold: a logit above it counts as real in the accuracies; None where only differences of logits have a meaning,
    so that the accuracies use the midpoint between the mean real and the mean fake logit. relativistic: whether the
    generator's loss depends on the real logits.
    """

    threshold: float | None = 0.0
    relativistic: bool = False

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Returns the discriminator's loss for each logit: (B,), or (B, K) of K heads."""

    @abstractmethod
    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """Returns the generator's loss for each logit: (B,), or (B, K) of K heads."""

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        """Returns the optimal discriminator's D(x) from the densities at x, elementwise; None without a closed form."""
        return None


class Minimax(Loss):
    """The zero-sum game E log D(x) + E log(1 - D(G(z))) (Goodfellow et al., NeurIPS 2014, eq. 1)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(-real_logits) + softplus(fake_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -softplus(fake_logits)  # log(1 - D)

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        return real_density / (real_density + fake_density)  # proposition 1


class MinimaxLinear(Minimax):
    """The zero-sum game E log D(x) + E[1 - D(G(z))], without the second logarithm, as in some lecture notes.

    For densities p and q of real and fake samples, the optimal D is min(1, p/q) instead of p/(p+q), and the value at
    the saddle point is 0 instead of -log 4.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(-real_logits) - self.generator(fake_logits, real_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return (-softplus(fake_logits)).exp()  # 1 - D; the derivative of sigmoid(-logit) would lose precision

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        return (real_density / fake_density).clamp(max=1)


class NonSaturating(Minimax):
    """Minimax with a generator that maximises log D(G(z)) (Goodfellow et al., NeurIPS 2014, section 3)."""

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return softplus(-fake_logits)  # -log D


class LeastSquares(Loss):
    """Least squares with the targets 1 for real and 0 for fake samples (Mao et al., ICCV 2017, eq. 9)."""

    threshold = 0.5

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return 0.5 * (real_logits - 1).square() + 0.5 * fake_logits.square()

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return 0.5 * (fake_logits - 1).square()


class Hinge(Loss):
    """Hinge loss with margin 1 for the discriminator (Lim & Ye, 2017; Miyato et al., ICLR 2018, eq. 16, 17)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return relu(1 - real_logits) + relu(1 + fake_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -fake_logits


class Wasserstein(Loss):
    """Difference of mean logits (Arjovsky et al., ICML 2017, eq. 2).

    The discriminator's Lipschitz constant must be bounded: by WGANGP, spectral normalisation or a clipping optimizer.
    """

    threshold = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits - real_logits

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -fake_logits


class Relativistic(Loss):
    """Compares pairs of a real and a fake logit (Jolicoeur-Martineau, ICLR 2019; Huang et al., NeurIPS 2024, eq. 2)."""

    relativistic = True
    threshold = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(fake_logits - real_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return softplus(real_logits - fake_logits)
