from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from gancli import config
from gancli.augment.ada import ADA
from gancli.augment.base import Augment, NoAugment
from gancli.augment.diffaugment import DiffAugment
from gancli.augment.instance_noise import InstanceNoise
from gancli.augment.sampling import _deterministic_adjoint, _torch_adjoint, sample
from gancli.build import build
from gancli.config import config_dir
from gancli.errors import SettingError, UserError
from gancli.randomness import seeded
from gancli.schedules import Linear

DIFFAUGMENT_KINDS = ["color", "translation", "cutout"]
ADA_KINDS = ["flip", "rotate90", "translate", "scale", "rotate", "color", "cutout"]
GEOMETRY = ADA_KINDS[:5]
LARGEST = 1 - 2.0**-24  # the largest float32 below 1


def diffaugment(kinds: list[Any] = DIFFAUGMENT_KINDS, **settings: Any) -> DiffAugment:
    return DiffAugment(kinds=kinds, **settings)


def ada(kinds: list[Any] = ADA_KINDS, **settings: Any) -> ADA:
    return ADA(kinds=kinds, **settings)


MAKERS = pytest.mark.parametrize("make", [diffaugment, ada])


def images(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, *shape, generator=seeded("images"), dtype=torch.float64).mul(2).sub(1).to(dtype)


def numbers(augment: Augment, count: int, *key: int | str) -> Tensor:
    return torch.rand(count, augment.draws, generator=seeded("numbers", *key))


def rows(*columns: float, count: int = 2) -> Tensor:
    return torch.tensor(columns).expand(count, -1)


def coordinates(height: int, width: int) -> Tensor:
    """An image (1, 3, H, W) whose channels are a pixel's distance from the centre to the right, and down, and 0."""
    down = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    down, right = torch.meshgrid(down, right, indexing="ij")
    return torch.stack((right, down, torch.zeros_like(down)))[None]


def test_no_augment_returns_its_input() -> None:
    augment = NoAugment()
    for samples in (images(2, 1, 8, 8), images(2, 5)):
        assert augment(samples, numbers(augment, 2)) is samples
    augment.prepare(0.5)
    augment.observe(torch.ones(2), torch.ones(2), threshold=0.0)
    assert (augment.draws, augment.strength, augment.state_dict()) == (0, 0.0, {})
    augment.load_state_dict({})


@pytest.mark.parametrize("augment", [diffaugment(strength=0.0), ada(strength=0.0), ada()])
@pytest.mark.parametrize("shape", [(3, 9, 13), (1, 8, 8)])
def test_strength_0_changes_nothing(augment: Augment, shape: tuple[int, ...]) -> None:
    x = images(5, *shape)
    assert torch.equal(augment(x, numbers(augment, 5)), x)
    assert torch.equal(augment(x, torch.zeros(5, augment.draws)), x)


@pytest.mark.parametrize("augment", [diffaugment(strength=0.7), ada(strength=0.7)])
def test_a_sample_depends_on_its_own_numbers_only(augment: Augment) -> None:
    x, u = images(12, 3, 10, 11), numbers(augment, 12)
    copies = x.clone(), u.clone()
    augmented = augment(x, u)
    assert torch.equal(augment(x, u), augmented)
    assert torch.equal(x, copies[0])
    assert torch.equal(u, copies[1])
    order = torch.randperm(12, generator=seeded("order"))
    assert torch.equal(augment(x[order], u[order]), augmented[order])
    for i in range(12):
        assert torch.equal(augment(x[i : i + 1], u[i : i + 1]), augmented[i : i + 1])


@pytest.mark.parametrize("augment", [diffaugment(strength=0.5), ada(strength=0.5)])
def test_every_uniform_number_has_an_effect(augment: Augment) -> None:
    x, u = images(50, 3, 16, 16), numbers(augment, 50)
    augmented = augment(x, u)
    for column in range(augment.draws):
        changed = u.clone()
        changed[:, column] = numbers(augment, 50, column)[:, column]
        assert not torch.equal(augment(x, changed), augmented), column


