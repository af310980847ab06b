"""What happens to images before the discriminator sees them, real and generated ones alike.

Nothing here draws random numbers: each sample gets its own row of uniform ones, so the same row always gives
the same change, whatever else is in the batch. Everything is differentiable twice in the images, which the
gradient penalties on D(T(x)) ask for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from gancli.schedules import Schedule, at


class Augment(ABC):
    """Random differentiable changes to what the discriminator sees. draws: uniform numbers that one sample needs."""

    draws: int = 0

    def prepare(self, progress: float) -> None:  # noqa: B027
        """Called once before each training step, at `progress` (0 to 1) of the run: schedules are read here."""

    def observe(  # noqa: B027
        self, real_logits: Tensor, fake_logits: Tensor, *, threshold: Tensor | float
    ) -> None:
        """Called after each update of D with its logits, (B,) each; one above `threshold` says "real"."""

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """images (B, C, H, W) in [-1, 1], uniform (B, draws) in [0, 1) on the same device -> (B, C, H, W)."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises ValueError where it is another augmentation's."""
        if state.keys() != self.state().keys():
            raise ValueError(f"augment: the saved state has {sorted(state)}, expected {sorted(self.state())}")

    @property
    @abstractmethod
    def strength(self) -> Tensor | float:
        """The probability that is logged, from 0 to 1."""


class NoAugment(Augment):
    """The samples as they are, images or points."""

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        return images

    @property
    def strength(self) -> float:
        return 0.0


class _ImageAugment(Augment):
    """What the two below share. columns: kind of change -> how many uniform numbers it takes, in order of use.

    schedule: where `p`, the strength of now, comes from, or None.
    """

    columns: ClassVar[dict[str, int]]
    p: Tensor | float

    def __init__(self, *, kinds: Sequence[str], strength: float | Schedule | None) -> None:
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(self.columns):
            known = ", ".join(self.columns)
            raise ValueError(f"kinds={list(kinds)}: some of {known}, each once; augment=none for none of them")
        for value in () if strength is None else (at(strength, 0.0), at(strength, 1.0)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"strength={value}: a probability, from 0 to 1")
        self.kinds = [kind for kind in self.columns if kind in kinds]
        self.draws = sum(self.columns[kind] for kind in self.kinds)
        self.schedule = strength
        self.prepare(0.0)

    def prepare(self, progress: float) -> None:
        if self.schedule is not None:
            self.p = float(at(self.schedule, progress))

    @property
    def strength(self) -> Tensor | float:
        return self.p

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        if images.ndim != 4:
            name = type(self).__name__
            raise ValueError(f"augment: {name} needs images (B, C, H, W), these samples are {tuple(images.shape)}")
        if isinstance(self.p, float) and self.p == 0.0:
            return images
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return self.change(images, uniform.to(images.dtype))

    def split(self, uniform: Tensor) -> dict[str, Tensor]:
        """The columns of each kind, kind -> (B, columns[kind])."""
        return dict(zip(self.kinds, uniform.split([self.columns[kind] for kind in self.kinds], dim=1), strict=True))

    @abstractmethod
    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        """What __call__ says, for at least float32; without matrix products, which autocast and tf32 cut short."""


class DiffAugment(_ImageAugment):
    """Colour, translation and cutout on every sample, always on (Zhao et al., NeurIPS 2020, section 3.2).

    color: brightness +-0.5, saturation times 0 to 2 (three channels only), contrast times 0.5 to 1.5.
    translation: by whole pixels, up to 1/8 of each side. cutout: a hole of half of each side, its centre
    anywhere. What is shifted in or cut out is 0 as in the paper, for images in [-1, 1] a middle grey.
    strength: the probability that a sample is changed at all, a number or a schedule; 1 in the paper.
    """

    columns: ClassVar[dict[str, int]] = {"color": 3, "translation": 2, "cutout": 2}

    def __init__(
        self, *, kinds: list[Literal["color", "translation", "cutout"]], strength: float | Schedule = 1.0
    ) -> None:
        super().__init__(kinds=kinds, strength=strength)
        self.draws += 1

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        changed, sides, own = images, images.shape[2:], self.split(uniform[:, 1:])
        if "color" in own:
            changed = _jittered(changed, *own["color"].unbind(1))
        if "translation" in own:
            most = [int(side / 8 + 0.5) for side in sides]
            down, right = (_whole(u, 2 * m + 1) - m for u, m in zip(own["translation"].unbind(1), most, strict=True))
            changed = _shifted(changed, down, right)
        if "cutout" in own:
            holes = [int(side / 2 + 0.5) for side in sides]
            down, right = (
                _whole(u, side + 1 - hole % 2) + hole % 2 / 2  # the centre of an odd hole is in the middle of a pixel
                for u, side, hole in zip(own["cutout"].unbind(1), sides, holes, strict=True)
            )
            changed = changed * _outside(changed, down, right, holes)
        return torch.where(_each(uniform[:, 0] < self.p), changed, images)


