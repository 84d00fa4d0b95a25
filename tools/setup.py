"""Make the virtual environment .venv with everything the book and its tests need.

Runs on any Python 3 and uses only its standard library. It chooses an interpreter from 3.11 to 3.13,
installs the requirements with progress, and does nothing when nothing has changed.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)


def version_of(python: str) -> "tuple[int, int]":
    """The (major, minor) version of an interpreter, (0, 0) when it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    return (int(out[0]), int(out[1]))


def choose_python(wish: str) -> str:
    """The wished interpreter when it fits, else the first one on the path that does."""
    seen = []
    for name in [wish, "python3", "python3.13", "python3.12", "python3.11"]:
        path = shutil.which(name)
        if path is None:
            continue
        version = version_of(path)
        if OLDEST <= version <= NEWEST:
            return path
        if version != (0, 0):
            seen.append(f"{path} is {version[0]}.{version[1]}")
    sys.exit(
        "set-up: Python 3.11, 3.12 or 3.13 is needed and none was found "
        f"({', '.join(dict.fromkeys(seen)) or 'no python3 on the path'}).\n"
        "        Install one, then name it: make test PYTHON=/path/to/python3.12"
    )


def fingerprint(python: str, requirements: Path, extra: "list[str]") -> str:
    """Changes when a requirement, the interpreter or the place of the environment changes."""
    parts = [str(version_of(python)), str(ROOT), *extra]
    parts += [requirements.read_text(), (ROOT / "constraints.txt").read_text()]
    parts.append((ROOT / "pyproject.toml").read_text().split("[tool.")[0])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run(say: str, command: "list[str]") -> None:
    """Run one step, saying what it is and how long it took."""
    print("set-up: " + say, flush=True)
    start = time.time()
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit("set-up: failed: " + " ".join(command))
    print(f"set-up:   done in {time.time() - start:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="python3", help="the interpreter to build the environment from")
    parser.add_argument("--newest", action="store_true", help="the newest versions instead of constraints.txt")
    options = parser.parse_args()

    venv = ROOT / ".venv"
    inside = venv / "bin" / "python"
    stamp = venv / "set-up.stamp"
    python = str(inside) if version_of(str(inside)) >= OLDEST else choose_python(options.python)
    print_ = fingerprint(python, ROOT / "requirements.txt", ["newest"] * options.newest)
    if stamp.exists() and stamp.read_text() == print_:
        return

    if not OLDEST <= version_of(str(inside)) <= NEWEST:
        if subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode != 0:
            sys.exit(f"set-up: {python} cannot make environments; on Debian and Ubuntu: apt-get install python3-venv")
        major, minor = version_of(python)
        run(f"environment .venv from {python} (Python {major}.{minor})", [python, "-m", "venv", "--clear", str(venv)])
    requirements = ["-r", "requirements.txt"]
    if options.newest:
        requirements = ["--upgrade", "-e", ".[all]", "torch", "torchvision"]
    pip = [str(inside), "-m", "pip", "install", "--disable-pip-version-check"]
    if stamp.exists():
        run("packages into .venv, where the requirements changed", [*pip, "--quiet", *requirements])
    else:
        bar = "on" if sys.stdout.isatty() else "off"
        run("packages into .venv (torch is large: one to ten minutes)", [*pip, "--progress-bar", bar, *requirements])
    run("check that the packages fit together", [str(inside), "-m", "pip", "check"])
    stamp.write_text(print_)


if __name__ == "__main__":
    main()
