"""Adaptive discriminator augmentation (Karras et al., NeurIPS 2020): its probability follows D's overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gancli.augment.base import ImageAugment, outside_rectangle, per_image, standard_normal, uniform_integer
from gancli.augment.sampling import warp_affine
from gancli.errors import SettingError, require_at_least, require_between
from gancli.schedules import Schedule


class ADA(ImageAugment):
    """Applies each kind of change independently with probability p (Karras et al., NeurIPS 2020, appendix B).

    All geometric changes form one affine map, sampled bilinearly; outside the image it reads the mirror image with
    repeated edge pixels. The paper's image-space filters, noise and oversampling are left out.

    kinds: "flip" mirrors half of the images left to right. "rotate90" rotates by a random multiple of 90 degrees.
    "translate" shifts by whole pixels, up to 1/8 of each side, and by a normal amount with standard deviation 1/8.
    "scale" scales both sides, and one side against the other, by log-normal factors. "rotate" rotates by any angle.
    "color" changes brightness and contrast, and with three channels also luma flip, hue and saturation. "cutout" sets a
    rectangle of half of each side to 0, a medium grey.

    strength: p as a number or a schedule; None to adapt p. Then r_t = E[sign(D(real) - threshold)], the fraction of
    real images that D takes for real minus the fraction that it takes for fake, is averaged over `interval` batches
    (eq. 1). While r_t is above `target`, D overfits and p rises; below it p falls. Either takes `speed` images from 0
    to 1 (section 3). p does not exceed `limit`, because changes with p above 0.8 leak into the generated images
    (section 2.2). Raises SettingError.
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
        require_at_least(1, speed=speed, interval=interval)
        require_between(1, 10_000, interval=interval)
        self.limit, self.target, self.speed, self.interval = limit, target, speed, interval
        if strength is None:
            self.p = torch.zeros(())
        self._sign_sum, self._images, self._batches = torch.zeros(()), 0, 0  # since p last changed

    def observe(self, real_logits: Tensor, fake_logits: Tensor, *, threshold: Tensor | float) -> None:
        if not isinstance(self.p, Tensor):
            return
        signs = (real_logits.detach() - threshold).sign()
        self._sign_sum = self._sign_sum.to(signs.device) + signs.sum()
        self._images += len(signs)
        self._batches += 1
        if self._batches == self.interval:
            direction = (self._sign_sum / self._images - self.target).sign()
            p = self.p.to(signs.device) + direction * (self._images / self.speed)
            self.p = p.clamp(0.0, self.limit)  # a new tensor, because logs and checkpoints may hold the old one
            self._sign_sum, self._images, self._batches = torch.zeros_like(self._sign_sum), 0, 0

    def state_dict(self) -> dict[str, Tensor]:
        if not isinstance(self.p, Tensor):
            return {}
        counts = {"images": torch.tensor(self._images), "batches": torch.tensor(self._batches)}
        return {"p": self.p, "signs": self._sign_sum, **counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        if state:
            self.p, self._sign_sum = state["p"], state["signs"]
            self._images, self._batches = int(state["images"]), int(state["batches"])

    def change(self, images: Tensor, uniform: Tensor) -> Tensor:
        numbers, (height, width) = self.split(uniform), images.shape[2:]
        if numbers.keys() - {"color", "cutout"}:
            images = warp_affine(images, *self._inverse_map(numbers, height, width))
        if "color" in numbers:
            images = self._change_colors(images, numbers["color"])
        if "cutout" in numbers:
            gate, y, x = numbers["cutout"].unbind(1)
            kept = outside_rectangle(images, y * height, x * width, (height / 2, width / 2))
            images = images * (kept | per_image(gate >= self.p))
        return images

    def _inverse_map(self, numbers: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns the rows, (B, 3) each, of the map from an output pixel to its place in the input (`warp_affine`).

        It is the inverse of the paper's map: it undoes the changes from the last to the first.
        """
        p, first_numbers = self.p, next(iter(numbers.values()))
        eye = torch.eye(3, dtype=first_numbers.dtype, device=first_numbers.device)
        x, y, one = eye.expand(len(first_numbers), 3, 3).unbind(1)
        if "translate" in numbers:
            integer_gate, columns, rows, fractional_gate, right, down = numbers["translate"].split(1, dim=1)
            x = x - one * torch.where(fractional_gate < p, standard_normal(right) * (width / 8), 0.0)
            y = y - one * torch.where(fractional_gate < p, standard_normal(down) * (height / 8), 0.0)
        if "rotate" in numbers:
            p_rotate = 1 - (1 - p) ** 0.5  # so that at least one of the two rotations happens with probability p
            first_gate, first_angle, second_gate, second_angle = numbers["rotate"].split(1, dim=1)
            x, y = _rotate(x, y, torch.where(second_gate < p_rotate, _angle(second_angle), 0.0))
        if "scale" in numbers:
            isotropic_gate, size, anisotropic_gate, ratio = numbers["scale"].split(1, dim=1)
            factor = torch.where(anisotropic_gate < p, _log_normal(ratio, 0.2), 1.0)
            x, y = x / factor, y * factor
        if "rotate" in numbers:
            x, y = _rotate(x, y, torch.where(first_gate < p_rotate, _angle(first_angle), 0.0))
        if "scale" in numbers:
            factor = torch.where(isotropic_gate < p, _log_normal(size, 0.2), 1.0)
            x, y = x / factor, y / factor
        if "translate" in numbers:
            x = x - one * torch.where(integer_gate < p, ((columns - 0.5) * (width / 4)).round(), 0.0)
            y = y - one * torch.where(integer_gate < p, ((rows - 0.5) * (height / 4)).round(), 0.0)
        if "rotate90" in numbers:
            gate, quarters = numbers["rotate90"].split(1, dim=1)
            for turn in range(1, 4):
                rotated = (gate < p) & (uniform_integer(quarters, 4) >= turn)
                x, y = torch.where(rotated, -y, x), torch.where(rotated, x, y)
        if "flip" in numbers:
            gate, side = numbers["flip"].split(1, dim=1)
            x = torch.where((gate < p) & (side >= 0.5), -x, x)
        return x, y

    def _change_colors(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Changes the colours in the paper's order.

        Instead of multiplying by the paper's 4x4 matrix, this computes its effect on the grey component and on the
        chromatic remainder, which the matrix does not mix.
        """
        applied = uniform[:, ::2] < self.p
        brightness, contrast, luma, hue, saturation = uniform[:, 1::2].unbind(1)
        brightness = per_image(torch.where(applied[:, 0], standard_normal(brightness) * 0.2, 0.0))
        contrast = per_image(torch.where(applied[:, 1], _log_normal(contrast, 0.5), 1.0))
        if images.shape[1] != 3:
            return contrast * (images + brightness)
        sign = per_image(torch.where(applied[:, 2] & (luma >= 0.5), -1.0, 1.0))
        hue = per_image(torch.where(applied[:, 3], _angle(hue), 0.0))
        saturation = per_image(torch.where(applied[:, 4], _log_normal(saturation, 1.0), 1.0))
        gray = images.mean(1, keepdim=True)
        chroma = images - gray
        rotated = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / math.sqrt(3)  # by 90 degrees about the axis (1, 1, 1)
        changed = contrast * (sign * (gray + brightness) + saturation * (hue.cos() * chroma + hue.sin() * rotated))
        return torch.where(per_image(applied.any(1)), changed, images)


def _log_normal(uniform: Tensor, octaves: float) -> Tensor:
    """Maps numbers from U[0, 1) to factors whose binary logarithm is from N(0, octaves^2)."""
    return torch.exp2(octaves * standard_normal(uniform))


def _angle(uniform: Tensor) -> Tensor:
    """Maps numbers from U[0, 1) to angles from -pi to pi."""
    return (2 * uniform - 1) * math.pi


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
