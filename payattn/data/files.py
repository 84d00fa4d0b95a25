"""``load``: one call for the embedded set, the known sets and a reader's own files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from payattn import distributed
from payattn.data.download import cache_folder
from payattn.data.images import ImageSet
from payattn.data.known import KNOWN, OPTIONS, Sets
from payattn.data.readers import Size, class_folders, fault, read_folder, read_npz, resized
from payattn.data.splits import Set, balanced, held_out
from payattn.data.stream import Data, FileSet, Moments, read_names
from payattn.data.strokes import glyphs, noisy_labels

EMBEDDED = {"glyphs": "plain", "glyphs-shift": "shift", "glyphs-fine": "fine"}
IMAGENET: Moments = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the colours of ImageNet, in [0, 1], as the field uses them."""


class _Options(TypedDict, total=False):
    device: str | torch.device
    seed: int
    n_train: int | None
    n_test: int | None
    size: Size
    test: str | os.PathLike[str] | float | None
    root: str | os.PathLike[str] | None
    classes: int | None
    variant: str | None
    label_noise: float | Tensor
    crop: bool | None
    background: bool | None


@overload
def load(
    name_or_path: str | os.PathLike[str], *, stream: Literal[False] = ..., **options: Unpack[_Options]
) -> tuple[ImageSet, ImageSet]: ...


