"""Steps by replay are the steps, one by one; what changes between them is seen; what cannot be recorded goes on."""

import io
import logging
from types import SimpleNamespace

import pytest
import torch
from comparing import same, settings_for, without_time
from fake_cuda_graphs import Graphs, Waits
from torch import nn

from gancli.augment.base import Augment
from gancli.commands.train import assemble
from gancli.errors import Diverged
from gancli.training import cuda_graphs
from gancli.training.ema import EMA
from gancli.training.run_folder import RunFolder
from gancli.updates import Simultaneous

RATE = 2**-11  # the same number in float32, so that bits can be compared
RATES = [f"optimizer.{player}.lr={RATE}" for player in ("generator", "discriminator")]
LINEAR = ["+schedule@penalty.r1.weight=linear", "penalty.r1.weight.start=1.0", "penalty.r1.weight.end=0.25"]
ADA = ["augment=ada", "augment.interval=1", "augment.target=0.0", "augment.speed=500"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer_of(folder, *overrides):
    rates = [] if any("@optimizer.generator.lr" in word for word in overrides) else RATES
    return assemble(settings_for("train.images=1600", *rates, *overrides), folder=RunFolder(folder))


def replayed_of(folder, *overrides, allowed=float("inf")):
    trainer, made = trainer_of(folder, *overrides), Graphs(allowed)
    cuda_graphs.apply(trainer, made)
    return trainer, made


def numbers(record):
    return {key: float(value) for key, value in record.items() if isinstance(value, float) or value.ndim == 0}


def assert_the_same_steps(a, b, steps):
    for _ in range(steps):
        one, other = a.train_step(), b.train_step()
        assert numbers(one) == numbers(other)
        assert same(one["real_logits"], other["real_logits"])
    assert same(without_time(a.state_dict()), without_time(b.state_dict()))


SETTINGS = {
    "default": ([], 12),
    "lazy": (["penalty=[r1,r2]", "penalty.r1.interval=4", "penalty.r2.interval=3", "conditional=true"], 26),
    "alternating": (
        ["update=alternating", "update.discriminator_steps=2", "penalty=[wgan_gp]", "loss=wasserstein"],
        12,
    ),
    "lazy alternating": (["update=alternating", "loss=relativistic", "penalty.r1.interval=3", "dataset.flip=true"], 14),
    "hinge, spectral": (["loss=hinge", "penalty=none", "network.discriminator.spectral_norm=true"], 8),
    "extragradient": (["update=extragradient"], 8),
    "consensus": (["penalty=[consensus]", "update=alternating"], 8),
    "schedules": ([*LINEAR, "augment=instance_noise", "+schedule@augment.std=linear", "augment.std.start=0.5"], 12),
    "steered augmentation": ([*ADA, "update=alternating"], 10),
    "batch statistics, packed": (["network.discriminator.norm=batch", "pack=3", "augment=diffaugment"], 8),
    "other optimizers": (
        ["optimizer@optimizer.generator=sgd", "optimizer@optimizer.discriminator=optimistic_adam", *RATES],
        8,
    ),
    "short floats": (["device.precision=bf16"], 8),
    "micro-batches": (["train.accumulate=2", "penalty=[r1,wgan_gp]", "penalty.r1.interval=3", "conditional=true"], 14),
    "alternating micro-batches": (
        ["train.accumulate=4", "update=alternating", "update.discriminator_steps=2", *ADA, "dataset.flip=true"],
        6,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_by_replay_are_the_steps(tmp_path, name):
    overrides, steps = SETTINGS[name]
    plain, (replayed, made) = trainer_of(tmp_path, *overrides), replayed_of(tmp_path, *overrides)
    assert_the_same_steps(plain, replayed, steps)
    assert made.replayed > made.run_plainly, (made.replayed, made.run_plainly)


def test_each_set_of_due_penalties_is_recorded_once(tmp_path):
    lazy = ["penalty=[r1,r2]", "penalty.r1.interval=2", "penalty.r2.interval=3"]
    trainer, made = replayed_of(tmp_path, *lazy)
    for _ in range(31):
        trainer.train_step()
    assert made.recorded == 4 + 2 + 1  # sets of penalties, optimizers, moving average


@pytest.mark.parametrize("parts", [1, 4])
def test_all_micro_batches_are_in_one_recording(tmp_path, parts):
    trainer, made = replayed_of(tmp_path, f"train.accumulate={parts}", "update=alternating")
    for _ in range(5):
        trainer.train_step()
    assert made.recorded == 2 + 2 + 1  # the players' gradients, optimizers, moving average


def test_a_resumed_run_goes_on_as_the_one_that_never_stopped(tmp_path):
    lazy = ["penalty.r1.interval=2", "+schedule@optimizer.generator.lr=linear", "optimizer.generator.lr.start=1e-3"]
    (whole, _), (first, _), (second, _) = (replayed_of(tmp_path, *lazy) for _ in range(3))
    plain = trainer_of(tmp_path, *lazy)
    for _ in range(25):
        first.train_step()
        whole.train_step()
    second.load_state_dict(through_a_file(first.state_dict()))
    plain.load_state_dict(through_a_file(first.state_dict()))
    assert_the_same_steps(whole, second, 20)
    assert not plain.optimizers["generator"].optimizer.param_groups[0]["capturable"]
    plain.train_step()  # nothing in a checkpoint asks for graphs


def test_a_replay_that_is_not_finite_stops_before_the_update_and_the_run_can_go_back(tmp_path):
    trainer, made = replayed_of(tmp_path)
    for _ in range(10):
        trainer.train_step()
    good = through_a_file(trainer.state_dict())
    weights = dict(trainer.game.discriminator.named_parameters())
    with torch.no_grad():
        weights["head.linear.bias"].fill_(float("nan"))
    before = {name: weight.clone() for name, weight in weights.items()}
    replays = made.replayed
    with pytest.raises(Diverged, match="at step 10"):
        trainer.train_step()
    assert made.replayed == replays + 1
    assert all(torch.equal(before[name], weight) for name, weight in weights.items() if "bias" not in name)
    trainer.load_state_dict(through_a_file(good))
    plain = trainer_of(tmp_path)
    plain.load_state_dict(through_a_file(good))
    assert_the_same_steps(plain, trainer, 10)
    assert made.replayed > replays + 10


def test_learning_rates_are_lowered_under_replays_too(tmp_path):
    plain, (replayed, _) = trainer_of(tmp_path), replayed_of(tmp_path)
    for trainer in (plain, replayed):
        for _ in range(8):
            trainer.train_step()
        trainer.lr_factor = 0.25
    assert_the_same_steps(plain, replayed, 6)
    assert replayed.optimizers["generator"].lr == 0.25 * RATE


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Peeking(nn.Module):
    """Looks at a value on the way."""

    def forward(self, x):
        return x if float(x.detach().sum()) > -1e9 else -x


def test_a_network_that_looks_at_values_goes_on_without(tmp_path, caplog):
    plain, (replayed, made) = trainer_of(tmp_path), replayed_of(tmp_path)
    for trainer in (plain, replayed):
        trainer.game.discriminator.stages.append(Peeking())
    assert_the_same_steps(plain, replayed, 10)
    assert made.recorded == 3  # the optimizers and the moving average
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("device.cuda_graph: gradients cannot be recorded, so they go on without: operation not")
    assert "\n" not in warning


@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 4])
def test_a_recording_that_fails_half_way_changes_nothing(tmp_path, allowed):
    words = ["update=alternating", "network.discriminator.norm=batch"]
    plain, (replayed, made) = trainer_of(tmp_path, *words), replayed_of(tmp_path, *words, allowed=allowed)
    assert_the_same_steps(plain, replayed, 8)
    assert made.recorded == allowed


class Own(Augment):
    def __call__(self, images, uniform):
        return images

    strength = 0.0


class Peculiar(Simultaneous):
    capturable = False


def test_what_cannot_be_recorded_is_said(tmp_path, caplog):
    def said(trainer):
        caplog.clear()
        update = trainer.update
        cuda_graphs.apply(trainer, Graphs())
        assert trainer.update is update and type(trainer.ema) is EMA
        return caplog.text

    trainer = trainer_of(tmp_path)
    trainer.game.augment = Own()
    assert "run without CUDA graphs (device.cuda_graph): augment Own has no strength" in said(trainer)
    trainer = trainer_of(tmp_path)
    trainer.update = Peculiar()
    assert "run without CUDA graphs (device.cuda_graph): the update rule does not say" in said(trainer)
    trainer.process_group = SimpleNamespace(world_size=2)
    assert "a batch is divided among several processes" in said(trainer)
    with caplog.at_level(logging.INFO):
        cuda_graphs.apply(trainer, Graphs(), level=logging.INFO)
    assert caplog.records[-1].levelno == logging.INFO, "graphs were not asked for"


def test_an_optimizer_that_cannot_be_recorded_is_named(tmp_path, caplog):
    replayed_of(tmp_path, "optimizer@optimizer.discriminator=optimistic_adam")
    assert "the discriminator's updates go on without: OptimisticAdam" in caplog.text


def test_the_stand_in_is_as_strict_as_a_capture():
    weight, rate = torch.ones(3), torch.full((), 2.0)
    number = 2.0

    def work():
        weight.mul_(number).mul_(rate)

    replay = Graphs().record(work)
    assert weight.tolist() == [1.0] * 3, "a recording does nothing"
    number = 5.0
    rate.fill_(3.0)
    replay()
    assert weight.tolist() == [6.0] * 3, "tensors are read anew, numbers are not"
    for forbidden in (lambda: weight.sum().item(), lambda: torch.rand(2), lambda: torch.tensor(1.0)):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            Graphs().record(forbidden)
    with Waits() as waits:
        float(weight.square().sum())
    assert waits.names == ["aten::_local_scalar_dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("words", [[], SETTINGS["lazy"][0], SETTINGS["alternating"][0]])
def test_steps_by_replay_on_a_gpu(tmp_path, words, caplog):
    plain, replayed = (
        trainer_of(tmp_path, *words, "device=cuda", f"device.cuda_graph={which}") for which in ("false", "true")
    )
    assert isinstance(replayed.update, cuda_graphs.CUDAGraphUpdate)
    for _ in range(100):
        torch.testing.assert_close(numbers(plain.train_step()), numbers(replayed.train_step()), rtol=1e-3, atol=1e-4)
    assert "go on without" not in caplog.text
    torch.cuda.set_sync_debug_mode("error")  # from now on whatever waits for the device raises
    try:
        for _ in range(4):
            replayed.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.replays for step in replayed.update.captured.values())
