"""Run the chapters and write their outputs, as clean files that come out the same every time.

Each notebook runs in its own folder, from a fresh kernel, on one thread of the CPU, as many at a time as there are
cores: sums come out in the same order on every machine, and two cores are used wholly. A failing cell is shown with
its traceback and the file is left as it was. `--check-stale` runs into a copy and compares the outputs.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from bookfiles import ROOT, notebooks, read_notebook, short, write_notebook

LARGEST = 400_000  # bytes of one notebook
LONGEST = 60  # seconds of one chapter, quick budget
JOBS = min(4, os.cpu_count() or 1)  # a kernel takes about 1 GB
CELL_KEYS = {"tags", "mystnb"}
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookFailedError(Exception):
    """A cell did not run; the message shows the cell and the traceback."""


def source_hash(notebook: Any) -> str:
    """A hash of the code, kept in the notebook: outputs are stale when it no longer fits."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def set_budget(notebook: Any, budget: str) -> None:
    """Write the budget into the cell tagged `parameters`."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r'^budget = "\w+"', f'budget = "{budget}"', cell.source, flags=re.M)


def plain(text: str) -> str:
    """The text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def execute(path: Path, budget: str = "quick", timeout: int = 600) -> Any:
    """Run a notebook and return it with fresh outputs, its sources untouched.

    Raises:
        NotebookFailedError: a cell failed, took longer than `timeout` seconds or killed its kernel.
    """
    original = read_notebook(path)
    running = copy.deepcopy(original)
    set_budget(running, budget)
    client = NotebookClient(
        running, timeout=timeout, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    try:
        client.execute(env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})
    except CellExecutionError as error:
        number = next(
            (i for i, c in enumerate(running.cells, 1)
             if any(o.output_type == "error" for o in c.get("outputs", []))), 0,
        )  # fmt: skip
        raise NotebookFailedError(f"{path.name}, cell {number}:\n{plain(str(error))}") from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise NotebookFailedError(f"{path.name}: {plain(str(error))}") from None
    for cell, source in zip(running.cells, original.cells, strict=True):
        cell.source = source.source
    return tidy(running)


def tidy(notebook: Any) -> Any:
    """Keep what belongs in the file: sources, outputs, tags, captions."""
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in CELL_KEYS}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if output.output_type in {"display_data", "execute_result"}:
                output.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
    notebook.metadata = {**KERNEL, "payattn": {"code": source_hash(notebook)}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def merge_streams(outputs: list[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: where a stream is cut depends on timing."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def seen(cell: Any) -> list[str]:
    """What a reader sees of a cell's outputs."""
    found = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            found.append(output.text)
        else:
            data = output.get("data", {})
            found += [str(data[kind]).strip() for kind in ("text/plain", "text/html", "image/png") if kind in data]
    return found


def stale_cells(old: Any, new: Any) -> list[int]:
    """Numbers of the cells whose committed outputs differ from the fresh ones."""
    pairs = zip(old.cells, new.cells, strict=True)
    return [i for i, (a, b) in enumerate(pairs, 1) if a.cell_type == "code" and seen(a) != seen(b)]


def run(path: Path, root: Path, budget: str, check_stale: bool) -> str:
    """Run one notebook; the complaint about it, or an empty string."""
    start = time.time()
    name = short(path, root)
    print(f"  {name} ...", flush=True)
    try:
        fresh = execute(path, budget)
    except NotebookFailedError as error:
        return f"{name} failed\n{error}"
    seconds = time.time() - start
    note = f"  (over the {LONGEST} s a chapter may take)" if budget == "quick" and seconds > LONGEST else ""
    if check_stale:
        stale = stale_cells(read_notebook(path), fresh)
        if stale:
            return f"{name}: outputs differ in cells {stale}; run: make notebooks"
    else:
        write_notebook(path, fresh)
        if path.stat().st_size > LARGEST:
            return f"{name}: {path.stat().st_size} bytes, at most {LARGEST} are allowed; use fewer or smaller figures"
    print(f"  {name}  {seconds:.0f} s{note}", flush=True)
    return ""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--budget", default="quick", choices=["quick", "gpu", "check"])
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"notebooks at a time (here {JOBS})")
    parser.add_argument("--check-stale", action="store_true", help="compare with the committed outputs, write nothing")
    options = parser.parse_args()
    root = options.root.resolve()
    paths = [p.resolve() for p in options.paths] or notebooks(root)
    print(f"notebooks: {len(paths)}, budget {options.budget}", flush=True)
    one = partial(run, root=root, budget=options.budget, check_stale=options.check_stale)
    with ThreadPoolExecutor(options.jobs) as pool:
        complaints = [complaint for complaint in pool.map(one, paths) if complaint]
    for complaint in complaints:
        print("\n" + complaint, file=sys.stderr)
    print(f"notebooks: {len(paths) - len(complaints)} of {len(paths)} good")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
