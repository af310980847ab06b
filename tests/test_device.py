from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gancli.device import Runtime, Stream, random_state, seeded, set_random_state
from gancli.errors import UserError
from gancli.game import Game
from gancli.losses import NonSaturating
from gancli.networks.base import Discriminator, Generator
from gancli.penalties import R1
from gancli.updates import Simultaneous

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _global_settings_come_back() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def normal(count: int, rng: torch.Generator) -> Tensor:
    return torch.randn(count, 3, generator=rng)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_slices_of_the_ranks_make_the_draw_of_one_process(world_size: int) -> None:
    whole = Stream(seeded("noise"), device=CPU)
    ranks = [Stream(seeded("noise"), device=CPU, part=rank, parts=world_size) for rank in range(world_size)]
    for _ in range(3):
        together = torch.cat([stream.take(normal, 8 // world_size) for stream in ranks])
        assert torch.equal(together, whole.take(normal, 8))


def test_a_stream_moves_on() -> None:
    stream = Stream(seeded("noise"), device=CPU)
    assert not torch.equal(stream.take(normal, 4), stream.take(normal, 4))


def test_seeded_depends_on_its_key_alone() -> None:
    def first(*key: int | str) -> list[float]:
        return torch.rand(4, generator=seeded(*key)).tolist()

    torch.manual_seed(1)
    before = first(0, "order", 3)
    torch.manual_seed(2)
    assert first(0, "order", 3) == before
    keys = [(0, "order", 3), (1, "order", 3), (0, "noise", 3), (0, "order", 4), (0, "order"), ("0", "order", 3), (-1,)]
    assert len({tuple(first(*key)) for key in keys}) == len(keys)
    assert torch.rand(4, generator=seeded(0, "order", 3)).tolist() != torch.rand(4).tolist()


def test_seeded_streams_are_independent() -> None:
    draws = torch.stack([torch.randn(4000, generator=seeded(seed, "noise")) for seed in range(8)])
    assert (torch.corrcoef(draws) - torch.eye(8)).abs().max() < 5 / 4000**0.5


def draw_everywhere(stream: Stream) -> list[object]:
    return [
        stream.take(normal, 2).tolist(),
        torch.rand(3).tolist(),
        [random.random(), random.gauss(0, 1)],
        np.random.rand(3).tolist(),
        np.random.standard_normal(1).tolist(),
    ]


def test_random_state_brings_every_generator_back_through_a_file() -> None:
    runtime = Runtime(kind="cpu")
    runtime.seed(5)
    stream = runtime.stream(5)
    draw_everywhere(stream)  # leaves half a pair of normal numbers in Python's and numpy's generators
    file = io.BytesIO()
    torch.save(random_state(stream), file)
    expected = [draw_everywhere(stream), draw_everywhere(stream)]
    assert expected[0] != expected[1]

    runtime.seed(6)
    other = runtime.stream(6)
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), other)
    assert [draw_everywhere(other), draw_everywhere(other)] == expected


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_seed_fixes_the_global_generators(seed: int) -> None:
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    runtime = Runtime(kind="cpu")
    runtime.seed(seed)
    first = draws()
    assert draws() != first
    runtime.seed(seed)
    assert draws() == first


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

    def batch(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 4, generator=rng)


def game_of(runtime: Runtime) -> Game:
    runtime.seed(0)
    return Game(
        generator=runtime.place(TinyG()),
        discriminator=runtime.place(TinyD()),
        loss=NonSaturating(),
        prior=Normal(),  # type: ignore[arg-type]
        stream=runtime.stream(0),
        penalties={"r1": R1(weight=1.0)},
        autocast=runtime.autocast,
    )


@pytest.mark.parametrize(
    ("precision", "inside"), [("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_what_leaves_the_game_is_float32_at_any_precision(precision: str, inside: torch.dtype) -> None:
    game = game_of(Runtime(kind="cpu", precision=precision))  # type: ignore[arg-type]
    images = game.generate(3, None)
    scored = game.discriminate_detached(images, None)
    assert images.dtype == scored.logits.dtype == scored.inputs.dtype == scored.gradient().dtype == torch.float32
    assert game.generator.made == game.discriminator.made == [inside]
    assert all(parameter.dtype == torch.float32 for parameter in game.discriminator.parameters())


def test_bf16_gradients_point_where_float32_ones_do() -> None:
    samples = torch.randn(16, 2, 4, 4, generator=seeded("samples"))
    found = {}
    for precision in ("float32", "bf16"):
        game = game_of(Runtime(kind="cpu", precision=precision))  # type: ignore[arg-type]
        list(Simultaneous().stages(game, lambda k: (samples, None), step=0, progress=0.0))
        for player in ("generator", "discriminator"):
            found[precision, player] = torch.cat([p.grad.flatten() for p in game.network(player).parameters()])
    for player in ("generator", "discriminator"):
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
