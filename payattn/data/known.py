"""The known sets: which files each is made of, how they are laid out, and the split that is taken by default.

Each loader takes the cache folder, the size and the seed, and gives the training and the test set. Sets whose images
come in many sizes are brought to one size while they are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from payattn.data import download
from payattn.data.archives import AGAIN, images, lines, members, texts
from payattn.data.images import ImageSet
from payattn.data.readers import SUFFIXES, Size, fault, read_cifar, read_svhn, resized
from payattn.data.splits import held_out, per_class

Root = str | os.PathLike[str] | None
Sets = tuple[ImageSet, ImageSet]
Entry = tuple[str, str]  # class folder, file

SIDE = 32  # pixels: what the CIFAR-trained networks of the cross-domain experiment take
CUB_SIDE = 80
CUB_PARTS = (
    "back",
    "beak",
    "belly",
    "breast",
    "crown",
    "forehead",
    "left eye",
    "left leg",
    "left wing",
    "nape",
    "right eye",
    "right leg",
    "right wing",
    "tail",
    "throat",
)
"""The parts of CUB-200-2011 in the order of ``ImageSet.parts``."""
# (classes, fewest images, most images) of the sets whose files have no known hash. The 1,579 images of Event-8 are
# those of the archive; the authors of Learn To Pay Attention used 1,574.
COUNTS = {
    "event8": (8, 1574, 1579),
    "action40 train": (40, 4000, 4000),
    "action40 test": (40, 5532, 5532),
    "scene67 train": (67, 5360, 5360),
    "scene67 test": (67, 1340, 1340),
    "object-discovery": (3, 300, 300),
}


def _cifar10(root: Root, size: Size, seed: int) -> Sets:
    return read_cifar(
        download.fetch(download.CIFAR10, root),
        "cifar-10-batches-py",
        [f"data_batch_{k}" for k in range(1, 6)],
        "test_batch",
        "batches.meta",
        False,
        "cifar10",
    )


def _cifar100(root: Root, size: Size, seed: int) -> Sets:
    return read_cifar(
        download.fetch(download.CIFAR100, root), "cifar-100-python", ["train"], "test", "meta", True, "cifar100"
    )


def _svhn(root: Root, size: Size, seed: int) -> Sets:
    return (read_svhn(download.fetch(download.SVHN_TRAIN, root)), read_svhn(download.fetch(download.SVHN_TEST, root)))


# ---- what the loaders share ------------------------------------------------------------------------------------


def _entry(member: str, folder: str) -> Entry | None:
    """(class, file) of an image that lies in ``folder/class/file``, whatever precedes ``folder``."""
    parts = PurePosixPath(member).parts
    if len(parts) < 3 or parts[-3] != folder or not _is_image(parts[-1]):
        return None
    return parts[-2], parts[-1]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _fitted(size: Size, default: int) -> Callable[[Tensor, object], Tensor]:
    goal = default if size is None else size
    return lambda pixels, _: resized(pixels[None], goal)[0]


def _set(
    path: Path,
    found: dict[Entry, Tensor],
    entries: Iterable[Entry],
    classes: list[str],
    name: str,
    titles: Iterable[str] | None = None,
) -> ImageSet:
    """A set of the images ``entries``, in that order, labelled by their class folder; ``titles`` rename classes."""
    entries = list(entries)
    missing = [entry for entry in entries if entry not in found]
    if missing or not entries:
        what = (
            f"lacks {len(missing)} of {len(entries)} images, first {'/'.join(missing[0])}"
            if missing
            else f"holds no image of {name}"
        )
        raise fault(path, what, AGAIN)
    number = {folder: k for k, folder in enumerate(classes)}
    labels = torch.tensor([number[folder] for folder, _ in entries])
    return ImageSet(torch.stack([found[entry] for entry in entries]), labels, tuple(titles or classes), name=name)


def _checked(path: Path, what: str, found: list[Entry], classes: int | None = None) -> None:
    """A set without a hash must have the published numbers of classes and images."""
    want, low, high = COUNTS[what]
    have = len({folder for folder, _ in found}) if classes is None else classes
    if have != want or not low <= len(found) <= high:
        number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        raise fault(
            path,
            f"holds {len(found):,} images of {have} classes for {what}, expected {number} of {want}",
            "it is not whole or another file: " + AGAIN,
        )


def _remembered(sets: Sets, *paths: Path) -> Sets:
    """Now that the content has proved whole, keep the hashes of files that have no published one."""
    for path in paths:
        download.remember(path)
    return sets


# ---- STL-10 ----------------------------------------------------------------------------------------------------


def _stl10(root: Root, size: Size, seed: int) -> Sets:
    """The binary version: channels, then columns, then rows; labels from 1."""
    path = download.fetch(download.STL10, root)
    wanted = {
        f"{part}.{end}"
        for part, end in (
            ("train_X", "bin"),
            ("train_y", "bin"),
            ("test_X", "bin"),
            ("test_y", "bin"),
            ("class_names", "txt"),
        )
    }
    found: dict[str, bytes] = {}
    for member, read in members(path):  # the unlabelled images are passed over
        name = PurePosixPath(member).name
        if name in wanted:
            found[name] = read()
        if len(found) == len(wanted):
            break
    if missing := sorted(wanted - set(found)):
        raise fault(path, f"holds no {' and no '.join(missing)}", AGAIN)
    classes = tuple(lines(found["class_names.txt"]))
    train, test = (
        _stl10_split(path, found[f"{part}_X.bin"], found[f"{part}_y.bin"], classes, size) for part in ("train", "test")
    )
    return train, test


def _stl10_split(path: Path, pixels: bytes, labels: bytes, classes: tuple[str, ...], size: Size) -> ImageSet:
    each = 3 * 96 * 96
    if not labels or len(pixels) != each * len(labels):
        raise fault(path, f"has {len(pixels)} bytes of pixels for {len(labels)} labels, expected {each} each", AGAIN)
    numbers = torch.frombuffer(bytearray(labels), dtype=torch.uint8).long()
    low, high = int(numbers.min()), int(numbers.max())
    if low < 1 or high > len(classes):
        raise fault(path, f"has labels from {low} to {high}, expected 1 to {len(classes)}", AGAIN)
    columns = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 3, 96, 96)
    return ImageSet(resized(columns.transpose(2, 3).contiguous(), size), numbers - 1, classes, name="stl10")


# ---- CUB-200-2011 ----------------------------------------------------------------------------------------------


def _cub200(root: Root, size: Size, seed: int, crop: bool = True) -> Sets:
    """Official split; with ``crop`` each image, mask and part location is cut to the ground-truth box."""
    path, masks_path = download.fetch(download.CUB, root), download.fetch(download.CUB_MASKS, root)
    table = _Birds(path)
    goal = CUB_SIDE if size is None else size
    height, width = (goal, goal) if isinstance(goal, int) else goal
    windows: dict[str, tuple[float, float, float, float]] = {}
    frames: dict[str, tuple[int, int]] = {}

    def fit(pixels: Tensor, name: str) -> Tensor:
        frames[name] = pixels.shape[1], pixels.shape[2]
        windows[name] = table.window(name, *frames[name]) if crop else (0.0, 0.0, 1.0, 1.0)
        return resized(_cut(pixels, windows[name])[None], goal)[0]

    def fit_mask(pixels: Tensor, name: str) -> Tensor:
        # Grey is the share of annotators who marked the pixel: the majority decides.
        return resized(_cut(pixels, windows[name]) >= 128, goal, masks=True)[0]

    def key_of(folder: str, suffix: str) -> Callable[[str], str | None]:
        def key(member: str) -> str | None:
            entry = _entry(member, folder)
            name = None if entry is None else "/".join(entry)
            return (
                name.removesuffix(suffix)
                if name and name.endswith(suffix) and name.removesuffix(suffix) in table.number
                else None
            )

        return key

    found = images(path, key_of("images", ".jpg"), fit, title="cub200")
    _all(path, table.names, found)
    masks = images(masks_path, key_of("segmentations", ".png"), fit_mask, mode="L", title="masks of cub200")
    _all(masks_path, table.names, masks)
    geometry = [table.geometry(name, *frames[name], windows[name], height, width) for name in table.names]
    data = ImageSet(
        torch.stack([found[n] for n in table.names]),
        torch.tensor(table.labels),
        table.classes,
        torch.stack([masks[n] for n in table.names]),
        "cub200",
        boxes=torch.stack([box for box, _ in geometry]),
        parts=torch.stack([p for _, p in geometry]),
    )
    train = torch.tensor(table.train)
    return data.subset(train), data.subset(~train)


def _cut(pixels: Tensor, window: tuple[float, float, float, float]) -> Tensor:
    """The part of (C, H, W) inside a window of left, top, right, bottom as shares of width and height."""
    height, width = pixels.shape[1:]
    left, top, right, bottom = (
        round(share * length) for share, length in zip(window, (width, height, width, height), strict=True)
    )
    left, top = min(left, width - 1), min(top, height - 1)
    return pixels[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def _all(path: Path, names: list[str], found: dict[str, Tensor]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise fault(path, f"lacks {len(missing)} of {len(names)} images, first {missing[0]}", AGAIN)


class _Birds:
    """The text tables of CUB-200-2011."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = texts(
            path,
            {
                name: f"CUB_200_2011/{file}"
                for name, file in (
                    ("images", "images.txt"),
                    ("labels", "image_class_labels.txt"),
                    ("train", "train_test_split.txt"),
                    ("boxes", "bounding_boxes.txt"),
                    ("classes", "classes.txt"),
                    ("parts", "parts/part_locs.txt"),
                )
            },
        )
        numbered = self._rows("images.txt", table["images"], 2)
        ids = [row[0] for row in numbered]
        self.names = [row[1].removesuffix(".jpg") for row in numbered]
        self.number = {name: k for k, name in enumerate(self.names)}
        self.classes = tuple(
            row[1].partition(".")[2] or row[1] for row in self._rows("classes.txt", table["classes"], 2)
        )
        self.labels = [int(row[0]) - 1 for row in self._numbers("image_class_labels.txt", table["labels"], ids, 1)]
        if min(self.labels) < 0 or max(self.labels) >= len(self.classes):
            raise fault(
                path,
                f"image_class_labels.txt has labels from {min(self.labels) + 1} to "
                f"{max(self.labels) + 1}, expected 1 to {len(self.classes)}",
                AGAIN,
            )
        self.train = [row[0] == 1 for row in self._numbers("train_test_split.txt", table["train"], ids, 1)]
        self.boxes = self._numbers("bounding_boxes.txt", table["boxes"], ids, 4)
        self.parts = self._parts(table["parts"], ids)

    def _rows(self, file: str, text: list[str], columns: int) -> list[list[str]]:
        rows = [line.split(maxsplit=columns - 1) for line in text]
        if not rows or any(len(row) != columns for row in rows):
            raise fault(self.path, f"{file} has no {columns} columns in every line", AGAIN)
        return rows

    def _numbers(self, file: str, text: list[str], ids: list[str], columns: int) -> list[list[float]]:
        """Rows of numbers, in the order of the images."""
        try:
            rows = {row[0]: [float(v) for v in row[1:]] for row in self._rows(file, text, columns + 1)}
        except ValueError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise fault(self.path, f"{file} holds no numbers ({error})", AGAIN) from error
        if set(rows) != set(ids) or len(rows) != len(text):
            raise fault(self.path, f"{file} names {len(text)} images, images.txt {len(ids)}, not the same ones", AGAIN)
        return [rows[i] for i in ids]

    def _parts(self, text: list[str], ids: list[str]) -> Tensor:
        """(N, P, 3): x, y, visible, in pixels of the original images."""
        rows = self._rows("part_locs.txt", text, 5)
        count = len({row[1] for row in rows})
        place = {i: k for k, i in enumerate(ids)}
        out = torch.zeros(len(ids), count, 3)
        try:
            if len(rows) != len(ids) * count:
                raise ValueError(f"{len(rows)} rows for {len(ids)} images and {count} parts")
            out[[place[row[0]] for row in rows], [int(row[1]) - 1 for row in rows]] = torch.tensor(
                [[float(v) for v in row[2:]] for row in rows]
            )
        except (ValueError, KeyError, IndexError) as error:
            raise fault(self.path, f"part_locs.txt does not fit images.txt ({error})", AGAIN) from error
        return out

    def window(self, name: str, height: int, width: int) -> tuple[float, float, float, float]:
        """The box as whole pixels of the image, in shares of its size; whatever lies outside is cut off."""
        x, y, w, h = self.boxes[self.number[name]]
        left, top = max(0, math.floor(x)), max(0, math.floor(y))
        right, bottom = min(width, math.ceil(x + w)), min(height, math.ceil(y + h))
        if right <= left or bottom <= top:
            raise fault(
                self.path, f"the box {(x, y, w, h)} of {name} lies outside its {width} x {height} pixels", AGAIN
            )
        return left / width, top / height, right / width, bottom / height

    def geometry(
        self,
        name: str,
        height: int,
        width: int,
        window: tuple[float, float, float, float],
        new_height: int,
        new_width: int,
    ) -> tuple[Tensor, Tensor]:
        """Box (4,) and parts (P, 3) in pixels of the image as loaded; a part outside the window is not visible."""
        scale = torch.tensor([new_width, new_height], dtype=torch.float64) / torch.tensor(
            [(window[2] - window[0]) * width, (window[3] - window[1]) * height], dtype=torch.float64
        )
        first = torch.tensor([window[0] * width, window[1] * height], dtype=torch.float64)
        limit = torch.tensor([new_width, new_height], dtype=torch.float64)
        box = self.window(name, height, width)
        corners = torch.tensor(box, dtype=torch.float64).view(2, 2) * torch.tensor([width, height])
        corners = ((corners - first) * scale).round()
        corners[0] = corners[0].clamp(min=0).minimum(limit - 1)
        corners[1] = corners[1].minimum(limit).maximum(corners[0] + 1)
        parts = self.parts[self.number[name]]
        place = (parts[:, :2].double() - first) * scale
        visible = (parts[:, 2] > 0) & (place >= 0).all(1) & (place < limit).all(1)
        return corners.flatten().long(), (
            torch.cat([place.float(), torch.ones(len(parts), 1)], 1) * visible[:, None].float()
        )


