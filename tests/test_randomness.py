"""Random streams: named, divided among processes, and restored from a checkpoint."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from gancli.randomness import Stream, random_state, seed_global_generators, seeded, set_random_state

CPU = torch.device("cpu")


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
    seed_global_generators(5)
    stream = Stream(seeded(5, "noise"), device=CPU)
    draw_everywhere(stream)  # leaves half a pair of normal numbers in Python's and numpy's generators
    file = io.BytesIO()
    torch.save(random_state(stream), file)
    expected = [draw_everywhere(stream), draw_everywhere(stream)]
    assert expected[0] != expected[1]

    seed_global_generators(6)
    other = Stream(seeded(6, "noise"), device=CPU)
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), other)
    assert [draw_everywhere(other), draw_everywhere(other)] == expected


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_seed_fixes_the_global_generators(seed: int) -> None:
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    seed_global_generators(seed)
    first = draws()
    assert draws() != first
    seed_global_generators(seed)
    assert draws() == first
