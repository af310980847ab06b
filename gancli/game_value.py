"""The value of the game, and the discriminator's accuracies, from its logits."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from gancli.losses import Loss

SADDLE_VALUE = -math.log(4.0)  # where D is right half of the time (Goodfellow et al., NeurIPS 2014, theorem 1)


def game_statistics(real_logits: Tensor, fake_logits: Tensor, threshold: Tensor | float) -> dict[str, Tensor]:
    """Returns accuracies, mean logits, and the value of the game, each 0-dim, from logits (B,).

    The value is E log D(x) + E log(1 - D(G(z))) whatever the loss, where D is the sigmoid of the logit's distance to
    `threshold`.
    """
    return {
        "accuracy/real": (real_logits > threshold).float().mean(),
        "accuracy/fake": (fake_logits <= threshold).float().mean(),
        "logits/real": real_logits.mean(),
        "logits/fake": fake_logits.mean(),
        "game/value": logsigmoid(real_logits - threshold).mean() + logsigmoid(threshold - fake_logits).mean(),
    }


def decision_threshold(real_logits: Tensor, fake_logits: Tensor, loss: Loss) -> Tensor | float:
    """Returns the logit above which a sample counts as real."""
    return (real_logits.mean() + fake_logits.mean()) / 2 if loss.threshold is None else loss.threshold
