"""The known sets in small files of their true formats, whole and damaged; nothing here needs a network."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from payattn.data import CUB_PARTS, ImageSet, archives, download, glyphs, known, load, per_class

# ---- making files ----------------------------------------------------------------------------------------------


def picture(value, size=(6, 5), kind="PNG", mode="RGB"):
    """An image file of one colour, or of an array of pixels."""
    from PIL import Image

    shape = (*size, 3) if mode == "RGB" else size
    pixels = value if isinstance(value, np.ndarray) else np.broadcast_to(np.uint8(value), shape)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), mode).save(out, kind)
    return out.getvalue()


def tar(files, mode="w:gz", extra=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return out.getvalue()


def packed(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def changed(files, changes):
    return {name: content for name, content in (files | changes).items() if content is not None}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that places the file of a constant; its hash, where one is published, becomes the expected one."""
    def place(constant, content):
        remote = getattr(download, constant)
        md5 = None if remote.md5 is None else hashlib.md5(content).hexdigest()
        monkeypatch.setattr(download, constant, download.Remote(remote.name, md5, ()))
        (tmp_path / remote.name).write_bytes(content)
        return tmp_path / remote.name

    place.folder = tmp_path
    return place


@pytest.fixture
def counts(monkeypatch):
    def set_counts(**numbers):
        table = {key.replace("_", " ") if key.endswith(("train", "test")) else key.replace("_", "-"): value
                 for key, value in numbers.items()}
        assert set(table) <= set(known.COUNTS)
        monkeypatch.setattr(known, "COUNTS", known.COUNTS | table)
    return set_counts


def get(name, cache, **options):
    return load(name, root=cache.folder, device="cpu", **options)


def same(a, b):
    return [s.digest() for s in a] == [s.digest() for s in b]


# ---- STL-10 ----------------------------------------------------------------------------------------------------

BIRDS = b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n"


def stl_pixels(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


def stl10(**changes):
    def columns(n, seed):
        return stl_pixels(n, seed).transpose(0, 3, 2, 1).tobytes()

    files = {"test_X.bin": columns(2, 1), "test_y.bin": bytes([1, 10]), "train_X.bin": columns(3, 2),
             "train_y.bin": bytes([3, 2, 9]), "unlabeled_X.bin": b"x" * 999, "class_names.txt": BIRDS,
             "fold_indices.txt": b"0 1"}
    return tar({f"stl10_binary/{name}": content for name, content in
                changed(files, {k.replace("__", "."): v for k, v in changes.items()}).items()})


def test_stl10_is_read_column_by_column_and_its_labels_start_at_one(cache):
    cache("STL10", stl10())
    train, test = get("stl10", cache)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), stl_pixels(3, 2))
    assert train.labels.tolist() == [2, 1, 8] and test.labels.tolist() == [0, 9] and train.name == "stl10"
    assert train.classes == tuple(BIRDS.decode().split()) and test.images.shape == (2, 3, 96, 96)
    small = get("stl10", cache, size=32)[0]
    assert small.images.shape == (3, 3, 32, 32)
    assert (small.images.float().mean((0, 2, 3)) - train.images.float().mean((0, 2, 3))).abs().max() < 1


@pytest.mark.parametrize(("content", "words"), [
    (stl10(train_y__bin=bytes([3, 0, 9])), "labels from 0 to 9, expected 1 to 10"),
    (stl10(test_y__bin=bytes([1, 11])), "labels from 1 to 11"),
    (stl10(train_X__bin=b"short"), "5 bytes of pixels for 3 labels"),
    (stl10(train_y__bin=b""), "for 0 labels"),
    (stl10(class_names__txt=None), "holds no class_names.txt"),
    (stl10(train_X__bin=None, train_y__bin=None), "no train_X.bin and no train_y.bin"),
    (stl10()[:-70000], "truncated"),
    (b"<html>", "truncated or no archive"),
    (b"", "truncated or no archive"),
    (packed({"a.txt": b"a"}), "holds no class_names.txt"),
])
def test_a_faulty_stl10_is_named_with_its_fault(cache, content, words):
    path = cache("STL10", content)
    with pytest.raises(ValueError, match=words) as caught:
        get("stl10", cache)
    assert str(caught.value).startswith(str(path)) and "load again" in str(caught.value)


