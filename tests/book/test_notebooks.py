"""Every notebook keeps the rules, runs from top to bottom, and runs with other parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import check_notebooks
from bookfiles import ROOT, notebooks, read_address
from run_notebooks import plain

NOTEBOOKS = [pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem)) for path in notebooks(ROOT)]
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_notebook_keeps_the_rules(path: Path) -> None:
    faults = list(check_notebooks.Rules(path, ROOT, read_address(ROOT)).all())
    assert not faults, "\n" + "\n".join(map(str, faults))


def test_names_of_figures_are_unique_and_no_page_holds_a_typed_result() -> None:
    own = {path.name for path in notebooks(ROOT)}
    faults = [f for f in check_notebooks.check(ROOT) if f.file.startswith("book/") or "is also in" in f.rule]
    assert own and not faults, "\n" + "\n".join(map(str, faults))


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_notebook_runs_and_its_marked_outputs_hold(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300"]
    command += ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--noconftest", "-c", os.devnull, str(path)]
    done = subprocess.run(command, cwd=path.parent, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, "\n" + plain(done.stdout)[-6000:]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_notebook_runs_with_the_small_budget_and_another_seed(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb"), "--cwd", str(path.parent)]
    command += ["-k", "python3", "-p", "budget", "check", "-p", "seed", "1", "--execution-timeout", "300"]
    done = subprocess.run([*command, "--no-progress-bar"], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, "\n" + plain(done.stderr)[-6000:]
    assert "unknown parameter" not in done.stderr, "the cell tagged `parameters` lacks budget or seed"
