"""Canaries: things broken on purpose. Each must turn its check red, or the check is worth nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import address
import check_browser
import check_notebooks
import check_site
import equations
import results_page
from bookfiles import ROOT, read_address, read_notebook, write_notebook
from browser import Browser, Server
from build_site import build
from payattn import results
from payattn.train import Settings
from run_notebooks import NotebookFailedError, execute, source_hash

TEMPLATE = "notebooks/template.ipynb"


def edit(book: Path, change: Callable[[Any], None], rehash: bool = True) -> Path:
    """Change the small book's notebook in place."""
    path = book / TEMPLATE
    notebook = read_notebook(path)
    change(notebook)
    if rehash:
        notebook.metadata["payattn"] = {"code": source_hash(notebook)}
    write_notebook(path, notebook)
    return path


def cell(notebook: Any, name: str) -> Any:
    """A cell of the template by its id."""
    return next(c for c in notebook.cells if c.id == name)


def rules_broken(book: Path) -> list[str]:
    """The rules the small book's notebook breaks."""
    return [f.rule for f in check_notebooks.Rules(book / TEMPLATE, book, read_address(book)).all()]


# ----------------------------------------------------------------------------------------------- notebooks


def test_the_template_as_it_is_breaks_no_rule(small_book: Path) -> None:
    assert rules_broken(small_book) == []


