"""The equation register: every labelled equation names the function that computes it and the test that holds it.

book/equations.toml is written by hand, one table per label:

    [eq-scores-dp]
    function = "payattn.attention.dot_product_scores"
    test = "tests/test_attention.py::test_dot_product_scores_by_hand"

This tool checks it against the equations of the chapters and pages and writes book/equations.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

from bookfiles import ROOT, Fault, markdown_of, notebooks, report, short, toc_files

REGISTER, PAGE = "book/equations.toml", "book/equations.md"
DOLLARS = re.compile(r"\$\$(?P<tex>(?:(?!\$\$).)+)\$\$[ \t]*\((?P<label>[\w:.-]+)\)", re.S)
DIRECTIVE = re.compile(r"\{math\}[^\n]*\n(?:\s*:(?!label)[\w-]+:.*\n)*\s*:label:\s*(?P<label>\S+)")
HEAD = """\
<!-- written by tools/equations.py from book/equations.toml: do not edit -->

# Equation register

Every labelled equation of this book is computed by a function of the package and held by a test. The test run
fails when an equation lacks either.

| equation | where | function | test |
|---|---|---|---|
"""


def labelled(root: Path) -> dict[str, Path]:
    """Every equation label of the book, with the file it stands in."""
    pairs = [(root / f"{name}.md", root / f"{name}.ipynb") for name in toc_files(root)]
    files = [path for pair in pairs for path in pair if path.exists()]
    files += [path for path in notebooks(root) if path not in files]
    found: dict[str, Path] = {}
    for path in files:
        for _, text in markdown_of(path):
            for match in (*DOLLARS.finditer(text), *DIRECTIVE.finditer(text)):
                found.setdefault(match["label"], path)
    return found


def function_exists(name: str) -> bool:
    """Whether a dotted name, such as payattn.attention.attend, can be imported and called."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part, None)  # type: ignore[assignment]
        return callable(thing)
    return False


def test_exists(root: Path, name: str) -> bool:
    """Whether `tests/file.py::test_name` or `tests/file.py::TestClass::test_name` is defined."""
    file, *parts = name.split("::")
    if not parts or not (root / file).is_file():
        return False
    body: list[ast.stmt] = ast.parse((root / file).read_text()).body
    for part in parts:
        node = next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
        if node is None:
            return False
        body = node.body
    return True


def check(root: Path) -> list[Fault]:
    """Labels that are not registered, and entries whose label, function or test does not exist."""
    register = tomllib.loads((root / REGISTER).read_text())
    labels = labelled(root)
    faults = []
    for label, path in labels.items():
        if label not in register:
            fix = f'add to {REGISTER}:  [{label}]  function = "payattn...."  test = "tests/test_...py::test_..."'
            faults.append(Fault(short(path, root), "", f"equation {label} is not registered", fix))
    for label, entry in register.items():
        if label not in labels:
            faults.append(Fault(REGISTER, label, "no equation has this label", "remove the entry or mend the label"))
        if not function_exists(entry.get("function", "")):
            faults.append(
                Fault(REGISTER, label, f"function {entry.get('function')!r} cannot be called", "name one that can")
            )
        if not test_exists(root, entry.get("test", "")):
            faults.append(Fault(REGISTER, label, f"test {entry.get('test')!r} is not defined", "name one that is"))
    if (root / PAGE).read_text() != page(root):
        faults.append(Fault(PAGE, "", "is not current", "run: make pages"))
    return faults


def page(root: Path) -> str:
    """The register as a page of the book."""
    register = tomllib.loads((root / REGISTER).read_text())
    listed = toc_files(root)
    rows = []
    for label, path in labelled(root).items():
        name = str(path.relative_to(root).with_suffix(""))
        if name in listed and label in register:
            entry = register[label]
            test = entry.get("test", "").split("::")
            rows.append(
                f"| {{eq}}`{label}` | {{doc}}`/{name}` | `{entry.get('function', '')}` | `{test[0]}` `{test[-1]}` |"
            )
    return HEAD + "\n".join(rows) + "\n" if rows else HEAD.split("\n\n|")[0] + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is missing")
    options = parser.parse_args()
    root = options.root.resolve()
    if not options.check:
        (root / PAGE).write_text(page(root))
    return report(check(root), "equations: every label has its function and its test")


if __name__ == "__main__":
    sys.exit(main())
