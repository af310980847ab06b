"""The device of a run, its precision, and what each of them changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from gancli.device import Runtime
from gancli.errors import UserError
from gancli.game import PLAYERS, Game
from gancli.losses import NonSaturating
from gancli.networks.base import Discriminator, Generator
from gancli.penalties import R1
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


def test_bf16_gradients_point_where_float32_ones_do() -> None:
    samples = torch.randn(16, 2, 4, 4, generator=seeded("samples"))
    found = {}
    for precision in ("float32", "bf16"):
        game = game_of(Runtime(kind="cpu", precision=precision))  # type: ignore[arg-type]
        list(Simultaneous().player_updates(game, lambda k: (samples, None), step=0, progress=0.0))
        for player in PLAYERS:
            found[precision, player] = torch.cat([p.grad.flatten() for p in game.network(player).parameters()])
    for player in PLAYERS:
        exact, short = found["float32", player], found["bf16", player]
        assert not torch.equal(exact, short)
        assert (exact - short).norm() < 0.05 * exact.norm()


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


def test_threads() -> None:
    assert str(Runtime(kind="cpu", threads=1)) == "CPU, 1 threads, float32"
    with pytest.raises(ValueError, match=r"^threads=0: "):
        Runtime(kind="cpu", threads=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
def test_cuda_without_cuda_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: no CUDA device is visible"):
        Runtime(kind="cuda")
    assert Runtime(kind="auto").device == CPU
