"""What the health monitor finds and what it leads to: a warning, the end, or a way back."""

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import POINTS, TINY

from gancli.augment.base import NoAugment
from gancli.augment.diffaugment import DiffAugment
from gancli.game import Game
from gancli.losses import NonSaturating, Relativistic
from gancli.metrics.base import Samples
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.packed import Packed
from gancli.schedules import Linear
from gancli.training import checkpoint
from gancli.training.evaluation import PeriodicEvaluation, diversity, feature_variance
from gancli.training.health import HealthMonitor, Remedies
from gancli.training.scheduled_optimizer import ScheduledOptimizer
from gancli.training.trainer import Trainer

FINE = {"fid": 1.0, "diversity": 1.0}
PLAYING = {"accuracy/real": 0.7, "accuracy/fake": 0.99, "grad_norm/generator": 1.0}


def look(monitor=None, *, scalars=PLAYING, name="fid", better="lower", first=9.0, best=1.0, **values):
    return (monitor or trained()).check(scalars, FINE | values, name=name, better=better, first=first, best=best)


def trained(**settings):
    """A monitor that has seen samples as varied as real ones."""
    monitor = HealthMonitor(**settings)
    monitor.most = {"diversity": 1.0, "diversity_within_classes": 1.0, "modes_share": 1.0}
    return monitor


def kinds(*args, **kwargs):
    return [finding.kind for finding in look(*args, **kwargs)]


def test_nothing_is_wrong():
    assert look() == [] and look(best=None) == [] and look(scalars={}) == []


def test_collapse():
    assert kinds(diversity=0.29) == ["collapse"] and kinds(diversity=0.31) == []
    assert kinds(trained(diversity=0.5), diversity=0.31) == ["collapse"]
    (finding,) = look(diversity=0.123)
    assert finding.serious and "mode collapse: samples vary 0.12 times as much as real ones" in finding.text


def test_collapse_within_classes():
    assert kinds(diversity_within_classes=0.29) == ["collapse"] and kinds(diversity_within_classes=0.31) == []
    (finding,) = look(diversity_within_classes=0.02)
    assert finding.serious and "samples of a class vary 0.02 times as much as real ones of it" in finding.text
    assert kinds(diversity=0.1, diversity_within_classes=0.1) == ["collapse"], "said once"


def test_samples_that_never_varied_are_not_trained_yet():
    monitor = HealthMonitor()
    (finding,) = look(monitor, diversity=0.02, fid=9.0, best=None, first=None)
    assert finding.kind == "young" and not finding.serious
    assert finding.text == "not trained yet: samples vary 0.02 times as much as real ones"
    assert kinds(monitor, diversity=0.021, fid=8.0, best=9.0) == ["young"], "it still scores better"
    assert kinds(monitor, diversity=0.1, fid=8.0, best=8.0) == ["young"], "samples come to vary more"
    assert kinds(monitor, diversity=0.01, fid=5.0, best=8.0) == ["collapse"], "samples come to vary less"
    assert kinds(monitor, diversity=0.54, fid=5.0, best=8.0) == []
    assert kinds(monitor, diversity=0.02, fid=5.0, best=5.0) == ["collapse"], "it varied before"


@pytest.mark.parametrize("measure", ["diversity", "diversity_within_classes", "modes_share"])
def test_samples_that_never_come_to_vary_have_collapsed(measure):
    monitor = HealthMonitor()
    assert kinds(monitor, **{measure: 0.1}, best=None, first=None) == ["young"]
    expected = ["modes"] if measure == "modes_share" else ["collapse"]
    assert kinds(monitor, **{measure: 0.11}) == expected
    resumed = HealthMonitor()
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert kinds(resumed, **{measure: 0.12}) == expected


def test_a_discriminator_leads_at_first_but_not_for_long():
    sure = {"accuracy/real": 1.0, "accuracy/fake": 1.0}
    monitor = HealthMonitor()
    assert kinds(monitor, scalars=sure, diversity=0.02, best=None, first=None) == ["young"]
    assert kinds(monitor, scalars=sure, diversity=0.02, fid=1.0, best=9.0) == ["young", "saturation"]


