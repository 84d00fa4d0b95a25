"""Build the site from the committed outputs, strictly: every warning is an error.

The build always starts afresh, because a second, incremental build no longer reports the warnings of
pages it does not read again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bookfiles import ROOT, toc_files


def build(root: Path, out: Path) -> tuple[bool, str]:
    """Build the book at `root` into `out/_build/html`.

    Returns:
        Whether the strict build passed, and its warnings (or its whole log when it stopped early).
    """
    shutil.rmtree(out / "_build" / "html", ignore_errors=True)
    shutil.rmtree(out / "_build" / ".doctrees", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root)]
    command += ["--path-output", str(out), "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, cwd=root)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    warnings = [line for line in log.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    return done.returncode == 0, "\n".join(warnings) or ("" if done.returncode == 0 else log)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, help="where _build/ is made (default: the book's root)")
    options = parser.parse_args()
    root = options.root.resolve()
    start = time.time()
    print(f"site: {len(toc_files(root))} pages", flush=True)
    passed, warnings = build(root, (options.out or root).resolve())
    if not passed:
        print(warnings.replace(f"{root}/", ""))
        print("site: failed; each line above names the file, the line and the fault")
        return 1
    print(f"site: built in {time.time() - start:.0f} s, no warnings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
