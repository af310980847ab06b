"""The value of the game, and how far it is from the saddle point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from gancli.diagnostics.base import Diagnostic, Run, Shown
from gancli.errors import SettingError
from gancli.game import SADDLE_VALUE, decision_threshold, eval_mode, game_statistics
from gancli.reporting.plots import BLUE, GREEN, GREY, RED, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Objective(Diagnostic):
    """M = E log D(x) + E log(1 - D(G(z))) on training and on held-out data, against its value -log 4 at the
    saddle point, where D is right half of the time (Goodfellow et al., NeurIPS 2014, theorem 1).

    linear is E log D(x) + E[1 - D(G(z))], without the second logarithm, whose saddle point has the value 0. count:
    samples of each kind. D is the sigmoid of the logit's distance to the loss's threshold.
    """

    title = "value of the game"

    def __init__(self, *, count: int = 2_000) -> None:
        if count < 2:
            raise SettingError(f"count={count}: at least 2")
        self.count = count

    def suits(self, run: Run) -> bool:
        return True

    def __call__(self, run: Run) -> Shown:
        values = {name: self._side(run, held_out=held) for name, held in {"train": False, "holdout": True}.items()}
        numbers: dict[str, float | str] = {}
        for name, side in values.items():
            numbers |= {
                f"value_{name}": side["game/value"],
                f"linear_{name}": side["linear"],
                f"distance_to_saddle_{name}": abs(side["game/value"] - SADDLE_VALUE),
                f"accuracy_{name}": (side["accuracy/real"] + side["accuracy/fake"]) / 2,
            }
        train, held = values["train"]["game/value"], values["holdout"]["game/value"]
        text = (
            f"{train:.3f} on training and {held:.3f} on held-out data, at the saddle point {SADDLE_VALUE:.3f}; "
            f"D is right on {numbers['accuracy_train']:.0%} and {numbers['accuracy_holdout']:.0%}, there on half"
        )
        return Shown(text=text, numbers=numbers, figure=self._figure(run))

    def _side(self, run: Run, *, held_out: bool) -> dict[str, float]:
        game = run.trainer.game
        real, labels = run.real(self.count, held_out=held_out)
        noise = run.noise(len(real))
        fakes, of_real, of_fake = [], [], []
        with eval_mode(game.generator), eval_mode(game.discriminator), game.autocast():
            for rows in torch.arange(len(real), device=real.device).split(250):
                some = None if labels is None else labels[rows]
                fakes.append(game.generator(noise[rows], some))
                of_real.append(game.discriminator(real[rows], some).float())
                of_fake.append(game.discriminator(fakes[-1], some).float())
        on_real, on_fake = torch.cat(of_real), torch.cat(of_fake)
        threshold = decision_threshold(on_real, on_fake, game.loss)
        linear = logsigmoid(on_real - threshold).mean() + (threshold - on_fake).sigmoid().mean()
        return {name: float(value) for name, value in game_statistics(on_real, on_fake, threshold).items()} | {
            "linear": float(linear)
        }

    def _figure(self, run: Run) -> Figure:
        picture, (value, accuracy) = figure(2)
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
            ("accuracy/fake", "generated", GREEN),
        ):
            accuracy.plot(*run.series(name), color=color, label=label, linewidth=1)
        accuracy.axhline(0.5, color=GREY, linestyle="--")
        accuracy.set(title="D is right on", xlabel="images seen", ylim=(-0.02, 1.02))
        accuracy.legend(frameon=False)
        return picture
