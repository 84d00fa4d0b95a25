"""Files of images read into tensors; a fault in a file is an error that names the file, the fault and the way out."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor
from torch.nn import functional as F

from payattn.data.images import ImageSet

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
Size = int | tuple[int, int] | None


def fault(path: Path | str, what: str, todo: str) -> ValueError:
    """An error about a file: its name, what is wrong, what to do."""
    return ValueError(f"{path}: {what}; {todo}")


def resized(images: Tensor, size: Size, masks: bool = False) -> Tensor:
    """Images (N, 3, H, W) uint8, or masks (N, H, W) bool, stretched to ``size``; unchanged where it fits or is None.

    Images are averaged (bilinear, antialiased), masks take the nearest pixel.
    """
    if size is None:
        return images
    goal = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(goal) < 1:
        raise ValueError(f"size must be a positive number of pixels or (H, W), got {size!r}")
    if tuple(images.shape[-2:]) == goal:
        return images
    if masks:
        return F.interpolate(images[:, None].to(torch.uint8), size=goal, mode="nearest-exact")[:, 0].bool()
    parts = [
        F.interpolate(part.float(), size=goal, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
        for part in images.split(1000)
    ]
    return torch.cat(parts)


# ---- .npz ------------------------------------------------------------------------------------------------------


def read_npz(path: Path, size: Size = None) -> ImageSet:
    """An ``.npz`` with ``images`` uint8 (N, H, W, 3) or (N, 3, H, W), ``labels`` (N,), and where known ``classes``
    (K,) strings and ``masks`` (N, H, W); nothing in it may need pickle."""
    import numpy as np

    want = "make it anew with numpy.savez(path, images=..., labels=..., classes=...)"
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise fault(path, "is a single array, not an .npz archive", want)
            names = set(archive.files)
            missing = {"images", "labels"} - names
            if missing:
                raise fault(path, f"holds no array named {' or '.join(sorted(missing))}, only {sorted(names)}", want)
            for name in names & {"images", "labels", "classes", "masks"}:
                arrays[name] = _member(path, archive, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error) as error:
        raise fault(path, f"is truncated or no .npz archive ({error})", "copy or download it again") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise fault(path, f"is no .npz archive ({error})", want) from error
    return _image_set(path, arrays, size)


def _member(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = archive[name]
    except ValueError as error:
        if "pickle" in str(error):
            raise fault(
                path,
                f"{name} is an array of Python objects, which only pickle could read",
                "store numbers or fixed-width strings, e.g. numpy.array(names, dtype=str)",
            ) from error
        raise fault(path, f"{name} cannot be read ({error})", "copy or download the file again") from error
    return array


def _image_set(path: Path, arrays: dict[str, np.ndarray], size: Size) -> ImageSet:
    images = _checked_images(path, arrays["images"])
    labels = _checked_labels(path, arrays["labels"], len(images))
    classes = _checked_classes(path, arrays.get("classes"), labels)
    masks = None
    if "masks" in arrays:
        array = arrays["masks"]
        if array.dtype.kind != "b" and str(array.dtype) != "uint8":
            raise fault(path, f"masks are {array.dtype}", "store bool, or uint8 where more than 0 is the object")
        if array.shape != (len(images), *images.shape[2:]):
            raise fault(
                path,
                f"masks are {array.shape}, the images want {(len(images), *images.shape[2:])}",
                "store one mask (H, W) per image",
            )
        masks = resized(torch.from_numpy(array > 0), size, masks=True)
    return ImageSet(resized(images, size), labels, classes, masks, path.stem)


def _checked_images(path: Path, array: np.ndarray) -> Tensor:
    import numpy as np

    if array.dtype != np.uint8:
        hint = "multiply values in [0, 1] by 255 and round first" if array.dtype.kind == "f" else "0 to 255"
        raise fault(path, f"images are {array.dtype}", f"store them as uint8 ({hint})")
    if array.ndim == 3:
        raise fault(
            path,
            f"images are {array.shape}, without a colour axis",
            "repeat grey three times: numpy.repeat(images[..., None], 3, axis=-1)",
        )
    if array.ndim != 4 or (array.shape[1] != 3 and array.shape[3] != 3):
        raise fault(path, f"images are {array.shape}", "store RGB as (N, H, W, 3) or (N, 3, H, W)")
    if array.shape[1] == array.shape[3] == 3:
        raise fault(
            path,
            f"images are {array.shape}: colour may be the second or the last axis",
            "store images that are not 3 pixels high and wide",
        )
    if 0 in array.shape:
        raise fault(path, f"images are {array.shape}: there is no pixel in them", "store at least one image")
    if array.shape[3] == 3:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _checked_labels(path: Path, array: np.ndarray, n: int) -> Tensor:
    import numpy as np

    if array.dtype.kind not in "iu":
        raise fault(path, f"labels are {array.dtype}", "store whole numbers (int64), one class number per image")
    if array.shape != (n,):
        raise fault(path, f"labels are {array.shape} for {n} images", f"store ({n},), one label per image")
    if array.min() < 0:
        at = int(array.argmin())
        raise fault(path, f"label {array[at]} of image {at} is negative", "number the classes from 0")
    return torch.from_numpy(array.astype(np.int64))


def _checked_classes(path: Path, array: np.ndarray | None, labels: Tensor) -> tuple[str, ...]:
    if array is None:
        return tuple(f"class {k}" for k in range(int(labels.max()) + 1))
    if array.dtype.kind != "U" or array.ndim != 1:
        raise fault(path, f"classes are {array.dtype} {array.shape}", "store a list of names as strings (K,)")
    classes = tuple(array.tolist())
    if len(set(classes)) < len(classes):
        raise fault(path, "two classes have the same name", "give each class its own")
    if int(labels.max()) >= len(classes):
        at = int(labels.argmax())
        raise fault(
            path,
            f"label {int(labels[at])} of image {at} is out of range: "
            f"{len(classes)} classes allow 0 to {len(classes) - 1}",
            "correct it, or name the missing classes",
        )
    return classes


# ---- folders of classes ----------------------------------------------------------------------------------------


def class_folders(path: Path) -> list[Path]:
    """The folders in ``path``, sorted by name; hidden ones are none."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def read_folder(path: Path, size: Size = None) -> ImageSet:
    """A folder with one folder of images per class; the classes are numbered in the order of their names."""
    folders = class_folders(path)
    if len(folders) < 2:
        raise fault(
            path,
            f"holds {len(folders)} folders of classes",
            "put the images of each class into a folder of its own, named after the class, two or more",
        )
    images: list[Tensor] = []
    labels: list[int] = []
    first: Path | None = None
    for label, folder in enumerate(folders):
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not files:
            raise fault(folder, f"holds no image ({', '.join(SUFFIXES)})", "add some or remove the folder")
        for file in files:
            image = resized(_decoded(file)[None], size)
            if images and image.shape != images[0].shape:
                raise fault(
                    file,
                    f"is {image.shape[2]} x {image.shape[3]}, but {first} is "
                    f"{images[0].shape[2]} x {images[0].shape[3]}",
                    "pass size=64 or size=(H, W) to bring all images to one size",
                )
            first = first or file
            images.append(image)
            labels.append(label)
    return ImageSet(torch.cat(images), torch.tensor(labels), tuple(f.name for f in folders), name=path.name)


