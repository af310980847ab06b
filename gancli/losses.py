"""What the players minimise. On logits only, one value per sample; whoever asks takes the mean.

Notation: r and f are logits of real and fake samples, D = sigmoid(logit), softplus(x) = log(1 + e^x),
so that -log D = softplus(-logit) and -log(1 - D) = softplus(logit).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import relu, softplus


class Loss(ABC):
    """Both players' losses.

    threshold: a logit above it counts as "real" in the accuracies; None where only differences of logits
    mean something, and the middle between the means of real and fake takes its place.
    relativistic: the generator's loss looks at the real logits too.
    """

    threshold: float | None = 0.0
    relativistic: bool = False

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """(B,), (B,) -> (B,)"""

    @abstractmethod
    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """(B,), (B,) -> (B,)"""

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        """D(x) of the best discriminator where the densities are these, elementwise; None where it has no such form."""
        return None


class Minimax(Loss):
    """The zero-sum game E log D(x) + E log(1 - D(G(z))) (Goodfellow et al., NeurIPS 2014, eq. 1)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(-real_logits) + softplus(fake_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -softplus(fake_logits)  # log(1 - D), which saturates where D is sure

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        return real_density / (real_density + fake_density)  # proposition 1


class MinimaxLinear(Minimax):
    """E log D(x) + E[1 - D(G(z))], without the second logarithm, as some lecture notes print it.

    The best D is min(1, p/q) instead of p/(p+q), and the value at the saddle point 0 instead of -log 4.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(-real_logits) - self.generator(fake_logits, real_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return (-softplus(fake_logits)).exp()  # 1 - D, and unlike sigmoid(-logit) with a derivative of full precision

    def optimal(self, real_density: Tensor, fake_density: Tensor) -> Tensor | None:
        return (real_density / fake_density).clamp(max=1)


class NonSaturating(Minimax):
    """The generator maximises log D(G(z)) instead (Goodfellow et al., 2014, section 3)."""

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return softplus(-fake_logits)  # -log D


class LeastSquares(Loss):
    """Regression to 1 for real and 0 for fake (Mao et al., ICCV 2017, eq. 9)."""

    threshold = 0.5

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return 0.5 * (real_logits - 1).square() + 0.5 * fake_logits.square()

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return 0.5 * (fake_logits - 1).square()


class Hinge(Loss):
    """Margins of one for the discriminator (Lim & Ye, 2017; Miyato et al., ICLR 2018, eq. 16, 17)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return relu(1 - real_logits) + relu(1 + fake_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -fake_logits


class Wasserstein(Loss):
    """Difference of means (Arjovsky et al., ICML 2017, eq. 2); keep the critic Lipschitz by a penalty."""

    threshold = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits - real_logits

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return -fake_logits


class Relativistic(Loss):
    """Pairs of a real and a fake sample (Jolicoeur-Martineau, ICLR 2019; Huang et al., NeurIPS 2024, eq. 2)."""

    relativistic = True
    threshold = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(fake_logits - real_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        return softplus(real_logits - fake_logits)