# ---- Caltech-101 and Caltech-256 -------------------------------------------------------------------------------


def _caltech(
    name: str, path: Path, folder: str, aside: str, inner: str | None, size: Size, seed: int, background: bool
) -> Sets:
    def key_of(member: str) -> Entry | None:
        entry = _entry(member, folder)
        return None if entry is None or (entry[0] == aside and not background) else entry

    found = images(path, key_of, _fitted(size, SIDE), inner=inner, title=name)
    classes = sorted({entry[0] for entry in found})
    numbered = all(c.partition(".")[0].isdigit() and "." in c for c in classes)  # "001.ak47"
    data = _set(path, found, sorted(found), classes, name, [c.partition(".")[2] for c in classes] if numbered else None)
    if not background:
        data = replace(data, caveat=f"without the class {aside}")
    return per_class(data, 30, seed=seed)


def _caltech101(root: Root, size: Size, seed: int, background: bool = False) -> Sets:
    return _caltech(
        "caltech101",
        download.fetch(download.CALTECH101, root),
        "101_ObjectCategories",
        "BACKGROUND_Google",
        "101_ObjectCategories.tar.gz",
        size,
        seed,
        background,
    )


def _caltech256(root: Root, size: Size, seed: int, background: bool = False) -> Sets:
    return _caltech(
        "caltech256",
        download.fetch(download.CALTECH256, root),
        "256_ObjectCategories",
        "257.clutter",
        None,
        size,
        seed,
        background,
    )


