"""Count the rules of the chapters: form, length, figures, exercises, typed numbers.

Each fault names the file, the cell, the rule and what to do. A number that must stand in the prose is
allowed in a paragraph that carries the comment `<!-- by hand: why -->` or `<!-- published: source -->`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from bookfiles import ROOT, Address, Fault, notebooks, read_address, read_notebook, report, short
from run_notebooks import CELL_KEYS, KERNEL, LARGEST, source_hash

MEDIAN, LONGEST_CELL = 8, 25  # lines of code
SHORTEST_ALT = 40  # characters
EXERCISES, QUESTIONS = 6, 8
TYPED = re.compile(r"(?<![\w.])(?:\d{1,3}(?:\.\d+)?\s?(?:%|percent\b|per cent\b)|0\.\d{2,}(?!\w))")


class Rules:
    """The rules of one notebook, each a generator of faults."""

    def __init__(self, path: Path, root: Path, address: Address) -> None:
        self.path, self.root, self.address = path, root, address
        self.nb: Any = read_notebook(path)
        self.cells = list(enumerate(self.nb.cells, 1))
        self.code = [(i, c) for i, c in self.cells if c.cell_type == "code"]
        self.prose = [(i, c) for i, c in self.cells if c.cell_type == "markdown"]

    def fault(self, cell: int, rule: str, fix: str) -> Fault:
        return Fault(short(self.path, self.root), f"cell {cell}" if cell else "", rule, fix)

    def all(self) -> Iterator[Fault]:
        """Every fault of the notebook."""
        for rule in (
            self.file, self.start, self.front, self.lengths, self.rhythm, self.outputs, self.figures,
            self.exercises, self.moving, self.numbers,
        ):  # fmt: skip
            yield from rule()

    def file(self) -> Iterator[Fault]:
        """Size, metadata, cell ids, and outputs that belong to the code."""
        size = self.path.stat().st_size
        if size > LARGEST:
            yield self.fault(0, f"{size} bytes, at most {LARGEST}", "use fewer, smaller or simpler figures")
        known = {**KERNEL, "payattn": {"code": source_hash(self.nb)}}
        if self.nb.metadata.get("payattn") != known["payattn"]:
            yield self.fault(0, "the outputs are not those of this code", "run: make notebooks")
        elif dict(self.nb.metadata) != known:
            yield self.fault(0, f"metadata other than {sorted(known)}", "run: make notebooks")
        for i, cell in self.cells:
            extra = set(cell.metadata) - CELL_KEYS
            if extra:
                yield self.fault(i, f"cell metadata {sorted(extra)}", "run: make notebooks")
        ids = [cell.get("id") for _, cell in self.cells]
        if None in ids or len(set(ids)) != len(ids):
            yield self.fault(0, "cells without an id of their own", "give every cell its own id")

    def start(self) -> Iterator[Fault]:
        """The badge cell, the set-up cell and the parameters, the same everywhere."""
        first = self.cells[0][1]
        if first.source != self.address.badge_cell(self.path.name) or first.metadata.get("tags") != ["remove-cell"]:
            yield self.fault(1, "the first cell is not the Colab badge", "run: make address")
        if not self.code or self.code[0][1].source != self.address.setup_cell():
            yield self.fault(
                self.code[0][0] if self.code else 0, "the first code cell is not the set-up", "run: make address"
            )
        tagged = [(i, c) for i, c in self.code if "parameters" in c.metadata.get("tags", [])]
        if len(tagged) != 1:
            yield self.fault(0, f"{len(tagged)} cells tagged `parameters`", "tag exactly one code cell")
            return
        for name, want in (("budget", 'budget = "auto"'), ("seed", "seed = 0")):
            if not re.search(rf"^{re.escape(want)}", tagged[0][1].source, re.M):
                yield self.fault(tagged[0][0], f"the parameters lack {name}", f"write the line: {want}")

    def front(self) -> Iterator[Fault]:
        """Title, objectives, prerequisites and minutes before the first code cell."""
        end = self.code[0][0] if self.code else len(self.nb.cells)
        text = "\n".join(c.source for i, c in self.prose if i < end)
        if not re.search(r"^# \S", text, re.M):
            yield self.fault(0, "no title before the first code cell", "start with `# Title`")
        objectives = re.search(r"\*\*Objectives?\b.*?\*\*(.*?)(?=\n\*\*|\Z)", text, re.S)
        if not objectives or len(re.findall(r"^\s*[-*\d]+[.)]? ", objectives[1], re.M)) < 2:
            yield self.fault(0, "no objectives", "write **Objectives** and a list of at least two")
        if "**Prerequisites" not in text:
            yield self.fault(0, "no prerequisites", "write **Prerequisites** and what the reader must know")
        if not re.search(r"\*\*Time\b.*?\d+ minutes", text, re.S):
            yield self.fault(0, "no minutes", "write **Time** and `N minutes`")

    def lengths(self) -> Iterator[Fault]:
        """Short code cells."""
        lines = {i: sum(bool(line.strip()) for line in c.source.splitlines()) for i, c in self.code}
        for i, n in lines.items():
            if n > LONGEST_CELL:
                yield self.fault(i, f"{n} lines of code, at most {LONGEST_CELL}", "split it or move it to the package")
            if n == 0:
                yield self.fault(i, "an empty code cell", "delete it")
        if lines and statistics.median(lines.values()) > MEDIAN:
            yield self.fault(
                0, f"the median code cell has {statistics.median(lines.values())} lines, at most {MEDIAN}",
                "split cells, or move to the package what is used twice",
            )  # fmt: skip

    def rhythm(self) -> Iterator[Fault]:
        """Prose between code cells; every code cell ends in something to see or to hold."""
        for (_, a), (j, b) in pairwise(self.cells):
            if a.cell_type == b.cell_type == "code":
                yield self.fault(j, "two code cells without prose between", "say what to notice, then go on")
        for i, cell in self.code[1:]:
            if "parameters" not in cell.metadata.get("tags", []) and not ends_well(cell):
                yield self.fault(
                    i, "the cell ends in none of: a value, an assert, a figure",
                    "end it with the value itself, an assert, or a call that returns a figure",
                )  # fmt: skip

    def outputs(self) -> Iterator[Fault]:
        """Every cell has run, without error and without a word on stderr."""
        waiting = [i for i, cell in self.code if cell.execution_count is None]
        if waiting:
            yield self.fault(0, f"cells that have not been run: {waiting}", "run: make notebooks")
        for i, cell in self.code:
            for output in cell.outputs:
                if output.output_type == "error":
                    yield self.fault(i, f"the output is an error: {output.ename}", "mend the cell, run: make notebooks")
                if output.output_type == "stream" and output.name == "stderr":
                    yield self.fault(i, f"stderr: {output.text[:80]!r}", "cure the cause of the warning")

    def figures(self) -> Iterator[Fault]:
        """Caption, name and a description for every figure."""
        for i, cell in self.code:
            kinds = [kind for o in cell.outputs for kind in o.get("data", {})]
            pictures = sum(kind in {"image/png", "image/svg+xml", "image/jpeg"} for kind in kinds)
            html = "".join("".join(o.get("data", {}).get("text/html", "")) for o in cell.outputs)
            for alt in re.findall(r"<img\b[^>]*?\balt=\"([^\"]*)\"", html):
                if len(alt) < SHORTEST_ALT:
                    yield self.fault(
                        i, f"alt text {alt!r}: under {SHORTEST_ALT} characters", "say in `alts` what is seen"
                    )
            if re.search(r"<img\b(?![^>]*\balt=)", html):
                yield self.fault(i, "an <img> without alt text", "give it alt text that says what is seen")
            if not pictures:
                continue
            if pictures > 1:
                yield self.fault(i, f"{pictures} figures in one cell share one caption", "one figure per cell")
            meta = cell.metadata.get("mystnb", {})
            alt = meta.get("image", {}).get("alt", "")
            caption, name = (meta.get("figure", {}).get(key, "") for key in ("caption", "name"))
            if not caption or not name:
                yield self.fault(
                    i, "a figure without caption or name",
                    'metadata: {"mystnb": {"figure": {"caption": "...", "name": "fig-..."}, "image": {"alt": "..."}}}',
                )  # fmt: skip
            if len(alt) < SHORTEST_ALT or alt.strip() == caption.strip():
                yield self.fault(
                    i, f"the figure's alt text is missing, under {SHORTEST_ALT} characters, or the caption again",
                    "say in mystnb.image.alt what is seen, for a reader who does not see it",
                )  # fmt: skip

    def exercises(self) -> Iterator[Fault]:
        """Enough exercises, each with stars, minutes and a solution."""
        text = "\n\n".join(c.source for _, c in self.prose)
        solved = set(re.findall(r"\{solution(?:-start)?\}\s*(\S+)", text))
        labels = []
        for found in re.finditer(r"\{exercise(?:-start)?\}(?P<title>.*)\n(?P<body>(?:.*\n)*?)\s*(?:`{3,}|:{3,})", text):
            whole = found["title"] + "\n" + found["body"]
            label = re.search(r":label:\s*(\S+)", whole)
            if not label:
                yield self.fault(0, f"exercise {found['title'].strip()!r} without label", "write `:label: ex-...`")
                continue
            labels.append(label[1])
            if label[1] not in solved:
                yield self.fault(0, f"exercise {label[1]} has no solution", "add {solution} or {solution-start}")
            if "★" not in whole or not re.search(r"\d+ min", whole):
                yield self.fault(0, f"exercise {label[1]} without stars or minutes", "write such as: ★★, 10 min")
        if len(labels) < EXERCISES:
            yield self.fault(0, f"{len(labels)} exercises, at least {EXERCISES}", "add exercises")

    def moving(self) -> Iterator[Fault]:
        """A checked exercise, a figure that moves, and a quiz that is long enough."""
        source = "\n".join(c.source for _, c in self.code)
        for call, what in (("check(", "exercise check"), ("widgets.frames(", "figure that moves")):
            if f"pa.{call}" not in source:
                yield self.fault(0, f"no {what}", f"use pa.{call}...)")
        quizzes = re.findall(r"widgets\.quiz\(\s*[\"']([\w-]+)[\"']", source)
        if not quizzes:
            yield self.fault(0, "no quiz", "use pa.widgets.quiz(...)")
        for name in quizzes:
            yield from self.quiz(name)

    def quiz(self, name: str) -> Iterator[Fault]:
        """One quiz: enough questions, one right choice or more, feedback on every choice."""
        file = self.root / "payattn" / "quizzes" / f"{name}.json"
        if not file.exists():
            yield self.fault(0, f"quiz {name!r} does not exist", f"write {short(file, self.root)}")
            return
        questions = json.loads(file.read_text())["questions"]
        if len(questions) < QUESTIONS:
            yield self.fault(0, f"quiz {name!r} has {len(questions)} questions, at least {QUESTIONS}", "add some")
        for n, question in enumerate(questions, 1):
            choices = question["choices"]
            both = {bool(c["correct"]) for c in choices} == {True, False}
            if not both or not all(c.get("feedback", "").strip() for c in choices):
                yield self.fault(
                    0, f"quiz {name!r}, question {n}: not one right, one wrong and all with feedback", "mend it"
                )

    def numbers(self) -> Iterator[Fault]:
        """No result typed into the prose."""
        for i, cell in self.prose:
            for number in typed_numbers(cell.source):
                yield self.fault(
                    i, f"a typed number that looks like a result: {number}",
                    "glue it, or show it from results/; else add <!-- by hand: why --> to the paragraph",
                )  # fmt: skip


def ends_well(cell: Any) -> bool:
    """Whether a code cell ends in a value, an assert or a figure, or only defines and imports."""
    source = "\n".join("" if re.match(r"\s*[%!]", line) else line for line in cell.source.splitlines())
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    if all(isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef) for node in body):
        return True
    last: ast.AST = body[-1]
    while isinstance(last, ast.For | ast.With | ast.If | ast.While):
        last = last.body[-1]
    if isinstance(last, ast.Assert):
        return True
    shows = bool(cell.outputs) or cell.execution_count is None  # what has not run may still show something
    return isinstance(last, ast.Expr | ast.Try) and shows


def typed_numbers(text: str) -> list[str]:
    """Percentages and decimals such as 0.93 in prose that are neither code, mathematics nor allowed by a comment."""
    text = re.sub(r"^( *)(`{3,}|~{3,})(?!\{(?:admonition|note|tip|exercise|solution|warning)).*?^\1\2`*~* *$", "",
                  text, flags=re.M | re.S)  # fmt: skip
    text = re.sub(r"\$\$.*?\$\$|(?<!\\)\$[^$\n]+\$|\{[\w:]+\}`[^`]*`|`[^`]*`", "", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)|https?://\S+|^\s*:\w[\w-]*:.*$", "", text, flags=re.M)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not re.search(r"<!-- (?:by hand|published): \S.*?-->", paragraph, re.S):
            found += TYPED.findall(paragraph)
    return found


def check(root: Path, paths: list[Path] | None = None) -> list[Fault]:
    """Every fault of the notebooks, and every typed number in the pages written by hand."""
    address = read_address(root)
    books = notebooks(root) if paths is None else paths
    faults = [fault for path in books for fault in Rules(path, root, address).all()]
    names: dict[str, str] = {}
    for path in books:
        for cell in read_notebook(path).cells:
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            if name and names.setdefault(name, path.name) != path.name:
                faults.append(Fault(short(path, root), "", f"figure name {name} is also in {names[name]}", "rename it"))
    for page in sorted((root / "book").glob("*.md")) if paths is None else []:
        if page.stem not in {"results", "equations"}:
            fix = "show it from results/; else add <!-- by hand: why --> to the paragraph"
            faults += [
                Fault(short(page, root), "", f"a typed number that looks like a result: {n}", fix)
                for n in typed_numbers(page.read_text())
            ]
    return faults


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all, and the pages)")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    root = options.root.resolve()
    return report(check(root, [p.resolve() for p in options.paths] or None), "notebooks: every rule holds")


if __name__ == "__main__":
    sys.exit(main())
