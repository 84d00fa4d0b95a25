"""Image files that are read while they are needed: what comes out, that it repeats, and what is said when it cannot."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from payattn import cli, recipes, results
from payattn.data import Augment, FileSet, ImageSet, balanced, batches, held_out, load, per_class
from payattn.data.augment import crops, jittered
from payattn.data.stream import middle, part, read_names
from payattn.train import evaluate, fit, maps_of

SIZES = ((40, 40), (61, 43), (33, 57), (24, 100), (9, 8), (64, 64), (35, 47))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG and scaling keep it nearly."""
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    slopes = rng.uniform(60, 120, (3, 3))
    return Image.fromarray((slopes[0] * x + slopes[1] * y + slopes[2] / 2).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/train and root/val with two classes of PNG and JPEG files of many sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for side, start in (("train", 0), ("val", 100)):
        for label, name in enumerate(("n01", "n02")):
            (root / side / name).mkdir(parents=True)
            for k, (width, height) in enumerate(SIZES):
                image = picture(width, height, start + 10 * label + k)
                image.save(root / side / name / (f"{k}.png" if k % 2 else f"{k}.JPEG"))
    return root


@pytest.fixture
def data(folder: Path) -> FileSet:
    return read_names(folder / "train", 16)


def drawn(data: FileSet, batch_size: int = 4, seed: int = 0, augment: Augment | None = None, **options):
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(data, batch_size, generator=generator, augment=augment, **options))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


# --- what comes out


def test_files_of_any_size_come_out_as_batches_of_one(data: FileSet) -> None:
    assert len(data) == 14 and data.classes == ("n01", "n02")
    sizes = [(tuple(images.shape), images.dtype, labels.tolist()) for images, labels in batches(data, 5)]
    assert [shape for shape, _, _ in sizes] == [(5, 3, 16, 16), (5, 3, 16, 16), (4, 3, 16, 16)]
    assert all(dtype == torch.uint8 for _, dtype, _ in sizes)
    assert [label for _, _, labels in sizes for label in labels] == [0] * 7 + [1] * 7


def test_a_test_image_is_scaled_to_eight_sevenths_and_its_middle_cut_out_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    for k, (width, height) in enumerate([*SIZES, (250, 187), (129, 128), (151, 499)]):
        image = picture(width, height, k)
        for size in (14, 21, 56):
            scaled = transforms.resize(image, round(size * 8 / 7), transforms.InterpolationMode.BILINEAR)
            wanted = transforms.center_crop(scaled, size)
            assert np.array_equal(np.array(middle(image, (size, size))), np.array(wanted)), (width, height, size)


def test_a_part_is_cut_and_stretched_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    image = picture(61, 43)
    wanted = transforms.resized_crop(image, 3, 7, 30, 20, (12, 16), transforms.InterpolationMode.BILINEAR)
    assert np.array_equal(np.array(part(image, [3, 7, 30, 20], (12, 16))), np.array(wanted))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_the_middle_has_the_size_asked_for_whatever_the_image(width: int, height: int, h: int, w: int) -> None:
    assert middle(Image.new("RGB", (width, height), (7, 8, 9)), (h, w)).size == (w, h)


def test_the_middle_shows_nothing_from_outside_the_image() -> None:
    for width, height in SIZES:
        image = middle(Image.new("RGB", (width, height), (7, 8, 9)), (16, 10))
        assert image.getcolors() == [(160, (7, 8, 9))]  # a crop beyond the border would be black


