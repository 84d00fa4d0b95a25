"""Run all checks one after the other and end with a summary of what passed and what failed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from bookfiles import ROOT

BIN = os.path.dirname(sys.executable)
STEPS = {
    "lint": {
        "ruff": [f"{BIN}/ruff", "check", "."],
        "mypy": [f"{BIN}/mypy"],
    },
    "tests": {
        "pytest": [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "--durations", "15"],
    },
}


def run(name: str, command: list[str]) -> tuple[bool, float, str]:
    """Run one step, showing its output as it comes; whether it passed, its seconds and its last line."""
    print(f"\n=== {name}: {' '.join(os.path.basename(c) for c in command[:1])} {' '.join(command[1:])}", flush=True)
    start = time.time()
    # One thread per process: two workers on two cores are then faster than one, and repeatable.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    last = ""
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return job.returncode == 0, time.time() - start, last


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=STEPS, help="one group of steps")
    options = parser.parse_args()
    groups = [options.only] if options.only else list(STEPS)
    steps = {name: command for group in groups for name, command in STEPS[group].items()}
    done = {name: run(name, command) for name, command in steps.items()}

    print("\n=== summary")
    for name, (passed, seconds, last) in done.items():
        print(f"{'passed' if passed else 'FAILED'}  {name:7} {seconds:5.0f} s  {last}")
    failed = [name for name, (passed, _, _) in done.items() if not passed]
    if failed:
        print(f"failed: {', '.join(failed)}; read upwards from here for each")
    if "pytest" in done:
        print(done["pytest"][2])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