@MAKERS
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 8, 21), (3, 9, 13), (7, 16, 8)])
def test_any_shape_and_any_uniform_number_give_finite_images(make: Any, shape: tuple[int, ...]) -> None:
    augment = make(strength=1.0)
    for u in (numbers(augment, 6), torch.zeros(6, augment.draws), torch.full((6, augment.draws), LARGEST)):
        augmented = augment(images(6, *shape), u)
        assert augmented.shape == (6, *shape)
        assert augmented.dtype == torch.float32
        assert augmented.isfinite().all()
        channels_last = images(6, *shape).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(augment(channels_last, u), augmented)


@MAKERS
def test_autocast_does_not_reduce_the_precision(make: Any) -> None:
    augment = make(strength=0.9)
    x, u = images(8, 3, 16, 16), numbers(augment, 8)
    expected = augment(x, u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(x, u), expected)
        assert torch.equal(augment(x.bfloat16(), u), augment(x.bfloat16().float(), u))


@MAKERS
def test_points_are_refused(make: Any) -> None:
    augment = make()
    with pytest.raises(
        UserError, match=r"^augment: \w+ needs images, the samples have shape \(2,\); use augment=none$"
    ):
        augment.draws_for((2,))


@pytest.mark.parametrize(
    "augment",
    [
        diffaugment(),
        *(diffaugment([kind]) for kind in DIFFAUGMENT_KINDS),
        ada(strength=0.8),
        ada(GEOMETRY, strength=1.0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_a_gradient_penalty_equals_finite_differences(augment: Augment, channels: int) -> None:
    shape = (channels, 8, 9)
    x, u = images(2, *shape, dtype=torch.float64).requires_grad_(), numbers(augment, 2)
    w = images(1, *shape, dtype=torch.float64).requires_grad_()

    def penalty(x: Tensor, w: Tensor) -> Tensor:
        logits = (w * augment(x, u)).sum((1, 2, 3)).tanh() + (w * augment(x, u)).square().sum((1, 2, 3))
        (by_x,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return by_x.square().sum()

    assert torch.autograd.gradcheck(penalty, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, u), (x,), fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 9, 13)])
def test_sampling_equals_torchs_grid_sample_and_its_backward_pass(shape: tuple[int, ...]) -> None:
    grid = 5 * torch.rand(4, *shape[1:], 2, generator=seeded("grid"), dtype=torch.float64) - 2.5
    x, outer = images(4, *shape, dtype=torch.float64).requires_grad_(), images(4, *shape, dtype=torch.float64).flip(1)
    expected = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    found = sample(x, grid)
    assert torch.equal(found, expected)
    (by_x,) = torch.autograd.grad(expected, x, outer)
    assert torch.equal(torch.autograd.grad(found, x, outer)[0], by_x)
    torch.testing.assert_close(_torch_adjoint(outer, grid), by_x)
    torch.testing.assert_close(_deterministic_adjoint(outer, grid), by_x)  # used on CUDA


def test_adjoints_take_gradients_of_any_memory_format() -> None:
    grid = 3 * torch.rand(2, 8, 9, 2, generator=seeded("grid")) - 1.5
    one, outer = torch.ones(()).expand(2, 3, 8, 9), images(2, 3, 8, 9)
    assert torch.equal(_torch_adjoint(one, grid), _torch_adjoint(one.contiguous(), grid))
    for adjoint in (_torch_adjoint, _deterministic_adjoint):
        assert torch.equal(adjoint(outer.contiguous(memory_format=torch.channels_last), grid), adjoint(outer, grid))


# DiffAugment


def test_diffaugment_changes_each_sample_with_the_probability_strength() -> None:
    x = images(50, 3, 8, 8)
    augment = diffaugment(strength=0.3)
    u = numbers(augment, 50)
    changed = (augment(x, u) != x).flatten(1).any(1)
    assert torch.equal(changed, u[:, 0] < 0.3)
    assert 5 < changed.sum() < 25
    assert torch.equal(augment(x, torch.full_like(u, 0.3)), x)
    assert (diffaugment()(x, torch.full_like(u, LARGEST)) != x).flatten(1).any(1).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_diffaugment_color(channels: int) -> None:
    x = images(1, channels, 8, 8)[0]
    bright, saturation, contrast = 0.9, 0.7, 0.2
    expected = x + 0.4
    if channels == 3:
        gray = expected.mean(0)
        expected = gray + 1.4 * (expected - gray)
    expected = expected.mean() + 0.7 * (expected - expected.mean())
    found = diffaugment(["color"])(x[None], rows(0, bright, saturation, contrast, count=1))
    torch.testing.assert_close(found, expected[None])


@pytest.mark.parametrize(("height", "width", "most_down", "most_right"), [(8, 16, 1, 2), (28, 32, 4, 4), (33, 9, 4, 1)])
def test_diffaugment_translation(height: int, width: int, most_down: int, most_right: int) -> None:
    augment = diffaugment(["translation"])
    x = images(1, 2, height, width) + 3  # only pixels that are shifted in are 0
    margins = (most_right, most_right, most_down, most_down)
    for down in range(-most_down, most_down + 1):
        for right in range(-most_right, most_right + 1):
            u = rows(
                0, (down + most_down + 0.5) / (2 * most_down + 1), (right + most_right + 0.5) / (2 * most_right + 1)
            )
            top, left = most_down - down, most_right - right
            expected = pad(x, margins)[:, :, top : top + height, left : left + width]
            found = augment(x.expand(2, -1, -1, -1), u)
            assert torch.equal(found, expected.expand_as(found))
    ends = [augment(x, rows(0, *edge, count=1)) for edge in ((0, 0), (LARGEST, LARGEST))]
    assert torch.equal(ends[0], pad(x, margins)[:, :, 2 * most_down :, 2 * most_right :])
    assert torch.equal(ends[1], pad(x, margins)[:, :, :height, :width])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 9), (11, 10), (13, 16)])
