"""Write assets/vendor/onnxruntime from the npm package: what the explorer page runs its networks with.

The release is the last one whose runtime for one thread (static hosts allow no more) is small. A page opened from a
folder may not fetch files, so the WebAssembly is kept as a script: compressed, in base64, in `payattnRuntime`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bookfiles import ROOT

VERSION = "1.18.0"
SHA512 = "o1UKj4ABIj1gmG7ae0RKJ3/GT+3yoF0RRpfDfeoe0huzRW4FDRLfbkDETmdFAvnJEXuYDE0YT+hhkia0352StQ=="  # as npm says
TARGET = ROOT / "assets" / "vendor" / "onnxruntime"
LICENSE = """ONNX Runtime Web {version}, npm package onnxruntime-web (sha512-{sha512})
ort.js is its dist/ort.wasm-core.min.js; wasm.js holds its dist/ort-wasm-simd.wasm, compressed.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def packed(content: bytes) -> str:
    """Bytes as text for a script: gzip without a date, then base64."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def vendor(tarball: Path, target: Path) -> None:
    """Check the package and write its two files and its licence."""
    content = tarball.read_bytes()
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != SHA512:
        raise SystemExit(f"{tarball.name} is not onnxruntime-web {VERSION}: its sha512 is {found}")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tarball) as package:

        def member(name: str) -> bytes:
            file = package.extractfile(f"package/dist/{name}")
            assert file is not None
            return file.read()

        script = re.sub(rb"\n//# sourceMappingURL=.*", b"", member("ort.wasm-core.min.js"))
        (target / "ort.js").write_bytes(script)
        (target / "wasm.js").write_text(f'window.payattnRuntime = "{packed(member("ort-wasm-simd.wasm"))}";\n')
    (target / "LICENSE").write_text(LICENSE.format(version=VERSION, sha512=SHA512))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tarball", type=Path, help="the package, where npm need not fetch it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tarball = given.tarball
        if tarball is None:
            command = ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"]
            name = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
            tarball = Path(folder) / name
        vendor(tarball, TARGET)
    for file in sorted(TARGET.iterdir()):
        print(f"wrote {file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
