"""Archives read member by member in memory: nothing in them is ever written to disk."""

from __future__ import annotations

import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from torch import Tensor

from payattn.data.readers import decoded, fault

Member = tuple[str, Callable[[], bytes]]
Key = TypeVar("Key", bound=Hashable)
AGAIN = "delete it and load again"
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)  # RuntimeError: an encrypted zip


def members(path: Path, inner: str | None = None) -> Iterator[Member]:
    """The files in a zip, a tar (plain or compressed) or a RAR archive, in the order they lie in it.

    Args:
        path: the archive; its kind is told from its content.
        inner: the ending of a tar archive inside the zip archive, whose files are wanted instead.

    Returns:
        An iterator of (name, function that reads the content). Read before going on to the next.

    Raises:
        ValueError: if the archive is damaged, of another kind, or a name in it leads out of it.
    """
    with _damage(path):
        for name, read in _opened(path, inner):
            yield name, partial(_guarded, path, read)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise fault(path, f"is truncated or no archive that can be read ({error})", AGAIN) from error


def _guarded(path: Path, read: Callable[[], bytes]) -> bytes:
    with _damage(path):
        return read()


def _opened(path: Path, inner: str | None) -> Iterator[Member]:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        yield from _zip(path, inner)
    elif start.startswith(b"Rar!"):
        with _rar(path) as stream:
            yield from _tar(path, stream)
    else:
        with tarfile.open(path, "r:*") as archive:
            yield from _of(path, archive)
            _to_the_end(archive.fileobj)  # type: ignore[arg-type]


def _zip(path: Path, inner: str | None) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _safe(path, info.filename)
            if info.is_dir():
                continue
            if inner is None:
                yield name, partial(archive.read, info)
            elif name.endswith(inner) and not PurePosixPath(name).name.startswith("._"):
                with archive.open(info) as stream:
                    yield from _tar(path, stream)
                    _to_the_end(stream)


def _to_the_end(stream: IO[bytes] | None) -> None:
    """Read what follows the last member: only at its end does a compressed file prove whole by its checksum."""
    while stream is not None and stream.read(1 << 20):
        pass


def _tar(path: Path, stream: IO[bytes]) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        yield from _of(path, archive)


def _of(path: Path, archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        name = _safe(path, info.name)
        if info.isfile():  # links and devices hold no data
            yield name, partial(_content, archive, info)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    content = b"" if file is None else file.read()
    if len(content) != info.size:
        raise EOFError(f"it ends inside {info.name}")
    return content


def _safe(path: Path, name: str) -> str:
    """The name without a leading ``./``. One that leads out of the archive is a sign that it was tampered with."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts or ("",))[0]:
        raise fault(path, f"holds the unsafe path {name!r}", "do not use it: delete it and get it from its own source")
    return str(pure)


@contextmanager
def _rar(path: Path) -> Iterator[IO[bytes]]:
    """A RAR archive as a stream of tar, by bsdtar, for Python itself cannot read it."""
    tool = _bsdtar()
    if tool is None:
        raise fault(
            path,
            "is a RAR archive, which only another program can read",
            "install bsdtar (Debian, Ubuntu, Colab: apt install libarchive-tools; macOS and Windows have it) "
            f"and load again; or unpack it and pack it anew as {path.with_suffix('.zip')}",
        )
    with tempfile.TemporaryFile() as errors:
        command = [tool, "-cf", "-", f"@{path.absolute()}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield process.stdout  # type: ignore[misc]
            process.wait()
        except tarfile.TarError as error:  # what bsdtar says tells more than that its output ended
            process.kill()
            process.wait()
            said = _said(errors)
            raise OSError(said or str(error)) from error
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        if process.returncode:
            raise OSError(_said(errors) or f"bsdtar ended with {process.returncode}")


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace").strip()


def _bsdtar() -> str | None:
    """The program, which macOS and Windows call tar."""
    for name in ("bsdtar", "tar"):
        found = shutil.which(name)
        if found and b"bsdtar" in subprocess.run([found, "--version"], capture_output=True, check=False).stdout:
            return found
    return None


def texts(path: Path, wanted: dict[str, str]) -> dict[str, list[str]]:
    """The lines of text files in an archive.

    Args:
        path: the archive.
        wanted: for each file a name to give it and the path in the archive, which other folders may precede.

    Returns:
        name -> lines, stripped, without empty ones.

    Raises:
        ValueError: if one is missing, or the archive is damaged.
    """
    found: dict[str, list[str]] = {}
    for member, read in members(path):
        for name, tail in wanted.items():
            if f"/{member}".endswith(f"/{tail}"):
                try:
                    found[name] = lines(read())
                except UnicodeDecodeError as error:
                    raise fault(path, f"{tail} is no text ({error})", AGAIN) from error
        if len(found) == len(wanted):
            break
    missing = [tail for name, tail in wanted.items() if name not in found]
    if missing:
        raise fault(path, f"holds no {' and no '.join(missing)}", AGAIN)
    return found


def lines(content: bytes) -> list[str]:
    """The lines of a text, stripped, without empty ones."""
    return [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]


def images(
    path: Path,
    key_of: Callable[[str], Key | None],
    fit: Callable[[Tensor, Key], Tensor],
    *,
    mode: str = "RGB",
    inner: str | None = None,
    title: str = "",
) -> dict[Key, Tensor]:
    """Images of an archive, each brought to its final size as it is read, so that few are held at full size.

    Args:
        path: the archive.
        key_of: what to call the image of this member, or None to pass it over.
        fit: (pixels uint8 (C, H, W), key) -> pixels of the final size.
        mode: "RGB" or "L".
        inner: see :func:`members`.
        title: of the progress bar, which shows when reading takes long.

    Returns:
        key -> pixels, in the order of the archive.

    Raises:
        ValueError: if the archive or an image in it is damaged.
    """
    from tqdm import tqdm

    found: dict[Key, Tensor] = {}
    with tqdm(desc=f"reading {title or path.name}", unit=" images", delay=3, leave=False) as bar:
        for member, read in members(path, inner):
            key = key_of(member)
            if key is not None:
                name = f"{path}: {member}"
                found[key] = fit(decoded(io.BytesIO(read()), name, mode), key)
                bar.update()
    return found