def test_grey_cmyk_palette_and_turned_images_are_read_as_the_other_reader_does(tmp_path: Path) -> None:
    base = picture(32, 32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    base.convert("L").save(tmp_path / "a" / "grey.png")
    base.convert("CMYK").save(tmp_path / "a" / "cmyk.jpg")
    base.convert("P").save(tmp_path / "b" / "palette.png")
    base.convert("RGBA").save(tmp_path / "b" / "rgba.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    base.save(tmp_path / "b" / "turned.jpg", exif=turned)
    known = load(tmp_path, test=tmp_path, device="cpu")[0]
    images, labels = next(batches(read_names(tmp_path, 28), 5))  # 32 is 8/7 of 28: nothing is scaled
    assert torch.equal(images, known.images[:, :, 2:30, 2:30])
    assert torch.equal(labels, known.labels)
    stored = next(batches(read_names(tmp_path, 28).subset([4]), 1))[0]
    upright = torch.from_numpy(np.array(base)).permute(2, 0, 1)[:, 2:30, 2:30].rot90(-1, (1, 2))
    assert (stored[0].float() - upright).abs().mean() < 4  # JPEG


def test_a_random_part_comes_from_the_image_in_full_resolution(data: FileSet) -> None:
    images, _ = drawn(data, augment=Augment(crop=0.08))
    others, _ = drawn(data)
    assert images.shape == others.shape
    assert (images != others).flatten(1).any(1).all()


# --- the arithmetic of the augmentation


def by_hand(u: list[list[float]], height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """RandomResizedCrop, one image at a time, from the same uniform numbers."""
    for size, shape, y, x in u:
        area = height * width * (least + (1 - least) * size)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(y * (height - h + 1)), math.floor(x * (width - w + 1)), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * 4 / 3), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("least", [0.08, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 90), (90, 20), (375, 500), (1, 1)])
def test_random_parts_are_those_of_the_published_arithmetic(height: int, width: int, least: float) -> None:
    found = crops(50, height, width, least, torch.Generator().manual_seed(1)).tolist()
    u = torch.rand(50, 10, 4, generator=torch.Generator().manual_seed(1)).tolist()
    assert found == [list(by_hand(one, height, width, least)) for one in u]


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 99))
def test_random_parts_lie_in_the_image_and_keep_their_shape(height: int, width: int, least: float, seed: int) -> None:
    top, left, h, w = crops(20, height, width, least, torch.Generator().manual_seed(seed)).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    assert ((w - h * 3 / 4) > -1.01).all() and ((w - h * 4 / 3) < 1.01).all()  # rounding


def test_random_parts_reach_from_least_to_all_of_the_image() -> None:
    boxes = crops(2000, 100, 100, 0.08, torch.Generator().manual_seed(0)).double()
    share = boxes[:, 2] * boxes[:, 3] / 1e4
    assert share.min() > 0.07 and share.min() < 0.1 and share.max() > 0.95
    assert share.mean().item() == pytest.approx(0.5, abs=0.04)
    ratio = boxes[:, 3] / boxes[:, 2]
    assert ratio.log().mean().abs() < 0.02 and ratio.max() > 1.3 and ratio.min() < 0.77


def test_a_set_in_memory_takes_random_parts_too() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (6, 3, 12, 17), generator=generator).byte()
    out = Augment(crop=0.3)(images, torch.Generator().manual_seed(5))
    boxes = crops(6, 12, 17, 0.3, torch.Generator().manual_seed(5)).tolist()
    for image, (top, left, h, w), got in zip(images, boxes, out, strict=True):
        cut = image[None, :, top : top + h, left : left + w].float()
        wanted = torch.nn.functional.interpolate(cut, (12, 17), mode="bilinear", align_corners=False)[0]
        assert (got.float() - wanted).abs().max() <= 0.51


def test_a_random_part_is_flipped_where_asked() -> None:
    row = torch.arange(8, dtype=torch.uint8).mul(30).expand(64, 3, 8, 8)
    out = Augment(flip="random", crop=1.0)(row, torch.Generator().manual_seed(0))[:, 0, 0].int()
    falling = out[:, 0] > out[:, -1]
    assert 20 < falling.sum() < 44
    assert torch.equal(out[falling][0], out[~falling][0].flip(0))


def test_colours_move_along_the_published_components_by_hand() -> None:
    grey = torch.full((2, 3, 1, 1), 0.5, dtype=torch.float64)
    out = jittered(grey, torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 0.0]], dtype=torch.float64))
    red = 0.5 + 0.1 * 0.2175 * -0.5675 - 0.2 * 0.0188 * 0.7192 + 0.3 * 0.0045 * 0.4009
    green = 0.5 + 0.1 * 0.2175 * -0.5808 - 0.2 * 0.0188 * -0.0045 + 0.3 * 0.0045 * -0.8140
    blue = 0.5 + 0.1 * 0.2175 * -0.5836 - 0.2 * 0.0188 * -0.6948 + 0.3 * 0.0045 * 0.4203
    assert out[0].flatten().tolist() == pytest.approx([red, green, blue], abs=1e-12)
    assert out[1].flatten().tolist() == [0.5] * 3
    levels = jittered((grey * 255).byte(), torch.tensor([[1.0, 0.0, 0.0], [-3.0, 0.0, 0.0]])).flatten(1)
    assert levels[0].tolist() == [round(127 - 255 * 0.2175 * c) for c in (0.5675, 0.5808, 0.5836)]
    assert levels[1].tolist() == [round(127 + 3 * 255 * 0.2175 * c) for c in (0.5675, 0.5808, 0.5836)]
    assert jittered(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1),
                    torch.tensor([[9.0, 0, 0], [-9.0, 0, 0]])).flatten().tolist() == [0] * 3 + [255] * 3  # fmt: skip