# ---- CUB-200-2011 ----------------------------------------------------------------------------------------------

NAMES = ["001.Black_Bird/One_1", "001.Black_Bird/One_2", "002.Red-Bird/Two_1"]
BOX = (10.0, 4.0, 20.0, 8.0)  # left, top, width, height in an image of 16 rows and 40 columns


def bird(k):
    """A bright box whose left half is brighter, on black."""
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[4:12, 10:20], pixels[4:12, 20:30] = 200 + k, 100 + k
    return pixels


def bird_mask():
    """Five annotators: three marked the right half of the box, two the left; one a spot outside."""
    mask = np.zeros((16, 40), np.uint8)
    mask[4:12, 10:20], mask[4:12, 20:30], mask[0, 0] = 102, 153, 51
    return mask


def cub(**changes):
    rows = range(1, 4)
    files = {
        "images.txt": "".join(f"{i} {n}.jpg\n" for i, n in zip(rows, NAMES, strict=True)),
        "image_class_labels.txt": "1 1\n2 1\n3 2\n", "train_test_split.txt": "1 1\n2 0\n3 1\n",
        "bounding_boxes.txt": "".join(f"{i} {' '.join(map(str, BOX))}\n" for i in rows),
        "classes.txt": "1 001.Black_Bird\n2 002.Red-Bird\n",
        # inside the box; inside the image but outside the box; not visible
        "parts/part_locs.txt": "".join(f"{i} 1 15.0 6.0 1\n{i} 2 35.0 6.0 1\n{i} 3 0.0 0.0 0\n" for i in rows)}
    files = {f"CUB_200_2011/{k}": v.encode() for k, v in files.items()}
    files |= {f"CUB_200_2011/images/{n}.jpg": picture(bird(k)) for k, n in enumerate(NAMES)}
    files |= {"CUB_200_2011/images/001.Black_Bird/One_1_rgb.jpg": b"not listed", "attributes.txt": b"1"}
    return tar(changed(files, {f"CUB_200_2011/{k}": v for k, v in changes.items()}))


def cub_masks(**changes):
    return tar(changed({f"segmentations/{n}.png": picture(bird_mask(), mode="L") for n in NAMES}, changes))


def place_cub(cache, content=None, masks=None):
    return cache("CUB", content or cub()), cache("CUB_MASKS", masks or cub_masks())


def test_cub_is_cut_to_the_box_with_its_masks_and_parts(cache):
    place_cub(cache)
    train, test = get("cub200", cache, size=(8, 20))  # the size of the box: nothing is stretched
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [0]
    assert train.classes == ("Black_Bird", "Red-Bird") and train.name == "cub200"
    assert np.array_equal(test.images[0].permute(1, 2, 0).numpy(), bird(1)[4:12, 10:30])
    assert not train.masks[0, :, :10].any() and train.masks[0, :, 10:].all()  # three of five annotators
    assert train.boxes.tolist() == [[0, 0, 20, 8]] * 2
    assert train.parts[0].tolist() == [[5.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    default = get("cub200", cache)[0]
    assert default.images.shape == (2, 3, 80, 80) and default.masks.shape == (2, 80, 80)
    assert default.parts[0, 0].tolist() == [20.0, 20.0, 1.0] and len(CUB_PARTS) == 15


def test_cub_can_be_left_whole_and_then_says_where_the_box_is(cache):
    place_cub(cache)
    train, _ = get("cub200", cache, size=(32, 40), crop=False)
    assert train.boxes.tolist() == [[10, 8, 30, 24]] * 2
    assert train.parts[1].tolist() == [[15.0, 12.0, 1.0], [35.0, 12.0, 1.0], [0.0, 0.0, 0.0]]
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[8:24, 20:30] = True
    assert torch.equal(train.masks[0], inside)
    assert torch.equal(train.images[0, 0, ::2].gt(60), torch.from_numpy(bird(0)[..., 0] > 60))


def test_a_box_that_hangs_over_the_image_is_cut_at_its_border(cache):
    place_cub(cache, cub(**{"bounding_boxes.txt": b"1 -3 -2 13.5 6\n2 30 10 20 20\n3 39.5 15.5 9 9\n"}))
    train, test = get("cub200", cache, size=(4, 11))
    assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), bird(0)[0:4, 0:11])
    assert test.boxes.tolist() == [[0, 0, 11, 4]] and (train.images[1] == 0).all()


