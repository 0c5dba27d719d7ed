"""The facts of this machine and the work that q8trt can do on it, for ``q8trt doctor``.

`probe` collects the facts, `checks` and `steps` judge them, and `render` formats them. Versions come from package metadata.
torch, transformers and ModelOpt are never imported, so the command takes about a second.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from q8trt.engine.backend import (
    INSTALL,
    LEAN_TITLE,
    TENSORRT,
    TENSORRT_RTX,
    TITLES,
    Backend,
    BackendState,
    backend_states,
    in_order,
    lean_runtime,
    numbers,
)
from q8trt.hardware.gpu import Gpu, gpus
from q8trt.hardware.packages import installed_version, pip_install
from q8trt.runtime import RUNTIMES, EngineRuntime
from q8trt.runtime.base import Availability

#: `pip install` in the hints takes the newest versions.
_CHECKOUT = (
    'In this checkout, the extras have tested versions: pip install -c constraints.txt -e ".[train,rtx,demo]" '
    "(tensorrt instead of rtx for an H100; cpu alone to run engines)"
)
_MINIMUM_PYTHON = (3, 11)
#: As in pyproject.toml.
MINIMUM_TENSORRT = (10, 6)
_TRAINING = ("torch", "transformers", "datasets", "accelerate", "nvidia-modelopt")
_PACKAGES = (*_TRAINING, "cuda-python", "nvidia-ml-py", "rich")


@dataclass(frozen=True)
class Machine:
    """Facts of a machine.

    Attributes:
        python: Python's version.
        gpus: the GPUs that CUDA programs can use.
        backends: the states of TensorRT and TensorRT-RTX.
        packages: installed package of `_PACKAGES` -> its version.
        cpu_runtimes: the runtimes that run engines on the CPU, and their states.
        torch_cuda: the CUDA version that torch was built with; None for a CPU build, or without torch.
        lean: TensorRT's lean runtime; None if it is missing.
    """

    python: str
    gpus: tuple[Gpu, ...]
    backends: tuple[BackendState, ...]
    packages: Mapping[str, str]
    cpu_runtimes: tuple[tuple[EngineRuntime, Availability], ...] = ()
    torch_cuda: str | None = None
    lean: Backend | None = None

    @property
    def backend(self) -> Backend | None:
        """The backend that is used if none is named, as in `q8trt.engine.backend.builders`; None if none is usable."""
        return next(iter(in_order([state.backend for state in self.backends if state.backend], self.gpus)), None)


@dataclass(frozen=True)
class Check:
    """A requirement: its current `value`, whether that is `ok`, and a `hint` on how to meet it ("" if ok)."""

    name: str
    value: str
    ok: bool
    hint: str = ""


@dataclass(frozen=True)
class Step:
    """A step of the work: whether it `runs` here, and `how`, or what is missing."""

    name: str
    runs: bool
    how: str


def probe() -> Machine:
    """Return the facts of this machine. A part that is missing or broken does not raise."""
    versions = {package: installed_version(package) for package in _PACKAGES}
    return Machine(
        python=platform.python_version(),
        gpus=tuple(gpus()),
        backends=tuple(backend_states()),
        packages={package: version for package, version in versions.items() if version},
        cpu_runtimes=tuple((each, each.availability()) for each in RUNTIMES if each.device == "cpu"),
        torch_cuda=_torch_cuda(),
        lean=lean_runtime(),
    )


def _torch_cuda() -> str | None:
    """Return the CUDA version in torch's version file, because importing torch takes seconds; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def checks(machine: Machine) -> list[Check]:
    """Return a check for each part that q8trt can use."""
    python = tuple(int(part) for part in machine.python.split(".")[:2]) >= _MINIMUM_PYTHON
    return [
        Check("Python", machine.python, python, "" if python else "q8trt needs Python 3.11 or newer"),
        *_gpu_checks(machine),
        _package(machine, "CUDA runtime", "cuda-python", f"{INSTALL[TENSORRT]} or {INSTALL[TENSORRT_RTX]}"),
        *map(_backend_check, machine.backends),
        *([Check(LEAN_TITLE, f"{machine.lean.version} (runs version-compatible plans)", True)] if machine.lean else []),
        *(_runtime_check(runtime, state) for runtime, state in machine.cpu_runtimes),
        _package(machine, "ModelOpt", "nvidia-modelopt", pip_install("nvidia-modelopt")),
        _torch(machine),
        _package(machine, "transformers", "transformers", pip_install("transformers")),
    ]


def _gpu_checks(machine: Machine) -> list[Check]:
    if not machine.gpus:
        hint = "only plans need one; all else works on the CPU"
        if "nvidia-ml-py" not in machine.packages:
            hint = f"{pip_install('nvidia-ml-py')}, which lists GPUs; {hint}"
        driver = Check("NVIDIA driver", "none", False, "if there is a GPU, install NVIDIA's driver")
        return [Check("GPU", "none", False, hint), driver]
    names = ", ".join(f"{card.name} (SM {card.sm}, {card.memory_mib:,} MiB)" for card in machine.gpus)
    return [Check("GPU", names, True), Check("NVIDIA driver", machine.gpus[0].driver, True)]


