"""The README's example runs as it is printed, on fewer images."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

import payattn as pa

README = Path(__file__).parent.parent / "README.md"


def test_the_ten_lines_run_and_write_their_picture_and_a_student_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, transfer = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pa, "load", partial(pa.load, n_train=128, n_test=16, device="cpu"))
    names: dict[str, object] = {}
    exec(code, names)
    assert {level: tuple(a.shape) for level, a in names["maps"].items()} == {  # type: ignore[attr-defined]
        "layer10": (8, 16, 16),
        "layer13": (8, 8, 8),
    }
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    exec(transfer, names)
    assert list(names["teach"].last) == ["classification", "group0", "group1", "group2"]  # type: ignore[attr-defined]


def test_every_file_the_readme_points_at_exists() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert linked
    assert [name for name in linked if not (README.parent / name).exists()] == []
