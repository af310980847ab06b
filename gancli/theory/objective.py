"""The objective: its value, its optimal discriminator, and the game without the second logarithm."""

from __future__ import annotations

from pathlib import Path

from gancli.reporting.html import Formula, Gallery, Heading, Image, Part, Table, Terms
from gancli.theory import drawings
from gancli.theory.base import Chapter, Experiment, diagnostic_numbers, format_number, gallery, panels_of

LOSSES = {"minimax": "with both logarithms", "minimax_linear": "without the second"}
_MEANINGS = {
    "mean |D - D*|": "distance of the learned D from the optimal one against this very G, averaged over real and "
    "generated samples; 0 to 1",
    "V, training": "E log D(x) + E log(1 - D(G(z))) on training data; -log 4 = -1.386 at the saddle point of the game "
    "with both logarithms; 0 where D is always right, far below where D says 1 to everything",
    "V, held-out": "the same on real data that D never saw; if it is much lower, D knows its training data by heart",
    "without the second log": "E log D(x) + E[1 - D(G(z))] on held-out data; 0 at the saddle point of the second game",
    "accuracy of D": "share of held-out real and of generated samples that D judges rightly; 0.5 is guessing",
    "KS": "largest gap between the CDF of the generated samples and F; of G's moving average, which makes the samples",
}


class Objective(Chapter):
    """Both games on a one-dimensional mixture, where the optimal discriminator is known."""

    title = "The objective and its saddle point"
    statement = (
        "The game's value is E log D(x) + E log(1 - D(G(z))); its best D is p/(p+q), and where q = p, D is 1/2 and the "
        "value -log 4. Without the second logarithm the best D is min(1, p/q): at q = p it is 1 and the value is 0."
    )

    def experiments(self) -> list[Experiment]:
        return [
            Experiment(
                name=f"objective-{loss}",
                overrides=(
                    "experiment=inverse_transform",
                    "distribution@dataset.distribution=gaussian_mixture",
                    f"loss={loss}",
                    *("penalty.r1.weight=0.01", "penalty.r2.weight=0.01"),  # larger ones make D too smooth
                    "train.images=600_000",
                    "diagnostic=[optimal_discriminator,objective,inverse_transform]",
                ),
                minutes=1.0,
            )
            for loss in LOSSES
        ]

    def parts(self, folder: Path) -> list[Part]:
        rows: list[list[str]] = []
        plots: list[Image] = []
        for loss, name in LOSSES.items():
            run = folder / f"objective-{loss}"
            discriminator, objective, generator = (
                diagnostic_numbers(run, diagnostic)
                for diagnostic in ("optimal_discriminator", "objective", "inverse_transform")
            )
            values = [
                discriminator.get("distance_to_best"),
                *map(objective.get, ("value_train", "value_holdout", "linear_holdout", "accuracy_holdout")),
                generator.get("ks"),
            ]
            rows.append([name, *map(format_number, values)])
            captions = (
                f"{name}: density p of the data (blue) and q of the generated samples (red)",
                f"{name}: the optimal D for these p and q (blue) and the learned one (red, dashed); where "
                "there are no samples, D was trained on nothing",
            )
            plots += panels_of(run, "optimal_discriminator", captions)
        return [*self._lesson(), Table(["game", *_MEANINGS], rows), Terms(_MEANINGS), *gallery(plots)]

    def _lesson(self) -> list[Part]:
        return [
            Heading("The game"),
            "The discriminator D sees a sample x and says how probably it is real. It is trained to say 1 for real "
            "samples and 0 for generated ones; the generator G is trained against it. Both are judged by one number, "
            "which D raises and G lowers:",
            Formula("V(G, D) = E log D(x) + E log(1 - D(G(z)))\nmin over G of max over D of V(G, D)"),
            Terms(
                {
                    "x, p": "a real sample, and the density of real samples",
                    "z, G(z), q": "noise, the sample made from it, and the density of such samples",
                    "D(x)": "the sigmoid 1/(1 + e^-l) of D's output l, the logit; between 0 and 1",
                    "E": "the mean over samples",
                    "saddle point": "a pair of players neither of whom can gain by moving alone",
                }
            ),
            Heading("The optimal discriminator, and what G then minimises"),
            "At a point x, D can only choose one number for p(x) log D + q(x) log(1 - D). The slope p/D - q/(1 - D) is "
            "zero at",
            Formula("D*(x) = p(x) / (p(x) + q(x))"),
            "Put into V, it leaves G with a distance between distributions, the Jensen-Shannon divergence JSD. With "
            "the mean m = (p + q)/2 of both densities and the Kullback-Leibler divergence KL(p‖m) = E log(p(x)/m(x)) "
            "over x from p,",
            Formula("V(G, D*) = -log 4 + 2 JSD(p, q)\nJSD(p, q) = ½ KL(p‖m) + ½ KL(q‖m)\n0 ≤ JSD ≤ log 2"),
            "JSD is 0 only for q = p. So the saddle point is where the generated samples are distributed as the real "
            "ones, D says 1/2 everywhere, and V = -log 4 = -1.386.",
            Gallery(
                [drawings.optimal_discriminator(), drawings.value_at_optimal_discriminator()],
                plots=True,
            ),
            Heading("Why D must not be too strong"),
            "Where p and q hardly overlap, JSD is nearly log 2, however far apart they are: it tells G that it is "
            "wrong, and not which way is better. In the loss log(1 - D(G(z))) the slope in D's logit is D itself, "
            "which vanishes as soon as D recognises the sample. This is why G is usually trained to raise log D(G(z)) "
            "instead, the non-saturating loss: the same fixed point, and a slope of 1 - D. It does not help against a "
            "D that is flat around the generated samples; penalties on D's gradient (R1 and others) and noise keep D "
            "smooth. Training D to its optimum at every step is thus no aim: it should stay just ahead of G.",
            Gallery([drawings.generator_losses(), drawings.vanishing_gradient()], plots=True),
            Heading("Measured: the game with and without the second logarithm"),
            "Some lecture notes write the game without the second logarithm, as E log D(x) + E[1 - D(G(z))]. That is "
            "another game with another saddle point. Both were trained on a mixture of two normal distributions. The "
            "second one is fragile: where D says 1, the slopes of both its terms vanish (1 - D and D(1 - D), in the "
            "logit), so once D says 1 everywhere neither player moves on, wherever q is. Its row then has a value of 0 "
            "as at the saddle point, beside a KS that says that q is not p.",
            Gallery([drawings.optimal_discriminators()], plots=True),
        ]
