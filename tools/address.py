"""Write the repository's address into every place derived from `repository.url` in _config.yml.

The derived places are the badge and set-up cell of every notebook, and every mention of the old address in
a text file; the old address is the one in pyproject.toml. `--check` says where a place disagrees.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bookfiles import (
    PLACEHOLDER,
    ROOT,
    Address,
    Fault,
    notebooks,
    read_address,
    read_notebook,
    report,
    short,
    write_notebook,
)
from run_notebooks import source_hash

TEXT = {".md", ".toml", ".cff", ".yml", ".yaml", ".py", ".json", ".ipynb"}
OWN = {"_config.yml"}  # where the address is written by hand


def text_files(root: Path) -> list[Path]:
    """Text files of the project that may mention the address, notebooks apart."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    names = listed.stdout.splitlines()
    if listed.returncode != 0:  # not a git checkout
        names = [str(p.relative_to(root)) for p in root.rglob("*")]
    files = [root / name for name in names if Path(name).suffix in TEXT and name not in OWN]
    return [f for f in files if f.is_file() and not f.is_relative_to(root / "tools")]


def mentions(address: Address) -> re.Pattern[str]:
    """Matches an address of this repository on its host, whoever owns it."""
    repo = re.escape(address.repo)
    host = r"(?:github\.com/|colab\.research\.google\.com/github/|raw\.githubusercontent\.com/)"
    return re.compile(rf"{host}(?P<slug>[\w.-]+/{repo})\b|https://(?P<owner>[\w-]+)\.github\.io/{repo}\b")


def old_address(root: Path, new: Address) -> Address:
    """The address that was written last time."""
    project = (root / "pyproject.toml").read_text()
    found = re.search(r'^Repository = "https://github\.com/([\w.-]+)/([\w.-]+)"', project, re.M)
    return Address(found[1], found[2], new.branch) if found else new


def rewrite(text: str, old: Address, new: Address) -> str:
    """The text with the new address in place of the old one."""
    text = re.sub(rf"(?<=[/:]){re.escape(old.slug)}(?![\w-])", new.slug, text)
    return re.sub(re.escape(old.site.rstrip("/")), new.site.rstrip("/"), text, flags=re.I)


def fit_notebook(notebook: Any, name: str, old: Address, new: Address) -> None:
    """Give a notebook the badge and the set-up cell of this address, and this address everywhere else."""
    cells = notebook.cells
    fresh = notebook.metadata.get("payattn") == {"code": source_hash(notebook)}
    for cell in cells:
        cell.source = rewrite(cell.source, old, new)
    if "colab.research.google.com" not in cells[0].source or cells[0].cell_type != "markdown":
        import nbformat

        cells.insert(0, nbformat.v4.new_markdown_cell(id="badge"))
    cells[0].source = new.badge_cell(name)
    cells[0].metadata = {"tags": ["remove-cell"]}
    setup = next((c for c in cells if c.cell_type == "code"), None)
    if setup is not None and "payattn" in setup.source:
        setup.source = new.setup_cell()
    if fresh:  # an address changes no output
        notebook.metadata["payattn"] = {"code": source_hash(notebook)}


def write(root: Path) -> list[str]:
    """Bring every derived place up to date; the files that changed."""
    new = read_address(root)
    old = old_address(root, new)
    changed = []
    for path in text_files(root):
        if path.suffix != ".ipynb":
            before = path.read_text()
            after = rewrite(before, old, new)
            if after != before:
                path.write_text(after)
                changed.append(path.name)
    for path in notebooks(root):
        text = path.read_text()
        notebook = read_notebook(path)
        fit_notebook(notebook, path.name, old, new)
        write_notebook(path, notebook)
        if path.read_text() != text:
            changed.append(path.name)
    return changed


def check(root: Path) -> list[Fault]:
    """Every place that names another address than _config.yml does."""
    address = read_address(root)
    pattern = mentions(address)
    faults = []
    for path in text_files(root):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in pattern.finditer(line):
                slug = found["slug"] or f"{found['owner']}/{address.repo}"
                if slug.lower() != address.slug.lower():
                    rule = f"names {slug}, not {address.slug}"
                    faults.append(Fault(short(path, root), f"line {number}", rule, "run: make address"))
    if old_address(root, address).slug != address.slug:
        faults.append(Fault("pyproject.toml", "", f"does not name {address.url}", "run: make address"))
    return faults


def placeholders(root: Path) -> list[str]:
    """Files that still hold the placeholder."""
    holds = re.compile(rf"{PLACEHOLDER}|{PLACEHOLDER.split('/')[0].lower()}\.github\.io")
    files = [root / "_config.yml", *text_files(root)]
    return sorted(str(f.relative_to(root)) for f in files if holds.search(f.read_text()))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a place disagrees")
    parser.add_argument("--published", action="store_true", help="with --check: fail while the placeholder stands")
    options = parser.parse_args()
    root = options.root.resolve()
    if not options.check:
        changed = write(root)
        print(f"address: {read_address(root).url}; changed: {', '.join(changed) or 'nothing'}")
        return 0
    held = placeholders(root)
    if held:
        print(f"address: the placeholder {PLACEHOLDER} still stands in {len(held)} files: {', '.join(held)}")
    faults = check(root)
    if options.published:
        faults += [Fault(f, "", "holds the placeholder", "set repository.url, run: make address") for f in held]
    return report(faults, "address: every place agrees with _config.yml")


if __name__ == "__main__":
    sys.exit(main())
