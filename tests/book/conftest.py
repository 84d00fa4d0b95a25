"""What the tests of the book share: the built site, the browser, and a small book to break on purpose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookfiles import ROOT
from browser import Browser, Server, find_chromium
from build_site import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, str, Path]:
    """The book built strictly: whether it passed, its warnings, and the folder of the site."""
    out = tmp_path_factory.mktemp("site")
    passed, warnings = build(ROOT, out)
    return passed, warnings, out / "_build" / "html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one the test is skipped, but never in continuous integration."""
    if find_chromium() is None:
        missing = "no Chromium here; on Debian and Ubuntu: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with Browser() as running:
        yield running


@pytest.fixture(scope="session")
def site_url(built: tuple[bool, str, Path]) -> Iterator[str]:
    """The built site on a local address."""
    with Server(built[2]) as server:
        yield server.url


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A book of one page and the template notebook, with the settings of the real one."""
    for name in ("_config.yml", "pyproject.toml", "CITATION.cff", "book/references.bib", "book/glossary.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("assets", "payattn/quizzes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("notebooks", "tests"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "notebooks" / "template.ipynb", tmp_path / "notebooks")
    shutil.copy(ROOT / "tests" / "test_attention.py", tmp_path / "tests")
    (tmp_path / "book/intro.md").write_text("# A page\n\nProse, and a formula $a^2$. {cite}`jetley2018learn`\n")
    (tmp_path / "book/references.md").write_text("# References\n\n```{bibliography}\n```\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\ndefaults: {numbered: true}\n"
        "chapters: [{file: notebooks/template}, {file: book/glossary}, {file: book/references}]\n"
    )
    return tmp_path