@overload
def load(
    name_or_path: str | os.PathLike[str], *, stream: Literal[True], **options: Unpack[_Options]
) -> tuple[FileSet, FileSet]: ...


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    size: Size = None,
    test: str | os.PathLike[str] | float | None = None,
    root: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    variant: str | None = None,
    label_noise: float | Tensor = 0.0,
    crop: bool | None = None,
    background: bool | None = None,
    stream: bool = False,
) -> tuple[Data, Data]:
    """Load a data set as two :class:`ImageSet`: for training and for testing.

    =================  ======  ====================================================================================
    name               pixels  split, and what else it holds
    =================  ======  ====================================================================================
    glyphs             32      drawn, 8,000 and 2,000 images, masks; also glyphs-shift, glyphs-fine
    cifar10, cifar100  32      50,000 and 10,000
    svhn               32      73,257 and 26,032, without the extra images
    stl10              96      5,000 and 8,000, without the unlabelled images
    cub200             80      5,994 and 5,794; masks (majority of annotators), boxes, parts (``CUB_PARTS``)
    caltech101         32      30 of each class at random and all the rest; without BACKGROUND_Google
    caltech256         32      30 of each class at random and all the rest; without clutter
    event8             32      70 and 60 of each class at random; its RAR archive needs the program bsdtar
    action40           32      4,000 and 5,532, 100 of each class in training
    scene67            32      5,360 and 1,340, the official lists
    object-discovery   32      150 and 150 at random, half of each class; masks, some of them empty
    imagenet           224     ``root/train/CLASS/*.JPEG`` and ``root/val/CLASS/*.JPEG``; two :class:`FileSet`
    =================  ======  ====================================================================================

    All but glyphs and imagenet are downloaded once. CIFAR, SVHN, STL-10, CUB and Caltech are verified by their
    published hash. For the others no hash is known with certainty: classes and images are counted, and the SHA-256 of
    the first good copy is kept beside it. The splits at random follow ``seed``.

    Args:
        name_or_path: a name of the table; a folder of one folder of images per class, or of ``train``
            and ``test`` (or ``val``) folders of these; an ``.npz`` with images uint8 (N, H, W, 3) or
            (N, 3, H, W), labels (N,), and optionally classes (K,) and masks (N, H, W).
        device: "auto" is the GPU where there is one.
        seed: of drawn images, splits at random, subsets and label noise. For glyphs, training images are
            ``glyphs(n, seed=2 * seed)`` and test images ``glyphs(n, seed=2 * seed + 1)``.
        n_train, n_test: keep so many images, the classes in equal numbers (to within one); None keeps all.
            A smaller choice is part of a larger one of the same seed.
        size: side in pixels or (H, W). Glyphs are drawn so; other images are stretched to it. None is that of
            the table, or the files' own.
        test: for own files, a second file or folder to test on, or the share of each class to hold out (0.2).
        root: folder of the downloads; else the variable PAYATTN_DATA, else ~/.cache/payattn. For imagenet the
            folder that holds train and val; else ``imagenet`` in the folder of the downloads.
        classes: number of classes of glyphs, 2 to 10.
        variant: of glyphs; "glyphs-fine" is "glyphs" with variant "fine".
        label_noise: of the training labels, as in :func:`glyphs`; the test labels stay clean.
        crop: for cub200, cut each image to the bird's box (True); False keeps the whole image.
        background: for the Caltech sets, keep the class of images without an object (False).
        stream: for a folder that does not fit into memory: two :class:`FileSet`, whose files are read while they are
            needed. ImageNet always comes so.

    Raises:
        ValueError: for an unknown name, with the nearest; for a fault in a file, with its name and what to do;
            for an argument that does not fit the set.
        FileNotFoundError: if a path does not exist; for imagenet it says what to put where.
        ConnectionError: if a download fails; the message names the file to place, where, and its hash.

    Example:
        >>> train, test = load("glyphs", n_train=20, n_test=10, size=16, device="cpu")
        >>> train
        ImageSet('glyphs', 20 images of 16 x 16, 10 classes, with masks, on cpu)
    """
    name = os.fspath(name_or_path)
    where = distributed.device_here() if device == "auto" else torch.device(device)
    drawn, known, stream = name in EMBEDDED, name in KNOWN, stream or name == "imagenet"
    if test is not None and (drawn or known or name == "imagenet"):
        raise ValueError(f"{name} has test images of its own; test= is for own files")
    if stream and (drawn or known):
        raise ValueError(f"{name} fits into memory; stream=True is for folders of image files")
    if not drawn and (classes is not None or variant is not None):
        raise ValueError(f"classes= and variant= are for glyphs; {name} comes as it is")
    extra = {"crop": crop, "background": background}
    for option, names in OPTIONS.items():
        if extra[option] is None:
            del extra[option]
        elif name not in names:
            raise ValueError(f"{option}= is for {' and '.join(names)}, not for {name}")
    sets: tuple[Data, Data]
    if stream:
        train, other = _streamed(name, size, test, root, seed)
        sets = balanced(train, n_train, seed).to(where), balanced(other, n_test, seed).to(where)
    elif drawn:
        sets = _drawn(
            name,
            variant,
            8000 if n_train is None else n_train,
            2000 if n_test is None else n_test,
            32 if size is None else size,
            10 if classes is None else classes,
            seed,
            where,
        )
    else:
        read = KNOWN[name](root, size, seed, **extra) if known else _own(name, test, seed, lambda p: _read(p, size))
        sets = (
            _stretched(balanced(read[0], n_train, seed), size).to(where),
            _stretched(balanced(read[1], n_test, seed), size).to(where),
        )
    return _noisy(sets[0], label_noise, seed), sets[1]


def _noisy(train: Data, label_noise: float | Tensor, seed: int) -> Data:
    noisy = noisy_labels(train.labels.cpu(), len(train.classes), label_noise, seed)
    if noisy is None:
        return train
    return replace(train, labels=noisy.to(train.labels.device), clean_labels=train.labels)


def _drawn(
    name: str,
    variant: str | None,
    n_train: int,
    n_test: int,
    size: int | tuple[int, int],
    classes: int,
    seed: int,
    device: torch.device,
) -> Sets:
    if variant is not None and name != "glyphs" and variant != EMBEDDED[name]:
        raise ValueError(f"{name!r} is the variant {EMBEDDED[name]!r}, got variant={variant!r}; say one of them")
    kind = variant or EMBEDDED[name]
    train, test = (
        glyphs(n, size=size, classes=classes, variant=kind, seed=2 * seed + odd, device=device)
        for odd, n in enumerate((n_train, n_test))
    )
    return train, test


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"{path} does not exist; give the path of an .npz or of a folder of class folders")
    names = [*EMBEDDED, *KNOWN, "imagenet"]
    near = difflib.get_close_matches(name, names, 1)
    raise ValueError(
        f"there is no data set {name!r} and no such file; "
        + (f"did you mean {near[0]!r}? " if near else "")
        + f"Known sets: {', '.join(names)}"
    )