# ---- Event-8, Action-40, Scene-67 ------------------------------------------------------------------------------


def _event8(root: Root, size: Size, seed: int) -> Sets:
    """70 training and 60 test images of each of the eight sports, chosen at random."""
    packed_anew = download.cache_folder(root) / "event_dataset.zip"
    wanted = download.Remote(packed_anew.name, None, ()) if packed_anew.exists() else download.EVENT8
    path = download.fetch(wanted, root)
    found = images(path, lambda member: _entry(member, "event_img"), _fitted(size, SIDE), title="event8")
    _checked(path, "event8", list(found))
    data = _set(path, found, sorted(found), sorted({entry[0] for entry in found}), "event8")
    return _remembered(per_class(data, 70, 60, seed), path)


def _action40(root: Root, size: Size, seed: int) -> Sets:
    """The official split: 100 training images of each action, 5,532 test images."""
    path, splits = download.fetch(download.ACTION40, root), download.fetch(download.ACTION40_SPLITS, root)
    listed = texts(splits, {part: f"ImageSplits/{part}.txt" for part in ("train", "test")})
    entries = {part: [(name.rpartition("_")[0], name) for name in names] for part, names in listed.items()}
    actions = sorted({action for action, _ in entries["train"]})
    for part, some in entries.items():
        _checked(splits, f"action40 {part}", some)
        strange = [name for action, name in some if action not in actions]
        if strange:
            raise fault(splits, f"{part}.txt names {strange[0]!r}, of no action that train.txt knows", AGAIN)
    wanted = set(entries["train"]) | set(entries["test"])

    def key_of(member: str) -> Entry | None:
        name = PurePosixPath(member).name
        entry = (name.rpartition("_")[0], name)
        return entry if entry in wanted and PurePosixPath(member).parent.name == "JPEGImages" else None

    found = images(path, key_of, _fitted(size, SIDE), title="action40")
    train, test = (_set(path, found, entries[part], actions, "action40") for part in ("train", "test"))
    return _remembered((train, test), path, splits)


