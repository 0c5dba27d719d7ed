"""The problems that keep a plan from running on this machine. They are detected before the plan is loaded.

A plan that cannot run fails to load with an obscure message. Each problem here has a remedy. If the remedy is a rebuild, the
command repeats the build options of the manifest, and changes only those that the problems require.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.engine.backend import INSTALL, TENSORRT, TENSORRT_RTX, TITLES, Backend, numbers, plan_runtime
from q8trt.engine.config import BuildConfig
from q8trt.engine.driver import driver_cuda
from q8trt.engine.manifest import PLAN_FILE, BackendInfo, Manifest
from q8trt.engine.manifest_file import file_problem, load_manifest
from q8trt.engine.rebuild import rebuild_command
from q8trt.engine.shapes import Shape, ShapeProfile, bucket_profiles, covering, show, show_profiles
from q8trt.errors import BackendError, MissingPackageError
from q8trt.hardware.gpu import Gpu, gpus
from q8trt.hardware.packages import installed_version, pip_install

_OTHER_BACKEND = (
    f"use TensorRT there ({INSTALL[TENSORRT]}), or ONNX Runtime on the CPU (device cpu, or backend onnxruntime)"
)
_ON_ONNXRUNTIME = "run on ONNX Runtime (device cpu, or backend onnxruntime), or see `q8trt doctor`"


@dataclass(frozen=True)
class Problem:
    """A problem that keeps a plan from running on this machine.

    Attributes:
        cause: the problem.
        remedy: the fix.
        rebuild: if the remedy is a rebuild, the options that it changes, as arguments of `rebuild_command`; else None.
        only_other_runtime: True if the only remedy is to run the ONNX file on ONNX Runtime.
    """

    cause: str
    remedy: str = ""
    rebuild: dict[str, Any] | None = None
    only_other_runtime: bool = False

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}"


def preflight(
    folder: str | Path,
    backend: str | None = None,
    shapes: Sequence[Shape] = (),
    cards: Sequence[Gpu] | None = None,
    verify: bool = True,
) -> list[Problem]:
    """Return the problems that keep the plan of an engine folder from running on this machine.

    The package of the plan's backend is imported, but the plan is not loaded, and no CUDA context is created. Sources: "Engine
    Compatibility" in TensorRT's and TensorRT-RTX's documentation.

    Args:
        folder: the engine folder.
        backend: "tensorrt" or "tensorrt_rtx", if the plan must run on it.
        shapes: the (batch, sequence) shapes that the plan must accept.
        cards: the GPUs of the machine, of which the first is used; default: those that the driver reports.
        verify: also check each file's presence, size and SHA-256 (reads the whole folder once).

    Raises:
        EngineError: the folder or its manifest is missing, or the manifest is not valid.
    """
    folder = Path(folder)
    manifest = load_manifest(folder, verify=False)
    built = manifest.backend
    problems = damage(folder, manifest) if verify else []
    if built is None or PLAN_FILE not in manifest.files:
        problems.append(Problem(f"{folder} has no plan", rebuild={"backend": backend}))
    elif backend not in (None, built.name):
        cause = f"its plan was built by {TITLES.get(built.name, built.name)}"
        problems.append(Problem(cause, rebuild={"backend": backend}))
    else:
        problems += _backend_problems(manifest, built)
        problems += _gpu_problems(manifest, built, gpus() if cards is None else cards)
        problems += _shape_problems(manifest, shapes)
    return _with_command(problems, folder, manifest)


def damage(folder: Path, manifest: Manifest) -> list[Problem]:
    """Return a problem for each file that is missing or differs from its entry in the manifest."""
    causes = [file_problem(folder / name, info) for name, info in manifest.files.items()]
    return _with_command([Problem(cause, rebuild={}) for cause in causes if cause], folder, manifest)


def _with_command(problems: Sequence[Problem], folder: Path, manifest: Manifest) -> list[Problem]:
    """Return `problems`. The remedy of each one that a rebuild solves becomes the command that solves all of them."""
    changes: dict[str, Any] = {}
    for problem in problems:
        changes |= problem.rebuild or {}
    remedy = f"rebuild it: {rebuild_command(folder, manifest, **changes)}"
    return [problem if problem.rebuild is None else replace(problem, remedy=remedy) for problem in problems]


def describe(problems: Sequence[Problem]) -> str:
    """Return all `problems` in one line. A remedy of several problems appears once, after the last of them."""
    last = {problem.remedy: index for index, problem in enumerate(problems)}
    return "; ".join(
        str(problem) if last[problem.remedy] == index else problem.cause for index, problem in enumerate(problems)
    )


def _backend_problems(manifest: Manifest, built: BackendInfo) -> list[Problem]:
    try:
        backend = plan_runtime(built.name, needs_host_code(manifest))
    except MissingPackageError as error:
        return [Problem(error.problem, error.command)]
    except BackendError as error:
        return [Problem(str(error), _ON_ONNXRUNTIME, only_other_runtime=True)]
    problems = []
    if not _loads(manifest.record.build.options, built, backend):
        versions = f"its plan was built by version {built.version}, {backend.version} is installed"
        package = pip_install(f"{built.name.replace('_', '-')}=={built.version}")
        problems.append(Problem(f"{versions}, and {_version_rule(manifest, built)} ({package})", rebuild={}))
    if problem := backend.driver_problem:
        problems.append(Problem(str(problem), "or use ONNX Runtime on the CPU (device cpu, or backend onnxruntime)"))
    if not _has_cuda_python():
        problems.append(Problem("cuda-python is not installed", INSTALL[built.name]))
    return problems


def _loads(options: BuildConfig, built: BackendInfo, backend: Backend) -> bool:
    """Return whether the version of `backend` loads the plan."""
    theirs, ours = numbers(built.version)[:3], numbers(backend.version)[:3]
    if options.version_compatible and not backend.is_rtx:
        return ours >= theirs and ours[:1] == theirs[:1]
    return ours == theirs


def _version_rule(manifest: Manifest, built: BackendInfo) -> str:
    """Return the rule of TensorRT's documentation about the versions that load this plan."""
    if built.name == TENSORRT_RTX:
        return "TensorRT-RTX plans load in the release that built them, no other"
    if manifest.record.build.options.version_compatible:
        return "a version-compatible plan loads in its version and newer ones of the same major version"
    return "TensorRT plans load in the version that built them, no other"