def _streamed(
    name: str,
    size: Size,
    test: str | os.PathLike[str] | float | None,
    root: str | os.PathLike[str] | None,
    seed: int,
) -> tuple[FileSet, FileSet]:
    """Both sets from folders that are read as needed."""
    if name != "imagenet":
        return _own(name, test, seed, lambda path: _names(path, size))
    path = cache_folder() / "imagenet" if root is None else Path(root).expanduser()
    if not (path / "train").is_dir() or not (path / "val").is_dir():
        raise FileNotFoundError(
            f"ImageNet is not in {path}. Its licence forbids us to download it: get ILSVRC2012 from image-net.org, "
            f"put the training images into {path}/train/CLASS/ and the validation images into {path}/val/CLASS/, "
            "CLASS being n01440764 and so on, or name the folder that holds train and val with root=... "
            "(--data on the command line)"
        )
    train, other = (replace(read_names(path / side, size, IMAGENET), name=name) for side in ("train", "val"))
    if len(train.classes) != 1000:
        caveat = f"{len(train.classes)} classes in place of the 1,000 of ImageNet"
        train, other = replace(train, caveat=caveat), replace(other, caveat=caveat)
    return train, _alike(other, train, path / "val", path / "train")


def _own(
    name: str, test: str | os.PathLike[str] | float | None, seed: int, read: Callable[[Path], Set]
) -> tuple[Set, Set]:
    """Both sets from a reader's own files."""
    path = _existing(name)
    if path.is_dir() and (second := _split_folder(path)) is not None:
        if test is not None:
            raise ValueError(f"{path} holds {second.name} beside train; give the path of train, or leave out test=")
        path, test = path / "train", second
    train = read(path)
    if test is None or isinstance(test, (int, float)):
        return held_out(train, 0.2 if test is None else float(test), seed)
    second = _existing(os.fspath(test))
    return train, _alike(read(second), train, second, path)


def _alike(other: Set, train: Set, second: Path, path: Path) -> Set:
    """The second set, if it has the classes and the size of the first."""
    if other.classes != train.classes:
        differ = sorted(set(other.classes) ^ set(train.classes))[:6] or "the order"
        raise fault(
            second, f"its classes are not those of {path}: {differ}",
            "name the same classes in the same order in both",
        )  # fmt: skip
    if other.size != train.size:
        raise fault(second, f"its images are {other.size}, those of {path} {train.size}", "pass size=64 or size=(H, W)")
    return other


def _split_folder(path: Path) -> Path | None:
    """The folder of test images in a folder of ``train`` and ``test`` (or ``val``), or None."""
    names = {folder.name for folder in class_folders(path)}
    for second in ("test", "val"):
        if names == {"train", second}:
            return path / second
    return None


def _read(path: Path, size: Size) -> ImageSet:
    if path.is_dir():
        return read_folder(path, size)
    if path.suffix == ".npz":
        return read_npz(path, size)
    raise fault(path, f"has the ending {path.suffix!r}", "give an .npz or a folder of class folders")


def _names(path: Path, size: Size) -> FileSet:
    if not path.is_dir():
        raise fault(path, "is no folder", "stream=True reads folders of class folders; leave it out for an .npz")
    return read_names(path, size)


def _stretched(data: ImageSet, size: Size) -> ImageSet:
    masks = data.masks
    return replace(
        data, images=resized(data.images, size), masks=None if masks is None else resized(masks, size, masks=True)
    )
