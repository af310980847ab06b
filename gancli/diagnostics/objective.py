"""The value of the game and its distance to the saddle point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from gancli.diagnostics.base import Diagnostic, DiagnosticResult, TrainedRun
from gancli.errors import require_at_least, require_memory
from gancli.game import eval_mode, mean_over_heads
from gancli.game_value import SADDLE_VALUE, decision_threshold, game_statistics
from gancli.reporting.plots import BLUE, GREEN, GREY, RED, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Objective(Diagnostic):
    """M = E log D(x) + E log(1 - D(G(z))) on training and on held-out data, and its value -log 4 at the saddle point.

    At the saddle point the discriminator's accuracy is one half (Goodfellow et al., NeurIPS 2014, theorem 1). D is the
    sigmoid of the logit's distance to the loss's threshold. The numbers `linear_…` are E log D(x) + E[1 - D(G(z))], the
    value without the second logarithm, which is 0 at its own saddle point. count: real samples of each part, and
    generated ones. Raises SettingError.
    """

    title = "value of the game"

    def __init__(self, *, count: int = 2_000) -> None:
        require_at_least(2, count=count)
        require_memory(100 * count, count=count)
        self.count = count

    def suits(self, run: TrainedRun) -> bool:
        return True

    def __call__(self, run: TrainedRun) -> DiagnosticResult:
        statistics = {"train": self._statistics(run, held_out=False), "holdout": self._statistics(run, held_out=True)}
        numbers: dict[str, float | str] = {}
        for part, values in statistics.items():
            numbers |= {
                f"value_{part}": values["game/value"],
                f"linear_{part}": values["linear"],
                f"distance_to_saddle_{part}": abs(values["game/value"] - SADDLE_VALUE),
                f"accuracy_{part}": (values["accuracy/real"] + values["accuracy/fake"]) / 2,
            }
        text = (
            f"{numbers['value_train']:.3f} on training and {numbers['value_holdout']:.3f} on held-out data, at the "
            f"saddle point {SADDLE_VALUE:.3f}; accuracy of D {numbers['accuracy_train']:.0%} and "
            f"{numbers['accuracy_holdout']:.0%}, at the saddle point 50 %"
        )
        return DiagnosticResult(text=text, numbers=numbers, figure=_plot(run))

    def _statistics(self, run: TrainedRun, *, held_out: bool) -> dict[str, float]:
        """Returns the statistics of the game on one part of the data, and the value without the second logarithm."""
        game = run.trainer.game
        real, labels = run.real_samples(self.count, held_out=held_out)
        noise = run.noise(len(real))
        real_parts, fake_parts = [], []
        with eval_mode(game.generator), eval_mode(game.discriminator), game.autocast():
            for rows in torch.arange(len(real), device=real.device).split(250):
                batch_labels = None if labels is None else labels[rows]
                fakes = game.generator(noise[rows], batch_labels)
                real_parts.append(mean_over_heads(game.discriminator(real[rows], batch_labels)).float())
                fake_parts.append(mean_over_heads(game.discriminator(fakes, batch_labels)).float())
        real_logits, fake_logits = torch.cat(real_parts), torch.cat(fake_parts)
        threshold = decision_threshold(real_logits, fake_logits, game.loss)
        linear = logsigmoid(real_logits - threshold).mean() + (threshold - fake_logits).sigmoid().mean()
        statistics = {**game_statistics(real_logits, fake_logits, threshold), "linear": linear}
        return {name: float(value) for name, value in statistics.items()}


def _plot(run: TrainedRun) -> Figure:
    plot, (value, accuracy) = figure(2)
    for name, label, color in (
        ("game/value", "training data", BLUE),
        ("game/value_holdout", "held-out data", RED),
    ):
        value.plot(*run.series(name), color=color, label=label, linewidth=1)
    value.axhline(SADDLE_VALUE, color=GREY, linestyle="--", label="-log 4")
    value.set(title="M = E log D(x) + E log(1 - D(G(z)))", xlabel="images seen")
    value.legend(frameon=False)
    for name, label, color in (
        ("accuracy/real", "training data", BLUE),
        ("accuracy/holdout", "held-out data", RED),
        ("accuracy/fake", "generated samples", GREEN),
    ):
        accuracy.plot(*run.series(name), color=color, label=label, linewidth=1)
    accuracy.axhline(0.5, color=GREY, linestyle="--")
    accuracy.set(title="accuracy of D", xlabel="images seen", ylim=(-0.02, 1.02))
    accuracy.legend(frameon=False)
    return plot
