"""The command line: what it prints, what it leaves, and that a mistake is answered in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from payattn import checkpoint, cli, recipes, robust, train
from payattn.data import ImageSet, balanced, glyphs, load
from payattn.models import create

TINY = """
title = "tiny"
[defaults]
data = "glyphs"
data_options = { n_train = 48, n_test = 20, size = 16 }
options = { width = 0.03125, dropout = 0.0 }
settings = { epochs = 2, batch_size = 16, lr = 0.01 }
[rows.pc]
model = "vgg-att2-concat-pc"
[rows.control]
model = "vgg-att-control"
published = { error = 7.5, tag = "recall-hi" }
[small]
settings = { epochs = 1 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside one tiny table of recipes."""
    (tmp_path / "recipes" / "paper").mkdir(parents=True)
    (tmp_path / "recipes" / "paper" / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_records_and_then_leaves_a_run_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "tiny/pc", "--seeds", "0,2", "--device", "cpu", "--small"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "paper/tiny/pc (small), seed 2: vgg-att2-concat-pc" in said
    assert "layer10: points at the object in" in said
    paths = [folder / "results" / "paper" / "tiny" / "pc" / f"small-seed{seed}.json" for seed in (0, 2)]
    before = [path.read_bytes() for path in paths]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("is recorded already; --force runs it again") == 2
    assert [path.read_bytes() for path in paths] == before
    assert (folder / "runs" / "paper" / "tiny" / "pc" / "small-seed0.safetensors").is_file()


def test_train_takes_a_pattern_and_recipes_lists_what_was_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "tiny/*", "--small", "--device", "cpu", "--caveat", "only a test"]) == 0
    assert cli.main(["recipes", "--results", "results"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("paper/tiny/control  published  7.50 % error") and "ran 1:" in line for line in said)
    assert any(line.endswith("% error (small form, glyphs, only a test)") for line in said)


def test_attack_prints_what_curve_measures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = []
    for seed, name in enumerate(("vgg", "vgg-gap")):
        torch.manual_seed(seed)
        nets.append(create(name, width=1 / 32))
        checkpoint.save_weights(nets[-1], f"{name}.safetensors")
    test = balanced(load("glyphs", device="cpu")[1], 40)
    command = ["attack", "vgg.safetensors", "--data", "glyphs", "--epsilons", "0,8", "--count", "40", "--device", "cpu"]
    transfer = ["--kind", "pgd", "--crafted-on", "vgg-gap.safetensors"]
    for extra, attack, maker in ([], "fgsm", None), (transfer, "pgd", nets[1]):
        assert cli.main(command + extra) == 0
        said = capsys.readouterr().out.splitlines()
        points = robust.curve(nets[0].eval(), test, [0, 8 / 255], attack=attack, crafted_on=maker)
        wanted = [f"accuracy {p['accuracy']:.4f}  fooled {p['fooled']:.4f}" for p in points]
        assert [line.split("255  ")[1] for line in said[1:]] == wanted
    with pytest.raises(SystemExit):
        cli.main([*command[:4], "--epsilons", "1,300"])
    assert "budgets are numbers from 0 to 255" in capsys.readouterr().err


def test_a_run_stopped_by_the_user_continues(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    command = ["train", "tiny/pc", "--device", "cpu"]
    real = train._train_epoch

    def stop_in_epoch_2(*arguments):
        if arguments[2] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_train_epoch", stop_in_epoch_2)
    assert cli.main(command) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(train, "_train_epoch", real)
    assert cli.main(command) == 0
    assert "continuing after epoch 1 of 2" in capsys.readouterr().out
    stopped = json.loads((folder / "results" / "paper" / "tiny" / "pc" / "seed0.json").read_text())
    whole = recipes.run(recipes.get("tiny/pc"), 0, results_root=None, device="cpu", progress=False)
    assert [e["loss"] for e in stopped["epochs"]] == [e["loss"] for e in whole["epochs"]]
    assert stopped["final"] == whole["final"]


def write_npz(path: Path, n: int, seed: int, classes: tuple[str, ...] = ()) -> ImageSet:
    data = glyphs(n, size=16, seed=seed)
    numpy.savez(
        path, images=data.images.permute(0, 2, 3, 1).numpy(), labels=data.labels.numpy(), masks=data.masks.numpy(),
        classes=numpy.array(classes or data.classes),
    )  # fmt: skip
    return data


def test_train_evaluate_and_maps_on_files_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(folder / "train.npz", 60, 0)
    test = write_npz(folder / "test.npz", 30, 1)
    data = ["--data", "train.npz", "--test", "test.npz", "--caveat", "JPEG copy"]
    assert cli.main(["train", "tiny/pc", *data, "--device", "cpu"]) == 0
    run = json.loads((folder / "results" / "paper" / "tiny" / "pc" / "seed0.json").read_text())
    assert [run["data"][part]["images"] for part in ("train", "test")] == [48, 20]
    assert run["data"]["test"]["caveat"] == "JPEG copy"
    assert str(folder) not in json.dumps(run)
    weights = "runs/paper/tiny/pc/seed0.safetensors"
    capsys.readouterr()
    assert cli.main(["evaluate", weights, "--data", "test.npz", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    expected = train.evaluate(checkpoint.load_model(weights), test)
    assert f"test accuracy {expected['accuracy']:.4f}, loss {expected['loss']:.4f}: 30 images of" in said
    assert "layer13: points at the object" in said
    assert cli.main(["maps", weights, "--data", "test.npz", "--count", "3", "--out", "a.png"]) == 0
    assert "3 images, layer10, layer13: a.png" in capsys.readouterr().out
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["maps", weights, "a.png", "a.png", "--size", "24", "--out", "b.png"]) == 0
    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG")
    write_npz(folder / "other.npz", 20, 1, classes=tuple("abcdefghij"))
    assert cli.main(["evaluate", weights, "--data", "other.npz", "--device", "cpu"]) == 2
    assert "the same ones are needed, in the same order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "tiny/pcc"], "did you mean 'paper/tiny/pc'"),
        (["train", "nothing/*"], "no recipe fits 'nothing/*'"),
        (["train", "tiny/pc", "--device", "gpu"], "device must be 'auto'"),
        (["train", "tiny/pc", "--threads", "0"], "--threads must be at least 1"),
        (["train", "tiny/pc", "--data", "no-such-file.npz"], "no-such-file.npz"),
        (["recipes", "nothing*"], "no recipe fits"),
        (["evaluate", "missing.safetensors", "--data", "glyphs"], "there is no checkpoint missing.safetensors"),
        (["maps", "missing.safetensors"], "image files or a data set"),
        (["maps", "recipes/paper/tiny.toml", "x.png"], "tiny.toml is cut off or damaged"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, capsys, command: list[str], message: str) -> None:
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("payattn: ")
    assert said.count("\n") == 1


def test_maps_of_a_network_without_maps_and_of_a_file_that_is_no_image(folder: Path, capsys) -> None:
    checkpoint.save_weights(create("vgg", 10, width=0.03125), "vgg.safetensors")
    assert cli.main(["maps", "vgg.safetensors", "recipes/paper/tiny.toml"]) == 2
    assert "tiny.toml is not an image" in capsys.readouterr().err
    from PIL import Image

    Image.new("RGB", (40, 60)).save("grey.png")
    assert cli.main(["maps", "vgg.safetensors", "grey.png"]) == 2
    assert "vgg.safetensors holds vgg, which has no attention maps; --method grad-cam" in capsys.readouterr().err


def test_maps_of_any_network_by_the_name_of_their_method(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    checkpoint.save_weights(create("vgg", 10, width=0.03125), "vgg.safetensors")
    Image.new("RGB", (40, 60)).save("grey.png")
    call = ["maps", "vgg.safetensors", "grey.png", "--out", "m.png"]
    assert cli.main([*call, "--method", "saliency", "--method", "grad-cam"]) == 0
    assert "1 images, saliency, grad-cam: m.png" in capsys.readouterr().out
    assert cli.main([*call, "--method", "grad-cam", "--layer", "trunk.layer4"]) == 0
    assert (folder / "m.png").read_bytes().startswith(b"\x89PNG")
    for wrong, said in (
        (["--method", "gradcam"], "did you mean 'grad-cam'"),
        (["--method", "grad-cam", "--layer", "trunk.layer99"], "no layer 'trunk.layer99'"),
        (["--method", "saliency", "--layer", "trunk.layer4"], "--layer belongs to --method grad-cam alone"),
        (["--layer", "trunk.layer4"], "--layer belongs to --method grad-cam"),
        (["--method", "cam"], "VGG has no class_map"),
    ):
        assert cli.main([*call, *wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["4-0", "a", "1-", "", "-3"])
def test_seeds_that_make_no_sense_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parser().parse_args(["train", "x", f"--seeds={text}"])
    assert stop.value.code == 2
    assert "seeds are written 0-4 or 0,2,5" in capsys.readouterr().err


def test_python_m_payattn_is_the_command() -> None:
    command = [sys.executable, "-m", "payattn", "recipes", "glyphs/pc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("learn-to-pay-attention/glyphs/pc")


def test_doctor_is_content_with_a_machine_that_runs_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert "FAIL" not in said
    assert "trains in" in said
    assert torch.cuda.is_available() or "no GPU is used" in said or "Apple GPU" in said


def test_doctor_explains_a_mismatched_torchvision(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    real = cli._version
    monkeypatch.setattr(cli, "_version", lambda package: "0.20.1" if package == "torchvision" else real(package))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  torchvision 0.20.1 was built for another torch than the installed" in said
    assert "pip install --force-reinstall torch torchvision" in said


def test_doctor_names_a_cache_folder_without_write_access(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cli.os, "access", lambda *_: False)
    assert cli.main(["doctor"]) == 1
    assert "no right to write" in capsys.readouterr().out
