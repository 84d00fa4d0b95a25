"""A set of image files that are read while they are needed, for folders that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from payattn.data.augment import Augment, crops, jittered
from payattn.data.images import Change, Coloured, ImageSet, Moments, batches, share_of
from payattn.data.readers import SUFFIXES, class_folders, fault, opened, pixels_of
from payattn.data.strokes import stream

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 224
MARGIN = 8 / 7
"""An image is scaled so that its shorter side is this much longer than what is cut from its middle: 256 for 224."""
SAMPLE = 1000
Task = tuple[str, int | None]  # file, seed of its augmentation
Done = tuple[Tensor, Tensor]  # pixels, shifts of colour


@dataclass(frozen=True, eq=False)
class FileSet(Coloured):
    """A labelled set of image files of any size, read and cut to one size while they are needed.

    It stands in for an :class:`ImageSet` in ``fit``, ``evaluate``, ``maps_of`` and recipes; batches are the same
    uint8 tensors. In order (for tests) an image is scaled until its shorter side is 8/7 of ``size``, and the middle is
    cut out. With :class:`Augment` ``(crop=0.08)`` a random part of it is stretched to ``size``. Files are decoded by
    ``workers`` processes beside the training; what becomes of an image hangs on the generator's state and the image
    alone, so neither their number nor that of training processes changes anything.

    Args:
        root: the folder of all files.
        paths: their names in it.
        labels: int64 (N,), each in ``0 .. len(classes) - 1``.
        classes: one name per class, in label order.
        lengths: sizes of the files in bytes, int64 (N,).
        size: side of the images in pixels, or (H, W).
        name: what the set is called in results and error messages.
        caveat: what a reader of a result must know about the data.
        clean_labels: int64 (N,), the labels before label noise, or None.
        moments: mean and standard deviation of each channel in [0, 1]; None takes those of a sample of 1,000 images.
        device: where the batches go.
        workers: processes that decode; None takes one per CPU of this process, 16 at most, and 0 none.

    Raises:
        ValueError: if the numbers of files, labels and lengths differ, or a number is out of its range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for k, side in enumerate((20, 30)):
        ...     Image.new("RGB", (side, 25), (100 * k, 0, 0)).save(folder / f"{k}.png")
        >>> data = FileSet(folder, ("0.png", "1.png"), torch.tensor([0, 1]), ("black", "red"), size=8)
        >>> from payattn.data import batches
        >>> images, labels = next(batches(data, 2))
        >>> images.shape, images[:, 0, 0, 0].tolist()
        (torch.Size([2, 3, 8, 8]), [0, 100])
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    lengths: Tensor | None = None
    size: Any = SIDE
    name: str = "files"
    caveat: str = ""
    clean_labels: Tensor | None = None
    moments: Moments | None = None
    device: torch.device | str = "cpu"
    workers: int | None = None
    masks: ClassVar[None] = None
    at_once: ClassVar[int] = 100

    def __post_init__(self) -> None:
        where = f"FileSet {self.name!r}"
        for field in ("labels", "clean_labels", "lengths"):
            values = getattr(self, field)
            if values is not None and (values.dtype != torch.int64 or tuple(values.shape) != (len(self.paths),)):
                raise ValueError(
                    f"{where}: {field} must be int64 ({len(self.paths)},), one per file, "
                    f"got {values.dtype} {tuple(values.shape)}"
                )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"{where}: labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but {len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"{where}: size must be a positive number of pixels or (H, W), got {self.size!r}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"{where}: workers must be 0 or more, got {self.workers}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "device", torch.device(self.device))
        object.__setattr__(self, "root", Path(self.root))

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        caveat = f", caveat: {self.caveat}" if self.caveat else ""
        return (
            f"FileSet({self.name!r}, {len(self)} files read as {self.size[0]} x {self.size[1]}, "
            f"{len(self.classes)} classes, to {self.device}{caveat})"
        )

    def subset(self, index: Tensor | slice | list[int]) -> FileSet:
        """The files at ``index`` (a slice, integers, or a bool tensor of length N), in that order."""
        chosen = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        changed = {
            field: getattr(self, field)[chosen]
            for field in ("labels", "clean_labels", "lengths")
            if getattr(self, field) is not None
        }
        return replace(self, paths=tuple(self.paths[i] for i in chosen.tolist()), **changed)

    def to(self, device: str | torch.device) -> FileSet:
        """The same set, its batches going to another device."""
        return replace(self, device=torch.device(device))

    def digest(self) -> str:
        """SHA-256 of size, names, lengths in bytes and labels, in 64 hex digits.

        The contents are not read: it tells one copy of a folder from another, not a changed pixel.
        """
        total = hashlib.sha256(f"{self.size} {len(self)};".encode())
        lengths = [-1] * len(self) if self.lengths is None else self.lengths.tolist()
        for path, length, label in zip(self.paths, lengths, self.labels.tolist(), strict=True):
            total.update(f"{path}\0{length}\0{label}\n".encode(errors="surrogateescape"))
        return total.hexdigest()

    def sample(self, n: int = SAMPLE) -> ImageSet:
        """At most n images, evenly spaced over the set, read into memory and cut as for tests."""
        chosen = self.subset(torch.arange(min(n, len(self))) * len(self) // max(1, min(n, len(self))))
        parts = list(batches(chosen, self.at_once))
        return ImageSet(
            torch.cat([images for images, _ in parts]),
            torch.cat([labels for _, labels in parts]),
            self.classes,
            name=self.name,
            caveat=self.caveat,
        )

    @cached_property
    def _moments(self) -> Moments:  # type: ignore[override]
        if self.moments is not None:
            return self.moments
        known = self.sample()
        return known.mean, known.std

    def drawn(
        self, chosen: Sequence[Tensor | slice], generator: torch.Generator | None, augment: Change | None,
        share: tuple[int, int],
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """The batches of these indices, see :func:`payattn.data.batches`."""
        places, key = torch.arange(len(self)), 0
        if generator is not None:
            key = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        own = [part[share_of(len(part), *share)] for part in (places[index] for index in chosen)]
        tasks = [_Task(self, part, key, augment is not None) for part in own]
        decoder = _Decoder(self.size, _checked(augment))
        for part, (images, shifts) in zip(own, self._decoded(decoder, tasks), strict=True):
            images = images.to(self.device, non_blocking=True)
            yield jittered(images, shifts) if len(shifts) else images, self.labels[part].to(self.device)

    def _decoded(self, decoder: _Decoder, tasks: list[_Task]) -> Iterator[Done]:
        workers = min(_workers() if self.workers is None else self.workers, len(tasks) - 1)
        done: Iterable[Done | Exception]
        if workers < 1:
            done = (decoder[list(task)] for task in tasks)
        else:
            done = torch.utils.data.DataLoader(
                decoder,
                batch_size=None,
                sampler=_Tasks(tasks),
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=torch.device(self.device).type == "cuda",
                generator=torch.Generator().manual_seed(0),
            )
        for result in done:
            if isinstance(result, Exception):  # as a value: raised in a worker it would come with its whole history
                raise result
            yield result


Data = ImageSet | FileSet
"""What can be trained and measured on."""


class _Task:
    """The files of one batch and the seed of each, made when a worker is free: names for all batches would be many."""

    def __init__(self, data: FileSet, index: Tensor, key: int, seeded: bool) -> None:
        self.data, self.index, self.key, self.seeded = data, index, key, seeded

    def __iter__(self) -> Iterator[Task]:
        for i in self.index.tolist():
            yield os.path.join(self.data.root, self.data.paths[i]), i * 2**31 + self.key if self.seeded else None


class _Tasks(torch.utils.data.Sampler[list[Task]]):
    def __init__(self, tasks: list[_Task]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[list[Task]]:
        return (list(task) for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def _as_it_is(result: Any) -> Any:
    return result


def _workers() -> int:
    """CPUs for each training process of this machine, 16 at most."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, known // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _checked(augment: Change | None) -> Augment | None:
    if augment is None:
        return None
    if not isinstance(augment, Augment):
        raise TypeError(f"images are augmented file by file here, which takes an Augment, got {type(augment).__name__}")
    if augment.flip == "half":
        raise ValueError("flip='half' flips half of a batch, but files are augmented one by one; use flip='random'")
    return augment


class _Decoder(torch.utils.data.Dataset[Any]):
    """Reads a batch of files; it holds no names, so that a worker process costs little memory."""

    def __init__(self, size: tuple[int, int], augment: Augment | None) -> None:
        self.size, self.augment = size, augment

    def __getitem__(self, tasks: list[Task]) -> Done | Exception:
        try:
            images, shifts = zip(*(self._one(*task) for task in tasks), strict=True)
        except Exception as error:
            return error
        return torch.stack(images), torch.stack(shifts) if shifts[0] is not None else torch.empty(0, 3)

    def _one(self, path: str, seed: int | None) -> tuple[Tensor, Tensor | None]:
        image, augment = opened(path, path, upright=True), self.augment
        if augment is None or seed is None:
            return pixels_of(middle(image, self.size)), None
        generator = stream(seed, "augment")
        if augment.crop:
            box = crops(1, image.height, image.width, augment.crop, generator)[0].tolist()
            image = part(image, box, self.size)
        else:
            image = middle(image, self.size)
        images = replace(augment, crop=0.0, pca=0.0)(pixels_of(image)[None], generator)
        return images[0], augment.shifts(1, generator)[0] if augment.pca else None


def part(image: Image, box: list[int], size: tuple[int, int]) -> Image:
    """The part ``box`` (top, left, height, width) of an image, stretched to ``size`` (bilinear, antialiased)."""
    from PIL import Image as pillow

    top, left, height, width = box
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((size[1], size[0]), pillow.Resampling.BILINEAR)


def middle(image: Image, size: tuple[int, int]) -> Image:
    """The middle of an image, scaled so that it just covers 8/7 of ``size`` (bilinear, antialiased).

    For a square ``size`` the shorter side becomes 8/7 of it: 256 for 224.
    """
    from PIL import Image as pillow

    height, width = (round(side * MARGIN) for side in size)
    if image.width * height <= image.height * width:
        scaled = width, max(height, int(width * image.height / image.width))
    else:
        scaled = max(width, int(height * image.width / image.height)), height
    image = image.resize(scaled, pillow.Resampling.BILINEAR)
    left, top = round((image.width - size[1]) / 2), round((image.height - size[0]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def read_names(path: Path, size: Any = None, moments: Moments | None = None) -> FileSet:
    """A folder with one folder of images per class, as :func:`payattn.data.readers.read_folder`, but read as needed."""
    folders = class_folders(path)
    if len(folders) < 2:
        loose = sum(1 for entry in os.scandir(path) if _is_image(entry.name))
        what = f" and {loose} images beside them" if loose else ""
        raise fault(
            path,
            f"holds {len(folders)} folders of classes{what}",
            "put the images of each class into a folder of its own, named after the class, two or more",
        )
    names: list[str] = []
    lengths: list[int] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.stat().st_size) for entry in entries if _is_image(entry.name))
        if not found:
            raise fault(folder, f"holds no image ({', '.join(SUFFIXES)})", "add some or remove the folder")
        names += [f"{folder.name}/{name}" for name, _ in found]
        lengths += [length for _, length in found]
        labels += [label] * len(found)
    return FileSet(
        path,
        tuple(names),
        torch.tensor(labels),
        tuple(folder.name for folder in folders),
        torch.tensor(lengths),
        SIDE if size is None else size,
        path.name,
        moments=moments,
    )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