def test_the_strength_of_the_colours_is_that_asked_for() -> None:
    shifts = Augment(pca=0.1).shifts(20000, torch.Generator().manual_seed(0))
    assert shifts.std(0).tolist() == pytest.approx([0.1] * 3, rel=0.03)
    images = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    out = Augment(pca=0.5)(images, torch.Generator().manual_seed(0))
    assert (out.float().flatten(2).std(2, correction=0) == 0).all()  # all pixels of an image move together
    assert out[:, :, 0, 0].unique(dim=0).shape[0] == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"crop": -0.1}, "crop must be a share of the area from 0 to 1, got -0.1"),
        ({"crop": "scale"}, "crop must be a share of the area from 0 to 1, got 'scale'"),
        ({"pca": 2}, "pca must be a strength, 0.1 in AlexNet, from 0 to 1, got 2"),
        ({"pad": 4, "crop": 0.08}, "are two ways to crop; choose one"),
    ],
)
def test_a_wrong_augmentation_says_what_would_be_right(choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**choices)


# --- it repeats


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than CPUs here
@pytest.mark.parametrize("augment", [None, Augment(crop=0.2, flip="random", pca=0.1, cutout=3), Augment(pad=2)])
def test_neither_workers_nor_shares_change_what_is_drawn(data: FileSet, augment: Augment | None) -> None:
    images, labels = drawn(replace(data, workers=0), augment=augment)
    for workers in (1, 3):
        others, same = drawn(replace(data, workers=workers), augment=augment)
        assert torch.equal(images, others) and torch.equal(labels, same)
    halves = [list(batches(data, 4, generator=torch.Generator().manual_seed(0), augment=augment, share=(k, 2)))
              for k in range(2)]  # fmt: skip
    joined = [torch.cat([first[0], second[0]]) for first, second in zip(*halves, strict=True)]
    assert torch.equal(torch.cat(joined), images)


def test_every_epoch_and_seed_draws_anew_and_the_generator_says_what(data: FileSet) -> None:
    augment, generator = Augment(crop=0.2), torch.Generator().manual_seed(0)
    first, second = (torch.cat([i for i, _ in batches(data, 4, generator=generator, augment=augment)]) for _ in "ab")
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    assert torch.equal(first, drawn(data, augment=augment)[0])
    assert not torch.equal(first, drawn(data, augment=augment, seed=1)[0])


