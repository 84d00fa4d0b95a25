"""The README's examples run as they are printed, on fewer images."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import payattn as pa

README = Path(__file__).parent.parent / "README.md"


BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_ten_lines_give_a_resnet_attention_and_write_its_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision").models
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "resnet18", lambda weights: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]))
    load, fit = pa.load, pa.fit
    monkeypatch.setattr(pa, "load", lambda name, **some: load(name, **(some | {"n_train": 16, "n_test": 8})))
    monkeypatch.setattr(pa, "fit", lambda *them, **some: fit(*them, **(some | {"epochs": 1}), device="cpu"))
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    assert {level: tuple(a.shape) for level, a in names["maps"].items()} == {
        "layer2": (8, 12, 12),
        "layer3": (8, 6, 6),
    }
    assert names["logits"].shape == (8, 10)
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_the_networks_of_the_papers_run_and_write_their_picture_and_a_student_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, code, transfer = BLOCKS
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pa, "load", partial(pa.load, n_train=128, n_test=16, device="cpu"))
    names: dict[str, Any] = {"pa": pa}
    exec(code, names)
    assert {level: tuple(a.shape) for level, a in names["maps"].items()} == {
        "layer10": (8, 16, 16),
        "layer13": (8, 8, 8),
    }
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    exec(transfer, names)
    assert list(names["teach"].last) == ["classification", "group0", "group1", "group2"]


def test_every_file_the_readme_points_at_exists() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert linked
    assert [name for name in linked if not (README.parent / name).exists()] == []