def drop(name: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells.remove(cell(nb, name))


def source(name: str, old: str, new: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        assert old in cell(notebook, name).source
        cell(notebook, name).source = cell(notebook, name).source.replace(old, new)

    return change


def add_output(cell_id: str, /, **output: Any) -> Callable[[Any], None]:
    from nbformat import NotebookNode

    return lambda nb: cell(nb, cell_id).outputs.append(NotebookNode(output))


def set_alt(text: str) -> Callable[[Any], None]:
    return lambda nb: cell(nb, "figure").metadata["mystnb"]["image"].update(alt=text)


def same_as_caption(notebook: Any) -> None:
    meta = cell(notebook, "figure").metadata["mystnb"]
    meta["image"]["alt"] = meta["figure"]["caption"] = "The same sentence, long enough, says nothing twice over."


def long_cells(notebook: Any) -> None:
    for c in notebook.cells:
        if c.cell_type == "code" and c.id not in {"setup", "parameters"}:
            c.source = "\n".join(f"# {i}" for i in range(9)) + "\n" + c.source


BREAKS = {
    "the badge leads elsewhere": (source("badge", "OWNER", "SOMEONE"), "not the Colab badge"),
    "another set-up": (source("setup", "-q", "-U"), "not the set-up"),
    "no parameters": (lambda nb: cell(nb, "parameters").metadata.pop("tags"), "tagged `parameters`"),
    "a fixed budget": (source("parameters", '"auto"', '"gpu"'), "lack budget"),
    "no title": (source("title", "# Template", "Template"), "no title"),
    "no objectives": (source("front", "**Objectives.**", ""), "no objectives"),
    "no prerequisites": (source("front", "**Prerequisites.**", ""), "no prerequisites"),
    "no minutes": (source("front", "minutes", "moments"), "no minutes"),
    "a long cell": (source("measure", "def pos", "#\n" * 26 + "def pos"), "lines of code, at most"),
    "long cells": (long_cells, "the median code cell"),
    "no prose between": (drop("example-words"), "two code cells without prose"),
    "a silent cell": (source("measure", "{t: round", "kept = {t: round"), "ends in none of"),
    "a cell that was not run": (lambda nb: cell(nb, "measure").update(execution_count=None), "have not been run"),
    "an error": (add_output("measure", output_type="error", ename="E", evalue="", traceback=[]), "is an error"),
    "a warning": (add_output("measure", output_type="stream", name="stderr", text="Warning"), "stderr"),
    "no alt text": (lambda nb: cell(nb, "figure").metadata["mystnb"].pop("image"), "alt text is missing"),
    "a short alt text": (set_alt("A figure."), "alt text is missing"),
    "the caption as alt text": (same_as_caption, "the caption again"),
    "no caption": (lambda nb: cell(nb, "figure").metadata["mystnb"].pop("figure"), "without caption"),
    "a frame without words": (
        add_output("measure", output_type="display_data", data={"text/html": "<img src='x'>"}, metadata={}),
        "<img> without alt",
    ),
    "five exercises": (source("ex-more", "{exercise} A critique", "{note} A critique"), "5 exercises"),
    "no solution": (source("ex-more", "{solution} ex-template-hot", "{note} ex-template-hot"), "has no solution"),
    "no stars": (source("ex-more", "(★★★, 10 min, critique)", ""), "without stars"),
    "no check": (lambda nb: [c.update(source="1") for c in nb.cells if "pa.check(" in c.source], "no exercise check"),
    "nothing moves": (source("moving", "pa.widgets.frames(", "print("), "no figure that moves"),
    "no quiz": (source("quiz", "pa.widgets.quiz(", "print("), "no quiz"),
    "an unknown quiz": (source("quiz", "in-five", "in-six"), "does not exist"),
    "a typed percentage": (source("notice", "A cold map", "It reaches 91.3 %. A cold map"), "91.3 %"),
    "a typed accuracy": (source("notice", "A cold map", "It reaches 0.93. A cold map"), "0.93"),
    "metadata": (lambda nb: cell(nb, "quiz").metadata.update(collapsed=True), "cell metadata"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_rule_is_found(name: str, small_book: Path) -> None:
    change, rule = BREAKS[name]
    edit(small_book, change)
    assert any(rule in found for found in rules_broken(small_book)), rules_broken(small_book)


def test_code_changed_after_its_outputs_is_found(small_book: Path) -> None:
    edit(small_book, source("measure", "10.0", "20.0"), rehash=False)
    assert rules_broken(small_book) == ["the outputs are not those of this code"]


def test_a_number_by_hand_is_allowed_with_its_reason(small_book: Path) -> None:
    edit(small_book, source("notice", "A cold map", "It reaches 91.3 %. <!-- by hand: an example --> A cold map"))
    assert rules_broken(small_book) == []


@pytest.mark.parametrize(
    "text",
    ["at `x = 0.93` it", "where $p = 0.95$ and $$ 95 \\% $$", "```\n0.93 95 %\n```", "section 3.15",
     "{glue}`acc` of v0.10.2", "[a](https://x.org/0.95)", "width 0.5"],
)  # fmt: skip
def test_numbers_in_code_formulas_and_names_are_not_results(text: str) -> None:
    assert check_notebooks.typed_numbers(text) == []


def test_a_failing_cell_fails_every_way_of_running_it(small_book: Path, tmp_path: Path) -> None:
    def break_it(notebook: Any) -> None:
        notebook.cells = notebook.cells[:6]
        source("parameters", "seed = 0", "seed = 0\n1 / 0")(notebook)

    path = edit(small_book, break_it)
    before = path.read_text()
    with pytest.raises(NotebookFailedError, match=r"cell 6(.|\n)*ZeroDivisionError"):
        execute(path)
    assert path.read_text() == before
    for command in (
        ["pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, str(path)],
        ["papermill", str(path), str(tmp_path / "out.ipynb"), "--no-progress-bar"],
    ):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=path.parent)
        assert done.returncode != 0 and "ZeroDivisionError" in done.stdout + done.stderr


def test_notebooks_that_run_side_by_side_fail_and_are_written_one_by_one(small_book: Path) -> None:
    def shorten(notebook: Any) -> None:
        notebook.cells = notebook.cells[:6]
        threads = "import os; print(os.environ['OMP_NUM_THREADS'], 'thread')"
        source("parameters", "seed = 0", f"seed = 0\n{threads}")(notebook)

    path = edit(small_book, shorten)
    good, before = path.with_name("98-good.ipynb"), path.read_text()
    path.rename(good)
    bad = path.with_name("99-bad.ipynb")
    bad.write_text(before.replace("print(", "print(0 / "))
    command = [sys.executable, ROOT / "tools/run_notebooks.py", "--root", small_book, "--jobs", "2", good, bad]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert said.returncode == 1
    assert "1 of 2 good" in said.stdout and "99-bad.ipynb failed" in said.stderr and "98-good" not in said.stderr
    assert "1 thread" in good.read_text() and "ERROR" not in good.read_text() and "0 / " in bad.read_text()


# --------------------------------------------------------------------------------- equations and address


def test_an_unregistered_equation_is_found(small_book: Path) -> None:
    register = small_book / "book/equations.toml"
    good = '[eq-template-temperature]\nfunction = "payattn.attention.attention_weights"\n'
    good += 'test = "tests/test_attention.py::test_golden_01_two_position_dot_product"\n'
    register.write_text(good)
    (small_book / "book/equations.md").write_text(equations.page(small_book))
    assert equations.check(small_book) == []
    page = small_book / "book/intro.md"
    page.write_text(page.read_text() + "\n$$\na = b\n$$ (eq-unheld)\n\n```{math}\n:label: eq-other\na\n```\n")
    unheld = [f"equation eq-{name} is not registered" for name in ("unheld", "other")]
    assert [f.rule for f in equations.check(small_book)] == unheld
    register.write_text(good.replace("attention_weights", "no_such_function").replace("test_golden_01", "test_gone"))
    faults = " ".join(f.rule for f in equations.check(small_book))
    assert "cannot be called" in faults and "is not defined" in faults


def test_a_place_with_another_address_is_found_and_mended(small_book: Path) -> None:
    assert address.check(small_book) == []
    config = small_book / "_config.yml"
    config.write_text(config.read_text().replace("OWNER/payattn", "someone/attention-book"))
    assert address.check(small_book)
    address.write(small_book)
    assert address.check(small_book) == [] and address.placeholders(small_book) == []
    assert "someone/attention-book" in (small_book / "CITATION.cff").read_text()
    assert rules_broken(small_book) == []


# ---------------------------------------------------------------------------------------------- results page

RECIPE = """title = "Made up for this test"
[defaults]
data = "glyphs"
settings = { epochs = 3 }
[rows.run]
model = "vgg-att-control"
published = { error = 7.77, tag = "recall-med" }
[rows.planned]
model = "vgg"
"""


def made_up_result(seed: int, accuracy: float) -> dict[str, Any]:
    """A result as `payattn train` writes it, with numbers that nobody measured."""
    data = {"name": "glyphs", "images": 8000, "digest": "0", "caveat": "made up"}
    return dict.fromkeys(results.KEYS) | {
        "schema": results.SCHEMA, "recipe": "paper/table/run", "small": False, "seed": seed, "model": {},
        "data": {"train": data, "test": data}, "settings": Settings(epochs=3, seed=seed).to_dict(),
        "final": {"accuracy": accuracy, "levels": {"layer10": {"pointing": 0.5, "iou": 0.25}}, "mask_share": 0.1},
        "environment": {"device": "CPU", "torch": "2"}, "seconds": 9.0,
    }  # fmt: skip


def test_the_results_page_shows_runs_marks_and_rows_without_a_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes/paper/table.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    (tmp_path / "book").mkdir()
    for seed, accuracy in enumerate((0.80, 0.90)):
        results.write(made_up_result(seed, accuracy), tmp_path / "results")
    page = results_page.page(tmp_path)
    (tmp_path / results_page.PAGE).write_text(page)
    assert results_page.check(tmp_path) == []
    row = next(line for line in page.splitlines() if line.startswith("| `run`"))
    for part in ("7.77‡", "**15.0 ± 7.1**", "| 2 |", "made up", "3 epochs", "as in the recipe"):
        assert part in row
    assert "| `run` | layer10 | 50.0 ± 0.0 | 25.0 ± 0.0 | 2 |" in page
    assert "| `planned` | vgg | – | – | no run yet |" in page

    results.write(made_up_result(2, 0.95), tmp_path / "results")
    assert [f.rule for f in results_page.check(tmp_path)] == ["is not current"]
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 4"))
    assert "recipe changed since**: epochs" in results_page.page(tmp_path)
    recipe.write_text(RECIPE.replace("recall-med", "recall-lo"))
    assert results_page.check(tmp_path) and "recall-lo" in str(results_page.check(tmp_path)[0])


# --------------------------------------------------------------------------------------------- the built site

BAD_PAGE = """# Bad

<img src="https://example.org/outside.png" alt="A picture from another host, described at length">

<img src="_static/favicon.svg">

Broken: $\\frac{a}{$ and $\\undefinedmacro$.

<p style="width: 1400px">wide</p>

<p style="color: #777; background: #888">unreadable</p>

<button></button>

<fieldset><label>dead <input type="range" min="0" max="3"></label></fieldset>

<fieldset><label><input type="radio" name="q">one</label><label><input type="radio" name="q">two</label></fieldset>

<script>console.error("a broken script")</script>
"""


@pytest.fixture(scope="module")
def broken_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose one page has every fault that only the built site shows."""
    book = tmp_path_factory.mktemp("broken")
    root = Path(__file__).resolve().parents[2]
    (book / "assets").symlink_to(root / "assets")
    (book / "_config.yml").write_text((root / "_config.yml").read_text())
    (book / "book").mkdir()
    (book / "book/references.bib").write_text("")
    (book / "book/intro.md").write_text(BAD_PAGE)
    (book / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    build(book, book)
    return book / "_build/html"


@pytest.mark.xdist_group("site")
def test_the_small_book_builds_strictly_and_a_broken_link_does_not(small_book: Path) -> None:
    assert build(small_book, small_book) == (True, "")
    assert check_site.check(small_book / "_build/html") == []
    page = small_book / "book/intro.md"
    page.write_text(page.read_text() + "\nSee [there](nowhere.md) and {eq}`eq-nothing`.\n")
    passed, warnings = build(small_book, small_book)
    assert not passed and "nowhere.md" in warnings and "eq-nothing" in warnings


@pytest.mark.xdist_group("site")
@pytest.mark.parametrize("rule", ["asks another host: https://example.org/outside.png", "no alt text"])
def test_the_reading_of_the_files_finds(rule: str, broken_site: Path) -> None:
    assert rule in [f.rule for f in check_site.check(broken_site)]


@pytest.mark.xdist_group("site")
def test_a_lost_page_a_lost_target_and_a_doubled_id_are_found(tmp_path: Path) -> None:
    links = "<h1>a</h1><a href='gone.html'>x</a><a href='#no'>y</a>"
    (tmp_path / "index.html").write_text(f'<html lang="en"><title>t</title><article>{links}</article></html>')
    (tmp_path / "lost.html").write_text("<html><article><h1 id='a'>a</h1><h3 id='a'>b</h3></article></html>")
    rules = " / ".join(f.rule for f in check_site.check(tmp_path))
    for rule in ("leads nowhere", "no such place", "no link leads to this page", "no lang", "no <title>",
                 "stands 2 times", "jumps from 1 to 3"):  # fmt: skip
        assert rule in rules


@pytest.fixture(scope="module")
def seen(broken_site: Path, browser: Browser) -> Iterator[str]:
    """What the browser check says of the broken page."""
    with Server(broken_site) as server:
        yield " / ".join(f.rule for f in check_browser.check_page(browser, server.url, "book/intro.html"))


@pytest.mark.browser
@pytest.mark.xdist_group("site")
@pytest.mark.parametrize(
    "rule",
    ["asks another host: https://example.org/outside.png", "console error: a broken script", "not rendered: ",
     "Undefined control sequence", "slider 1: ArrowRight changes nothing", "quiz q: choosing shows no feedback",
     "a button without a name", "at 320 px the page scrolls sideways", "light: contrast", "dark: contrast"],
)  # fmt: skip
def test_the_browser_sees(rule: str, seen: str) -> None:
    assert rule in seen


@pytest.mark.browser
@pytest.mark.xdist_group("site")
def test_a_search_that_finds_nothing_is_found(broken_site: Path, browser: Browser) -> None:
    with Server(broken_site) as server:
        assert check_browser.check_search(browser, server.url, "attention")
