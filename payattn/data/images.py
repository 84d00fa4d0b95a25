"""Images, labels and masks held as tensors on one device, and batches drawn from them by index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from payattn.data.stream import FileSet

TENSORS = ("images", "labels", "masks", "clean_labels", "boxes", "parts")
Colour = tuple[float, float, float]
Moments = tuple[Colour, Colour]
Change = Callable[[Tensor, torch.Generator], Tensor]


def _require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    if not condition:
        raise error(message)


class Coloured:
    """Mean and spread of the colours of a set: over all pixels, or over those of a sample where the set is large.

    Example:
        >>> import torch
        >>> ImageSet(torch.full((1, 3, 2, 2), 51).byte(), torch.tensor([0]), ("grey",)).mean
        (0.2, 0.2, 0.2)
    """

    _moments: Moments

    @property
    def mean(self) -> Colour:
        """Mean of each channel, in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> Colour:
        """Standard deviation of each channel, in units of [0, 1]."""
        return self._moments[1]


@dataclass(frozen=True, eq=False)
class ImageSet(Coloured):
    """A labelled set of images of one size, kept whole on one device.

    Args:
        images: RGB, uint8 (N, 3, H, W), values 0 to 255.
        labels: int64 (N,), each in ``0 .. len(classes) - 1``.
        classes: one name per class, in label order.
        masks: bool (N, H, W), True on the object, or None where no mask is known.
        name: what the set is called in results and error messages.
        caveat: what a reader of a result must know about the data, such as "JPEG copy".
        clean_labels: int64 (N,), the labels before label noise, or None where ``labels`` has no added noise.
        boxes: int64 (N, 4), the object's box as left, top, right, bottom in pixels of ``images``, right and
            bottom exclusive, or None where no box is known.
        parts: float32 (N, P, 3), x and y of P named parts in pixels of ``images`` and 1 where the part is
            visible, 0 where it is not, or None.

    Raises:
        TypeError: if a tensor has another type than the one above.
        ValueError: if shapes do not fit together or a label has no class.

    Example:
        >>> import torch
        >>> data = ImageSet(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.tensor([1, 0]), ("cat", "dog"))
        >>> len(data), data.subset([0]).labels.tolist(), data.mean
        (2, [1], (0.0, 0.0, 0.0))
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None = None
    name: str = "images"
    caveat: str = ""
    clean_labels: Tensor | None = None
    boxes: Tensor | None = None
    parts: Tensor | None = None
    at_once: ClassVar[int] = 500  # images in a batch that is only measured

    def __post_init__(self) -> None:
        images, shape, where = self.images, tuple(self.images.shape), f"ImageSet {self.name!r}"
        _require(
            images.dtype == torch.uint8,
            f"{where}: images must be uint8 (0 to 255), got {images.dtype}; "
            "convert values in [0, 1] with (255 * images).round().to(torch.uint8)",
            TypeError,
        )
        _require(
            images.ndim == 4 and shape[1] == 3,
            f"{where}: images must be (N, 3, H, W), got {shape}; "
            "move a last colour axis with images.permute(0, 3, 1, 2)",
        )
        for field in ("labels", "clean_labels"):
            labels = getattr(self, field)
            if labels is None:
                continue
            _require(
                labels.dtype == torch.int64,
                f"{where}: {field} must be int64, got {labels.dtype}; use .long()",
                TypeError,
            )
            _require(
                tuple(labels.shape) == shape[:1],
                f"{where}: {field} must be ({shape[0]},), one per image, got {tuple(labels.shape)}",
            )
            if len(labels):
                low, high = int(labels.min()), int(labels.max())
                _require(
                    low >= 0 and high < len(self.classes),
                    f"{where}: {field} run from {low} to {high}, "
                    f"but {len(self.classes)} classes allow 0 to {len(self.classes) - 1}",
                )
        if self.masks is not None:
            _require(
                self.masks.dtype == torch.bool,
                f"{where}: masks must be bool, got {self.masks.dtype}; use masks > 0",
                TypeError,
            )
            _require(
                tuple(self.masks.shape) == (shape[0], *shape[2:]),
                f"{where}: masks must be {(shape[0], *shape[2:])} like the images, got {tuple(self.masks.shape)}",
            )
        for field, kind, form in (("boxes", torch.int64, (shape[0], 4)), ("parts", torch.float32, (shape[0], -1, 3))):
            tensor = getattr(self, field)
            if tensor is None:
                continue
            _require(tensor.dtype == kind, f"{where}: {field} must be {kind}, got {tensor.dtype}", TypeError)
            _require(
                tensor.ndim == len(form) and all(b in (-1, a) for a, b in zip(tensor.shape, form, strict=True)),
                f"{where}: {field} must be {str(form).replace('-1', 'P')}, got {tuple(tensor.shape)}",
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        masks = "with masks" if self.masks is not None else "no masks"
        noise = "" if self.clean_labels is None else ", label noise"
        caveat = f", caveat: {self.caveat}" if self.caveat else ""
        return (
            f"ImageSet({self.name!r}, {len(self)} images of {self.images.shape[2]} x {self.images.shape[3]}, "
            f"{len(self.classes)} classes, {masks}{noise}, on {self.images.device}{caveat})"
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> ImageSet:
        """A copy of this set with ``change`` applied to every tensor it holds."""
        changed: dict[str, Any] = {
            field: change(getattr(self, field)) for field in TENSORS if getattr(self, field) is not None
        }
        return replace(self, **changed)

    def joined(self, other: ImageSet) -> ImageSet:
        """The images of this set and behind them those of another with the same classes.

        Raises:
            ValueError: other classes, or only one of the two has masks, boxes, parts or clean labels.
        """
        _require(self.classes == other.classes, f"{self.name!r} and {other.name!r} have other classes")
        both: dict[str, Any] = {}
        for field in TENSORS:
            mine, theirs = getattr(self, field), getattr(other, field)
            _require((mine is None) == (theirs is None), f"only one of {self.name!r} and {other.name!r} has {field}")
            if mine is not None:
                both[field] = torch.cat([mine, theirs.to(mine.device)])
        return replace(self, **both)

    def subset(self, index: Tensor | slice | list[int]) -> ImageSet:
        """The images at ``index`` (a slice, integers, or a bool tensor of length N), in that order."""
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.int64)
        if isinstance(index, Tensor):
            index = index.to(self.images.device)
        return self._map(lambda tensor: tensor[index])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set on another device."""
        return self._map(lambda tensor: tensor.to(device))

    @cached_property
    def _moments(self) -> Moments:  # type: ignore[override]
        _require(len(self) > 0, f"ImageSet {self.name!r} is empty, so it has no mean")
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in range(3):  # a histogram is exact, whatever the device or the number of threads
            counts = torch.bincount(self.images[:, channel].flatten(), minlength=256).cpu().double()
            share = counts / counts.sum()
            mean.append(float(share @ levels))
            std.append(float((share @ (levels - mean[-1]).square()).sqrt()))
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def digest(self) -> str:
        """SHA-256 of images, labels, masks, boxes and parts, in 64 hex digits: sets with one digest are the same."""
        total = hashlib.sha256()
        for tensor in (self.images, self.labels, self.masks, self.boxes, self.parts):
            if tensor is not None:
                total.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                total.update(tensor.cpu().contiguous().numpy().data)
        return total.hexdigest()

    def drawn(
        self, chosen: Sequence[Tensor | slice], generator: torch.Generator | None, augment: Change | None,
        share: tuple[int, int],
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """The batches of these indices, see :func:`batches`."""
        for index in chosen:
            images, labels = self.images[index], self.labels[index]
            if augment is not None and generator is not None:  # the whole batch, so that every process draws the same
                images = augment(images, generator)
            if share[1] > 1:
                own = share_of(len(images), *share)
                images, labels = images[own], labels[own]
            yield images, labels


def share_of(n: int, which: int, of: int) -> slice:
    """The part of n things in a row that falls to one of several processes; they differ by one at most.

    Example:
        >>> [share_of(7, which, 3) for which in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(n * which // of, n * (which + 1) // of)


def batches(
    data: ImageSet | FileSet,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: Change | None = None,
    drop_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a set in batches, drawn by index on its device, or read from its files in the background.

    Args:
        data: the set.
        batch_size: images in a batch; the last batch may be smaller.
        generator: shuffles the set and drives ``augment``; None means in order, without augmentation.
        augment: changes a batch of images, such as :class:`Augment`; needs ``generator``.
        drop_last: leave out a last batch that is smaller.
        share: (which, of how many): one slice of every batch, see :func:`share_of`. With generators in the same
            state, the slices together are the batch.

    Returns:
        An iterator of (images uint8 (B, 3, H, W), labels int64 (B,)).

    Raises:
        ValueError: if ``batch_size`` is not positive, or ``augment`` comes without ``generator``.

    Example:
        >>> import torch
        >>> data = ImageSet(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.arange(5), tuple("abcde"))
        >>> [labels.tolist() for _, labels in batches(data, 2)]
        [[0, 1], [2, 3], [4]]
        >>> [labels.tolist() for _, labels in batches(data, 4, share=(1, 2))]
        [[2, 3], [4]]
    """
    _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    _require(
        augment is None or generator is not None,
        "augment draws random numbers: pass generator=torch.Generator().manual_seed(0) beside it",
    )
    _require(0 <= share[0] < share[1], f"share must be (which, of how many), counted from 0, got {share}")
    return _pass(data, batch_size, generator, augment, drop_last, share)


def _pass(
    data: ImageSet | FileSet, batch_size: int, generator: torch.Generator | None, augment: Change | None,
    drop_last: bool, share: tuple[int, int],
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """The order is drawn with the first batch, not before."""
    stop = len(data) - len(data) % batch_size if drop_last else len(data)
    chosen: list[Any] = [slice(start, min(start + batch_size, stop)) for start in range(0, stop, batch_size)]
    if generator is not None:
        order = torch.randperm(len(data), generator=generator, device=generator.device).to(data.labels.device)
        chosen = [order[part] for part in chosen]
    yield from data.drawn(chosen, generator, augment, share)
