"""What this machine has and what q8trt can therefore do on it: the substance of ``q8trt doctor``.

Versions come from package metadata; torch, transformers and ModelOpt are never imported, so the answer takes a second.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from q8trt.engine.backend import BACKENDS, INSTALL, TITLES, backend_status, find_backend
from q8trt.engine.driver import driver_problem
from q8trt.errors import BackendError
from q8trt.hardware.gpu import Gpu, gpus
from q8trt.hardware.packages import install_command, pip_install

_MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One thing looked for: what was `found`, whether that is `ok`, and a `hint` on how to get it ("" when ok)."""

    name: str
    found: str
    ok: bool
    hint: str


@dataclass(frozen=True)
class Step:
    """One step of the work: whether it `runs` here, and `how`, or what it lacks."""

    name: str
    runs: bool
    how: str


def diagnose() -> list[Check]:
    """Look for everything that q8trt can use; nothing raises."""
    python = sys.version_info >= _MINIMUM_PYTHON
    return [
        Check("Python", platform.python_version(), python, "" if python else "q8trt needs Python 3.11 or newer"),
        *_gpu_checks(gpus()),
        _package("CUDA runtime", "cuda-python", f"{INSTALL['tensorrt']} or {INSTALL['tensorrt_rtx']}"),
        *_backend_checks(),
        _onnxruntime(),
        _package("ModelOpt", "nvidia-modelopt", pip_install("nvidia-modelopt")),
        _torch(),
        _package("transformers", "transformers", pip_install("transformers")),
    ]


def _gpu_checks(cards: list[Gpu]) -> list[Check]:
    if not cards:
        hint = "install NVIDIA's driver to run plans; all else works on the CPU"
        return [Check("GPU", "none", False, hint), Check("NVIDIA driver", "none", False, hint)]
    names = ", ".join(f"{card.name} (SM {card.sm}, {card.memory_mib:,} MiB)" for card in cards)
    return [Check("GPU", names, True, ""), Check("NVIDIA driver", cards[0].driver, True, "")]


def _backend_checks() -> list[Check]:
    checks = []
    for name, found in backend_status().items():
        ok = found[:1].isdigit()
        installed = ok or importlib.util.find_spec(name) is not None
        checks.append(Check(TITLES[name], found if installed else "none", ok, "" if ok else INSTALL[name]))
    return checks


def _package(name: str, package: str, install: str) -> Check:
    found = _version(package)
    return Check(name, found or "none", found is not None, "" if found else install)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str]:
    """ONNX Runtime's execution providers; [] when it is absent or broken."""
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except Exception:  # a broken installation must not stop the doctor: `_onnxruntime` reports it
        return []


def _onnxruntime() -> Check:
    found, providers = _version("onnxruntime") or _version("onnxruntime-gpu"), _providers()
    if not providers:
        broken = f"{found}, but it cannot be imported" if found else "none"
        return Check("ONNX Runtime", broken, False, install_command("cpu"))
    names = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    return Check("ONNX Runtime", f"{found or 'unknown version'} ({names})", True, "")


def _torch() -> Check:
    found = _version("torch")
    if found is None:
        return Check("torch", "none", False, pip_install("torch"))
    cuda = _torch_cuda()
    return Check("torch", f"{found} ({f'CUDA {cuda}' if cuda else 'CPU build'})", True, "")


def _torch_cuda() -> str | None:
    """The CUDA version torch was built with, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def steps() -> list[Step]:
    """Which steps of the work run on this machine, and on what."""
    cards = gpus()
    return [_finetune(cards), _build(cards), _benchmark(cards)]


def _finetune(cards: list[Gpu]) -> Step:
    needed = ("torch", "transformers", "datasets", "accelerate", "nvidia-modelopt")
    if missing := [package for package in needed if _version(package) is None]:
        return Step("fine-tune", False, f"needs {', '.join(missing)}: {pip_install(*missing)}")
    where = cards[0].name if cards and _torch_cuda() else "the CPU"
    hint = " (a CPU build: reinstall torch with CUDA to use the GPU)" if cards and not _torch_cuda() else ""
    return Step("fine-tune", True, f"on {where} with torch {_version('torch')}{hint}")


def _build(cards: list[Gpu]) -> Step:
    status = backend_status()
    usable = [name for name in BACKENDS if status[name][:1].isdigit()]
    if "tensorrt" in usable and cards:
        return Step("build engine", True, f"on {cards[0].name} with TensorRT {status['tensorrt']}")
    if "tensorrt_rtx" in usable:
        return Step("build engine", True, f"on the CPU with TensorRT-RTX {status['tensorrt_rtx']}")
    if usable:
        return Step("build engine", False, f"TensorRT needs an NVIDIA GPU to build; {INSTALL['tensorrt_rtx']} does not")
    return Step("build engine", False, f"needs {INSTALL['tensorrt']} (with a GPU) or {INSTALL['tensorrt_rtx']}")


def _benchmark(cards: list[Gpu]) -> Step:
    if _version("rich") is None:
        return Step("benchmark", False, f"needs rich: {pip_install('rich')}; to run engines in an app it is not needed")
    obstacle = _plan_obstacle(cards)
    if obstacle is None:
        backend = find_backend()
        return Step("benchmark", True, f"{backend.title} on {cards[0].name}")
    if not _providers():
        return Step("benchmark", False, f"{obstacle}; ONNX Runtime on the CPU needs {install_command('cpu')}")
    return Step("benchmark", True, f"ONNX Runtime on the CPU; {obstacle}")


def _plan_obstacle(cards: list[Gpu]) -> str | None:
    """Why a plan built by this machine's backend would not run on it; None when it should."""
    if not cards:
        return "the plan needs an NVIDIA GPU"
    try:
        backend = find_backend()
    except BackendError as error:
        return f"the plan needs a backend: {error}"
    if _version("cuda-python") is None:
        return f"the plan needs cuda-python: {INSTALL[backend.name]}"
    if problem := driver_problem(backend.name, backend.title) or backend.refusal(cards[0]):
        return problem
    if backend.name == "tensorrt_rtx" and cards[0].sm == "7.5":
        return f"a plan for {cards[0].name} must be built with --sm 7.5"
    return None


def render(checks: Sequence[Check], steps: Sequence[Step]) -> str:
    """Both lists as plain text, in aligned columns; ends without a newline."""
    rows = [("ok" if check.ok else "-", check.name, check.found, check.hint) for check in checks]
    plan = [("yes" if step.runs else "no", step.name, step.how, "") for step in steps]
    width = max((len(row[1]) for row in rows + plan), default=0)

    def line(row: tuple[str, str, str, str]) -> str:
        mark, name, what, hint = row
        return f"  {mark:<4}{name:<{width}}  {what}" + (f"  -> {hint}" if hint else "")

    return "\n".join(["Found", *map(line, rows), "", "Runs here", *map(line, plan)])