def game(*, penalties=(), classes=0, packed=False, relativistic=False, augment=None):
    discriminator = DCGANDiscriminator(image_shape=(2 if packed else 1, 8, 8), num_classes=classes)
    return Game(
        generator=DCGANGenerator(latent_dim=4, image_shape=(1, 8, 8), num_classes=classes),
        discriminator=Packed(discriminator, pack=2) if packed else discriminator,
        loss=Relativistic() if relativistic else NonSaturating(),
        prior=None,
        stream=None,
        augment=augment or NoAugment(),
        penalties=dict.fromkeys(penalties),
    )


def test_packs_are_not_advised_where_features_are_pretrained():
    trained = game()
    trained.discriminator.pretrained_on = "ImageNet"
    assert "pack" not in Remedies.for_game(trained).collapse


def test_what_is_on_already_is_not_advised():
    plain = Remedies.for_game(game())
    assert plain.collapse == "penalty=[r1], loss=relativistic, pack=2 or lower learning rates"
    assert plain.overfitting == "augment=ada, penalty=[r1], smaller networks or more data"
    assert plain.strong_discriminator == "penalty=[r1], a lower optimizer.discriminator.lr or augment=ada"
    assert plain.divergence == "lower learning rates, penalty=[r1] or another loss"
    one = Remedies.for_game(game(penalties=["r1"], classes=3))
    assert one.collapse == "a larger penalty.r1.weight, penalty=[r1,r2], loss=relativistic or lower learning rates"
    augment = DiffAugment(kinds=["translation"], strength=0.5)
    everything = game(penalties=["r1", "r2"], packed=True, relativistic=True, augment=augment)
    assert Remedies.for_game(everything).collapse == "a larger penalty.r1.weight or lower learning rates"
    assert "augment" not in str(Remedies.for_game(everything))


def test_few_modes_are_told_and_stop_nothing():
    (finding,) = look(modes_share=0.25)
    assert finding.kind == "modes" and not finding.serious and "samples show 25% of the modes" in finding.text
    assert kinds(modes_share=0.5) == [] and kinds(trained(modes=0.6), modes_share=0.5) == ["modes"]


def test_a_discriminator_that_knows_its_images_by_heart_is_told():
    scalars = PLAYING | {"accuracy/real": 0.9, "accuracy/holdout": 0.6, "accuracy/gap": 0.3}
    (finding,) = look(scalars=scalars)
    assert finding.kind == "overfitting" and not finding.serious and "90% of training images" in finding.text
    assert kinds(trained(overfitting=0.35), scalars=scalars) == [] == kinds(scalars=scalars | {"accuracy/gap": 0.2})


def test_lost_quality_where_less_is_better():
    assert kinds(fid=4.1) == ["quality"] and kinds(fid=3.9) == [] and kinds(fid=0.1) == []
    assert kinds(trained(lost_quality=2.0), fid=2.1) == ["quality"]
    assert kinds(fid=4.1, best=None) == [] and kinds(fid=4.1, best=2.0) == []
    (finding,) = look(fid=4.1)
    assert finding.serious and "fid is 4.1, and was 1 at its best" in finding.text


def test_lost_quality_where_more_is_better():
    more = {"name": "recall", "better": "higher", "best": 0.8}
    assert kinds(recall=0.19, **more) == ["quality"] and kinds(recall=0.21, **more) == []
    assert kinds(recall=1.0, **more) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_metric_that_is_no_number(number, better):
    assert kinds(fid=number, better=better) == ["quality"]


@pytest.mark.parametrize(("best", "now"), [(-0.0005, 0.0004), (-0.0005, -0.0004), (0.0, 1e-6)])
def test_noise_around_zero_is_no_lost_quality(best, now):
    assert kinds(fid=now, best=best) == []


def test_samples_that_do_not_vary_in_numbers():
    assert kinds(fid=float("nan"), diversity=float("nan"), best=None) != []


def test_a_discriminator_that_is_too_strong():
    sure = {**PLAYING, "accuracy/real": 0.985}
    assert kinds(scalars=sure) == ["saturation"]
    assert kinds(scalars={**sure, "accuracy/fake": 0.97}) == [] and kinds(scalars={**sure, "accuracy/real": 0.97}) == []
    assert kinds(trained(strong_discriminator=0.99), scalars=sure) == []
    (finding,) = look(scalars=sure)
    assert not finding.serious and "optimizer.discriminator.lr" in finding.text and "98%" in finding.text