def _scene67(root: Root, size: Size, seed: int) -> Sets:
    """The official lists: about 80 training and 20 test images of each of 67 indoor scenes."""
    path = download.fetch(download.SCENE67, root)
    entries: dict[str, list[Entry]] = {}
    lists = {"train": download.fetch(download.SCENE67_TRAIN, root), "test": download.fetch(download.SCENE67_TEST, root)}
    for part, file in lists.items():
        try:
            named = [line.partition("/") for line in lines(file.read_bytes())]
        except UnicodeDecodeError as error:
            raise fault(file, f"is no text ({error})", AGAIN) from error
        entries[part] = [(scene, image) for scene, _, image in named]
        _checked(file, f"scene67 {part}", entries[part])
    scenes = sorted({scene for scene, _ in entries["train"]})
    if strange := {scene for scene, _ in entries["test"]} - set(scenes):
        raise fault(lists["test"], f"names the scene {min(strange)!r}, which {lists['train'].name} has not", AGAIN)
    wanted = set(entries["train"]) | set(entries["test"])

    def key_of(member: str) -> Entry | None:
        entry = _entry(member, "Images")
        return entry if entry in wanted else None

    found = images(path, key_of, _fitted(size, SIDE), title="scene67")
    train, test = (_set(path, found, entries[part], scenes, "scene67") for part in ("train", "test"))
    return _remembered((train, test), path, *lists.values())


