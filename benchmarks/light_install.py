"""Measure the cost of embedding an engine in an app: `pip install q8trt[cpu]` in a fresh environment; torch and transformers.

    python benchmarks/light_install.py RUN --name light-install-minilm-full

RUN holds an engine (`engine`, else `--engine`) and an FP32 checkpoint (`fp32`). q8trt is copied from this checkout and
installed with the extra cpu, by pip, into a new virtual environment; its packages and their size are counted, and it must
give the same answers as here. Then processes are started in turn, each of which imports, loads and answers one pair:
`q8trt.Engine` there, transformers' pipeline here. For the size of torch + transformers, their requirements are followed
through the metadata of this environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from q8trt import Engine, files
from q8trt.hardware.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MIB = 2**20
#: What a training environment has and an app must not need.
HEAVY = ("torch", "transformers", "onnx", "scipy", "sklearn", "rich", "datasets", "modelopt")
PAIRS = [["A plane is taking off.", "An air plane is taking off."], ["A man plays a flute.", "Two dogs run."]]

_ENGINE = """
import time; started = time.perf_counter()
from q8trt import Engine
imported = time.perf_counter()
engine = Engine.load(ENGINE, device="cpu")
answers = engine.predict(PAIRS)
"""
_TRANSFORMERS = """
import time; started = time.perf_counter()
from transformers import pipeline
imported = time.perf_counter()
classify = pipeline("text-classification", model=CHECKPOINT, device="cpu", function_to_apply="none")
answers = classify([{"text": first, "text_pair": second} for first, second in PAIRS])
"""
_END = """
answered = time.perf_counter()
import importlib.util, json, resource, sys
print(json.dumps({
    "import_seconds": imported - started, "first_answer_seconds": answered - started,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "answers": answers,
    "modules": sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)),
    "installed": [name for name in HEAVY if importlib.util.find_spec(name) is not None],
}))
"""


def install(folder: Path) -> Path:
    """Make a virtual environment with q8trt[cpu] of this checkout; returns its Python."""
    source = folder / "source"
    shutil.copytree(ROOT / "q8trt", source / "q8trt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{source}[cpu]"], check=True)
    return python


def installed(python: Path) -> dict[str, float]:
    """Package -> MiB of its files, of all packages of an environment but pip and setuptools."""
    code = (
        "import json; from importlib.metadata import distributions\n"
        "print(json.dumps({d.metadata['Name']: sum(f.locate().stat().st_size for f in d.files or () "
        "if f.locate().is_file() and f.suffix != '.pyc') for d in distributions()}))"
    )
    sizes = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {name: size / MIB for name, size in sorted(sizes.items()) if name not in ("pip", "setuptools", "wheel")}


def closure(names: Sequence[str]) -> dict[str, float]:
    """Package -> MiB of its files, of `names` and all that they require, as this environment has them."""
    sizes: dict[str, float] = {}
    waiting = list(names)
    while waiting:
        try:
            each: Distribution = distribution(waiting.pop())
        except PackageNotFoundError:  # an optional requirement of another platform
            continue
        name = canonicalize_name(each.metadata["Name"])
        if name in sizes:
            continue
        paths = [Path(str(file.locate())) for file in each.files or () if file.suffix != ".pyc"]
        sizes[name] = sum(path.stat().st_size for path in paths if path.is_file()) / MIB
        needed = [Requirement(text) for text in each.requires or ()]
        waiting += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return dict(sorted(sizes.items()))


def timed(python: Path | str, code: str, **names: Any) -> dict[str, Any]:
    """Run `code` in a process of its own; what it prints, and the seconds from start to end."""
    head = "".join(f"{name} = {value!r}\n" for name, value in (names | {"HEAVY": HEAVY}).items())
    started = time.perf_counter()
    done = subprocess.run([str(python), "-c", head + code + _END], capture_output=True, text=True, cwd="/", check=False)
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - started}


def _medians(runs: Sequence[dict[str, Any]], packages: dict[str, float]) -> dict[str, Any]:
    keys = ("import_seconds", "first_answer_seconds", "process_seconds", "peak_mib")
    figures = {key: round(statistics.median(run[key] for run in runs), 3) for key in keys}
    sizes = {name: round(size, 1) for name, size in packages.items()}
    return {"packages": len(packages), "mib": round(sum(packages.values())), **figures, "sizes_mib": sizes}


def main() -> None:
    """Parse, install, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", type=Path, help="the engine folder (default: RUN/engine)")
    parser.add_argument("--repeats", type=int, default=7, help="processes of each kind (default: 7)")
    parser.add_argument("--name", default="light-install")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    engine = (options.engine or options.run / "engine").resolve()
    checkpoint = (options.run / "fp32").resolve()
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder))
        packages = installed(python)
        light, full = [], []
        for _ in range(options.repeats + 1):  # the first of each only fills the caches of files
            light.append(timed(python, _ENGINE, ENGINE=str(engine), PAIRS=PAIRS))
            full.append(timed(sys.executable, _TRANSFORMERS, CHECKPOINT=str(checkpoint), PAIRS=PAIRS))
    with Engine.load(engine, device="cpu") as here:
        expected = here.predict(PAIRS)
    assert light[0]["installed"] == [], f"the light environment has {light[0]['installed']}"
    assert light[0]["answers"] == expected, f"{light[0]['answers']} there, {expected} here"
    result = {
        "repeats": options.repeats,
        "q8trt[cpu]": _medians(light[1:], packages) | {"modules": light[0]["modules"]},
        "torch+transformers": _medians(full[1:], closure(["torch", "transformers"])),
        "answers_equal": True,
    }
    print(json.dumps(result, indent=2))
    files.write_json(options.output_dir / f"{options.name}.json", {**result, "provenance": provenance(sys.argv)})


if __name__ == "__main__":
    main()