def test_gradients_are_held_against_the_usual_one():
    def after(*norms, last, **settings):
        monitor = trained(**settings)
        for norm in norms:
            assert look(monitor, scalars={"grad_norm/generator": norm}) == []
        return look(monitor, scalars={"grad_norm/generator": last})

    assert after(1.0, 2.0, 3.0, last=0.021) == [] and after(1.0, 2.0, 3.0, last=199.0) == []
    for last, word in ((0.019, "vanished"), (201.0, "exploded")):
        (finding,) = after(1.0, 2.0, 3.0, last=last)
        assert finding.kind == "gradient" and not finding.serious
        assert f"has {word}: its norm is {last:.3g}, usually 2" in finding.text
    assert (
        [f.kind for f in after(1.0, last=0.4, vanished_gradient=0.5)]
        == ["gradient"]
        == [f.kind for f in after(1.0, last=2.1, exploded_gradient=2.0)]
    )
    assert after(last=1e-9) == [], "nothing is unusual at first"


def test_several_things_at_once():
    scalars = {"accuracy/real": 1.0, "accuracy/fake": 1.0}
    assert kinds(scalars=scalars, diversity=0.0, fid=9.0) == ["collapse", "saturation", "quality"]


@pytest.mark.parametrize("settings", [{"lower_lr": 0.0}, {"lower_lr": 1.5}, {"rollbacks": -1}, {"lost_quality": 1.0}])
def test_settings_without_sense(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}: "):
        HealthMonitor(**settings)


def test_a_factor_on_the_learning_rate_and_nothing_else():
    parameter = torch.nn.Parameter(torch.ones(1))
    make = partial(torch.optim.SGD, lr=Linear(start=1.0, end=0.0), momentum=Linear(start=0.8, end=0.4))
    optimizer = ScheduledOptimizer(make, [parameter])
    plain = ScheduledOptimizer(partial(torch.optim.Adam, lr=0.1), [torch.nn.Parameter(torch.ones(1))])
    for factor, progress in ((1.0, 0.0), (0.5, 0.0), (0.25, 0.5)):
        for each in (optimizer, plain):
            for other in each.parameters:
                other.grad = torch.ones(1)
            each.step(progress, lr_factor=factor)
        assert optimizer.lr == pytest.approx(factor * (1 - progress)) and plain.lr == pytest.approx(0.1 * factor)
        assert optimizer.optimizer.param_groups[0]["momentum"] == pytest.approx(0.8 - 0.4 * progress)


LOOK = ["evaluation.every=32", "evaluation.count=32", "evaluation.reference_count=64", "health.diversity=1e-6"]
ROLLBACK = [*LOOK, "health.action=rollback", "checkpoint.every=16", "checkpoint.keep=100", "train.images=128"]


@pytest.fixture
def collapsing(monkeypatch):
    """`collapsing(at, times)`: samples of the evaluation after `at` images are all alike, the first `times` times."""

    def arrange(at, times):
        original, left = PeriodicEvaluation.evaluate, [times]

        def evaluate(self, generator, game, *, seed, position):
            with pytest.MonkeyPatch.context() as patch:
                if position.images == at and left[0]:
                    left[0] -= 1
                    generate = self._generate

                    def alike(*args, **kwargs):
                        samples = generate(*args, **kwargs)
                        samples.data = samples.data[:1].expand_as(samples.data).contiguous()
                        return samples

                    patch.setattr(self, "_generate", alike)
                return original(self, generator, game, seed=seed, position=position)

        monkeypatch.setattr(PeriodicEvaluation, "evaluate", evaluate)

    return arrange


def start(cli, *words, folder="run"):
    return cli("train", *TINY, f"hydra.run.dir={folder}", *words)


