"""Augmentation of a whole batch at once, on the device where the batch lies."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

FLIPS = ("none", "random", "half")
BORDERS = ("reflect", "black")


@dataclass(frozen=True)
class Augment:
    r"""Flip, crop and cut out, drawn anew for every image of a batch.

    With the flip f in {0, 1}, shifts dy, dx uniform in -pad .. pad, and rho the reflection at the border,

    .. math:: out[n, c, y, x] = in[n, c, rho(y + dy_n), rho(x' + dx_n)], \quad x' = W - 1 - x if f_n else x

    and then one square of ``cutout`` pixels per image, its centre uniform over the image, turns mid-grey.

    Args:
        flip: "none"; "random" flips each image with probability 1/2; "half" flips exactly floor(N/2)
            images of every batch, chosen at random (the form of the authors' code of Learn To Pay Attention).
        pad: pixels of padding before a random crop back to H x W; 0 means no crop.
        border: what the padding shows: "reflect", the image mirrored at its border, or "black".
        cutout: side of the square in pixels; 0 means none. It may hang over the border.

    Raises:
        ValueError: if ``flip`` or ``border`` is unknown, or a size is negative or too large for the images.

    Source: crops by reflection as in the second authors' trainer of Learn To Pay Attention (4 pixels), on black as
    in the Residual Attention Network (4 pixels, section 4.1: zeros; whether of raw or of normalised pixels is open);
    cutout: DeVries and Taylor 2017, arXiv:1708.04552.

    Example:
        >>> import torch
        >>> row = torch.tensor([1, 2, 3], dtype=torch.uint8).expand(2, 3, 1, 3)
        >>> out = Augment(flip="half")(row, torch.Generator().manual_seed(0))
        >>> sorted(out[:, 0, 0].tolist())
        [[1, 2, 3], [3, 2, 1]]
    """

    flip: str = "none"
    pad: int = 0
    cutout: int = 0
    border: str = "reflect"

    def __post_init__(self) -> None:
        for name, known in (("flip", FLIPS), ("border", BORDERS)):
            value = getattr(self, name)
            if value not in known:
                near = difflib.get_close_matches(str(value), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name} must be one of {known}, got {value!r}{hint}")
        for name in ("pad", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number of pixels, 0 or more, got {value!r}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: (N, C, H, W), uint8 or floating; left as it is.
            generator: random numbers; on the CPU or on the device of the images.

        Returns:
            A new tensor of the same shape, type and device.
        """
        if images.ndim != 4:
            raise ValueError(
                f"images must be (N, C, H, W), got {tuple(images.shape)}; "
                "add a batch axis to one image with images[None]"
            )
        height, width = images.shape[2:]
        if self.pad >= min(height, width):
            raise ValueError(
                f"pad={self.pad} cannot reflect images of {height} x {width}: use at most {min(height, width) - 1}"
            )
        flipped = self._flips(len(images), generator)
        out = self._moved(images, flipped, generator)
        return self._cut(out, generator) if self.cutout else out  # ``out`` is a new tensor in every case

    def _flips(self, n: int, generator: torch.Generator) -> Tensor:
        """Which images to flip, bool (N,), on the generator's device."""
        if self.flip == "random":
            return torch.rand(n, generator=generator, device=generator.device) < 0.5
        if self.flip == "half":
            return torch.randperm(n, generator=generator, device=generator.device) < n // 2
        return torch.zeros(n, dtype=torch.bool, device=generator.device)

    def _moved(self, images: Tensor, flipped: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and crop by one gather: both only say from which pixel each pixel comes."""
        n, channels, height, width = images.shape
        if self.flip == "none" and self.pad == 0:
            return images.clone()
        if self.pad == 0:
            return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(3), images)
        shift = torch.randint(-self.pad, self.pad + 1, (2, n, 1), generator=generator, device=generator.device)
        shift, flipped = shift.to(images.device), flipped.to(images.device)
        x = torch.arange(width, device=images.device).expand(n, width)
        x = torch.where(flipped[:, None], width - 1 - x, x) + shift[1]
        y = torch.arange(height, device=images.device) + shift[0]
        outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        x, y = (edge - (edge - line.abs()).abs() for line, edge in ((x, width - 1), (y, height - 1)))
        source = (y[:, :, None] * width + x[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
        moved = images.reshape(n, channels, -1).gather(2, source).view_as(images)
        return moved.masked_fill_(outside[:, None], 0) if self.border == "black" else moved

    def _cut(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        inside = []
        for length in (height, width):
            centre = torch.randint(length, (n, 1), generator=generator, device=generator.device)
            offset = torch.arange(length, device=generator.device) - (centre - self.cutout // 2)
            inside.append((offset >= 0) & (offset < self.cutout))
        square = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device)
        return images.masked_fill_(square, 0.5 if images.is_floating_point() else 128)