class ADA(_ImageAugment):
    """Changes that come one by one, each with probability p (Karras et al., NeurIPS 2020, appendix B).

    Those of place are one affine map, sampled bilinearly; past its edge the image goes on as its mirror image,
    the edge pixels twice. The paper's filters and noise are left out, as is its oversampling.

    flip: left to right, in half of the cases. rotate90: by a multiple of 90 degrees. translate: by whole pixels,
    up to 1/8 of each side; and by a normal amount, std 1/8. scale: of both sides, and of one against the other,
    log-normal. rotate: by any angle. color: brightness, contrast; with three channels also luma flip, hue and
    saturation. cutout: a hole of half of each side, filled with 0, a middle grey.

    strength: p as a number or a schedule, or None, where p is steered: r_t = E[sign(D(real) - threshold)] over
    `interval` batches is the share of real images that D knows minus the share that it does not (eq. 1). Where it
    is above `target`, D overfits and p rises, below it p falls, at a pace of 0 to 1 in `speed` images (section 3),
    never above `limit`: past 0.8 the changes leak into what G makes (section 2.2).
    """

    columns: ClassVar[dict[str, int]] = {
        "flip": 2, "rotate90": 2, "translate": 6, "scale": 4, "rotate": 4, "color": 10, "cutout": 3
    }  # fmt: skip

    def __init__(
        self,
        *,
        kinds: list[Literal["flip", "rotate90", "translate", "scale", "rotate", "color", "cutout"]],
        strength: float | Schedule | None = None,
        limit: float = 0.8,
        target: float = 0.6,
        speed: int = 500_000,
        interval: int = 4,
    ) -> None:
        super().__init__(kinds=kinds, strength=strength)
        if not 0.0 < limit <= 1.0:
            raise ValueError(f"limit={limit}: a probability, above 0 and at most 1")
        if not -1.0 < target < 1.0:
            raise ValueError(f"target={target}: a mean of signs, between -1 and 1")
        for name, value in {"speed": speed, "interval": interval}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self.limit, self.target, self.speed, self.interval = limit, target, speed, interval
        if strength is None:
            self.p = torch.zeros(())
        self._signs, self._images, self._batches = torch.zeros(()), 0, 0  # since p moved last

    def observe(self, real_logits: Tensor, fake_logits: Tensor, *, threshold: Tensor | float) -> None:
        if not isinstance(self.p, Tensor):
            return
        signs = (real_logits.detach() - threshold).sign()
        self._signs = self._signs.to(signs.device) + signs.sum()
        self._images += len(signs)
        self._batches += 1
        if self._batches == self.interval:
            direction = (self._signs / self._images - self.target).sign()
            moved = self.p.to(signs.device) + direction * (self._images / self.speed)
            self.p = moved.clamp(0.0, self.limit)
            self._signs, self._images, self._batches = torch.zeros_like(self._signs), 0, 0

    def state(self) -> dict[str, Tensor]:
        if not isinstance(self.p, Tensor):
            return {}
        counts = {"images": torch.tensor(self._images), "batches": torch.tensor(self._batches)}
        return {"p": self.p, "signs": self._signs, **counts}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        if state:
            self.p, self._signs = state["p"], state["signs"]
            self._images, self._batches = int(state["images"]), int(state["batches"])

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        own, (height, width) = self.split(uniform), images.shape[2:]
        if own.keys() - {"color", "cutout"}:
            images = _mapped(images, *self._map(own, height, width))
        if "color" in own:
            images = self._colored(images, own["color"])
        if "cutout" in own:
            gate, down, right = own["cutout"].unbind(1)
            outside = _outside(images, down * height, right * width, (height / 2, width / 2))
            images = images * (outside | _each(gate >= self.p))
        return images

    def _map(self, own: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """The rows, (B, 3) each, of the map from an output pixel to where it comes from (see `_mapped`).

        It undoes the paper's changes, from the last to the first.
        """
        p, some = self.p, next(iter(own.values()))
        x, y, one = torch.eye(3, dtype=some.dtype, device=some.device).expand(len(some), 3, 3).unbind(1)
        if "translate" in own:
            whole, columns, rows, parts, right, down = own["translate"].split(1, dim=1)
            x = x - one * torch.where(parts < p, _normal(right) * (width / 8), 0.0)
            y = y - one * torch.where(parts < p, _normal(down) * (height / 8), 0.0)
        if "rotate" in own:
            once = 1 - (1 - p) ** 0.5  # of two turns at least one happens with probability p
            first, angle, second, other_angle = own["rotate"].split(1, dim=1)
            x, y = _turned(x, y, torch.where(second < once, _angle(other_angle), 0.0))
        if "scale" in own:
            both, size, one_side, ratio = own["scale"].split(1, dim=1)
            stretch = torch.where(one_side < p, _log_normal(ratio, 0.2), 1.0)
            x, y = x / stretch, y * stretch
        if "rotate" in own:
            x, y = _turned(x, y, torch.where(first < once, _angle(angle), 0.0))
        if "scale" in own:
            stretch = torch.where(both < p, _log_normal(size, 0.2), 1.0)
            x, y = x / stretch, y / stretch
        if "translate" in own:
            x = x - one * torch.where(whole < p, ((columns - 0.5) * (width / 4)).round(), 0.0)
            y = y - one * torch.where(whole < p, ((rows - 0.5) * (height / 4)).round(), 0.0)
        if "rotate90" in own:
            gate, quarters = own["rotate90"].split(1, dim=1)
            for turns in range(1, 4):
                turned = (gate < p) & (_whole(quarters, 4) >= turns)
                x, y = torch.where(turned, -y, x), torch.where(turned, x, y)
        if "flip" in own:
            gate, side = own["flip"].split(1, dim=1)
            x = torch.where((gate < p) & (side >= 0.5), -x, x)
        return x, y

    def _colored(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The changes of colour in the paper's order, of the grey part and of the rest, on which it acts apart."""
        happens = uniform[:, ::2] < self.p
        bright, contrast, luma, hue, saturation = uniform[:, 1::2].unbind(1)
        bright = _each(torch.where(happens[:, 0], _normal(bright) * 0.2, 0.0))
        contrast = _each(torch.where(happens[:, 1], _log_normal(contrast, 0.5), 1.0))
        if images.shape[1] != 3:
            return contrast * (images + bright)
        sign = _each(torch.where(happens[:, 2] & (luma >= 0.5), -1.0, 1.0))
        hue = _each(torch.where(happens[:, 3], _angle(hue), 0.0))
        saturation = _each(torch.where(happens[:, 4], _log_normal(saturation, 1.0), 1.0))
        gray = images.mean(1, keepdim=True)
        rest = images - gray
        crossed = (rest.roll(1, 1) - rest.roll(-1, 1)) / math.sqrt(3)  # rest, turned by 90 degrees about (1, 1, 1)
        changed = contrast * (sign * (gray + bright) + saturation * (hue.cos() * rest + hue.sin() * crossed))
        return torch.where(_each(happens.any(1)), changed, images)


def _each(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)"""
    return values[:, None, None, None]


def _whole(uniform: Tensor, count: int) -> Tensor:
    """One of 0 .. count - 1, all as likely."""
    return (uniform * count).floor()


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers."""
    numbers: Tensor = torch.special.ndtri(uniform.clamp(min=2.0**-25))  # half of the smallest that is drawn but 0
    return numbers


def _log_normal(uniform: Tensor, octaves: float) -> Tensor:
    """Factors around 1 whose binary logarithm has standard deviation `octaves`."""
    return torch.exp2(octaves * _normal(uniform))


def _angle(uniform: Tensor) -> Tensor:
    """-pi to pi"""
    return (2 * uniform - 1) * math.pi


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y


def _jittered(images: Tensor, bright: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """DiffAugment's colours."""
    images = images + _each(bright - 0.5)
    if images.shape[1] == 3:
        gray = images.mean(1, keepdim=True)
        images = gray + _each(2 * saturation) * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + _each(contrast + 0.5) * (images - mean)


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Moved by whole pixels, (B,) each; zeros come in."""
    for dim, shift in ((2, down), (3, right)):
        length = images.shape[dim]
        source = torch.arange(length, device=images.device) - shift.long()[:, None]
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        # Each pixel is taken once, so that the adjoint adds nothing up, in no order.
        images = images.gather(dim, (source % length).expand_as(images)) * ((source >= 0) & (source < length))
    return images


def _outside(images: Tensor, down: Tensor, right: Tensor, sides: Sequence[float]) -> Tensor:
    """Which pixels are not in the rectangle of `sides` about (down, right), (B,) each: (B, 1, H, W)."""
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in images.shape[2:])
    in_rows = (rows - down[:, None]).abs() < sides[0] / 2
    in_columns = (columns - right[:, None]).abs() < sides[1] / 2
    return ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


def _mapped(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The image whose pixel (q, r) is the given one's at (x · (q, r, 1), y · (q, r, 1)), from the centre, in pixels.

    x, y: (B, 3). A sample that the map leaves where it is stays as it is, to the last bit.
    """
    height, width = images.shape[2:]
    q = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    r = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] - (height - 1) / 2
    across, along = (row[:, 0] * q + row[:, 1] * r + row[:, 2] for row in (x[:, :, None, None], y[:, :, None, None]))
    grid = torch.stack((across * (2 / width), along * (2 / height)), dim=-1)
    still, _, _ = torch.eye(3, dtype=x.dtype, device=x.device)
    moved = (x != still).any(1) | (y != still.roll(1)).any(1)
    return torch.where(_each(moved), sample(images, grid), images)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """grid_sample(images, grid, padding_mode="reflection", align_corners=False), differentiable in the images alone,
    any number of times. images (B, C, H, W), grid (B, H, W, 2) -> (B, C, H, W)."""
    sampled: Tensor = _Sample.apply(images, grid)
    return sampled


_BILINEAR, _REFLECTION = 0, 2  # of torch's grid sampler


class _Sample(Function):
    """Linear in the images: the derivative is the adjoint, of which torch's own has no derivative."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(images, grid, _BILINEAR, _REFLECTION, False)
        return sampled

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(outer, *ctx.saved_tensors), None


class _Adjoint(Function):
    """The adjoint of `_Sample`, whose adjoint is `_Sample` again."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        return _adjoint_in_order(outer, grid) if outer.is_cuda else _adjoint_by_torch(outer, grid)

    @staticmethod
    def backward(ctx: Any, inner: Tensor) -> tuple[Tensor, None]:
        return _Sample.apply(inner, *ctx.saved_tensors), None


def _adjoint_by_torch(outer: Tensor, grid: Tensor) -> Tensor:
    backward = torch.ops.aten.grid_sampler_2d_backward
    # The images are the second argument; without a gradient for the grid only their shape counts.
    by_images: Tensor = backward(outer, outer, grid, _BILINEAR, _REFLECTION, False, [True, False])[0]
    return by_images


def _adjoint_in_order(outer: Tensor, grid: Tensor) -> Tensor:
    """The same, with sums in one order on CUDA too, which torch's own does not keep and exact resume asks for."""
    batch, channels, height, width = outer.shape
    (left, x), (top, y) = (_cell(grid[..., i], side) for i, side in ((0, width), (1, height)))
    first = torch.arange(batch, device=outer.device).view(-1, 1, 1) * height
    values = outer.permute(0, 2, 3, 1)
    indices, shares = [], []
    for row, by_row in ((top, 1 - y), ((top + 1).clamp(max=height - 1), y)):
        for column, by_column in ((left, 1 - x), ((left + 1).clamp(max=width - 1), x)):
            indices.append(((first + row) * width + column).flatten())
            shares.append((values * (by_row * by_column)[..., None]).flatten(0, 2))
    total = outer.new_zeros(batch * height * width, channels)
    total.index_put_((torch.cat(indices),), torch.cat(shares), accumulate=True)
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _cell(where: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A grid's coordinate as the pixel before it, after reflection, and how far it is past that one, 0 to 1."""
    folded = (where + 1).mul(side / 2).remainder(2 * side)
    place = (side - (side - folded).abs() - 0.5).clamp(0, side - 1)
    before = place.floor()
    return before.long(), place - before
