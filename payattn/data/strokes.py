"""The embedded data set ``glyphs``: drawn from a seed, so nothing is downloaded and every mask is exact."""

from __future__ import annotations

import difflib
import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from payattn.data.images import ImageSet

VARIANTS = ("plain", "shift", "fine")
BLOCK = 128  # images drawn at a time: small enough that every intermediate stays in the cache of one core

# Strokes of each glyph in a box from -1 to 1, y pointing down: (x0, y0, x1, y1).
PLAIN: dict[str, list[tuple[float, float, float, float]]] = {
    "A": [(-0.8, 1, 0, -1), (0, -1, 0.8, 1), (-0.44, 0.3, 0.44, 0.3)],
    "H": [(-0.8, -1, -0.8, 1), (0.8, -1, 0.8, 1), (-0.8, 0, 0.8, 0)],
    "T": [(-0.9, -1, 0.9, -1), (0, -1, 0, 1)],
    "U": [(-0.8, -1, -0.8, 1), (-0.8, 1, 0.8, 1), (0.8, 1, 0.8, -1)],
    "X": [(-0.85, -1, 0.85, 1), (0.85, -1, -0.85, 1)],
    "Y": [(-0.85, -1, 0, 0), (0.85, -1, 0, 0), (0, 0, 0, 1)],
    "Z": [(-0.85, -1, 0.85, -1), (0.85, -1, -0.85, 1), (-0.85, 1, 0.85, 1)],
    "square": [(-0.9, -0.9, 0.9, -0.9), (0.9, -0.9, 0.9, 0.9), (0.9, 0.9, -0.9, 0.9), (-0.9, 0.9, -0.9, -0.9)],
    "triangle": [(0, -1, 0.95, 0.85), (0.95, 0.85, -0.95, 0.85), (-0.95, 0.85, 0, -1)],
    "ring": [(0, 0, 0, 0)],
}
RING_RADIUS = 0.95
# One U with one small mark on its axis: five places, two forms. Mirror images keep their class.
_CUP = [(-0.75, -0.85, -0.75, 0.7), (-0.75, 0.7, 0.75, 0.7), (0.75, 0.7, 0.75, -0.85)]
FINE = {
    f"{form}-{place}": [*_CUP, (-half, y, half, y)]
    for place, y in (("over", -1.3), ("top", -0.75), ("middle", -0.3), ("bottom", 0.2), ("under", 1.2))
    for form, half in (("dot", 0.0), ("dash", 0.35))
}


@dataclass(frozen=True)
class _Style:
    """What a variant changes: lengths in units of the shorter image side, angles in radians."""

    glyphs: dict[str, list[tuple[float, float, float, float]]]
    pieces: int = 4
    side: tuple[float, float] = (0.38, 0.6)
    turn: float = math.radians(30)
    stroke: tuple[float, float] = (0.028, 0.042)
    contrast: tuple[float, float] = (0.3, 0.7)
    hard: bool = False


_STYLES = {
    "plain": _Style(PLAIN),
    "shift": _Style(PLAIN, pieces=8, stroke=(0.022, 0.05), contrast=(0.22, 0.78), hard=True),
    "fine": _Style(FINE, side=(0.5, 0.64), turn=math.radians(15)),
}
_CUT = (0.35, 0.6)  # radius of the disc that cuts a piece, in units of half a glyph's side