def test_the_global_generator_is_left_alone(data: FileSet) -> None:
    before = torch.get_rng_state()
    drawn(replace(data, workers=2), augment=Augment(crop=0.2, flip="random", pca=0.1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_last_batch_is_left_out_where_asked(data: FileSet) -> None:
    assert [len(labels) for _, labels in batches(data, 4, drop_last=True)] == [4, 4, 4]


def test_the_digest_knows_names_lengths_labels_and_size(folder: Path, data: FileSet, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "train", tmp_path / "copy")
    assert read_names(copy, 16).digest() == data.digest()
    assert replace(data, size=17).digest() != data.digest()
    assert replace(data, labels=data.labels.flip(0)).digest() != data.digest()
    with (copy / "n01" / "1.png").open("ab") as file:
        file.write(b"x")
    assert read_names(copy, 16).digest() != data.digest()
    (copy / "n01" / "1.png").rename(copy / "n01" / "1b.png")
    changed = read_names(copy, 16)
    (copy / "n01" / "1b.png").rename(copy / "n01" / "1c.png")
    assert read_names(copy, 16).digest() != changed.digest()


# --- what the package does with it


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.head = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor, return_maps: bool = False):
        local = images.float() / 255
        logits = self.head(local.mean((2, 3)))
        return (logits, {"layer1": local.mean(1)}) if return_maps else logits


def test_it_trains_measures_and_gives_maps_as_a_set_in_memory_does(data: FileSet) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches(data, 5), strict=True))
    memory = ImageSet(images, labels, data.classes)
    net, other = Net(), Net()
    # without augmentation that depends on the image's file the same generator draws the same order
    one = fit(net, memory, memory, epochs=1, batch_size=14, lr=0.1, progress=False, device="cpu", amp="off")
    two = fit(other, data, data, epochs=1, batch_size=14, lr=0.1, progress=False, device="cpu", amp="off")
    assert two.final["loss"] == pytest.approx(one.final["loss"], rel=1e-6)
    torch.testing.assert_close(other.head.weight, net.head.weight)
    assert evaluate(net, data) == pytest.approx(evaluate(net, memory))
    torch.testing.assert_close(maps_of(net, data)["layer1"], maps_of(net, memory)["layer1"])
    assert results.describe(data) == {
        "name": "train", "images": 14, "size": [16, 16], "classes": 2, "masks": False, "digest": data.digest(),
        "caveat": "",
    }  # fmt: skip


def test_a_stopped_training_on_files_continues_exactly(data: FileSet, tmp_path: Path) -> None:
    settings = {"epochs": 3, "batch_size": 4, "lr": 0.1, "progress": False, "device": "cpu", "amp": "off",
                "augment": Augment(crop=0.2, flip="random", pca=0.1)}  # fmt: skip
    whole, halted = Net(), Net()
    first = fit(whole, data, **settings)

    def stop(record: dict) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(halted, data, checkpoint=tmp_path / "a.safetensors", on_epoch=stop, **settings)
    again = Net()
    second = fit(again, data, checkpoint=tmp_path / "a.safetensors", **settings)
    assert second.curve("loss") == first.curve("loss")
    assert torch.equal(again.head.weight, whole.head.weight)
    with pytest.raises(ValueError, match="data digest was"):
        fit(Net(), replace(data, size=15), checkpoint=tmp_path / "a.safetensors", **settings)


def test_sets_of_files_are_split_and_thinned_like_others(data: FileSet) -> None:
    assert balanced(data, 6).labels.bincount().tolist() == [3, 3]
    rest, out = held_out(data, 0.3)
    assert (len(rest), len(out)) == (10, 4) and not set(rest.paths) & set(out.paths)
    assert per_class(data, 2, 1)[1].labels.tolist() == [0, 1]
    assert data.subset(slice(0, 3)).paths == data.paths[:3]