# ---- Object Discovery ------------------------------------------------------------------------------------------


def _object_discovery(root: Root, size: Size, seed: int) -> Sets:
    """The subsets of 100 images; half of each class to train on, half to test on, in the files' order."""
    path = download.fetch(download.OBJECT_DISCOVERY, root)
    folders = {"Airplane100": "airplane", "Car100": "car", "Horse100": "horse"}
    goal = SIDE if size is None else size

    def key_of(member: str, mask: bool) -> Entry | None:
        parts = PurePosixPath(member).parts[:-1]
        name = PurePosixPath(member)
        if mask:
            inside = parts[-3:] if len(parts) >= 3 and parts[-1] == "GroundTruth" else ()
            return (
                (inside[1], name.stem)
                if inside
                and inside[0] == "Data"
                and inside[1] in folders
                and name.suffix.lower() == ".png"
                and not name.name.startswith(".")
                else None
            )
        return (
            (parts[-1], name.stem)
            if parts[-2:-1] == ("Data",) and parts[-1] in folders and _is_image(name.name)
            else None
        )

    def fit_mask(pixels: Tensor, _: Entry) -> Tensor:
        return resized(pixels > 127 if int(pixels.max()) > 1 else pixels > 0, goal, masks=True)[0]

    found = images(path, lambda m: key_of(m, False), _fitted(size, SIDE), title="object-discovery")
    _checked(path, "object-discovery", list(found))
    masks = images(path, lambda m: key_of(m, True), fit_mask, mode="L", title="masks of object-discovery")
    order = sorted(found)
    if missing := [entry for entry in order if entry not in masks]:
        raise fault(path, f"lacks {len(missing)} of {len(order)} masks, first {'/'.join(missing[0])}", AGAIN)
    data = _set(path, found, order, list(folders), "object-discovery", folders.values())
    data = replace(
        data,
        masks=torch.stack([masks[entry] for entry in order]),
        caveat="images without an object of their class have an empty mask",
    )
    return _remembered(held_out(data, 0.5, seed), path)


KNOWN: dict[str, Callable[..., Sets]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "stl10": _stl10,
    "cub200": _cub200,
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "event8": _event8,
    "action40": _action40,
    "scene67": _scene67,
    "object-discovery": _object_discovery,
}
OPTIONS = {"crop": ("cub200",), "background": ("caltech101", "caltech256")}
