"""Exported networks: the numbers of the network, names for every output, and nothing written that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from payattn import checkpoint, cli, export
from payattn.models import create

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

CLASSES = ("A", "H", "T")


class Tiny(nn.Module):
    """One convolution, a map of its strength, and its mean as the decision."""

    def __init__(self, name: str = "layer1") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.name = nn.Conv2d(3, 3, 3, padding=1), name

    def forward(self, images: Tensor, return_maps: bool = False) -> Any:
        x = self.layer(images)
        return (x.mean((2, 3)), {self.name: x.square().sum(1)}) if return_maps else x.mean((2, 3))


def images(n: int, height: int = 6, width: int = 8) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n))


def outputs(path: Path, given: Tensor) -> dict[str, Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": given.numpy()})), strict=True))


@pytest.mark.parametrize("name", ["vgg-att-pc", "wrn-10-1"])
def test_onnx_gives_logits_and_every_map_by_name_for_any_number_of_images(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = create(name, 3, width=0.125 if name.startswith("wrn") else 0.05)
    path = tmp_path / "new" / "net.onnx"
    differences = export.to_onnx(net, path, (6, 8), classes=CLASSES)
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert list(differences) == ["logits", *net.levels]
    for n in (1, 4):
        logits, maps = net.eval()(images(n), return_maps=True)
        for key, out in outputs(path, images(n)).items():
            torch.testing.assert_close(out, {"logits": logits, **maps}[key].detach(), rtol=1e-4, atol=1e-6)
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    assert json.loads(said["model"]) == net.spec
    assert "[0, 1]" in said["input"]
    graph = onnx.load(path).graph
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input, *graph.output)] == ["batch"] * (
        1 + len(differences)
    )


def test_a_program_is_read_back_with_its_named_outputs(tmp_path: Path) -> None:
    net, path = Tiny(), tmp_path / "net.pt2"
    assert export.names_of(export.to_program(net, (6, 8), path)) == ["logits", "layer1"]
    again = torch.export.load(path).module()(images(5))
    logits, maps = net(images(5), return_maps=True)
    torch.testing.assert_close(again, {"logits": logits, **maps})
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


def test_a_network_of_ones_own_without_maps_gives_its_logits(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    path = tmp_path / "net.onnx"
    assert list(export.to_onnx(net, path, 8)) == ["logits"]
    torch.testing.assert_close(outputs(path, images(2, 8))["logits"], net(images(2, 8)).detach())


def test_the_check_names_the_output_that_differs_and_by_how_much(tmp_path: Path) -> None:
    net, path = Tiny(), tmp_path / "net.onnx"
    export.to_onnx(net, path, (6, 8))
    found = export.check(path, net, images(4))
    assert list(found) == ["logits", "layer1"]
    assert max(found.values()) < 1e-5
    net.get_parameter("layer.bias").data[1] += 0.25
    with pytest.raises(ValueError, match=r"logits differ from the network by 0\.25, .*; layer1 differs from"):
        export.check(path, net, images(4))
    with pytest.raises(ValueError, match="outputs are logits, layer1; those of the network are logits, other"):
        export.check(path, Tiny("other"), images(4))


def test_what_does_not_fit_the_network_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("what was there before")
    with pytest.raises(ValueError, match="classes must be 3 names, one per logit, got 2: A, H"):
        export.to_onnx(Tiny(), path, 8, classes=CLASSES[:2])
    other = Tiny()
    other.layer.weight.data[0] += 0.1
    program = export.to_program(other, 8)
    monkeypatch.setattr(export, "to_program", lambda *_: program)
    with pytest.raises(ValueError, match="logits differ from the network"):
        export.to_onnx(Tiny(), path, 8)
    assert path.read_text() == "what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_differences_are_measured_against_the_largest_value_and_not_a_number_never_passes() -> None:
    one = {"map": torch.tensor([100.0, 0.0])}
    assert export.compare(one, {"map": torch.tensor([100.0, 0.005])}) == {"map": pytest.approx(0.005)}
    with pytest.raises(ValueError, match=r"map differs from the network by 0\.05"):
        export.compare(one, {"map": torch.tensor([100.0, 0.05])})
    with pytest.raises(ValueError, match="map differs from the network by nan"):
        export.compare({"map": torch.tensor([float("nan")])}, {"map": torch.tensor([1.0])})
    with pytest.raises(ValueError, match=r"map is \(2,\), that of the network is \(1,\)"):
        export.compare(one, {"map": torch.tensor([1.0])})


def test_sizes_and_names_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        export.to_program(Tiny(), (0, 8))
    with pytest.raises(ValueError, match="a map is named 'logits'"):
        export.Named(Tiny("logits"))(images(1))


def test_without_the_packages_of_onnx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"ONNX needs onnxruntime .*pip install 'payattn\[export\]'"):
        export.check(b"", Tiny())


def test_the_command_writes_a_checkpoint_in_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, net = tmp_path / "net.safetensors", create("wrn-10-1", 3, width=0.125)
    checkpoint.save_weights(net, weights, {"data": {"classes": CLASSES}})
    for kind in ("onnx", "pt2"):
        path = tmp_path / f"net.{kind}"
        assert cli.main(["export", str(weights), str(path), "--size", "8x6"]) == 0
        assert f"images 8 x 6, RGB in [0, 1]; logits, group0, group1, group2: {path}" in capsys.readouterr().out
        assert path.is_file()
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    export.check(tmp_path / "net.onnx", net)
    assert cli.main(["export", str(weights), str(tmp_path / "net.txt")]) == 2
    assert "FILE ends in .onnx or .pt2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", str(weights), "net.onnx", "--size", "0x4"])
    assert "a size is written 32 or 24x32" in capsys.readouterr().err
