"""The device of a run, its precision, and what each of them changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from gancli import device
from gancli.device import Runtime
from gancli.errors import UserError
from gancli.game import PLAYERS, Game
from gancli.losses import NonSaturating, Relativistic
from gancli.networks.base import Discriminator, Generator
from gancli.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from gancli.networks.mlp import MLPDiscriminator, MLPGenerator
from gancli.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from gancli.networks.resnet import ResNetDiscriminator, ResNetGenerator
from gancli.penalties import R1, R2
from gancli.priors import Gaussian
from gancli.randomness import Stream, seed_global_generators, seeded
from gancli.updates import Simultaneous

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _global_settings_come_back() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


class TinyG(Generator):
    def __init__(self) -> None:
        super().__init__(latent_dim=4, image_shape=(2, 4, 4))
        self.linear, self.conv = nn.Linear(4, 64), nn.Conv2d(4, 2, 3, padding=1)
        self.made: list[torch.dtype] = []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images = self.conv(self.linear(z).unflatten(1, (4, 4, 4)))
        self.made.append(images.dtype)
        return torch.tanh(images)


class TinyD(Discriminator):
    def __init__(self) -> None:
        super().__init__(image_shape=(2, 4, 4))
        self.conv, self.linear = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 1)
        self.made: list[torch.dtype] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = self.linear(torch.nn.functional.softplus(self.conv(x)).flatten(1)).squeeze(1)
        self.made.append(logits.dtype)
        return logits


class Normal:
    dim = 4

    def sample_batch(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 4, generator=rng)


def game_of(runtime: Runtime) -> Game:
    seed_global_generators(0)
    return Game(
        generator=runtime.place(TinyG()),
        discriminator=runtime.place(TinyD()),
        loss=NonSaturating(),
        prior=Normal(),  # type: ignore[arg-type]
        stream=Stream(seeded(0, "noise"), device=CPU),
        penalties={"r1": R1(weight=1.0)},
        autocast=runtime.autocast,
    )


@pytest.mark.parametrize(
    ("precision", "inside"), [("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_what_leaves_the_game_is_float32_at_any_precision(precision: str, inside: torch.dtype) -> None:
    game = game_of(Runtime(kind="cpu", precision=precision))  # type: ignore[arg-type]
    images = game.generate(3, None)
    output = game.discriminate_detached(images, None)
    assert images.dtype == output.logits.dtype == output.inputs.dtype == output.gradient().dtype == torch.float32
    assert game.generator.made == game.discriminator.made == [inside]
    assert all(parameter.dtype == torch.float32 for parameter in game.discriminator.parameters())


SHAPE = (3, 16, 16)
NETWORKS = {
    "mlp": (MLPGenerator, MLPDiscriminator, {"width": 32}),
    "dcgan": (DCGANGenerator, DCGANDiscriminator, {"channels": 16}),
    "resnet": (ResNetGenerator, ResNetDiscriminator, {"channels": 16}),
    "r3gan": (R3GANGenerator, R3GANDiscriminator, {"channels": 16}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bf16_step_goes_where_the_float32_step_goes(name: str) -> None:
    make_g, make_d, settings = NETWORKS[name]
    samples = torch.randn(16, *SHAPE, generator=seeded("samples"))
    found: dict[str, list[Tensor]] = {}
    for precision in ("float32", "bf16"):
        runtime = Runtime(kind="cpu", precision=precision)  # type: ignore[arg-type]
        seed_global_generators(0)
        game = Game(
            generator=runtime.place(make_g(latent_dim=8, image_shape=SHAPE, **settings)),
            discriminator=runtime.place(make_d(image_shape=SHAPE, **settings)),
            loss=Relativistic(),
            prior=Gaussian(dim=8),
            stream=Stream(seeded(0, "noise"), device=CPU),
            penalties={"r1": R1(weight=1.0), "r2": R2(weight=1.0)},
            autocast=runtime.autocast,
        )
        with torch.no_grad():  # away from the start, where residual branches of r3gan are zero
            for weight in (weight for player in PLAYERS for weight in game.weights[player]):
                weight += 0.02 * torch.randn(weight.shape)
        (update,) = Simultaneous().player_updates(game, lambda k: (samples, None), step=0, progress=0.0)
        gradients = [torch.cat([w.grad.flatten() for w in game.weights[player]]) for player in PLAYERS]
        with runtime.autocast():
            assert game.discriminator(samples).dtype == torch.float32
        found[precision] = [*gradients, torch.stack([*update.penalties.values()])]
    for exact, short in zip(found["float32"], found["bf16"], strict=True):
        assert short.dtype == torch.float32 and not torch.equal(exact, short)
        assert torch.cosine_similarity(exact, short, dim=0) > 0.99
        assert 0.95 < short.norm() / exact.norm() < 1.05


@pytest.mark.parametrize("channels_last", [True, False])
def test_place_lays_convolution_weights_out_as_asked(channels_last: bool) -> None:
    network = Runtime(kind="cpu", channels_last=channels_last).place(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2, 2)))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert network[0].weight.is_contiguous() is not channels_last
    assert network[0].weight.device == CPU


def test_autocast_is_only_for_bf16() -> None:
    for precision, active in (("float32", False), ("bf16", True)):
        with Runtime(kind="cpu", precision=precision).autocast():  # type: ignore[arg-type]
            assert torch.is_autocast_enabled("cpu") is active


def test_tf32_on_a_cpu_is_told_to_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Runtime(kind="cpu", precision="tf32")
    assert "tf32 changes nothing on a CPU" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
@pytest.mark.parametrize("kind", ["auto", "cpu"])
def test_cuda_graphs_on_a_cpu_are_told_to_change_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not Runtime(kind=kind, cuda_graph=True).cuda_graph  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.getMessage().startswith("device.cuda_graph=true changes nothing on a CPU")


def test_a_cpu_computes_in_float32_without_graphs_where_nothing_else_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = Runtime(kind="cpu")
    assert (runtime.precision, runtime.cuda_graph) == ("float32", False)
    assert not caplog.records


def test_only_who_asks_for_graphs_is_warned_where_there_are_none() -> None:
    levels = [Runtime(kind="cpu", cuda_graph=asked).cuda_graph_level for asked in (True, "auto")]  # type: ignore[arg-type]
    assert levels == [logging.WARNING, logging.INFO]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_auto_takes_on_a_gpu(deterministic: bool) -> None:
    runtime = Runtime(deterministic=deterministic)
    assert (runtime.precision, runtime.cuda_graph) == ("tf32", True)
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic


def test_threads() -> None:
    assert str(Runtime(kind="cpu", threads=1)) == "CPU, 1 thread, float32"
    with pytest.raises(ValueError, match=r"^threads=0: "):
        Runtime(kind="cpu", threads=0)


def test_threads_follow_the_work_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_threads", lambda: 4)
    for operations, threads in ((0, 1), (60_000_000, 1), (90_000_000, 2), (10**12, 4)):
        Runtime(kind="cpu").choose_threads(operations)
        assert torch.get_num_threads() == threads
    Runtime(kind="cpu", threads=3).choose_threads(0)
    assert torch.get_num_threads() == 3, "as the user said"
    Runtime(kind="cpu", threads=None).choose_threads(0)
    assert torch.get_num_threads() == 4, "as torch chose"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
def test_cuda_without_cuda_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: no CUDA device is visible"):
        Runtime(kind="cuda")
    assert Runtime(kind="auto").device == CPU