def glyphs(
    n: int,
    *,
    size: int | tuple[int, int] = 32,
    classes: int = 10,
    variant: str = "plain",
    label_noise: float | Tensor = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ImageSet:
    r"""Draw the embedded data set: one glyph per image that says the class, on clutter that says nothing.

    Every glyph is a union of strokes (segments, or a circle). With ``d`` the distance in pixels to the nearest
    stroke and ``r`` half the stroke's width, a pixel takes the glyph's colour with the weight

    .. math:: \alpha = \min(1, \max(0, r + \tfrac12 - d)), \qquad mask = [d < r].

    Place, size, rotation and colour of the glyph, the pieces of glyphs beneath it and the background are
    independent of the class. A piece is what a small disc cuts out of a glyph of any class.
    Image i depends on ``seed``, ``size``, ``variant``, ``classes`` and i alone: ``glyphs(n)`` is the beginning
    of every longer set of the same seed. On the CPU it is the same bit for bit with any number of threads; on
    a GPU the numbers drawn are the same, and colours may differ by one level of 255.

    Args:
        n: number of images. In every run of ``classes`` images from the first, each class occurs once.
        size: side in pixels, or (H, W); at least 8.
        classes: number of classes K, 2 to 10.
        variant: "plain"; "shift": same classes, unseen textures (stripes, checks, hard-edged blocks), other
            colours and stroke widths, twice the clutter; "fine": one glyph with one small mark, classes differ
            in the mark's place and form.
        label_noise: share of labels replaced by another class, uniformly; or a (K, K) matrix whose entry
            (i, j) is the probability that class i is labelled j. The labels before are in ``clean_labels``.
        seed: any integer; train and test sets take different ones.
        device: where the images are drawn and kept.

    Returns:
        An :class:`ImageSet` with masks of the whole glyph.

    Raises:
        ValueError: if an argument is out of its range; the message gives the range.

    Source: ours; described on the book's page about the data.

    Example:
        >>> data = glyphs(20, size=(24, 32), seed=1)
        >>> data.images.shape, data.masks.shape, data.labels.bincount().tolist()
        (torch.Size([20, 3, 24, 32]), torch.Size([20, 24, 32]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    height, width = _checked(n, size, classes, variant)
    style = _STYLES[variant]
    device = torch.device(device)
    order = torch.rand(-(-n // classes), classes, generator=stream(seed, "labels")).argsort(1).flatten()[:n]
    labels = order.to(device)
    images = torch.empty(n, 3, height, width, dtype=torch.uint8, device=device)
    masks = torch.empty(n, height, width, dtype=torch.bool, device=device)
    painter = _Painter(style, classes, height, width, device)
    draw = stream(seed, f"{variant} images")
    for start in range(0, n, BLOCK):
        part = slice(start, min(n, start + BLOCK))
        uniform = torch.rand(BLOCK, painter.numbers, generator=draw)[: part.stop - start].to(device)
        images[part], masks[part] = painter.paint(labels[part], uniform)
    noisy = noisy_labels(order, classes, label_noise, seed)
    name = "glyphs" if variant == "plain" else f"glyphs-{variant}"
    return ImageSet(
        images,
        labels if noisy is None else noisy.to(device),
        tuple(style.glyphs)[:classes],
        masks,
        name,
        clean_labels=None if noisy is None else labels,
    )


def _checked(n: int, size: int | tuple[int, int], classes: int, variant: str) -> tuple[int, int]:
    if n < 0:
        raise ValueError(f"n must be 0 or more images, got {n}")
    if variant not in VARIANTS:
        near = difflib.get_close_matches(str(variant), VARIANTS, 1)
        raise ValueError(
            f"variant must be one of {VARIANTS}, got {variant!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if not 2 <= classes <= 10:
        raise ValueError(
            f"glyphs has 2 to 10 classes, got classes={classes}; the nearest is {min(10, max(2, classes))}"
        )
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 8:
        raise ValueError(f"a glyph needs at least 8 x 8 pixels, got size={size}")
    return height, width


def stream(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that asking for label noise changes no image."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def noise_matrix(classes: int, clean: float) -> Tensor:
    r"""Symmetric label noise: ``Q_kk = r`` and ``Q_kj = (1 - r) / (K - 1)``, so that the noise level is ``1 - r``.

    Args:
        classes: K, 2 or more.
        clean: r, the share of labels that stay as they are.

    Returns:
        (K, K), float64; ``Q[k, j]`` is the probability that an image of class k is given the label j.

    Raises:
        ValueError: fewer than two classes, or a ratio outside [0, 1].

    Source: Residual Attention Network, eq. (7).

    Example:
        >>> noise_matrix(3, 0.5)[0].tolist()
        [0.5, 0.25, 0.25]
    """
    if classes < 2 or not 0 <= clean <= 1:
        raise ValueError(f"noise needs 2 or more classes and a clean ratio in [0, 1], got {classes} and {clean}")
    matrix = torch.full((classes, classes), (1 - clean) / (classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(clean)


def noisy_labels(labels: Tensor, classes: int, noise: float | Tensor, seed: int) -> Tensor | None:
    """Labels drawn from each class's row of the noise matrix, or None where there is no noise."""
    if isinstance(noise, (int, float)):
        if not 0 <= noise <= 1:
            raise ValueError(f"label_noise must lie in [0, 1], got {noise}")
        if noise == 0:
            return None
        matrix = noise_matrix(classes, 1 - noise)
    else:
        matrix = torch.as_tensor(noise, dtype=torch.float64, device="cpu")
        if matrix.shape != (classes, classes):
            raise ValueError(
                f"label_noise must be ({classes}, {classes}), one row per class, got {tuple(matrix.shape)}"
            )
        if bool((matrix < 0).any()) or not torch.allclose(
            matrix.sum(1), torch.ones(classes, dtype=torch.float64), atol=1e-5
        ):
            raise ValueError(
                "each row of label_noise must hold probabilities that sum to 1, "
                f"got row sums {[round(v, 4) for v in matrix.sum(1).tolist()]}"
            )
    uniform = torch.rand(len(labels), 1, generator=stream(seed, "label noise"), dtype=torch.float64)
    return (uniform >= matrix.cumsum(1)[labels]).sum(1).clamp_(max=classes - 1)


class _Painter:
    """Turns rows of uniform random numbers into images of one size; holds what all blocks share."""

    def __init__(self, style: _Style, classes: int, height: int, width: int, device: torch.device) -> None:
        self.style, self.height, self.width, self.side = style, height, width, min(height, width)
        self.classes = classes
        strokes = list(style.glyphs.values())[:classes]
        most = max(map(len, strokes))
        ends = torch.tensor([s + s[-1:] * (most - len(s)) for s in strokes], dtype=torch.float64)
        self.ends = ends.view(classes, most, 2, 2).to(device)  # class, stroke, end, (x, y)
        self.ring = torch.tensor(
            [RING_RADIUS * (name == "ring") for name in list(style.glyphs)[:classes]],
            dtype=torch.float64,
            device=device,
        )
        self.count = torch.tensor([len(s) for s in strokes], device=device)
        self.rows, self.columns = (_interpolation(length, style.hard).to(device) for length in (height, width))
        self.y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        self.x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        self.patch = min(self.side, 2 * math.ceil(_CUT[1] * style.side[1] / 2 * self.side) + 1)
        self.limit = torch.tensor([width, height], dtype=torch.float64, device=device)
        # Spreads three values over the nine of the finer grid.
        self.up = (
            torch.tensor(
                [[4, 3, 2, 1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 1, 2, 3, 4]],
                dtype=torch.float32,
                device=device,
            )
            / 4
        )
        self.numbers = 8 * (style.pieces + 1) + 3 * style.pieces + 3 * (9 + 81) + 3 + 8

    def paint(self, labels: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, H, W) and masks bool (B, H, W) for these labels."""
        take = _Taker(uniform)
        canvas, base = self._background(take)
        self._add_pieces(canvas, base, take)
        distance, radius = self._glyph(labels, take)
        alpha = (radius + 0.5 - distance).clamp_(0, 1)[:, None]
        colour = self._colour(base, take(3))
        canvas += (colour[:, :, None, None] - canvas).mul_(alpha)
        return canvas.add_(0.5).clamp_(0, 255).to(torch.uint8), distance < radius

    def _colour(self, base: Tensor, uniform: Tensor) -> Tensor:
        """A colour at least ``contrast[0]`` away from ``base`` in every channel: distances on a circle."""
        low, high = self.style.contrast
        return (base + 255 * (low + (high - low) * uniform)) % 255

    def _background(self, take: _Taker) -> tuple[Tensor, Tensor]:
        """Coloured noise of two scales; ``hard`` breaks it into blocks, stripes and checks."""
        # Values are integers and weights multiples of 1/4 and 1/32, so that every sum is exact in float32
        # and does not depend on the order in which a matrix product adds.
        base = take(3) * 160 + 48
        coarse = (take(27) * 128).floor_().sub_(64).view(-1, 3, 3, 3)
        fine = (take(243) * 64).floor_().sub_(32).view(-1, 3, 9, 9)
        grid = fine + self.up.T @ coarse @ self.up
        canvas = (self.rows @ (grid @ self.columns.T)).add_(base[:, :, None, None])
        kind = take(8)
        if self.style.hard:
            canvas = self._patterned(canvas, kind)
        return canvas, base

    def _patterned(self, canvas: Tensor, uniform: Tensor) -> Tensor:
        """Stripes in a third of the images, checks in a third: darker or lighter in every second cell."""
        angle = (uniform[:, 0] * math.pi).double()
        period = self.side * (0.08 + 0.14 * uniform[:, 1])
        dx, dy = (angle.cos().float() / period)[:, None], (angle.sin().float() / period)[:, None]
        along = ((dx * self.x)[:, None, :] + (dy * self.y + uniform[:, 2:3])[:, :, None]).floor_()
        across = ((-dy * self.x)[:, None, :] + (dx * self.y + uniform[:, 3:4])[:, :, None]).floor_()
        kind = uniform[:, 4, None, None]
        cells = along.mul_(kind < 2 / 3).add_(across.mul_(kind < 1 / 3))
        odd = cells.sub_(cells.mul(0.5).floor_().mul_(2))
        step = (uniform[:, 5:8] - 0.5).sign() * (30 + 40 * uniform[:, 5:8])
        return canvas.add_(odd[:, None] * step[:, :, None, None])

    def _scale(self, uniform: Tensor) -> Tensor:
        """Half the side of each glyph, in pixels."""
        low, high = self.style.side
        return self.side / 2 * (low + (high - low) * uniform[:, 0].double())

    def _frame(self, kinds: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of strokes (N, S, 2, 2) and ring radius (N,) in pixels about the glyph's centre; half width (N,)."""
        style, scale = self.style, self._scale(uniform)
        angle = style.turn * (2 * uniform[:, 1].double() - 1)
        cos, sin = (angle.cos() * scale)[:, None, None], (angle.sin() * scale)[:, None, None]
        x, y = self.ends[kinds].unbind(-1)
        ends = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
        width = style.stroke[0] + (style.stroke[1] - style.stroke[0]) * uniform[:, 2]
        # Half a pixel's diagonal (0.71) or more: then a stroke covers the centre of some pixel wherever it lies.
        return ends, self.ring[kinds] * scale, (width * self.side).clamp_(min=0.75)

    def _glyph(self, labels: Tensor, take: _Taker) -> tuple[Tensor, Tensor]:
        """Distance to the strokes (B, H, W) and half their width (B, 1, 1), the glyph whole inside the image."""
        uniform = take(5)
        ends, ring, radius = self._frame(labels, uniform)
        corners = ends.flatten(1, 2)
        margin = (ring + radius + 0.5)[:, None]
        low, high = corners.amin(1) - margin, corners.amax(1) + margin  # (B, 2) about the centre
        centre = -low + (self.limit - (high - low)).clamp_(min=0) * uniform[:, 3:5]
        distance = _distance(
            ends + centre[:, None, None], ring, self.x.expand(len(labels), -1), self.y.expand(len(labels), -1)
        )
        return distance, radius[:, None, None]

    def _add_pieces(self, canvas: Tensor, base: Tensor, take: _Taker) -> None:
        """Blend pieces of glyphs into ``canvas``, each drawn in a small window only."""
        n, pieces, window = len(canvas), self.style.pieces, self.patch
        alpha, corner = self._pieces(take(8 * pieces).reshape(n * pieces, 8))
        colours = self._colour(base.repeat_interleave(pieces, 0), take(3 * pieces).reshape(n * pieces, 3))
        first = (corner[:, 1] * self.width + corner[:, 0]).long()
        offset = torch.arange(window, device=canvas.device)
        index = (first[:, None] + (offset[:, None] * self.width + offset).flatten()).view(n, pieces, 1, -1)
        alpha, colours = alpha.view(n, pieces, 1, -1), colours.view(n, pieces, 3, 1)
        flat = canvas.view(n, 3, -1)
        for piece in range(pieces):  # one after another: a later piece covers an earlier one
            where = index[:, piece].expand(-1, 3, -1)
            below = flat.gather(2, where)
            flat.scatter_(2, where, below + (colours[:, piece] - below) * alpha[:, piece])

    def _pieces(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of pieces (N, window, window) and the corner x, y of each window in its image (N, 2)."""
        kinds = (uniform[:, 3] * self.classes).long()
        ends, ring, radius = self._frame(kinds, uniform)
        # The disc that cuts sits on a stroke, so that no piece is empty.
        place = uniform[:, 7] * self.count[kinds]
        stroke = ends[torch.arange(len(kinds), device=kinds.device), place.long()]
        along = (place % 1).double()[:, None]
        turn = 2 * math.pi * along[:, 0]
        middle = (
            stroke[:, 0]
            + (stroke[:, 1] - stroke[:, 0]) * along
            + ring[:, None] * torch.stack([turn.cos(), turn.sin()], -1)
        )
        centre = uniform[:, 4:6] * self.limit
        corner = (centre - self.patch / 2).round_().clamp_(min=0).minimum(self.limit - self.patch)
        x, y = ((line[: self.patch] + corner[:, axis, None]).float() for axis, line in enumerate((self.x, self.y)))
        distance = _distance(ends + (centre - middle)[:, None, None], ring, x, y)
        reach = (x - centre[:, :1].float()).square()[:, None, :] + (y - centre[:, 1:].float()).square()[:, :, None]
        cut = (_CUT[0] + (_CUT[1] - _CUT[0]) * uniform[:, 6].double()) * self._scale(uniform)
        inside = reach < cut.square().float()[:, None, None]
        return (radius[:, None, None] + 0.5 - distance).clamp_(0, 1).mul_(inside), corner


class _Taker:
    """Hands out columns of a table of uniform numbers, each once."""

    def __init__(self, uniform: Tensor) -> None:
        self.uniform, self.used = uniform, 0

    def __call__(self, columns: int) -> Tensor:
        self.used += columns
        return self.uniform[:, self.used - columns : self.used]


def _interpolation(length: int, hard: bool) -> Tensor:
    """Weights (length, 9) that spread nine grid values over ``length`` pixels, in multiples of 1/32."""
    place = (torch.arange(length, dtype=torch.float64) + 0.5) / length * 8
    left = place.floor().clamp_(max=7)
    right = place - left
    right = (right > 0.5).double() if hard else (32 * right * right * (3 - 2 * right)).round() / 32
    weights = torch.zeros(length, 9, dtype=torch.float64)
    weights.scatter_(1, left.long()[:, None], 1 - right[:, None])
    weights.scatter_(1, left.long()[:, None] + 1, right[:, None])
    return weights.float()


def _distance(ends: Tensor, ring: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance of pixels to the nearest stroke.

    In a stroke's own frame, u along it from its middle and v across, the squared distance to a segment of half
    length h is max(|u| - h, 0)^2 + v^2. A ring is a stroke of length zero seen from a distance r: |d - r|.

    Args:
        ends: strokes (N, S, 2 ends, 2 coordinates x y), pixels.
        ring: radius (N,), 0 for strokes.
        x: columns (N, W). y: rows (N, H).

    Returns:
        float32 (N, H, W).
    """
    middle, half = ends.mean(2), (ends[:, :, 1] - ends[:, :, 0]) / 2
    length = half.square().sum(-1).sqrt()
    still = (length == 0)[..., None]  # a point has no direction of its own: any will do
    direction = torch.where(still, torch.tensor([1.0, 0.0], dtype=half.dtype, device=half.device), half)
    direction = direction / torch.where(still, 1, length[..., None])
    dx, dy = direction.float().unbind(-1)
    u0, v0 = (
        (direction * middle).sum(-1).float(),
        (direction[..., 0] * middle[..., 1] - direction[..., 1] * middle[..., 0]).float(),
    )
    length = length.float()
    squares = []
    for s in range(ends.shape[1]):
        a, b = dx[:, s, None], dy[:, s, None]
        along = (a * x)[:, None, :] + (b * y - u0[:, s, None])[:, :, None]
        along.abs_().sub_(length[:, s, None, None]).clamp_(min=0).square_()
        across = (-b * x)[:, None, :] + (a * y - v0[:, s, None])[:, :, None]
        squares.append(along.add_(across.square_()))
    nearest = squares[0]
    for square in squares[1:]:
        nearest = torch.minimum(nearest, square, out=nearest)
    return nearest.sqrt_().sub_(ring.float()[:, None, None]).abs_()