def _backend_check(state: BackendState) -> Check:
    if (backend := state.backend) is None:
        return Check(TITLES[state.name], state.problem if state.installed else "none", False, INSTALL[state.name])
    if not backend.is_rtx and numbers(backend.version)[:2] < MINIMUM_TENSORRT:
        return Check(TITLES[state.name], backend.version, False, "q8trt needs TensorRT 10.6 or newer")
    levels = getattr(backend.module, "HardwareCompatibilityLevel", None)
    lacks = not backend.is_rtx and not hasattr(levels, "SAME_COMPUTE_CAPABILITY")  # as 10.6 does
    note = " (without --hardware_compatibility_level same_compute_capability)" if lacks else ""
    return Check(TITLES[state.name], f"{backend.version}{note}", True)


def _package(machine: Machine, name: str, package: str, install: str) -> Check:
    version = machine.packages.get(package)
    return Check(name, version, True) if version else Check(name, "none", False, install)


def _runtime_check(runtime: EngineRuntime, state: Availability) -> Check:
    if not state.usable:
        broken = f"{state.version}, but it cannot be imported" if state.version else "none"
        return Check(runtime.label, broken, False, state.remedy)
    return Check(runtime.label, f"{state.version} ({state.detail})" if state.detail else state.version, True)


def _torch(machine: Machine) -> Check:
    version, cuda = machine.packages.get("torch"), machine.torch_cuda
    if version is None:
        return Check("torch", "none", False, pip_install("torch"))
    return Check("torch", f"{version} ({f'CUDA {cuda}' if cuda else 'CPU build'})", True)


def steps(machine: Machine) -> list[Step]:
    """Return the steps of the work, with the device and library that run them."""
    return [_finetune(machine), _build(machine), _benchmark(machine)]


def _finetune(machine: Machine) -> Step:
    if missing := [package for package in _TRAINING if package not in machine.packages]:
        return Step("fine-tune", False, f"needs {', '.join(missing)}: {pip_install(*missing)}")
    on_gpu = machine.gpus and machine.torch_cuda
    where = machine.gpus[0].name if on_gpu else "the CPU"
    hint = "" if on_gpu or not machine.gpus else " (a CPU build: reinstall torch with CUDA to use the GPU)"
    return Step("fine-tune", True, f"on {where} with torch {machine.packages['torch']}{hint}")


def _build(machine: Machine) -> Step:
    backend = machine.backend
    if backend and backend.is_rtx:
        return Step("build engine", True, f"on the CPU with {backend.title}")
    if backend and not machine.gpus:
        return Step("build engine", False, f"TensorRT needs an NVIDIA GPU to build; {INSTALL[TENSORRT_RTX]} does not")
    if backend and (problem := backend.driver_problem):
        return Step("build engine", False, str(problem))
    if backend:
        return Step("build engine", True, f"on {machine.gpus[0].name} with {backend.title}")
    needed = (
        f"needs {INSTALL[TENSORRT]} (with a GPU) or {INSTALL[TENSORRT_RTX]}; an engine of --target cpu needs neither"
    )
    return Step("build engine", False, needed)


def _benchmark(machine: Machine) -> Step:
    if "rich" not in machine.packages:
        return Step(
            "benchmark", False, f"needs rich: {pip_install('rich')}; running engines in an app does not need it"
        )
    obstacle, backend = _plan_obstacle(machine), machine.backend or machine.lean
    if obstacle is None and backend:
        plans = ", version-compatible plans only" if backend.is_lean else ""
        return Step("benchmark", True, f"{backend.title} on {machine.gpus[0].name}{plans}")
    usable = [runtime for runtime, state in machine.cpu_runtimes if state.usable]
    if usable:
        return Step("benchmark", True, f"{usable[0].label} on the CPU; {obstacle}")
    needs = [f"{runtime.label} on the CPU needs {state.remedy}" for runtime, state in machine.cpu_runtimes[:1]]
    return Step("benchmark", False, "; ".join([str(obstacle), *needs]))


def _plan_obstacle(machine: Machine) -> str | None:
    """Return the reason why a plan of the machine's backend cannot run on it; None if it can."""
    if not machine.gpus:
        return "the plan needs an NVIDIA GPU"
    card, backend = machine.gpus[0], machine.backend or machine.lean
    if backend is None:
        return f"the plan needs a backend: {'; '.join(state.problem for state in machine.backends)}"
    if "cuda-python" not in machine.packages:
        return f"the plan needs cuda-python: {INSTALL[backend.name]}"
    if problem := backend.driver_problem or backend.refusal(card):
        return str(problem)
    if backend.is_rtx and card.sm == "7.5":
        return f"a plan for {card.name} must be built with --sm 7.5"
    return None


def render(checks: Sequence[Check], steps: Sequence[Step]) -> str:
    """Return both lists as plain text, in aligned columns, without a newline at the end."""
    rows = [("ok" if check.ok else "-", check.name, check.value, check.hint) for check in checks]
    plan = [("yes" if step.runs else "no", step.name, step.how, "") for step in steps]
    width = max((len(row[1]) for row in rows + plan), default=0)

    def line(row: tuple[str, str, str, str]) -> str:
        mark, name, value, hint = row
        return f"  {mark:<4}{name:<{width}}  {value}" + (f"  -> {hint}" if hint else "")

    lacks_package = any("pip install" in row[3] for row in rows)
    note = [f"  {_CHECKOUT}"] if lacks_package and (Path(__file__).parents[1] / "constraints.txt").is_file() else []
    return "\n".join(["Found", *map(line, rows), *note, "", "Runs here", *map(line, plan)])