@pytest.mark.parametrize(("changes", "words"), [
    ({"image_class_labels.txt": b"1 1\n2 1\n3 3\n"}, "labels from 1 to 3, expected 1 to 2"),
    ({"image_class_labels.txt": b"1 0\n2 1\n3 2\n"}, "labels from 0 to 2"),
    ({"image_class_labels.txt": b"1 1\n2 1\n"}, "names 2 images, images.txt 3"),
    ({"train_test_split.txt": b"1 1\n2 0\n2 0\n"}, "train_test_split.txt names 3 images, images.txt 3, not the same"),
    ({"bounding_boxes.txt": b"1 1 1 1 1\n2 a 1 1 1\n3 1 1 1 1\n"}, "bounding_boxes.txt holds no numbers"),
    ({"bounding_boxes.txt": b"1 1 1 1\n2 1 1 1 1\n3 1 1 1 1\n"}, "no 5 columns"),
    ({"bounding_boxes.txt": b"1 90 1 5 5\n2 1 1 1 1\n3 1 1 1 1\n"}, "lies outside its 40 x 16 pixels"),
    ({"parts/part_locs.txt": b"1 1 15.0 6.0 1\n"}, "1 rows for 3 images and 1 parts"),
    ({"parts/part_locs.txt": None}, "holds no CUB_200_2011/parts/part_locs.txt"),
    ({"images.txt": b"\xff\xfe\x00"}, "is no text"),
    ({f"images/{NAMES[1]}.jpg": None}, "lacks 1 of 3 images, first 001.Black_Bird/One_2"),
    ({f"images/{NAMES[1]}.jpg": b"no image"}, "One_2.jpg: is truncated or no image"),
])
def test_a_faulty_cub_is_named_with_its_fault(cache, changes, words):
    path, _ = place_cub(cache, cub(**changes))
    with pytest.raises(ValueError, match=words) as caught:
        get("cub200", cache)
    assert str(caught.value).startswith(str(path))


def test_a_missing_mask_of_cub_is_named(cache):
    place_cub(cache, masks=cub_masks(**{f"segmentations/{NAMES[0]}.png": None}))
    with pytest.raises(ValueError, match=r"segmentations.tgz: lacks 1 of 3 images, first 001.Black_Bird/One_1"):
        get("cub200", cache)


# ---- Caltech-101 and Caltech-256 -------------------------------------------------------------------------------


def folders(root, sizes, name="image_{:04d}.jpg", kind="JPEG"):
    """``sizes`` images in each class folder, whose grey tells class and number."""
    return {f"{root}/{folder}/{name.format(i + 1)}": picture(40 * k + i, (6 + i % 2, 5), kind)
            for k, (folder, n) in enumerate(sizes.items()) for i in range(n)}