def needs_host_code(manifest: Manifest) -> bool:
    """Return whether the plan contains host code, which is the lean runtime of a version-compatible plan."""
    return manifest.record.build.options.version_compatible


def _has_cuda_python() -> bool:
    return importlib.util.find_spec("cuda") is not None


def _gpu_problems(manifest: Manifest, built: BackendInfo, cards: Sequence[Gpu]) -> list[Problem]:
    if not cards:
        if driver_cuda() and installed_version("nvidia-ml-py") is None:
            return [Problem("nvidia-ml-py, which lists GPUs, is not installed", pip_install("nvidia-ml-py"))]
        return [Problem("no NVIDIA driver or GPU was found", _ON_ONNXRUNTIME, only_other_runtime=True)]
    card, options = cards[0], manifest.record.build.options
    if _fits(card, options, built):
        return []
    cause = f"its plan is for compute capability {', '.join(built.sm_targets)}; {card.name} has {card.sm}"
    if built.name != TENSORRT_RTX:
        return [Problem(cause, rebuild={})]
    try:
        backend = plan_runtime(built.name, version_compatible=False)
    except BackendError:  # `_backend_problems` reports it
        return [Problem(cause, rebuild={"sm": _targets(card, options.sm)})]
    if backend.refusal(card):
        return [Problem(f"{cause}, for which {TITLES[built.name]} cannot build", _OTHER_BACKEND)]
    is_newest = card.sm not in backend.supported_sms()  # newer than all that can be named
    return [Problem(cause, rebuild={"sm": () if is_newest else _targets(card, options.sm)})]


def _targets(card: Gpu, asked: Sequence[str]) -> list[str]:
    """Return the compute capabilities for --sm: those of `asked` and of `card`. Turing (7.5) cannot share a plan with others."""
    together = {*asked, card.sm}
    return sorted(together if asked and "7.5" not in together else {card.sm}, key=numbers)


def _fits(card: Gpu, options: BuildConfig, built: BackendInfo) -> bool:
    """Return whether the plan may run on `card`, also if its compute capability is not among the plan's.

    A plan of TensorRT-RTX that was built without --sm also runs on newer architectures, and a plan of TensorRT with ampere+ on
    every one from 8.0.
    """
    targets = [numbers(sm) for sm in built.sm_targets]
    sm = numbers(card.sm)
    if not targets or sm in targets:
        return True
    if built.name == TENSORRT_RTX:
        return not options.sm and sm > max(targets)
    return options.hardware_compatibility_level == "ampere+" and sm >= (8, 0)


def _shape_problems(manifest: Manifest, shapes: Sequence[Shape]) -> list[Problem]:
    missing = [shape for shape in shapes if covering(manifest.profiles, shape) is None]
    if not missing:
        return []
    positions = manifest.model.max_position_embeddings
    cause = f"the plan takes {show_profiles(manifest.profiles)}, not {', '.join(map(show, missing))}"
    if max(sequence for _, sequence in missing) > positions:
        return [Problem(f"{cause}, and the model has {positions} positions", f"use sequences of {positions} or less")]
    return [Problem(cause, rebuild={"profiles": _widened(manifest.profiles, missing)})]


def _widened(profiles: Sequence[ShapeProfile], shapes: Sequence[Shape]) -> tuple[ShapeProfile, ...]:
    """Return `profiles` enlarged for `shapes`: larger batches and another bucket, or a wider single profile."""
    first = profiles[0]
    buckets = {profile.max[1] for profile in profiles}
    if len(profiles) > 1 or first == bucket_profiles((first.max[1],), first.opt[0], first.max[0])[0]:
        longest = max(sequence for _, sequence in shapes)
        buckets |= {longest} if longest > max(buckets) else set()
        return bucket_profiles(sorted(buckets), first.opt[0], max(first.max[0], *(batch for batch, _ in shapes)))
    batches, sequences = zip(first.min, first.max, *shapes, strict=True)
    return (ShapeProfile((min(batches), min(sequences)), first.opt, (max(batches), max(sequences))),)
