"""Sets, batches and augmentation; files and downloads, whole and damaged."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payattn.data import Augment, ImageSet, balanced, batches, download, glyphs, held_out, load, readers


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some(n=12, height=6, width=7, classes=3, **fields):
    images = torch.randint(256, (n, 3, height, width), generator=seeded(), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, tuple("abcdefghij"[:classes]), **fields)


# ---- ImageSet and batches --------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_the_pixels_in_the_unit_range():
    data = some()
    pixels = data.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std((0, 2, 3), unbiased=False))
    black_and_white = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2),
                               torch.zeros(1, dtype=torch.int64), ("x",))
    assert black_and_white.mean == (0.5, 0.5, 0.5) and black_and_white.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("index", [slice(2, 9, 3), [2, 5, 8], torch.tensor([2, 5, 8])])
def test_a_subset_takes_every_tensor_along(index):
    masks = torch.rand(12, 6, 7, generator=seeded()) < 0.5
    data = some(masks=masks, clean_labels=(torch.arange(12) + 1) % 3)
    part = data.subset(index)
    assert torch.equal(part.images, data.images[2:9:3]) and part.labels.tolist() == [2, 2, 2]
    assert torch.equal(part.masks, masks[2:9:3]) and part.clean_labels.tolist() == [0, 0, 0]
    assert data.subset(data.labels == 1).labels.tolist() == [1] * 4 and data.subset([]).images.shape == (0, 3, 6, 7)


def test_the_digest_tells_any_change_of_images_labels_or_masks():
    data = some()
    image, label = data.images.clone(), data.labels.clone()
    image[3, 1, 2, 4] += 1
    label[0] = 1
    mask = torch.zeros(12, 6, 7, dtype=torch.bool)
    others = [some(), ImageSet(image, data.labels, data.classes), ImageSet(data.images, label, data.classes),
              some(masks=mask), some(masks=~mask), data.subset(slice(0, 0)),
              ImageSet(data.images.transpose(2, 3), data.labels, data.classes)]
    digests = [other.digest() for other in others]
    assert digests[0] == data.digest() and len(set(digests)) == len(digests) and len(digests[0]) == 64


@pytest.mark.parametrize(("fields", "error", "words"), [
    ({"images": torch.zeros(2, 3, 4, 4)}, TypeError, "uint8.*float32.*255"),
    ({"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8)}, ValueError, r"N, 3, H, W.*permute"),
    ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "int64"),
    ({"labels": torch.tensor([0])}, ValueError, "one per image"),
    ({"labels": torch.tensor([0, 2])}, ValueError, "from 0 to 2, but 2 classes allow 0 to 1"),
    ({"labels": torch.tensor([-1, 0])}, ValueError, "from -1"),
    ({"clean_labels": torch.tensor([0, 5])}, ValueError, "clean_labels run"),
    ({"masks": torch.zeros(2, 4, 4)}, TypeError, "bool"),
    ({"masks": torch.zeros(2, 4, 5, dtype=torch.bool)}, ValueError, r"\(2, 4, 4\)"),
])
def test_a_set_that_does_not_fit_together_is_refused(fields, error, words):
    good = {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 1]), "classes": ("a", "b")}
    ImageSet(**good)
    with pytest.raises(error, match=words):
        ImageSet(**(good | fields))


def test_a_shuffled_pass_shows_every_image_once_with_its_own_label():
    data = some(n=23, classes=3)
    seen = list(batches(data, 5, generator=seeded(1)))
    images, labels = torch.cat([i for i, _ in seen]), torch.cat([y for _, y in seen])
    order = [int((data.images == image).flatten(1).all(1).nonzero()) for image in images]
    assert sorted(order) == list(range(23)) and order != list(range(23))
    assert torch.equal(labels, data.labels[order])
    assert [len(y) for _, y in seen] == [5, 5, 5, 5, 3]
    assert sum(len(y) for _, y in batches(data, 5, drop_last=True)) == 20


def test_one_generator_drives_order_and_augmentation():
    data, augment = some(n=20), Augment(flip="random", pad=2, cutout=3)
    passes = [torch.cat([i for i, _ in batches(data, 6, generator=seeded(s), augment=augment)]) for s in (1, 1, 2)]
    assert torch.equal(passes[0], passes[1]) and not torch.equal(passes[0], passes[2])


def test_batches_without_a_generator_come_in_order_and_refuse_augmentation():
    assert torch.equal(torch.cat([y for _, y in batches(some(), 5)]), some().labels)
    with pytest.raises(ValueError, match="generator"):
        batches(some(), 5, augment=Augment(pad=1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        batches(some(), 0)


# ---- augmentation ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 7), channels=st.sampled_from([1, 3]), height=st.integers(2, 9), width=st.integers(2, 9),
       flip=st.sampled_from(["none", "random", "half"]), kind=st.sampled_from([torch.uint8, torch.float32]),
       border=st.sampled_from(["reflect", "black"]), data=st.data())
def test_every_image_is_a_flipped_crop_of_its_padded_self(n, channels, height, width, flip, kind, border, data):
    pad = data.draw(st.integers(0, min(height, width) - 1))
    images = torch.randint(256, (n, channels, height, width), generator=seeded(7)).to(kind)
    before = images.clone()
    out = Augment(flip=flip, pad=pad, border=border)(images, seeded(n))
    assert torch.equal(images, before) and out.dtype == kind and out.shape == images.shape
    assert n == 0 or out.data_ptr() != images.data_ptr()
    for image, result in zip(images, out, strict=True):
        mode = {"reflect": "reflect", "black": "constant"}[border]
        padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode=mode)
        mirrored = [padded] if flip == "none" else [padded, padded[:, :, ::-1]]
        crops = [p[:, y: y + height, x: x + width] for p in mirrored
                 for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        assert any(np.array_equal(result.numpy(), crop) for crop in crops)


def ramp(n, side=9):
    """Images in which every pixel has its own value, so that where it came from can be read off."""
    return torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side).expand(n, 1, side, side)


def test_shifts_are_uniform_and_independent_of_the_flip():
    out = Augment(flip="random", pad=2)(ramp(20_000), seeded())[:, 0]
    middle = out[:, 4, 4].long()
    flipped = out[:, 4, 5] < out[:, 4, 4]
    dy, dx = middle // 9 - 4, middle % 9 - 4
    table = torch.stack([((dy == a) & (dx == b) & (flipped == f)).float().mean()
                         for a in range(-2, 3) for b in range(-2, 3) for f in (False, True)])
    assert (table - 1 / 50).abs().max() < 0.004 and table.sum() == pytest.approx(1, abs=1e-5)


def test_random_flips_half_on_average_and_half_flips_exactly_half():
    def flips(how, n, seed):
        out = Augment(flip=how)(ramp(n, 3), seeded(seed))[:, 0]
        return out[:, 0, 0] == 2

    assert {int(flips("half", 7, s).sum()) for s in range(20)} == {3}
    assert flips("half", 8, 0).sum() == 4 and flips("half", 1, 0).sum() == 0
    counts = torch.tensor([float(flips("random", 100, s).sum()) for s in range(50)])
    assert 45 < counts.mean() < 55 and counts.std() > 2
    where = torch.stack([flips("half", 6, s) for s in range(400)]).float().mean(0)
    assert (where - 0.5).abs().max() < 0.12  # no place in the batch is preferred


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 8), width=st.integers(1, 8), cutout=st.integers(1, 9), seed=st.integers(0, 999))
def test_cutout_greys_one_square_about_a_centre_in_the_image(height, width, cutout, seed):
    images = torch.ones(3, 2, height, width)
    out = Augment(cutout=cutout)(images, seeded(seed))
    assert set(out.unique().tolist()) <= {0.5, 1.0} and (images == 1).all()
    for image in out == 0.5:
        assert torch.equal(image[0], image[1])
        possible = []
        for y in range(height):
            for x in range(width):
                square = torch.zeros(height, width, dtype=torch.bool)
                top, left = y - cutout // 2, x - cutout // 2
                square[max(0, top): top + cutout, max(0, left): left + cutout] = True
                possible.append(square)
        assert any(torch.equal(image[0], square) for square in possible)


def test_cutout_fills_uint8_with_mid_grey():
    out = Augment(cutout=2)(torch.zeros(4, 3, 5, 5, dtype=torch.uint8), seeded())
    assert out.dtype == torch.uint8 and set(out.unique().tolist()) == {0, 128}


@pytest.mark.parametrize(("options", "words"), [
    ({"flip": "haf"}, "did you mean 'half'"), ({"flip": True}, "one of"),
    ({"border": "blak"}, "did you mean 'black'"),
    ({"pad": -1}, "0 or more, got -1"), ({"pad": 1.5}, "whole number"), ({"cutout": True}, "whole number"),
])
def test_augment_refuses_what_it_does_not_know(options, words):
    with pytest.raises(ValueError, match=words):
        Augment(**options)


def test_augment_refuses_padding_as_wide_as_the_image_and_single_images():
    with pytest.raises(ValueError, match="use at most 3"):
        Augment(pad=4)(torch.zeros(1, 3, 9, 4), seeded())
    with pytest.raises(ValueError, match=r"images\[None\]"):
        Augment(pad=1)(torch.zeros(3, 9, 4), seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cpu_generator_gives_the_same_augmentation_on_a_gpu():
    images, augment = some().images, Augment(flip="random", pad=2, cutout=2)
    assert torch.equal(augment(images, seeded()), augment(images.cuda(), seeded()).cpu())
    assert augment(images.cuda(), torch.Generator("cuda").manual_seed(0)).device.type == "cuda"


# ---- load: names, subsets, splits ------------------------------------------------------------------------------


def test_glyphs_load_with_train_and_test_from_different_seeds():
    train, test = load("glyphs", n_train=30, n_test=20, size=(8, 10), seed=4, device="cpu", classes=5)
    assert train.digest() == glyphs(30, size=(8, 10), classes=5, seed=8).digest()
    assert test.digest() == glyphs(20, size=(8, 10), classes=5, seed=9).digest()
    assert load("glyphs-fine", n_train=10, n_test=0, size=8, device="cpu")[0].name == "glyphs-fine"
    shift = load("glyphs", variant="shift", n_train=10, n_test=10, size=8, device="cpu")[1]
    assert shift.digest() == load("glyphs-shift", n_train=10, n_test=10, size=8, device="cpu")[1].digest()


def test_label_noise_reaches_the_training_labels_only():
    train, test = load("glyphs", n_train=2000, n_test=50, size=8, label_noise=0.4, device="cpu")
    assert (train.labels != train.clean_labels).float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert test.clean_labels is None and test.digest() == load("glyphs", n_train=0, n_test=50, size=8,
                                                               device="cpu")[1].digest()


@pytest.mark.parametrize(("name", "options", "error", "words"), [
    ("glyhps", {}, ValueError, "did you mean 'glyphs'"),
    ("cifar-10", {}, ValueError, "did you mean 'cifar10'"),
    ("no/such.npz", {}, FileNotFoundError, "does not exist"),
    ("glyphs", {"test": 0.5}, ValueError, "test images of its own"),
    ("glyphs-fine", {"variant": "shift"}, ValueError, "say one of them"),
    ("cifar10", {"classes": 5}, ValueError, "for glyphs"),
    ("glyphs", {"n_train": -3}, ValueError, "0 or more"),
])
def test_load_says_what_is_wrong_with_a_name_or_an_option(name, options, error, words):
    with pytest.raises(error, match=words):
        load(name, device="cpu", **options)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 60), seed=st.integers(0, 50))
def test_balanced_subsets_are_even_and_nested(n, seed):
    data = some(n=60, height=2, width=2)
    part, more = balanced(data, n, seed), balanced(data, min(60, n + 4), seed)
    counts = part.labels.bincount(minlength=3)
    assert len(part) == n and counts.max() - counts.min() <= 1
    rows = {tuple(row) for row in more.images.flatten(1).tolist()}
    assert all(tuple(row) in rows for row in part.images.flatten(1).tolist())


def test_balanced_subsets_say_how_many_can_be_had():
    lopsided = some(n=12).subset([0, 3, 6, 9, 1, 2])
    with pytest.raises(ValueError, match="at most 3"):
        balanced(lopsided, 4)
    assert balanced(lopsided, 3).labels.sort().values.tolist() == [0, 1, 2]


def test_held_out_images_are_a_share_of_every_class_and_leave_the_training_set():
    data = some(n=60)
    rest, out = held_out(data, 0.25, seed=1)
    assert out.labels.bincount().tolist() == [5, 5, 5] and len(rest) == 45
    rows = [tuple(row) for part in (rest, out) for row in part.images.flatten(1).tolist()]
    assert sorted(rows) == sorted(tuple(row) for row in data.images.flatten(1).tolist())
    assert out.digest() == held_out(data, 0.25, seed=1)[1].digest() != held_out(data, 0.25, seed=2)[1].digest()
    with pytest.raises(ValueError, match="between 0 and 1"):
        held_out(data, 1.0)
    with pytest.raises(ValueError, match="'b' has a single image"):
        held_out(data.subset([0, 3, 1]), 0.5)


# ---- .npz ------------------------------------------------------------------------------------------------------


def arrays(n=10, **changed):
    rng = np.random.default_rng(0)
    good = {"images": rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8), "labels": np.arange(n) % 2,
            "classes": np.array(["cat", "dog"]), "masks": rng.integers(0, 2, (n, 5, 6), dtype=np.uint8)}
    return {name: value for name, value in (good | changed).items() if value is not None}


def write_npz(path, **changed):
    np.savez(path, **arrays(**changed))
    return path


def test_an_npz_loads_whole_with_its_masks_and_names(tmp_path):
    path = write_npz(tmp_path / "pets.npz")
    train, test = load(path, test=path, device="cpu")
    want = arrays()
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), want["images"])
    assert np.array_equal(train.masks.numpy(), want["masks"] > 0) and train.labels.tolist() == want["labels"].tolist()
    assert train.classes == ("cat", "dog") and train.name == "pets" and test.digest() == train.digest()


def test_an_npz_may_hold_the_colour_first_and_no_masks_or_names(tmp_path):
    path = write_npz(tmp_path / "a.npz", images=arrays()["images"].transpose(0, 3, 1, 2), masks=None, classes=None)
    train, test = load(str(path), device="cpu")
    assert train.images.shape == (8, 3, 5, 6) and len(test) == 2 and train.masks is None
    assert train.classes == ("class 0", "class 1") and test.labels.tolist() == [0, 1]


def test_an_npz_can_be_stretched_and_thinned_out(tmp_path):
    path = write_npz(tmp_path / "a.npz", n=20)
    train, test = load(path, test=0.5, n_train=4, n_test=2, size=(10, 12), device="cpu")
    assert train.images.shape == (4, 3, 10, 12) and train.masks.shape == (4, 10, 12) and len(test) == 2
    whole = load(path, test=path, size=(10, 12), device="cpu")[0]
    assert np.array_equal(whole.masks.numpy(), (arrays(n=20)["masks"] > 0).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(("changed", "words"), [
    ({"images": None}, "no array named images"),
    ({"labels": None}, "no array named labels"),
    ({"images": np.zeros((10, 5, 6, 3), np.float32)}, "float32; store them as uint8.*255"),
    ({"images": np.zeros((10, 5, 6, 3), np.int64)}, "int64; store them as uint8"),
    ({"images": np.zeros((10, 5, 6), np.uint8)}, "repeat grey three times"),
    ({"images": np.zeros((10, 5, 6, 4), np.uint8)}, "store RGB"),
    ({"images": np.zeros((10, 3, 6, 3), np.uint8)}, "second or the last axis"),
    ({"images": np.zeros((0, 5, 6, 3), np.uint8), "labels": np.zeros(0, int)}, "no pixel"),
    ({"labels": np.zeros(10)}, "labels are float64; store whole numbers"),
    ({"labels": np.zeros(9, int)}, r"\(9,\) for 10 images"),
    ({"labels": np.zeros((10, 1), int)}, r"\(10, 1\) for 10 images"),
    ({"labels": np.array([0] * 9 + [2])}, "label 2 of image 9 is out of range: 2 classes allow 0 to 1"),
    ({"labels": np.array([0] * 9 + [-1])}, "label -1 of image 9 is negative"),
    ({"labels": np.array([0, None] * 5)}, "labels is an array of Python objects"),
    ({"classes": np.array(["cat", "cat"])}, "same name"),
    ({"classes": np.arange(2)}, "names as strings"),
    ({"classes": np.array(["cat", None])}, "classes is an array of Python objects.*dtype=str"),
    ({"masks": np.zeros((10, 5, 6))}, "masks are float64"),
    ({"masks": np.zeros((10, 6, 5), bool)}, r"masks are \(10, 6, 5\), the images want \(10, 5, 6\)"),
])
def test_a_fault_in_an_npz_is_named_with_the_file(tmp_path, changed, words):
    path = write_npz(tmp_path / "faulty.npz", **changed)
    with pytest.raises(ValueError, match=words) as caught:
        load(path, device="cpu")
    assert str(caught.value).startswith(str(path))


def test_a_truncated_or_foreign_npz_is_named(tmp_path):
    path = write_npz(tmp_path / "whole.npz")
    content = path.read_bytes()
    middle = len(content) // 3
    bent = content[:middle] + bytes(b ^ 255 for b in content[middle: middle + 40]) + content[middle + 40:]
    np.save(tmp_path / "single.npy", np.zeros(3))
    bad = {"short": content[: len(content) // 2], "empty": b"", "text": b"hello", "bent": bent,
           "pickle": pickle.dumps([1]), "single": (tmp_path / "single.npy").read_bytes()}
    for name, damaged in bad.items():
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.npz: "):
            load(tmp_path / f"{name}.npz", device="cpu")


def test_two_files_must_agree_in_classes_and_size(tmp_path):
    path = write_npz(tmp_path / "train.npz")
    other = write_npz(tmp_path / "other.npz", classes=np.array(["cat", "cow"]))
    with pytest.raises(ValueError, match=r"other.npz.*'cow', 'dog'"):
        load(path, test=other, device="cpu")
    small = write_npz(tmp_path / "small.npz", images=np.zeros((10, 4, 4, 3), np.uint8), masks=None)
    with pytest.raises(ValueError, match=r"small.npz.*\(4, 4\).*size="):
        load(path, test=small, device="cpu")
    assert load(path, test=small, size=8, device="cpu")[1].images.shape == (10, 3, 8, 8)
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=r"a.csv: has the ending '.csv'"):
        load(tmp_path / "a.csv", device="cpu")


# ---- folders ---------------------------------------------------------------------------------------------------


def picture(path, value, size=(6, 4)):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def folder(root, n=5, size=(6, 4)):
    for label, name in enumerate(("bee", "ant")):
        for i in range(n):
            picture(root / name / f"{i}.png", 100 * label + i, size)
    return root


def test_a_folder_of_classes_loads_in_the_order_of_the_names(tmp_path):
    root = folder(tmp_path / "insects")
    (root / "ant" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    train, test = load(root, device="cpu")
    assert train.classes == ("ant", "bee") and train.name == "insects" and train.images.shape == (8, 3, 6, 4)
    ants = torch.cat([s.images[s.labels == 0][:, 0, 0, 0] for s in (train, test)])
    assert sorted(ants.tolist()) == [100, 101, 102, 103, 104] and test.labels.tolist() == [0, 1]


def test_a_folder_of_train_and_test_folders_is_a_split(tmp_path):
    folder(tmp_path / "d" / "train", 3)
    folder(tmp_path / "d" / "val", 2)
    train, test = load(tmp_path / "d", device="cpu")
    assert (len(train), len(test)) == (6, 4) and train.classes == ("ant", "bee")
    assert load(tmp_path / "d" / "train", test=tmp_path / "d" / "val", device="cpu")[1].digest() == test.digest()
    with pytest.raises(ValueError, match="beside train"):
        load(tmp_path / "d", test=0.5, device="cpu")


def test_images_of_several_sizes_need_a_size(tmp_path):
    root = folder(tmp_path / "d")
    picture(root / "bee" / "9.png", 7, (8, 8))
    with pytest.raises(ValueError, match=r"9.png: is 8 x 8, but .*0.png is 6 x 4; pass size="):
        load(root, device="cpu")
    train, _ = load(root, size=5, device="cpu")
    assert train.images.shape[2:] == (5, 5)
    assert (train.images == train.images[:, :1, :1, :1]).all()  # a plain colour stays what it is


def test_a_fault_in_a_folder_is_named_with_the_file(tmp_path):
    root = folder(tmp_path / "d")
    whole = (root / "ant" / "0.png").read_bytes()
    for content in (b"", b"text", whole[:40]):
        (root / "ant" / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.png: is truncated or no image"):
            load(root, device="cpu")
    (root / "ant" / "bad.png").unlink()
    (root / "cow").mkdir()
    with pytest.raises(ValueError, match="cow: holds no image"):
        load(root, device="cpu")
    with pytest.raises(ValueError, match="ant: holds 0 folders"):
        load(root / "ant", device="cpu")


# ---- downloads -------------------------------------------------------------------------------------------------


class Files(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; breaks off after ``server.cut`` bytes while ``server.breaks`` lasts."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if server.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: server.cut]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.files, server.asked, server.breaks, server.cut, server.ranges = {}, [], 0, 1000, True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CONTENT = np.random.default_rng(1).bytes(5000)


def remote(server, *paths, content=CONTENT, name="set.bin"):
    urls = tuple(f"http://127.0.0.1:{server.server_port}{path}" for path in paths)
    return download.Remote(name, md5(content), urls)


def md5(content):
    return hashlib.md5(content).hexdigest()


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_download_is_verified_and_asked_for_once(server, tmp_path):
    server.files["/a"] = CONTENT
    for _ in range(2):
        assert download.fetch(remote(server, "/a"), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a", None)] and left(tmp_path) == ["set.bin"]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.files["/a"], server.breaks = CONTENT, 2
    assert download.fetch(remote(server, "/a"), tmp_path).read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
    server.files["/a"], server.breaks = CONTENT, 3
    with pytest.raises(ConnectionError, match="3000 bytes are kept"):
        download.fetch(remote(server, "/a"), tmp_path)
    assert left(tmp_path) == ["set.bin.part"]
    download.fetch(remote(server, "/a"), tmp_path)
    assert server.asked[-1] == ("/a", "bytes=3000-") and left(tmp_path) == ["set.bin"]


def test_a_server_that_cannot_resume_starts_again(server, tmp_path):
    server.files["/a"], server.ranges = CONTENT, False
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:100])
    assert download.fetch(remote(server, "/a"), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"wrong", bytes(9000)])
def test_whatever_an_earlier_call_left_the_result_is_right(server, tmp_path, part):
    server.files["/a"] = CONTENT
    (tmp_path / "set.bin.part").write_bytes(part)
    assert download.fetch(remote(server, "/a"), tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == ["set.bin"]


def test_a_file_with_a_wrong_hash_is_never_put_in_place(server, tmp_path):
    server.files["/a"] = b"an error page"
    with pytest.raises(ConnectionError, match="gave another file, its md5 is " + md5(b"an error page")):
        download.fetch(remote(server, "/a"), tmp_path)
    assert left(tmp_path) == []


def test_the_next_source_is_tried(server, tmp_path):
    server.files |= {"/wrong": b"x" * 7000, "/right": CONTENT}
    download.fetch(remote(server, "/none", "/wrong", "/right"), tmp_path)
    assert [path for path, _ in server.asked] == ["/none", "/wrong", "/right"]


def test_a_file_placed_by_hand_is_verified_and_never_deleted(tmp_path):
    wanted = download.Remote("set.bin", md5(CONTENT), ())
    (tmp_path / "set.bin").write_bytes(CONTENT)
    assert download.fetch(wanted, tmp_path) == tmp_path / "set.bin"
    (tmp_path / "set.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"set.bin is damaged.*delete it"):
        download.fetch(wanted, tmp_path)
    assert left(tmp_path) == ["set.bin"]


@pytest.mark.parametrize(("name", "remotes"), [("cifar10", ("CIFAR10",)), ("cifar100", ("CIFAR100",)),
                                               ("svhn", ("SVHN_TRAIN",))])
def test_without_network_the_error_names_file_place_and_hash(tmp_path, monkeypatch, name, remotes):
    monkeypatch.setenv("PAYATTN_DATA", str(tmp_path / "cache"))
    with http.server.HTTPServer(("127.0.0.1", 0), Files) as closed:
        port = closed.server_port
    for constant in remotes:
        known = getattr(download, constant)
        assert len(known.urls) > 1 and len(known.md5) == 32
        dead = download.Remote(known.name, known.md5, tuple(f"http://127.0.0.1:{port}/{i}" for i in range(2)))
        monkeypatch.setattr(download, constant, dead)
    with pytest.raises(ConnectionError) as caught:
        load(name, device="cpu")
    text = str(caught.value)
    for part in (dead.name, dead.md5, str(tmp_path / "cache"), *dead.urls, "PAYATTN_DATA", 'load("glyphs")', "refused"):
        assert part in text


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="PAYATTN_DATA"):
        download.fetch(download.Remote("a", "0" * 32, ("http://127.0.0.1:9/a",)), tmp_path / "file" / "cache")


# ---- CIFAR and SVHN in their true formats ----------------------------------------------------------------------


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def python2_pickle(table):
    """A dict as Python 2 and NumPy 1 pickled it (protocol 2, str of bytes, numpy.core), as in the real archives."""
    out = [b"\x80\x02}("]

    def text(content):
        short = len(content) < 256
        return (b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))) + content

    for key, value in table.items():
        out.append(text(key.encode()))
        if isinstance(value, np.ndarray):
            out += [b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85", text(b"b"), b"\x87R(K\x01",
                    b"".join(b"J" + struct.pack("<i", d) for d in value.shape), b"\x86cnumpy\ndtype\n", text(b"u1"),
                    b"K\x00K\x01\x87R(K\x03", text(b"|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
                    text(value.tobytes()), b"tb"]
        else:
            items = [b"K" + bytes([v]) if isinstance(v, int) else text(v.encode()) for v in value]
            out += [b"](", *items, b"e"]
    return b"".join([*out, b"u."])


def pixels(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def cifar10(**changed):
    parts = {f"data_batch_{k}": {"data": pixels(4, k), "labels": [0, 1, 2, (k + 2) % 3]} for k in range(1, 6)}
    parts["test_batch"] = {"data": pixels(3, 9), "labels": [2, 1, 0]}
    parts["batches.meta"] = {"label_names": ["air", "bird", "cat"]}
    members = {f"cifar-10-batches-py/{name}": python2_pickle(part) for name, part in parts.items()}
    return tar({name: content for name, content in (members | changed).items() if content is not None})


def placed(monkeypatch, folder, constant, content):
    """Put a file into the cache and make its hash the expected one."""
    known = getattr(download, constant)
    monkeypatch.setattr(download, constant, download.Remote(known.name, md5(content), ()))
    (folder / known.name).write_bytes(content)
    return folder / known.name


def test_cifar10_is_read_from_its_archive(monkeypatch, tmp_path):
    placed(monkeypatch, tmp_path, "CIFAR10", cifar10())
    train, test = load("cifar10", root=tmp_path, device="cpu")
    assert len(train) == 20 and train.classes == ("air", "bird", "cat") and train.name == "cifar10"
    assert np.array_equal(train.images.flatten(1).numpy(), np.concatenate([pixels(4, k) for k in range(1, 6)]))
    assert train.labels[:8].tolist() == [0, 1, 2, 0, 0, 1, 2, 1] and test.labels.tolist() == [2, 1, 0]
    assert load("cifar10", root=tmp_path, device="cpu", n_train=6, size=8)[0].images.shape == (6, 3, 8, 8)


def test_cifar100_takes_the_fine_labels(monkeypatch, tmp_path):
    folder = "cifar-100-python"
    content = tar({
        f"{folder}/train": python2_pickle({"data": pixels(3, 1), "fine_labels": [1, 0, 2], "coarse_labels": [0, 0, 0]}),
        f"{folder}/test": python2_pickle({"data": pixels(2, 2), "fine_labels": [2, 1], "coarse_labels": [0, 0]}),
        f"{folder}/meta": python2_pickle({"fine_label_names": ["a", "b", "c"], "coarse_label_names": ["z"]})})
    placed(monkeypatch, tmp_path, "CIFAR100", content)
    train, test = load("cifar100", root=tmp_path, device="cpu")
    assert train.labels.tolist() == [1, 0, 2] and test.labels.tolist() == [2, 1] and train.classes == ("a", "b", "c")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm-was-done"),))


def test_a_pickle_that_runs_code_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    harmful = cifar10(**{"cifar-10-batches-py/test_batch": pickle.dumps(Harmful())})
    path = placed(monkeypatch, tmp_path, "CIFAR10", harmful)
    with pytest.raises(ValueError, match="which no array needs") as caught:
        load("cifar10", root=tmp_path, device="cpu")
    assert str(path) in str(caught.value) and not (tmp_path / "harm-was-done").exists()


@pytest.mark.parametrize(("content", "words"), [
    (b"no archive", "damaged or not the archive of cifar10"),
    (cifar10()[:2000], "damaged or not the archive"),
    (cifar10(**{"cifar-10-batches-py/test_batch": None}), "holds no cifar-10-batches-py/test_batch"),
    (cifar10(**{"cifar-10-batches-py/test_batch": b"\x80\x02]."}), "holds no cifar-10-batches-py/test_batch"),
    (cifar10(**{"cifar-10-batches-py/test_batch": b"\x80\x02garbage"}), "damaged or not the archive"),
    (cifar10(**{"cifar-10-batches-py/test_batch": python2_pickle({"data": pixels(2, 0)[:, :-1], "labels": [0, 0]})}),
     "no uint8 data"),
    (cifar10(**{"cifar-10-batches-py/test_batch": python2_pickle({"data": pixels(2, 0), "labels": [0]})}),
     r"\(1,\) for 2 images"),
    (cifar10(**{"cifar-10-batches-py/test_batch": python2_pickle({"data": pixels(2, 0), "labels": [0, 3]})}),
     "label 3 of image 1 is out of range"),
])
def test_a_faulty_cifar_archive_is_named_with_its_fault(monkeypatch, tmp_path, content, words):
    path = placed(monkeypatch, tmp_path, "CIFAR10", content)
    with pytest.raises(ValueError, match=words) as caught:
        load("cifar10", root=tmp_path, device="cpu")
    assert str(caught.value).startswith(str(path))


def mat_element(kind, body):
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def mat(compress=True, **matrices):
    """A MATLAB 5 file as the format's description has it."""
    classes = {"u1": (9, 2), "f8": (6, 9)}
    out = [b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"]
    for name, array in matrices.items():
        kind, number = classes[array.dtype.str[1:]]
        label = name.encode()
        body = mat_element(14, mat_element(6, struct.pack("<II", kind, 0))
                           + mat_element(5, np.array(array.shape, "<i4").tobytes())
                           + struct.pack("<HH4s", 1, len(label), label)
                           + mat_element(number, array.tobytes(order="F")))
        packed = zlib.compress(body)
        out.append(struct.pack("<II", 15, len(packed)) + packed if compress else body)
    return b"".join(out)


def digits(n, labels, **changed):
    images = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return {"X": images, "y": np.array(labels, float)[:, None]} | changed


@pytest.mark.parametrize("compress", [True, False])
def test_svhn_is_read_from_matlab_files_and_ten_is_the_digit_zero(monkeypatch, tmp_path, compress):
    train_file = placed(monkeypatch, tmp_path, "SVHN_TRAIN", mat(compress, **digits(3, [1, 10, 9])))
    placed(monkeypatch, tmp_path, "SVHN_TEST", mat(compress, **digits(2, [10, 5])))
    train, test = load("svhn", root=tmp_path, device="cpu")
    assert train.labels.tolist() == [1, 0, 9] and test.labels.tolist() == [0, 5]
    assert train.classes == tuple("0123456789")
    assert np.array_equal(train.images.numpy(), digits(3, [1, 1, 1])["X"].transpose(3, 2, 0, 1))
    scipy_io = pytest.importorskip("scipy.io")  # an independent reader, and an independent writer
    assert np.array_equal(scipy_io.loadmat(train_file)["X"], digits(3, [1, 1, 1])["X"])
    scipy_io.savemat(tmp_path / "theirs.mat", digits(3, [1, 10, 9]), do_compression=compress)
    assert readers.read_svhn(tmp_path / "theirs.mat").digest() == train.digest()


@pytest.mark.parametrize(("content", "words"), [
    (b"", "no MATLAB 5 header"),
    (b"x" * 200, "no MATLAB 5 header"),
    (mat(**digits(2, [1, 2]))[:-50], "truncated"),
    (mat(False, **digits(2, [1, 2]))[:3000], "ends in the middle"),
    (mat(y=np.ones((2, 1))), "not X"),
    (mat(**digits(2, [1, 11])), "other than 1 to 10"),
    (mat(**digits(2, [1, 1.5])), "other than 1 to 10"),
    (mat(**digits(2, [1, 2, 3])), r"\(3,\) for 2 images"),
    (mat(**digits(2, [1, 2], X=np.ones((32, 32, 3, 2)))), "float64; store them as uint8"),
])
def test_a_faulty_svhn_file_is_named_with_its_fault(tmp_path, content, words):
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        readers.read_svhn(path)
    assert str(caught.value).startswith(str(path))