def test_mean_and_spread_are_those_of_a_sample_or_given(data: FileSet) -> None:
    images = torch.cat([images for images, _ in batches(data, 5)])
    memory = ImageSet(images, data.labels, data.classes)
    assert data.mean == memory.mean and data.std == memory.std
    known = replace(data, moments=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert known.mean == (0.1, 0.2, 0.3) and known.std == (0.4, 0.5, 0.6)
    assert len(data.sample(5)) == 5 and set(data.sample(5).labels.tolist()) == {0, 1}


# --- load, recipes and errors


def test_load_reads_a_folder_as_a_stream_and_imagenet_from_its_root(folder: Path) -> None:
    train, test = load(folder, stream=True, size=(12, 16), device="cpu")
    assert isinstance(train, FileSet) and (train.size, len(test), test.name) == ((12, 16), 14, "val")
    train, test = load(folder / "train", stream=True, size=8, device="cpu", test=0.3, n_train=4, label_noise=0.5)
    assert (len(train), len(test)) == (4, 4) and train.clean_labels is not None
    train, test = load("imagenet", root=folder, device="cpu")
    assert (train.name, train.size, train.mean) == ("imagenet", (224, 224), (0.485, 0.456, 0.406))
    assert train.caveat == "2 classes in place of the 1,000 of ImageNet"


LARGE = """
title = "large"
[rows.tiny]
model = "attention-56-imagenet"
data = "imagenet"
data_options = { size = 33 }
options = { width = 0.03125 }
settings = { epochs = 1, batch_size = 7, amp = "off", augment = { crop = 0.08, flip = "random", pca = 0.1 } }
measure = "top-5"
"""


def test_the_command_trains_and_measures_on_the_folder_of_imagenet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes" / "paper").mkdir(parents=True)
    (tmp_path / "recipes" / "paper" / "large.toml").write_text(LARGE)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    given = ["--data", str(folder), "--device", "cpu"]
    assert cli.main(["train", "large/tiny", *given]) == 0
    result = results.read(tmp_path / "results" / "paper" / "large" / "tiny" / "seed0.json")
    assert result["data"]["test"] | {"digest": ""} == {
        "name": "imagenet", "images": 14, "size": [33, 33], "classes": 2, "masks": False, "digest": "",
        "caveat": "2 classes in place of the 1,000 of ImageNet",
    }  # fmt: skip
    assert result["settings"]["augment"] == asdict(Augment(flip="random", crop=0.08, pca=0.1))
    assert result["model"]["options"]["mean"] == [0.485, 0.456, 0.406]
    measured = result["final"]["measured"]["imagenet"]["centre crop"]
    assert measured == {"top-1 error": pytest.approx(1 - result["final"]["accuracy"]), "top-5 error": 0.0}
    capsys.readouterr()
    weights = str(tmp_path / "runs" / "paper" / "large" / "tiny" / "seed0.safetensors")
    assert cli.main(["evaluate", weights, *given, "--size", "33"]) == 0
    assert f"test accuracy {result['final']['accuracy']:.4f}" in capsys.readouterr().out
    assert cli.main(["train", "large/tiny", "--force", "--device", "cpu", "--data", str(tmp_path / "runs")]) == 2
    assert "ImageNet is not in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="measures attack, which needs images in memory"):
        recipes.run(replace(recipes.get("large/tiny"), measure="attack"), data=str(folder), results_root=None)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, workers: int) -> None:
    copy = shutil.copytree(folder / "train", tmp_path / "copy")
    whole = (copy / "n02" / "4.JPEG").read_bytes()
    (copy / "n02" / "4.JPEG").write_bytes(whole[: len(whole) // 2])
    data = replace(read_names(copy, 16), workers=workers)
    with pytest.raises(ValueError, match=r"^.*n02/4\.JPEG: is truncated or no image .*; replace or remove it$"):
        drawn(data, 2)
    (copy / "n02" / "4.JPEG").unlink()
    with pytest.raises(ValueError, match=r"n02/4\.JPEG"):
        drawn(data, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: load("imagenet", root=f / "no"), FileNotFoundError, "put the training images into .*train/CLASS/"),
        (lambda f: load("glyphs", stream=True), ValueError, "glyphs fits into memory"),
        (lambda f: load("imagenet", root=f, test=0.1), ValueError, "imagenet has test images of its own"),
        (lambda f: load(f / "train" / "n01" / "0.JPEG", stream=True), ValueError, "is no folder"),
        (lambda f: load(f / "train" / "n01", stream=True), ValueError, "0 folders of classes and 7 images beside them"),
        (lambda f: load(f, stream=True, test=0.1), ValueError, "holds val beside train"),
        (lambda f: load(f, stream=True, size=0), ValueError, "size must be a positive number of pixels"),
        (lambda f: load("imagenett"), ValueError, "did you mean 'imagenet'"),
        (lambda f: drawn(read_names(f / "val", 8), augment=Augment(flip="half")), ValueError, "use flip='random'"),
        (lambda f: drawn(read_names(f / "val", 8), augment=lambda x, g: x), TypeError, "takes an Augment"),
        (lambda f: replace(read_names(f / "val"), workers=-1), ValueError, "workers must be 0 or more"),
        (lambda f: replace(read_names(f / "val"), labels=torch.zeros(3)), ValueError, r"labels must be int64 \(14,\)"),
        (lambda f: replace(read_names(f / "val"), classes=("n01",)), ValueError, "labels run from 0 to 1"),
    ],
)
def test_misuse_is_answered_with_what_to_do(folder: Path, call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(folder)


def test_two_sides_with_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "val" / "n02").rename(copy / "val" / "n03")
    with pytest.raises(ValueError, match=r"its classes are not those of .*: \['n02', 'n03'\]"):
        load("imagenet", root=copy)