def _decoded(path: Path) -> Tensor:
    return decoded(path, path, upright=True)


def decoded(source: Path | BinaryIO, name: Path | str, mode: str = "RGB", upright: bool = False) -> Tensor:
    """Pixels uint8 of an image file: (3, H, W), or (1, H, W) for ``mode`` "L"; ``name`` is for errors.

    ``upright`` turns the image as its camera says. Published annotations are of the image as stored.
    """
    return pixels_of(opened(source, name, mode, upright))


def pixels_of(image: Image) -> Tensor:
    """The pixels of an image, uint8 (C, H, W)."""
    import numpy as np

    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def opened(source: Path | str | BinaryIO, name: Path | str, mode: str = "RGB", upright: bool = False) -> Image:
    """An image file, decoded; see :func:`decoded`."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(source) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise fault(name, f"is truncated or no image ({error})", "replace or remove it") from error


# ---- CIFAR -----------------------------------------------------------------------------------------------------

_PICKLED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and NumPy arrays; anything that could run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        if name == "_reconstruct":
            import numpy as np

            return np.empty(0).__reduce__()[0]  # its home has moved between NumPy 1 and 2
        return super().find_class(module, name)


def read_cifar(
    path: Path, folder: str, train: Iterable[str], test: str, meta: str, fine: bool, name: str
) -> tuple[ImageSet, ImageSet]:
    """Both splits of CIFAR-10 or CIFAR-100 from their "python version" archive."""
    wanted = [*train, test, meta]
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                short = member.name.removeprefix(f"{folder}/")
                content = archive.extractfile(member) if short in wanted else None
                if content is not None:
                    found[short] = _ArraysOnly(io.BytesIO(content.read()), encoding="latin1").load()
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise fault(path, f"is damaged or not the archive of {name} ({error})", "delete it and load again") from error
    for short in wanted:
        if not isinstance(found.get(short), dict):
            raise fault(path, f"holds no {folder}/{short}", "delete it and load again")
    prefix = "fine_label" if fine else "label"
    classes = found[meta].get(f"{prefix}_names", [])
    return (
        _cifar_split(path, [found[s] for s in wanted[:-2]], f"{prefix}s", classes, name),
        _cifar_split(path, [found[test]], f"{prefix}s", classes, name),
    )


def _cifar_split(path: Path, parts: list[dict[str, Any]], key: str, classes: list[str], name: str) -> ImageSet:
    import numpy as np

    for part in parts:
        data = part.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise fault(path, "a part of it holds no uint8 data (N, 3072)", "delete it and load again")
    images = torch.from_numpy(np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32))
    labels = _checked_labels(path, np.array([label for part in parts for label in part.get(key, [])]), len(images))
    names = _checked_classes(path, np.array(classes, dtype=str), labels)
    return ImageSet(images, labels, names, name=name)


# ---- SVHN ------------------------------------------------------------------------------------------------------

_MAT_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """The numeric arrays of a MATLAB file of version 5, the format of SVHN, by name."""
    content = path.read_bytes()
    try:
        if content[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise ValueError("no MATLAB 5 header")
        order = "<" if content[126:128] == b"IM" else ">"
        arrays = {}
        for kind, body in _elements(memoryview(content)[128:], order):
            if kind == _MAT_COMPRESSED:
                kind, body = next(_elements(memoryview(zlib.decompress(body)), order))
            if kind == _MAT_MATRIX:
                name, array = _matrix(body, order)
                arrays[name] = array
        return arrays
    except (ValueError, KeyError, struct.error, zlib.error, StopIteration) as error:
        raise fault(
            path, f"is truncated or no MATLAB 5 file of numbers ({error})", "delete it and load again"
        ) from error


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Elements of a MATLAB 5 file: a tag of type and length, then the bytes, padded to a multiple of eight."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("it ends in the middle of a tag")
        kind, length = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a small element: length, type and up to four bytes in one word of eight
            kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + length + (-length % 8 if kind != _MAT_COMPRESSED else 0)
        if start + length > len(data):
            raise ValueError("it ends in the middle of an array")
        yield kind, data[start : start + length]
        at = end


def _matrix(body: memoryview, order: str) -> tuple[str, np.ndarray]:
    import numpy as np

    _, (_, shape), (_, name), (kind, values) = list(_elements(body, order))[:4]
    dimensions = np.frombuffer(shape, order + "i4")
    numbers = np.frombuffer(values, order + _MAT_NUMBERS[kind])
    return bytes(name).decode("latin1"), numbers.reshape(tuple(dimensions), order="F")


def read_svhn(path: Path) -> ImageSet:
    """One split of SVHN, cropped digits; the file's label 10 is the digit 0."""
    import numpy as np

    arrays = read_mat(path)
    if not {"X", "y"} <= set(arrays) or arrays["X"].ndim != 4 or arrays["X"].shape[2] != 3:
        raise fault(
            path,
            f"holds { ({k: a.shape for k, a in arrays.items()}) }, not X (H, W, 3, N) and y",
            "delete it and load again",
        )
    images = _checked_images(path, np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1)))
    digits = arrays["y"].reshape(-1)
    if ((digits < 1) | (digits > 10) | (digits % 1 != 0)).any():
        raise fault(path, "has labels other than 1 to 10", "delete it and load again")
    labels = _checked_labels(path, digits.astype(np.int64) % 10, len(images))
    return ImageSet(images, labels, tuple("0123456789"), name="svhn")