def caltech101():
    files = folders("101_ObjectCategories", {"BACKGROUND_Google": 31, "Faces": 33, "accordion": 32})
    files["101_ObjectCategories/BACKGROUND_Google/tmp"] = b"x"
    return packed({"caltech-101/101_ObjectCategories.tar.gz": tar(files), "caltech-101/Annotations.tar": tar({}, "w"),
                   "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"mac"})


def test_caltech101_trains_on_thirty_of_each_class_and_leaves_the_background_out(cache):
    cache("CALTECH101", caltech101())
    train, test = get("caltech101", cache)
    assert train.classes == ("Faces", "accordion") and "BACKGROUND_Google" in train.caveat
    assert train.labels.bincount().tolist() == [30, 30] and test.labels.bincount().tolist() == [3, 2]
    assert train.images.shape == (60, 3, 32, 32)
    values = torch.cat([s.images[s.labels == 0].float().mean((1, 2, 3)) for s in (train, test)]).round()
    assert sorted(values.tolist()) == list(range(40, 73))  # every image once, on one side or the other
    assert same((train, test), get("caltech101", cache, seed=0))
    assert not same((train, test), get("caltech101", cache, seed=1))
    whole = get("caltech101", cache, background=True, size=8)[1]
    assert whole.classes == ("BACKGROUND_Google", "Faces", "accordion")
    assert whole.labels.bincount().tolist() == [1, 3, 2] and whole.caveat == "" and whole.images.shape[2:] == (8, 8)


def test_caltech256_takes_the_images_of_the_class_folders_only(cache):
    files = folders("256_ObjectCategories", {"001.ak47": 31, "056.dog": 32, "257.clutter": 31}, "001_{:04d}.jpg")
    files |= {"256_ObjectCategories/056.dog/greg/vision309/a.jpg": b"x", "256_ObjectCategories/056.dog/RENAME2": b"x"}
    cache("CALTECH256", tar(files, "w"))
    train, test = get("caltech256", cache)
    assert train.classes == ("ak47", "dog") and len(train) == 60 and test.labels.tolist() == [0, 1, 1]
    assert get("caltech256", cache, background=True)[0].classes == ("ak47", "dog", "clutter")


def test_a_faulty_caltech_is_named_with_its_fault(cache):
    path = cache("CALTECH256", tar({"elsewhere/a.jpg": b"x"}, "w"))
    with pytest.raises(ValueError, match="holds no image of caltech256") as caught:
        get("caltech256", cache)
    assert str(caught.value).startswith(str(path))
    cache("CALTECH256", tar(folders("256_ObjectCategories", {"001.a": 31, "002.b": 30}), "w"))
    with pytest.raises(ValueError, match="'b' has 30 images, too few for 30 to train on and 1"):
        get("caltech256", cache)
    whole = tar(folders("256_ObjectCategories", {"001.a": 31, "002.b": 31}), "w")
    cache("CALTECH256", whole[: len(whole) // 2 + 100])
    with pytest.raises(ValueError, match="truncated"):
        get("caltech256", cache)
    cache("CALTECH101", caltech101()[:-500])
    with pytest.raises(ValueError, match=r"caltech-101.zip: is truncated or no archive"):
        get("caltech101", cache)


# ---- Event-8 ---------------------------------------------------------------------------------------------------


def event8(sizes):
    return {f"event_dataset/{name}": content for name, content in folders("event_img", sizes).items()} | {
        "event_dataset/event_img/rowing/Thumbs.db": b"x"}


SPORTS = {"polo": 131, "rowing": 130}


@pytest.fixture
def bsdtar(tmp_path, monkeypatch):
    """A stand-in for the program: gives what follows the signature of RAR, or complains."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "bsdtar"
    script.write_text(f"#!{sys.executable}\nimport sys\nif sys.argv[1] == '--version':\n    print('bsdtar 3.7')\n"
                      "else:\n    data = open(sys.argv[3][1:], 'rb').read()[8:]\n"
                      "    sys.stdout.buffer.write(data)\n    sys.stdout.flush()\n"
                      "    if not data: sys.exit('Truncated RAR file')\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_event8_is_read_from_its_rar_archive(cache, counts, bsdtar):
    counts(event8=(2, 261, 261))
    path = cache("EVENT8", b"Rar!\x1a\x07\x01\x00" + tar(event8(SPORTS), "w"))
    train, test = get("event8", cache)
    assert train.classes == ("polo", "rowing") and train.images.shape == (140, 3, 32, 32)
    assert test.labels.bincount().tolist() == [60, 60]
    assert path.with_name(path.name + ".sha256").read_text().split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(entry.is_dir() and entry.name != "bin" for entry in cache.folder.iterdir())
    path.with_name(path.name + ".sha256").unlink()
    path.write_bytes(b"Rar!\x1a\x07\x01\x00")
    with pytest.raises(ValueError, match="Truncated RAR file"):
        get("event8", cache)


def test_a_rar_archive_without_the_program_says_what_to_install(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    cache("EVENT8", b"Rar!\x1a\x07\x01\x00")
    with pytest.raises(ValueError, match=r"event_dataset.rar: is a RAR.*libarchive-tools.*event_dataset.zip"):
        get("event8", cache)


def test_event8_may_be_packed_anew_and_must_have_all_its_images(cache, counts):
    (cache.folder / "event_dataset.zip").write_bytes(packed(event8(SPORTS)))
    with pytest.raises(ValueError, match="holds 261 images of 2 classes for event8, expected 1,574 to 1,579 of 8"):
        get("event8", cache)
    assert not (cache.folder / "event_dataset.zip.sha256").exists()  # what is not whole is not remembered
    counts(event8=(2, 261, 261))
    assert len(get("event8", cache)[0]) == 140 and (cache.folder / "event_dataset.zip.sha256").exists()


# ---- Action-40 and Scene-67 ------------------------------------------------------------------------------------

ACTIONS = ["blowing_bubbles_001.jpg", "applauding_001.jpg", "applauding_002.jpg", "blowing_bubbles_002.jpg",
           "applauding_300.jpg"]


def place_action40(cache, images=None, splits=None):
    files = {f"JPEGImages/{name}": picture(20 * k, kind="JPEG") for k, name in enumerate(ACTIONS)}
    lists = {"ImageSplits/train.txt": "\r\n".join(ACTIONS[:4]).encode(), "ImageSplits/test.txt": ACTIONS[4].encode(),
             "ImageSplits/applauding_train.txt": b"applauding_001.jpg"}
    return (cache("ACTION40", packed(changed(files, images or {}))),
            cache("ACTION40_SPLITS", packed(changed(lists, splits or {}))))


def test_action40_takes_its_official_split(cache, counts):
    counts(action40_train=(2, 4, 4), action40_test=(1, 1, 1))
    paths = place_action40(cache)
    train, test = get("action40", cache)
    assert train.classes == ("applauding", "blowing_bubbles") and train.labels.tolist() == [1, 0, 0, 1]
    assert train.images.float().mean((1, 2, 3)).round().tolist() == [0, 20, 40, 60] and test.labels.tolist() == [0]
    assert all(path.with_name(path.name + ".sha256").exists() for path in paths)


@pytest.mark.parametrize(("images", "splits", "words"), [
    ({f"JPEGImages/{ACTIONS[1]}": None}, {}, "Images.zip: lacks 1 of 4 images, first applauding/applauding_001.jpg"),
    ({f"JPEGImages/{ACTIONS[1]}": b"\xff\xd8"}, {}, "applauding_001.jpg: is truncated or no image"),
    ({}, {"ImageSplits/test.txt": None}, "ImageSplits.zip: holds no ImageSplits/test.txt"),
    ({}, {"ImageSplits/test.txt": b"dancing_001.jpg"}, "'dancing_001.jpg', of no action"),
    ({}, {"ImageSplits/train.txt": b"applauding_001.jpg"}, "1 images of 1 classes for action40 train, expected 4 of 2"),
])
def test_a_faulty_action40_is_named_with_its_fault(cache, counts, images, splits, words):
    counts(action40_train=(2, 4, 4), action40_test=(1, 1, 1))
    place_action40(cache, images, splits)
    with pytest.raises(ValueError, match=words):
        get("action40", cache)
    assert not list(cache.folder.glob("*.sha256"))


def place_scene67(cache, train=b"bar/b 1.jpg\nattic/a1.JPG\n", test=b"bar/b2.jpg\n", **changes):
    files = {"Images/attic/a1.JPG": picture(10), "Images/bar/b 1.jpg": picture(20), "Images/bar/b2.jpg": picture(30),
             "Images/bar/unlisted.jpg": b"never read"}
    paths = (cache("SCENE67", tar(changed(files, changes), "w")), cache("SCENE67_TRAIN", train),
             cache("SCENE67_TEST", test))
    return paths


def test_scene67_takes_the_images_of_the_official_lists(cache, counts):
    counts(scene67_train=(2, 2, 2), scene67_test=(1, 1, 1))
    place_scene67(cache)
    train, test = get("scene67", cache)
    assert train.classes == ("attic", "bar") and train.labels.tolist() == [1, 0] and test.labels.tolist() == [1]
    assert train.images[:, 0, 0, 0].tolist() == [20, 10] and test.images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("lists", "changes", "words"), [
    ({"test": b"cellar/c.jpg"}, {}, "TestImages.txt: names the scene 'cellar'"),
    ({"test": b"bar/b2.jpg\nbar/b3.jpg"}, {}, "holds 2 images of 1 classes for scene67 test, expected 1 of 1"),
    ({"train": b"\xff\xfe"}, {}, "TrainImages.txt: is no text"),
    ({}, {"Images/bar/b2.jpg": None}, "indoorCVPR_09.tar: lacks 1 of 1 images, first bar/b2.jpg"),
])
def test_a_faulty_scene67_is_named_with_its_fault(cache, counts, lists, changes, words):
    counts(scene67_train=(2, 2, 2), scene67_test=(1, 1, 1))
    place_scene67(cache, **lists, **changes)
    with pytest.raises(ValueError, match=words):
        get("scene67", cache)


# ---- Object Discovery ------------------------------------------------------------------------------------------


def place_discovery(cache, **changes):
    half = np.zeros((6, 8), np.uint8)
    half[:, 4:] = 255
    files = {}
    for k, name in enumerate(("Airplane", "Car", "Horse")):
        for i in range(4):
            files[f"Data/{name}100/{i:04d}.jpg"] = picture(60 * k + i, (6, 8))
            files[f"Data/{name}100/GroundTruth/{i:04d}.png"] = picture(half * (i > 0), mode="L")
        files[f"Data/{name}/0000.jpg"] = files[f"Results/{name}100/0000.png"] = b"not of the subset"
    return cache("OBJECT_DISCOVERY", packed(changed(files, changes)))


def test_object_discovery_is_split_in_halves_with_its_masks(cache, counts):
    counts(object_discovery=(3, 12, 12))
    place_discovery(cache)
    train, test = get("object-discovery", cache, size=(6, 8))
    assert train.classes == ("airplane", "car", "horse") and "empty mask" in train.caveat
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    values = [v for s in (train, test) for v in s.images[:, 0, 0, 0].tolist()]
    assert sorted(values) == [60 * k + i for k in range(3) for i in range(4)]
    for data in (train, test):
        empty = data.images[:, 0, 0, 0] % 60 == 0
        assert not data.masks[empty].any() and data.masks[~empty][:, :, 4:].all() and not data.masks[:, :, :4].any()
    assert get("object-discovery", cache)[0].masks.shape == (6, 32, 32)
    assert not same((train, test), get("object-discovery", cache, size=(6, 8), seed=3))


@pytest.mark.parametrize(("changes", "words"), [
    ({"Data/Car100/GroundTruth/0002.png": None}, "lacks 1 of 12 masks, first Car100/0002"),
    ({"Data/Car100/0002.jpg": None}, "holds 11 images of 3 classes"),
    ({"Data/Car100/GroundTruth/0002.png": b"x"}, "0002.png: is truncated or no image"),
])
def test_a_faulty_object_discovery_is_named_with_its_fault(cache, counts, changes, words):
    counts(object_discovery=(3, 12, 12))
    place_discovery(cache, **changes)
    with pytest.raises(ValueError, match=words):
        get("object-discovery", cache)


# ---- archives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg", "C:/evil.jpg"])
@pytest.mark.parametrize("pack", [tar, packed, lambda files: packed({"in.tar": tar(files, "w")})])
def test_a_name_that_leads_out_of_an_archive_is_refused(tmp_path, monkeypatch, name, pack):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    path = tmp_path / "set.bin"
    path.write_bytes(pack({"./good/a.jpg": b"a", name: b"evil"}))
    inner = "in.tar" if b"in.tar" in path.read_bytes() else None
    with pytest.raises(ValueError, match=r"set.bin: holds the unsafe path .*evil"):
        list(archives.members(path, inner))
    assert not list(tmp_path.rglob("evil*")) and sorted(os.listdir(tmp_path)) == ["inside", "set.bin"]


def test_links_in_an_archive_are_passed_over_and_nothing_is_written(tmp_path):
    link = tarfile.TarInfo("secret.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("hard.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../etc/passwd"
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"./a/b.jpg": b"b"}, extra=[link, hard]))
    assert [(name, read()) for name, read in archives.members(path)] == [("a/b.jpg", b"b")]
    assert os.listdir(tmp_path) == ["a.tar"]


def test_damage_inside_an_archive_is_named_when_the_member_is_read(tmp_path):
    noise = bytes(np.random.default_rng(0).integers(0, 40, 40_000, dtype=np.uint8))
    stored = tar({"a.bin": noise, "b": b"b"}, "w")
    for content in (packed({"a.bin": noise, "b": b"b"}), tar({"a.bin": noise, "b": b"b"})):
        middle = len(content) // 2
        bent = bytes(b ^ 255 for b in content[middle: middle + 99])
        path = tmp_path / "bent"
        path.write_bytes(content[:middle] + bent + content[middle + 99:])
        with pytest.raises(ValueError, match="bent: is truncated or no archive that can be read"):
            [read() for _, read in archives.members(path)]
    path.write_bytes(stored[:20_000])
    with pytest.raises(ValueError, match="bent: is truncated or no archive that can be read"):
        [read() for _, read in archives.members(path)]


# ---- downloads without a published hash ------------------------------------------------------------------------

ALL = ["STL10", "CUB", "CUB_MASKS", "CALTECH101", "CALTECH256", "EVENT8", "ACTION40", "ACTION40_SPLITS", "SCENE67",
       "SCENE67_TRAIN", "SCENE67_TEST", "OBJECT_DISCOVERY"]
FIRST = {"stl10": "STL10", "cub200": "CUB", "caltech101": "CALTECH101", "caltech256": "CALTECH256", "event8": "EVENT8",
         "action40": "ACTION40", "scene67": "SCENE67", "object-discovery": "OBJECT_DISCOVERY"}


def test_every_source_is_an_address_and_every_hash_is_whole():
    for constant in ALL:
        remote = getattr(download, constant)
        assert len(remote.urls) >= 2 and all(url.startswith("http") and remote.name in url for url in remote.urls)
        assert remote.md5 is None or (len(remote.md5) == 32 and set(remote.md5) <= set("0123456789abcdef"))


def test_the_hashes_that_torchvision_has_are_the_same():
    datasets = pytest.importorskip("torchvision.datasets")
    assert datasets.STL10.tgz_md5 == download.STL10.md5
    source = Path(sys.modules["torchvision.datasets.caltech"].__file__).read_text()
    assert download.CALTECH101.md5 in source and download.CALTECH256.md5 in source


@pytest.mark.parametrize(("name", "constant"), FIRST.items())
def test_without_network_the_error_names_file_place_and_hash(tmp_path, monkeypatch, name, constant):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/x"
    remote = getattr(download, constant)
    monkeypatch.setattr(download, constant, download.Remote(remote.name, remote.md5, (url,)))
    with pytest.raises(ConnectionError) as caught:
        load(name, root=tmp_path, device="cpu")
    for part in (remote.name, str(tmp_path), url, remote.md5 or "its hash is not known to us", 'load("glyphs")'):
        assert part in str(caught.value)


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content, server = self.server.content, self.server
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        server.asked.append(start)
        if start and start >= len(content):
            self.send_response(416)
            if server.honest:
                self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + 1000 if server.breaks else len(content)
        server.breaks -= server.breaks > 0
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.content, server.asked, server.breaks, server.honest = np.random.default_rng(0).bytes(5000), [], 0, True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.remote = download.Remote("set.bin", None, (f"http://127.0.0.1:{server.server_port}/set.bin",))
        yield server
        server.shutdown()
        thread.join()


def test_a_file_without_a_hash_is_resumed_and_remembered_once_it_proved_whole(server, tmp_path):
    server.breaks = 2
    path = download.fetch(server.remote, tmp_path)
    assert path.read_bytes() == server.content and server.asked == [0, 1000, 2000]
    assert not (tmp_path / "set.bin.sha256").exists()
    download.remember(path)
    assert download.fetch(server.remote, tmp_path) == path and len(server.asked) == 3
    path.write_bytes(server.content[:-1])
    with pytest.raises(ValueError, match=r"set.bin has changed since .* delete both .* download it anew"):
        download.fetch(server.remote, tmp_path)
    assert path.exists()  # a reader's file is never deleted


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("left", [0, 10])
def test_a_left_over_without_a_hash_counts_as_whole_only_if_its_length_is_right(server, tmp_path, honest, left):
    server.honest = honest
    (tmp_path / "set.bin.part").write_bytes(server.content + b"x" * left)
    assert download.fetch(server.remote, tmp_path).read_bytes() == server.content
    assert server.asked == ([5000] if honest and not left else [5000 + left, 0])


@pytest.mark.parametrize(("content", "words"), [(b"\n<!DOCTYPE html><p>gone", "a web page"), (b"", "an empty file")])
def test_a_web_page_is_not_taken_for_a_set(server, tmp_path, content, words):
    server.content = content
    with pytest.raises(ConnectionError, match=words):
        download.fetch(server.remote, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


# ---- ImageSet, options, splits ---------------------------------------------------------------------------------


def some(**fields):
    images = torch.arange(6 * 3 * 4, dtype=torch.uint8).view(6, 3, 2, 2)
    return ImageSet(images, torch.arange(6) % 2, ("a", "b"), **fields)


def test_boxes_and_parts_go_where_the_images_go():
    boxes, parts = torch.arange(24).view(6, 4), torch.rand(6, 5, 3, generator=torch.Generator().manual_seed(0))
    data = some(boxes=boxes, parts=parts)
    part = data.subset([4, 1]).to("cpu")
    assert torch.equal(part.boxes, boxes[[4, 1]]) and torch.equal(part.parts, parts[[4, 1]])
    other = some(boxes=boxes + 1, parts=parts)
    assert len({data.digest(), other.digest(), some().digest(), some(boxes=boxes).digest()}) == 4


def test_the_digest_of_a_set_without_boxes_is_that_of_images_and_labels():
    data, total = some(), hashlib.sha256()
    for tensor in (data.images, data.labels):
        total.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode() + tensor.numpy().tobytes())
    assert data.digest() == total.hexdigest()


@pytest.mark.parametrize(("fields", "error", "words"), [
    ({"boxes": torch.zeros(6, 4)}, TypeError, "boxes must be torch.int64, got torch.float32"),
    ({"boxes": torch.zeros(5, 4, dtype=torch.int64)}, ValueError, r"boxes must be \(6, 4\), got \(5, 4\)"),
    ({"parts": torch.zeros(6, 3)}, ValueError, r"parts must be \(6, P, 3\), got \(6, 3\)"),
    ({"parts": torch.zeros(6, 2, 2)}, ValueError, r"\(6, P, 3\)"),
    ({"parts": torch.zeros(6, 2, 3, dtype=torch.int64)}, TypeError, "parts must be torch.float32"),
])
def test_boxes_and_parts_that_do_not_fit_are_refused(fields, error, words):
    with pytest.raises(error, match=words):
        some(**fields)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("glyphs", {"crop": True}, "crop= is for cub200, not for glyphs"),
    ("stl10", {"background": False}, "background= is for caltech101 and caltech256, not for stl10"),
    ("cub", {}, "did you mean 'cub200'"),
    ("stl-10", {}, "did you mean 'stl10'"),
    ("caltech101", {"test": 0.5}, "test images of its own"),
])
def test_an_option_or_a_name_that_does_not_fit_is_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        load(name, device="cpu", **options)


def test_images_are_chosen_per_class_and_a_smaller_choice_is_part_of_a_larger():
    data = some()
    train, test = per_class(data, 2)
    assert train.labels.bincount().tolist() == [2, 2] and test.labels.bincount().tolist() == [1, 1]
    rows = [row for s in (train, test) for row in s.images.flatten(1).tolist()]
    assert sorted(rows) == data.images.flatten(1).tolist()
    fewer, other = per_class(data, 1, 1)
    more = train.images.flatten(1).tolist()
    assert len(other) == 2 and all(row in more for row in fewer.images.flatten(1).tolist())
    with pytest.raises(ValueError, match="'a' has 3 images, too few for 2 to train on and 2 to test on"):
        per_class(data, 2, 2)
    with pytest.raises(ValueError, match="n_train=0"):
        per_class(data, 0)


def test_a_split_per_class_is_disjoint_complete_and_repeats():
    data = glyphs(60, size=8)
    train, test = per_class(data, 2, seed=1)
    assert train.labels.bincount().tolist() == [2] * 10 and len(train) + len(test) == 60
    both = train.joined(test).images.flatten(1)
    assert {tuple(row) for row in both.tolist()} == {tuple(row) for row in data.images.flatten(1).tolist()}
    assert per_class(data, 2, seed=1)[0].digest() == train.digest() != per_class(data, 2)[0].digest()
    assert len(per_class(data, 2, 3)[1]) == 30
    with pytest.raises(ValueError, match="too few for 6"):
        per_class(data, 6)


def test_joined_sets_hold_all_that_both_hold():
    one, two = glyphs(10, size=8, seed=1), glyphs(20, size=8, seed=2)
    both = one.joined(two)
    assert len(both) == 30 and both.name == one.name
    for name in ("images", "labels", "masks"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(one, name), getattr(two, name)]))
    with pytest.raises(ValueError, match="only one of 'glyphs' and 'glyphs' has masks"):
        one.joined(replace(two, masks=None))
    with pytest.raises(ValueError, match="have other classes"):
        one.joined(replace(two, classes=tuple("abcdefghij")))
