"""Adaptive augmentation (Karras et al., NeurIPS 2020): as much of it as the discriminator's overfitting asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gancli.augment.base import ImageAugment, each, one_of, outside
from gancli.augment.sampling import mapped
from gancli.errors import SettingError
from gancli.schedules import Schedule


class ADA(ImageAugment):
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
            raise SettingError(f"limit={limit}: a probability, above 0 and at most 1")
        if not -1.0 < target < 1.0:
            raise SettingError(f"target={target}: a mean of signs, between -1 and 1")
        for name, value in {"speed": speed, "interval": interval}.items():
            if value < 1:
                raise SettingError(f"{name}={value}: at least 1")
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

    def state_dict(self) -> dict[str, Tensor]:
        if not isinstance(self.p, Tensor):
            return {}
        counts = {"images": torch.tensor(self._images), "batches": torch.tensor(self._batches)}
        return {"p": self.p, "signs": self._signs, **counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        if state:
            self.p, self._signs = state["p"], state["signs"]
            self._images, self._batches = int(state["images"]), int(state["batches"])

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        own, (height, width) = self.split(uniform), images.shape[2:]
        if own.keys() - {"color", "cutout"}:
            images = mapped(images, *self._map(own, height, width))
        if "color" in own:
            images = self._colored(images, own["color"])
        if "cutout" in own:
            gate, down, right = own["cutout"].unbind(1)
            kept = outside(images, down * height, right * width, (height / 2, width / 2))
            images = images * (kept | each(gate >= self.p))
        return images

    def _map(self, own: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """The rows, (B, 3) each, of the map from an output pixel to where it comes from (see `mapped`).

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
                turned = (gate < p) & (one_of(quarters, 4) >= turns)
                x, y = torch.where(turned, -y, x), torch.where(turned, x, y)
        if "flip" in own:
            gate, side = own["flip"].split(1, dim=1)
            x = torch.where((gate < p) & (side >= 0.5), -x, x)
        return x, y

    def _colored(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The changes of colour in the paper's order, of the grey part and of the rest, on which it acts apart."""
        happens = uniform[:, ::2] < self.p
        bright, contrast, luma, hue, saturation = uniform[:, 1::2].unbind(1)
        bright = each(torch.where(happens[:, 0], _normal(bright) * 0.2, 0.0))
        contrast = each(torch.where(happens[:, 1], _log_normal(contrast, 0.5), 1.0))
        if images.shape[1] != 3:
            return contrast * (images + bright)
        sign = each(torch.where(happens[:, 2] & (luma >= 0.5), -1.0, 1.0))
        hue = each(torch.where(happens[:, 3], _angle(hue), 0.0))
        saturation = each(torch.where(happens[:, 4], _log_normal(saturation, 1.0), 1.0))
        gray = images.mean(1, keepdim=True)
        rest = images - gray
        crossed = (rest.roll(1, 1) - rest.roll(-1, 1)) / math.sqrt(3)  # rest, turned by 90 degrees about (1, 1, 1)
        changed = contrast * (sign * (gray + bright) + saturation * (hue.cos() * rest + hue.sin() * crossed))
        return torch.where(each(happens.any(1)), changed, images)


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
