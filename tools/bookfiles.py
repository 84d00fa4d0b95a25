"""What the tools of the book share: where its files are, its address, how a fault is reported."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "OWNER/payattn"


@dataclass(frozen=True)
class Fault:
    """One broken rule: the file, the place in it, the rule, and what to do about it."""

    file: str
    place: str
    rule: str
    fix: str

    def __str__(self) -> str:
        place = f", {self.place}" if self.place else ""
        return f"{self.file}{place}: {self.rule}\n    -> {self.fix}"


def report(faults: Iterable[Fault], ok: str) -> int:
    """Print the faults, or the sentence that says all is well; the exit status."""
    faults = list(faults)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else ok)
    return 1 if faults else 0


def notebooks(root: Path) -> list[Path]:
    """The chapters and the template, in order."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def read_notebook(path: Path) -> Any:
    """The notebook, in the current format."""
    return nbformat.read(path, as_version=4)


def toc_files(root: Path) -> list[str]:
    """Every document of the table of contents, without its ending, in reading order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())

    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            yield from (str(node[key]) for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key, []))

    return list(walk(toc))


def markdown_of(path: Path) -> list[tuple[str, str]]:
    """The prose of a page or notebook as (place, text) pairs."""
    if path.suffix == ".ipynb":
        cells = read_notebook(path).cells
        return [(f"cell {i}", c.source) for i, c in enumerate(cells, 1) if c.cell_type == "markdown"]
    return [("", path.read_text())]


@dataclass(frozen=True)
class Address:
    """Where the repository lives on its host."""

    owner: str
    repo: str
    branch: str

    @property
    def slug(self) -> str:
        return f"{self.owner}/{self.repo}"

    @property
    def url(self) -> str:
        return f"https://github.com/{self.slug}"

    @property
    def site(self) -> str:
        return f"https://{self.owner.lower()}.github.io/{self.repo}/"

    def colab(self, notebook: str) -> str:
        return f"https://colab.research.google.com/github/{self.slug}/blob/{self.branch}/notebooks/{notebook}"

    def badge_cell(self, notebook: str) -> str:
        """The first cell of a chapter: a badge for readers on the host, hidden on the site."""
        return f"[![Open in Colab]({BADGE})]({self.colab(notebook)})"

    def setup_cell(self) -> str:
        """The first code cell of every chapter: install where payattn is missing, leave torch alone."""
        return (
            "from importlib.util import find_spec\n"
            'if find_spec("payattn") is None:\n'
            f'    %pip install -q "payattn @ git+{self.url}"\n'
            "import payattn as pa"
        )


BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def read_address(root: Path) -> Address:
    """The address, from the one place where it is written by hand."""
    repository = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    found = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?", repository["url"])
    if not found:
        raise SystemExit(
            f"_config.yml: repository.url is {repository['url']!r}, expected https://github.com/OWNER/REPO"
        )
    return Address(found[1], found[2], repository.get("branch", "main"))


def write_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook the one way, so that equal notebooks are equal files."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def short(path: Path, root: Path) -> str:
    """The path as the reader of a report knows it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def fail(message: str) -> None:
    """Say what is wrong and stop."""
    print(message, file=sys.stderr)
    raise SystemExit(1)
