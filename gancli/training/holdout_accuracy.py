"""The discriminator on held-out real samples beside those that it was trained on."""

from __future__ import annotations

from torch import Tensor

from gancli.datasets.base import Batch
from gancli.game import Game, eval_mode, mean_over_heads
from gancli.game_value import decision_threshold, game_statistics


def holdout_accuracy(
    game: Game, seen: Batch, held_out: Batch, *, real_logits: Tensor, fake_logits: Tensor
) -> dict[str, float]:
    """Returns the accuracy on held-out samples, how far it is below that on training samples, and the game's value.

    seen, held_out: real samples (N, *shape) of the training part and of the held-out part, with labels (N,) or None.
    real_logits, fake_logits: (B,), of the last step, from which the threshold follows.
    """
    with eval_mode(game.discriminator), game.autocast():
        logits = [mean_over_heads(game.discriminator(*batch)).float() for batch in (seen, held_out)]
    threshold = decision_threshold(real_logits, fake_logits, game.loss)
    on_seen, on_held_out = (game_statistics(some, fake_logits, threshold) for some in logits)
    return {
        "accuracy/holdout": on_held_out["accuracy/real"].item(),
        "accuracy/gap": (on_seen["accuracy/real"] - on_held_out["accuracy/real"]).item(),
        "game/value_holdout": on_held_out["game/value"].item(),
    }