def test_diffaugment_cutout(height: int, width: int) -> None:
    """The hole has the paper's size int(side / 2 + 0.5), and each position of its centre has one interval of u."""
    augment = diffaugment(["cutout"])
    x = images(1, 2, height, width) + 3
    for side, other, dim in ((height, width, 2), (width, height, 3)):
        hole = int(side / 2 + 0.5)
        choices = side + 1 - hole % 2
        for i in range(choices):
            u = [0.0, 0.5, 0.5]
            u[dim - 1] = (i + 0.5) / choices
            erased = (augment(x, rows(*u, count=1)) == 0)[0, 0]
            along = erased.any(3 - dim).nonzero().flatten().tolist()
            assert along == list(range(max(i - hole // 2, 0), min(i - hole // 2 + hole, side)))
            across = erased.any(dim - 2).sum().item()
            assert across == int(other / 2 + 0.5)
            assert erased.sum() == across * len(along), "the erased pixels form a rectangle"
    found = augment(x, rows(0, 0.3, 0.8, count=1))
    assert torch.equal(found[found != 0], x.expand_as(found)[found != 0])
    assert torch.equal(found[:, 0] == 0, found[:, 1] == 0)


def test_diffaugment_applies_color_then_translation_then_cutout() -> None:
    augment, x = diffaugment(["cutout", "color", "translation"]), images(4, 3, 16, 16)
    u = numbers(augment, 4)
    gate, color, translation, cutout = u.split((1, 3, 2, 2), dim=1)
    expected = diffaugment(["color"])(x, torch.cat((gate, color), 1))
    expected = diffaugment(["translation"])(expected, torch.cat((gate, translation), 1))
    assert torch.equal(augment(x, u), diffaugment(["cutout"])(expected, torch.cat((gate, cutout), 1)))


# ADA


def test_flip_mirrors_half_of_the_images() -> None:
    x = images(2, 3, 8, 16)
    augment = ada(["flip"], strength=1.0)
    assert torch.equal(augment(x, rows(LARGEST, 0.5)), x.flip(3))
    assert torch.equal(augment(x, rows(LARGEST, 0.49)), x)
    assert torch.equal(ada(["flip"], strength=0.3)(x, rows(0.3, 0.9)), x)
    assert torch.equal(ada(["flip"], strength=0.3)(x, rows(0.29, 0.9)), x.flip(3))


def test_rotate90_rotates_by_each_multiple_of_90_degrees() -> None:
    x = images(2, 3, 16, 16)
    augment = ada(["rotate90"], strength=0.5)
    for turns, u in enumerate((0.24, 0.26, 0.51, 0.76)):
        assert torch.equal(augment(x, rows(0.4, u)), x.rot90(turns, (2, 3)))
        assert torch.equal(augment(x, rows(0.5, u)), x)


@pytest.mark.parametrize(("right", "down"), [(0.0, LARGEST), (0.7, 0.3), (0.5, 0.9)])
def test_integer_translation_reads_the_mirror_image_past_the_edge(right: float, down: float) -> None:
    x = images(1, 1, 16, 32)
    moved_right, moved_down = round(8 * (right - 0.5)), round(4 * (down - 0.5))
    found = ada(["translate"], strength=0.5)(x, rows(0, right, down, LARGEST, 0.9, 0.9, count=1))
    tiled = torch.cat((x.flip(3), x, x.flip(3)), 3)
    tiled = torch.cat((tiled.flip(2), tiled, tiled.flip(2)), 2)
    torch.testing.assert_close(
        found, tiled[:, :, 16 - moved_down : 32 - moved_down, 32 - moved_right : 64 - moved_right]
    )


def quantile(u: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def matrix(*entries: Any) -> Tensor:
    return torch.tensor([float(entry) for entry in entries], dtype=torch.float64).view(3, 3)


def turn(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return matrix(cos, -sin, 0, sin, cos, 0, 0, 0, 1)


def reference_map(u: Tensor, p: float, height: int, width: int) -> Tensor:
    """The matrix G of appendix B, from input to output coordinates; u: (18,), the numbers of the geometric changes."""
    flip, turns, integer, fractional, both, ratio, before, after = u.double().split((2, 2, 3, 3, 2, 2, 2, 2))
    eye, steps = torch.eye(3, dtype=torch.float64), []
    p_turn = 1 - math.sqrt(1 - p)
    if flip[0] < p and flip[1] >= 0.5:
        steps.append(matrix(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    if turns[0] < p:
        steps.append(turn(-math.pi / 2 * int(4 * turns[1])))
    if integer[0] < p:
        right, down = (integer[1] / 4 - 0.125) * width, (integer[2] / 4 - 0.125) * height
        steps.append(matrix(1, 0, right.round(), 0, 1, down.round(), 0, 0, 1))
    if both[0] < p:
        s = 2 ** (0.2 * quantile(both[1]))
        steps.append(matrix(s, 0, 0, 0, s, 0, 0, 0, 1))
    if before[0] < p_turn:
        steps.append(turn(-math.pi * (2 * float(before[1]) - 1)))
    if ratio[0] < p:
        s = 2 ** (0.2 * quantile(ratio[1]))
        steps.append(matrix(s, 0, 0, 0, 1 / s, 0, 0, 0, 1))
    if after[0] < p_turn:
        steps.append(turn(-math.pi * (2 * float(after[1]) - 1)))
    if fractional[0] < p:
        right, down = quantile(fractional[1]) * width / 8, quantile(fractional[2]) * height / 8
        steps.append(matrix(1, 0, right, 0, 1, down, 0, 0, 1))
    for step in steps:
        eye = step @ eye
    return eye


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_geometric_changes_equal_the_papers_matrices(p: float) -> None:
    height, width, count = 20, 31, 40
    augment = ada(GEOMETRY, strength=p)
    u = numbers(augment, count, "geometry")
    x = coordinates(height, width)
    found = augment(x.expand(count, -1, -1, -1), u)
    checked = 0
    for i in range(count):
        inverse = reference_map(u[i], p, height, width).inverse()
        source = torch.einsum("ij,jhw->ihw", inverse[:2], torch.cat((x[0, :2], torch.ones(1, height, width))))
        inside = (source[0].abs() < (width - 1) / 2) & (source[1].abs() < (height - 1) / 2)
        torch.testing.assert_close(found[i, :2, inside], source[:, inside], rtol=0, atol=1e-4)
        checked += int(inside.sum())
    assert checked > 0.3 * count * height * width


def test_at_least_one_of_two_rotations_happens_with_probability_p() -> None:
    x, augment = images(2, 1, 8, 8), ada(["rotate"], strength=0.64)  # 1 - sqrt(1 - p) = 0.4
    for first, second, changed in ((0.41, 0.41, False), (0.39, 0.41, True), (0.41, 0.39, True)):
        assert torch.equal(augment(x, rows(first, 0.1, second, 0.1)), x) is not changed


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_color_changes_equal_the_papers_matrices(p: float) -> None:
    augment, count = ada(["color"], strength=p), 40
    u, x = numbers(augment, count, "color"), images(40, 3, 8, 8, dtype=torch.float64)
    found = augment(x, u)
    axis = torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    along, eye = torch.outer(axis, axis), torch.eye(3, dtype=torch.float64)
    cross = torch.linalg.cross(eye, axis.expand(3, 3))  # cross @ v = axis x v
    for i in range(count):
        (bright, b), (contrast, c), (luma, f), (hue, angle), (saturation, s) = u[i].double().view(5, 2)
        expected = x[i].flatten(1)
        if bright < p:
            expected = expected + 0.2 * quantile(b)
        if contrast < p:
            expected = expected * 2 ** (0.5 * quantile(c))
        if luma < p and f >= 0.5:
            expected = (eye - 2 * along) @ expected
        if hue < p:
            theta = math.pi * (2 * angle - 1)
            expected = (along + theta.cos() * (eye - along) + theta.sin() * cross) @ expected
        if saturation < p:
            expected = (along + (eye - along) * 2 ** quantile(s)) @ expected
        torch.testing.assert_close(found[i].flatten(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_without_three_channels_only_brightness_and_contrast_change(channels: int) -> None:
    augment, x = ada(["color"], strength=0.5), images(2, channels, 8, 8)
    u = torch.special.ndtr(torch.tensor(1.0)).item()
    found = augment(x, rows(0.4, u, 0.4, u, 0.4, 0.9, 0.4, 0.9, 0.4, 0.9))
    torch.testing.assert_close(found, (x + 0.2) * math.sqrt(2))
    torch.testing.assert_close(augment(x, rows(0.5, u, 0.5, u, 0.4, 0.9, 0.4, 0.9, 0.4, 0.9)), x)


@pytest.mark.parametrize(
    ("down", "right", "erased_rows", "erased_columns"),
    [
        (0.5, 0.5, range(4, 12), range(2, 6)),
        (0.0, 0.0, range(4), range(2)),
        (0.26, LARGEST, range(8), range(6, 8)),
        (4.5 / 16, 2.5 / 8, range(1, 8), range(1, 4)),  # pixels exactly half a hole away are kept
    ],
)
def test_ada_cutout(down: float, right: float, erased_rows: range, erased_columns: range) -> None:
    x = images(2, 3, 16, 8) + 3
    expected = x.clone()
    expected[:, :, erased_rows.start : erased_rows.stop, erased_columns.start : erased_columns.stop] = 0
    augment = ada(["cutout"], strength=0.5)
    assert torch.equal(augment(x, rows(0.49, down, right)), expected)
    assert torch.equal(augment(x, rows(0.5, down, right)), x)


def test_ada_applies_geometry_then_color_then_cutout() -> None:
    augment, x = ada(ADA_KINDS[::-1], strength=0.9), images(6, 3, 16, 16)
    u = numbers(augment, 6)
    geometry, color, cutout = u.split((18, 10, 3), dim=1)
    expected = ada(["color"], strength=0.9)(ada(GEOMETRY, strength=0.9)(x, geometry), color)
    assert torch.equal(augment(x, u), ada(["cutout"], strength=0.9)(expected, cutout))


# Adaptive probability of ADA


def observe(augment: Augment, batches: int, *, correct: int, of: int = 10, threshold: Tensor | float = 0.0) -> None:
    """Observes `batches` updates of a D that takes `correct` of `of` real images for real, and all fakes too."""
    real = torch.where(torch.arange(of) < correct, 0.1, -3.0) + threshold
    for _ in range(batches):
        augment.observe(real.requires_grad_(), torch.full((of,), 9.0), threshold=threshold)


def test_p_rises_while_d_overfits_and_falls_otherwise() -> None:
    augment = ada(speed=1_000, interval=4)
    assert augment.strength == 0
    observe(augment, 3, correct=10)
    assert augment.strength == 0, "p changes every fourth batch only"
    observe(augment, 1, correct=10)
    assert float(augment.strength) == pytest.approx(0.04)
    observe(augment, 8, correct=10)
    assert float(augment.strength) == pytest.approx(0.12)
    observe(augment, 4, correct=7)  # r_t = 0.4
    assert float(augment.strength) == pytest.approx(0.08)
    observe(augment, 4, correct=9)  # r_t = 0.8
    assert float(augment.strength) == pytest.approx(0.12)
    observe(augment, 4, correct=0)
    assert float(augment.strength) == pytest.approx(0.08)
    assert isinstance(augment.strength, Tensor)
    assert not augment.strength.requires_grad


def test_p_stays_between_0_and_limit() -> None:
    augment = ada(speed=100, limit=0.7, interval=2)
    observe(augment, 20, correct=10)
    assert float(augment.strength) == pytest.approx(0.7)
    observe(augment, 2, correct=0)
    assert float(augment.strength) == pytest.approx(0.5)
    observe(augment, 20, correct=0)
    assert augment.strength == 0


def test_p_follows_the_mean_sign_over_the_interval() -> None:
    augment = ada(speed=1_000, interval=2, target=0.5)
    observe(augment, 1, correct=20, of=20)
    observe(augment, 1, correct=10, of=20)
    assert augment.strength == 0, "r_t equals the target"
    observe(augment, 1, correct=30, of=30)
    observe(augment, 1, correct=1, of=10)  # r_t = 0.55 over all 40 images, but 0.1 as the mean of the two batches' r_t
    assert float(augment.strength) == pytest.approx(0.04)
    observe(augment, 2, correct=7)
    assert float(augment.strength) == pytest.approx(0.02)


@pytest.mark.parametrize("threshold", [-2.0, 0.5, torch.tensor(3.0)])
def test_logits_above_the_threshold_count_as_real(threshold: Tensor | float) -> None:
    augment = ada(speed=1_000, interval=1)
    observe(augment, 10, correct=9, threshold=threshold)
    assert float(augment.strength) == pytest.approx(0.1)
    observe(augment, 5, correct=7, threshold=threshold)
    assert float(augment.strength) == pytest.approx(0.05)


def test_adaptation_continues_from_a_loaded_state() -> None:
    saved, loaded = ada(speed=1_000), ada(speed=1_000)
    observe(saved, 9, correct=10)
    observe(saved, 1, correct=28, of=30)
    state = {name: value.clone() for name, value in saved.state_dict().items()}
    assert all(isinstance(value, Tensor) for value in state.values())
    loaded.load_state_dict(state)
    assert loaded.strength == saved.strength
    for augment in (saved, loaded):
        observe(augment, 2, correct=10)
    assert loaded.strength == saved.strength == pytest.approx(0.08 + 0.06)
    for augment in (saved, loaded):
        observe(augment, 4, correct=10)
    assert loaded.strength == saved.strength == pytest.approx(0.18)
    assert set(state) == set(saved.state_dict())
    assert saved.state_dict() != {}


def test_a_returned_state_does_not_change_later() -> None:
    augment = ada(speed=1_000, interval=2)
    observe(augment, 3, correct=10)
    logged, state = augment.strength, augment.state_dict()
    kept = {name: float(value) for name, value in state.items()}
    observe(augment, 5, correct=10)
    assert float(logged) == pytest.approx(0.02)
    assert {name: float(value) for name, value in state.items()} == kept


def test_the_state_of_another_augmentation_is_refused() -> None:
    adaptive = ada().state_dict()
    for other in (NoAugment(), diffaugment(), ada(strength=0.5)):
        assert other.state_dict() == {}
        other.load_state_dict({})
        with pytest.raises(ValueError, match=r"^augment: the saved state has \['batches', 'images', 'p', 'signs'\]"):
            other.load_state_dict(adaptive)
    with pytest.raises(ValueError, match=r"^augment: the saved state has \[\]"):
        ada().load_state_dict({})


def test_the_adapted_p_is_the_probability_of_changes() -> None:
    augment, x = ada(["flip"], speed=100, interval=1), images(40, 1, 8, 8)
    observe(augment, 5, correct=10)
    u = numbers(augment, 40)
    flipped = (u[:, 0] < 0.5) & (u[:, 1] >= 0.5)
    assert 2 < flipped.sum() < 20
    assert torch.equal(augment(x, u), torch.where(flipped[:, None, None, None], x.flip(3), x))


@MAKERS
def test_strength_may_be_a_schedule(make: Any) -> None:
    scheduled, x = make(strength=Linear(start=0.0, end=0.8)), images(20, 3, 8, 8)
    u = numbers(scheduled, 20)
    assert scheduled.strength == 0.0
    assert scheduled(x, u) is x, "strength 0 costs nothing"
    for progress, strength in ((0.5, 0.4), (1.0, 0.8), (0.0, 0.0)):
        scheduled.prepare(progress)
        observe(scheduled, 8, correct=10)
        assert scheduled.strength == pytest.approx(strength)
        assert torch.equal(scheduled(x, u), make(strength=strength)(x, u))


@MAKERS
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kinds": []}, r"kinds=\[\]"),
        ({"kinds": ["cutout", "cutout"]}, r"kinds=\['cutout', 'cutout'\]"),
        ({"kinds": ["cutout", "colour"]}, r"kinds=\['cutout', 'colour'\]"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"strength": 1.1}, "strength=1.1"),
        ({"strength": Linear(start=2.0, end=0.5)}, r"strength=2.0 by Linear\(start=2.0, end=0.5, .*\)"),
        ({"strength": Linear(start=0.0, end=1.5)}, r"strength=1.5 by Linear\(.*\)"),
    ],
)
def test_wrong_settings_are_named(make: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=f"^{named}: "):
        make(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"limit": 0.0}, {"limit": 1.1}, {"target": 1.0}, {"target": -1.0}, {"speed": 0}, {"interval": 0}],
)
def test_wrong_settings_of_the_adaptation_are_named(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"^{name}={value}: "):
        ada(**settings)


def test_every_yaml_file_is_built_into_its_class() -> None:
    built = {}
    for path in (config_dir() / "augment").glob("*.yaml"):
        node = config.compose("train", [f"augment={path.stem}"])["augment"]
        built[path.stem] = build(node, key="augment")
    assert {name: type(augment) for name, augment in built.items()} == {
        "none": NoAugment,
        "diffaugment": DiffAugment,
        "by_budget": DiffAugment,
        "ada": ADA,
        "instance_noise": InstanceNoise,
    }
    assert vars(built["diffaugment"]) == vars(diffaugment())
    assert vars(built["ada"]) == vars(ada(ADA_KINDS[:-1]))