def rows(name, folder="run"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def saved(folder="run"):
    files = checkpoint.Checkpoints(Path(folder) / "checkpoints").files()
    return {int(file.stem.split("-")[1]): checkpoint.read(file) for file in files}


def test_a_warning_changes_nothing(cli, collapsing):
    collapsing(at=64, times=9)
    result = start(cli, *LOOK, "train.images=96")
    assert result.status == 0 and "after 64 images: mode collapse: samples vary 0.00 times" in result.err
    assert result.err.count("mode collapse") == 1 and list(saved()) == [96]


def test_stop_ends_with_status_1_and_keeps_what_there_is(cli, collapsing):
    collapsing(at=64, times=9)
    result = start(cli, *LOOK, "health.action=stop", "checkpoint.every=16", "checkpoint.keep=9", "train.images=960")
    assert result.status == 1 and "Traceback" not in result.err
    assert len(re.findall("gancli: collapsed: after 64 images: mode collapse", result.err)) == 1
    assert list(saved()) == [16, 32, 48] and Path("run/checkpoints/best.pt").exists()
    assert [row["images"] for row in rows("evaluations.jsonl")] == [32, 64], "what was seen is written down"
    assert Path("run/samples.png").exists()
    assert cli("sample", "run=run", "out=a.png").status == 0


def test_what_is_not_serious_stops_nothing(cli):
    result = start(cli, *LOOK, "health.action=stop", "health.strong_discriminator=0", "log.every=16")
    assert result.status == 0 and "the discriminator is right on" in result.err


def test_rollback_goes_back_to_health_with_lower_learning_rates(cli, collapsing):
    collapsing(at=96, times=1)
    result = start(cli, *ROLLBACK, "log.every=16")
    assert result.status == 0, result.err
    assert "after 96 images: mode collapse" in result.err
    assert "back to 64 images, learning rates times 0.5" in result.err
    states = saved()
    assert list(states) == [16, 32, 48, 64, 80, 96, 112, 128]
    assert [states[images]["lr_factor"] for images in states] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert {images: states[images]["rollbacks"] for images in (48, 64, 128)} == {48: 0, 64: 1, 128: 1}
    scalars = rows("metrics.jsonl")
    assert [row["images"] for row in scalars] == [16, 32, 48, 64, 80, 96, 112, 128], "each once"
    for player in ("generator", "discriminator"):
        rates = [row[f"lr/{player}"] for row in scalars]
        assert rates == pytest.approx([rates[0]] * 4 + [rates[0] / 2] * 4)
    assert [row["images"] for row in rows("evaluations.jsonl")] == [32, 64, 96, 128]
    assert rows("evaluations.jsonl")[2]["values"]["diversity"] > 0, "the row of what was given up is gone"


def test_before_the_first_rollback_the_run_is_the_usual_one(cli, collapsing):
    assert start(cli, *ROLLBACK, "train.images=64", folder="plain").status == 0
    collapsing(at=96, times=1)
    assert start(cli, *ROLLBACK).status == 0
    plain, states = saved("plain"), saved()
    for images in (48, 64):
        for key in ("generator", "discriminator", "ema"):
            assert all(torch.equal(value, states[images][key][name]) for name, value in plain[images][key].items())


def test_the_way_back_is_kept_however_far(cli, collapsing):
    collapsing(at=96, times=1)
    words = [word for word in ROLLBACK if word != "checkpoint.keep=100"]
    result = start(cli, *words, "checkpoint.every=16", "checkpoint.keep=1")
    assert result.status == 0 and "back to 64 images" in result.err
    assert list(saved()) == [112, 128], "the last one, and the last healthy one before it"


def test_later_checkpoints_are_deleted_at_once(cli, collapsing, monkeypatch):
    collapsing(at=96, times=1)
    original, seen = Trainer.rollback, []

    def rollback(self, error):
        before = [file.stem[-3:] for file in self.checkpoints.files()]
        original(self, error)
        seen.append((before, [file.stem[-3:] for file in self.checkpoints.files()], self.images, self.step))

    monkeypatch.setattr(Trainer, "rollback", rollback)
    assert start(cli, *ROLLBACK).status == 0
    assert seen == [(["016", "032", "048", "064", "080"], ["016", "032", "048", "064"], 64, 4)]


def test_rollbacks_end_after_so_many_times(cli, collapsing):
    collapsing(at=96, times=99)
    result = start(cli, *ROLLBACK, "health.rollbacks=2")
    assert result.status == 1 and "Traceback" not in result.err
    assert "learning rates times 0.5\n" in result.err and "learning rates times 0.25\n" in result.err
    assert result.err.count("back to 64 images") == 2
    assert result.err.count("gancli: collapsed: after 96 images: mode collapse") == 1
    assert list(saved()) == [16, 32, 48, 64, 80] and saved()[80]["lr_factor"] == 0.25


def test_no_rollback_at_all(cli, collapsing):
    collapsing(at=96, times=99)
    result = start(cli, *ROLLBACK, "health.rollbacks=0")
    assert result.status == 1 and "back to" not in result.err


def test_without_a_healthy_checkpoint_there_is_no_way_back(cli, collapsing):
    collapsing(at=64, times=99)
    result = start(cli, *ROLLBACK, "checkpoint.every=48")
    assert result.status == 1 and "gancli: collapsed: after 64 images" in result.err
    assert list(saved()) == [48], "healthy after 32 images, which were not saved"


def test_a_resumed_run_remembers_its_rollbacks(cli, collapsing):
    collapsing(at=64, times=1)
    assert start(cli, *ROLLBACK, "health.rollbacks=1", "train.images=64").status == 0
    assert saved()[64]["lr_factor"] == 0.5
    collapsing(at=96, times=99)
    result = start(cli, *ROLLBACK, "health.rollbacks=1", "resume=auto")
    assert result.status == 1 and "gancli: collapsed: after 96 images" in result.err and "back to" not in result.err


def test_the_best_checkpoint_survives_a_rollback(cli, monkeypatch):
    from gancli.metrics.suite import MetricSuite

    values = iter([5.0, 1.0, 50.0, 4.0, 3.0])  # after 32, 64 and 96 images; back to 48; after 64 and 96
    monkeypatch.setattr(MetricSuite, "__call__", lambda self, samples: {"fd_random": next(values)})
    words = [*ROLLBACK, "checkpoint.every=48", "train.images=96", "health.diversity=0"]
    result = start(cli, *words)
    assert result.status == 0 and "back to 48 images" in result.err
    best = checkpoint.read(Path("run/checkpoints/best.pt"))
    assert (best["images"], best["rollbacks"]) == (64, 0), "the one with 1.0, not those with 4.0 and 3.0"


def test_lost_quality_is_still_seen_after_a_rollback_to_before_the_first_evaluation(cli, monkeypatch):
    from gancli.metrics.suite import MetricSuite

    values = iter([5.0, 500.0, *[500.0] * 9])  # after 32, and 64; back to 24, then bad for good
    monkeypatch.setattr(MetricSuite, "__call__", lambda self, samples: {"fd_random": next(values)})
    words = [*ROLLBACK, "train.batch_size=8", "checkpoint.every=24", "health.diversity=0", "health.rollbacks=1"]
    result = start(cli, *words)
    assert result.status == 1 and "back to 24 images" in result.err
    assert "gancli: collapsed: after 32 images: quality was lost: fd_random is 500" in result.err


def test_nothing_to_look_at(cli):
    words = [*POINTS, "dataset=swiss_roll", "dataset.std=0.5", "hydra.run.dir=run", "evaluation.every=32"]
    result = cli("train", *words, "health.action=stop")
    assert result.status == 2 and "health.action=stop has nothing to check" in result.err
    result = cli("train", *words)
    assert result.status == 0 and "no best checkpoint and no health alerts" in result.err
    assert not Path("run/evaluations.jsonl").exists()


def test_a_run_made_to_collapse_is_told_so(cli):
    words = [*POINTS, "train.batch_size=64", "train.images=6400", "log.pictures=6400"]
    words += ["evaluation.every=1600", "evaluation.count=500", "evaluation.reference_count=500", "log.every=1600"]
    result = cli("train", *words, "hydra.run.dir=fine")
    assert result.status == 0 and "mode collapse" not in result.err
    result = cli("train", *words, "hydra.run.dir=run", "optimizer.generator.lr=2e-2", "health.action=stop")
    assert result.status == 1 and "Traceback" not in result.err
    assert re.search(
        r"gancli: collapsed: after [\d,]+ images: mode collapse: samples vary 0\.[012]\d times", result.err
    )
    assert (
        rows("evaluations.jsonl")[-1]["values"]["diversity"]
        < 0.3
        < rows("evaluations.jsonl", "fine")[-1]["values"]["diversity"]
    )


def gradient_that_blows_up(monkeypatch, *, at, times, player):
    """The gradient of the first weight is infinite at step `at`, the first `times` times."""
    original, left = Trainer.train_step, [times]

    def step(self):
        if self.step != at or not left[0]:
            return original(self)
        left[0] -= 1
        handle = next(self.game.network(player).parameters()).register_hook(lambda gradient: gradient * float("inf"))
        try:
            return original(self)
        finally:
            handle.remove()

    monkeypatch.setattr(Trainer, "train_step", step)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_run_that_diverges_once_recovers(cli, monkeypatch, update, player):
    gradient_that_blows_up(monkeypatch, at=5, times=1, player=player)
    result = start(cli, *ROLLBACK, "evaluation.every=null", f"update={update}", "checkpoint.every=32")
    assert result.status == 0, result.err
    assert f"the {player}'s gradient became" in result.err
    assert result.err.count("back to 64 images, learning rates times 0.5") == 1
    state = saved()[128]
    assert state["lr_factor"] == 0.5 and state["step"] == 8
    assert all(torch.isfinite(value).all() for value in state["generator"].values())


def test_a_rollback_after_divergence_is_exact(cli, monkeypatch):
    """With learning rates as they were, a step that fails once leaves no trace in the tensors."""
    words = [*ROLLBACK, "evaluation.every=null", "health.lower_lr=1", "checkpoint.every=32"]
    assert start(cli, *words, folder="plain").status == 0
    gradient_that_blows_up(monkeypatch, at=5, times=1, player="generator")
    assert start(cli, *words).status == 0
    plain, state = saved("plain")[128], saved()[128]
    for key in ("generator", "discriminator", "ema"):
        assert all(torch.equal(value, state[key][name]) for name, value in plain[key].items())


def test_a_run_that_diverges_whatever_the_rate_ends(cli):
    result = start(
        cli,
        *(*ROLLBACK, "evaluation.every=null", "train.images=6400", "health.rollbacks=2"),
        *("optimizer@optimizer.generator=sgd", "optimizer@optimizer.discriminator=sgd"),
        *("loss=least_squares", "penalty=none", "optimizer.discriminator.lr=1e4"),
    )
    assert result.status == 1 and "Traceback" not in result.err
    assert result.err.count("back to ") == 2 and result.err.count("gancli: diverged: ") == 1
    assert "learning rates times 0.25" in result.err
    for state in saved().values():
        assert all(torch.isfinite(value).all() for value in state["generator"].values())


def test_divergence_without_rollback_just_ends(cli, monkeypatch):
    gradient_that_blows_up(monkeypatch, at=5, times=1, player="generator")
    result = start(cli, *ROLLBACK, "evaluation.every=null", "health.action=stop")
    assert result.status == 1 and "gancli: diverged: " in result.err and "back to" not in result.err


def test_divergence_before_the_first_checkpoint_ends(cli, monkeypatch):
    gradient_that_blows_up(monkeypatch, at=0, times=1, player="generator")
    result = start(cli, *ROLLBACK, "evaluation.every=null")
    assert result.status == 1 and "last good checkpoint: none yet" in result.err


def test_a_rollback_skips_a_damaged_checkpoint(cli, collapsing, monkeypatch):
    collapsing(at=96, times=1)
    original = Trainer.rollback

    def rollback(self, error):
        self.checkpoints.path(64).write_bytes(b"rubbish")
        original(self, error)

    monkeypatch.setattr(Trainer, "rollback", rollback)
    result = start(cli, *ROLLBACK)
    assert result.status == 0 and "back to 48 images" in result.err


def test_diversity_is_a_share_of_that_of_real_samples():
    labels = torch.arange(60) % 3
    centres = 5 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[labels]
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    real = Samples(centres + noise, labels)
    assert diversity(real, real) == pytest.approx({"diversity": 1.0, "diversity_within_classes": 1.0})
    found = diversity(Samples(centres + 0.1 * noise, labels), real)
    assert found["diversity_within_classes"] == pytest.approx(0.01, rel=1e-4) and found["diversity"] > 0.7
    within = sum(noise[labels == k].var(0).sum() * (19 / 57) for k in range(3))
    assert feature_variance(noise, labels) == pytest.approx(float(within), rel=1e-5)
    assert diversity(Samples(noise), Samples(noise / 2)) == pytest.approx({"diversity": 4.0}), "no labels, no classes"
    assert math.isnan(feature_variance(noise[:3], labels[:3])), "one sample of each class does not vary"


def test_the_samples_of_a_class_differ_from_one_another(train):
    words = [
        "conditional=true",
        "train.batch_size=32",
        "train.images=12_800",
        "log.every=12_800",
        "log.pictures=12_800",
    ]
    words += [f"network.{player}.channels=16" for player in ("generator", "discriminator")]
    words += ["evaluation.every=12_800", "evaluation.count=300", "evaluation.reference_count=500"]
    train(*words)
    assert rows("evaluations.jsonl")[-1]["values"]["diversity_within_classes"] > 0.1  # 0.02 with a large embedding
