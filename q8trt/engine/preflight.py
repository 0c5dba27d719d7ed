"""Whether a plan can run on this machine, told before it is loaded: a plan that cannot fails at load with obscure words.

Each problem says what is wrong and how to mend it; where a rebuild does, the command is exact: it gives the manifest's own
build options again, changed by no more than the problems ask for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.engine.backend import INSTALL, TITLES, Backend, find_backend, numbers
from q8trt.engine.driver import driver_problem
from q8trt.engine.manifest import PLAN_FILE, BackendInfo, Manifest, load_manifest
from q8trt.engine.rebuild import rebuild_command
from q8trt.engine.shapes import Shape, ShapeProfile, bucket_profiles, covering, show, show_profiles
from q8trt.errors import BackendError, MissingPackageError
from q8trt.files import sha256
from q8trt.hardware.gpu import Gpu, gpus

_REBUILD = "rebuild it"
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_OTHER_BACKEND = f"use TensorRT there ({INSTALL['tensorrt']}), or ONNX Runtime on the CPU (backend onnxruntime)"
ON_ONNXRUNTIME = "run on ONNX Runtime (backend onnxruntime), or see `q8trt doctor`"


@dataclass(frozen=True)
class Problem:
    """Something that keeps a plan from running here: `what` is wrong, and how to `mend` it."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}"


def preflight(
    folder: str | Path,
    backend: str | None = None,
    shapes: Sequence[Shape] = (),
    cards: Sequence[Gpu] | None = None,
    verify: bool = True,
) -> list[Problem]:
    """What keeps the plan of an engine folder from running on this machine; [] when nothing does.

    Nothing is loaded and no GPU is touched. Sources: "Engine Compatibility" in TensorRT's and TensorRT-RTX's
    documentation.

    Args:
        folder: what `build_engine.py` wrote.
        backend: "tensorrt" or "tensorrt_rtx", where the plan is wanted on that one.
        shapes: the (batch, sequence) that the plan must take.
        cards: the GPUs of the machine, of which the first is used; default: those that the driver reports.
        verify: also check each file's presence, size and SHA-256 (reads the whole folder once).

    Raises:
        EngineError: the folder or its manifest is missing, or the manifest is malformed or of another format.
    """
    folder = Path(folder)
    manifest = load_manifest(folder, verify=False)
    built = manifest.backend
    broken = damage(folder, manifest) if verify else []
    if built is None or PLAN_FILE not in manifest.files:
        return [*broken, _rebuild(f"{folder} has no plan", rebuild_command(folder, manifest, backend=backend))]
    if backend not in (None, built.name):
        what = f"its plan was built by {TITLES.get(built.name, built.name)}"
        return [*broken, _rebuild(what, rebuild_command(folder, manifest, backend=backend))]
    rebuilt: dict[str, Any] = {}
    problems = [*_backend_problems(manifest, built), *_gpu_problems(manifest, built, cards, rebuilt)]
    problems += _shape_problems(manifest, shapes, rebuilt)
    command = rebuild_command(folder, manifest, **rebuilt)
    told = [Problem(each.what, _REBUILD) for each in broken] + problems
    return [_rebuild(each.what, command) if each.mend == _REBUILD else each for each in told]


def damage(folder: Path, manifest: Manifest) -> list[Problem]:
    """The files of the manifest that are missing or are not what it says."""
    found = []
    for name, info in manifest.files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path} is missing, but the manifest lists it")
        elif (size := path.stat().st_size) != info.bytes:
            found.append(f"{path} is {size:,} bytes, the manifest says {info.bytes:,}: it was changed or replaced")
        elif (digest := sha256(path)) != info.sha256:
            found.append(f"{path} has SHA-256 {digest[:12]}…, the manifest says {info.sha256[:12]}…: it was changed")
    return [_rebuild(what, rebuild_command(folder, manifest)) for what in found]


def _rebuild(what: str, command: str) -> Problem:
    return Problem(what, f"rebuild it: {command}")


def describe(problems: Sequence[Problem]) -> str:
    """All of `problems` in one line; what mends several is said once, after the last of them."""
    last = {problem.mend: index for index, problem in enumerate(problems)}
    return "; ".join(
        str(problem) if last[problem.mend] == index else problem.what for index, problem in enumerate(problems)
    )


def _backend_problems(manifest: Manifest, built: BackendInfo) -> list[Problem]:
    try:
        backend = find_backend(built.name)
    except MissingPackageError as error:
        return [Problem(error.problem, error.command)]
    except BackendError as error:
        return [Problem(str(error), ON_ONNXRUNTIME)]
    problems = []
    if not _loads(manifest, built, backend):
        what = f"its plan was built by version {built.version}, {backend.version} is installed"
        package = f"{_PACKAGES[built.name]}=={built.version}"
        problems.append(Problem(f"{what}, and {_rule(manifest, built)} (pip install {package})", _REBUILD))
    if problem := driver_problem(built.name, backend.title):
        problems.append(Problem(problem, "or use ONNX Runtime on the CPU (backend onnxruntime)"))
    if not _has_cuda_python():
        problems.append(Problem("cuda-python is not installed", INSTALL[built.name]))
    return problems


def _loads(manifest: Manifest, built: BackendInfo, backend: Backend) -> bool:
    """Whether `backend` is a version that loads the plan."""
    theirs, ours = numbers(built.version)[:3], numbers(backend.version)[:3]
    if _option(manifest, "version_compatible") and backend.name == "tensorrt":
        return ours >= theirs and ours[:1] == theirs[:1]
    return ours == theirs


def _rule(manifest: Manifest, built: BackendInfo) -> str:
    """What the documentation says of versions."""
    if built.name == "tensorrt_rtx":
        return "TensorRT-RTX plans load in the release that built them, no other"
    if _option(manifest, "version_compatible"):
        return "a version-compatible plan loads in its version and newer ones of the same major version"
    return "TensorRT plans load in the version that built them, no other"


def _option(manifest: Manifest, name: str) -> Any:
    """An option of the build; None where the manifest does not tell."""
    return manifest.report.get("build", {}).get("options", {}).get(name)


def needs_host_code(manifest: Manifest) -> bool:
    """Whether the plan brings code of its own for the host: the lean runtime of a version-compatible plan."""
    return bool(_option(manifest, "version_compatible"))


def _has_cuda_python() -> bool:
    return importlib.util.find_spec("cuda") is not None


def _gpu_problems(
    manifest: Manifest, built: BackendInfo, cards: Sequence[Gpu] | None, rebuilt: dict[str, Any]
) -> list[Problem]:
    """Problems of the GPU; what a rebuild must ask for because of them is put into `rebuilt`."""
    cards = gpus() if cards is None else cards
    if not cards:
        return [Problem("no NVIDIA driver or GPU was found", ON_ONNXRUNTIME)]
    card, targets = cards[0], built.sm_targets
    if _fits(card, manifest, built):
        return []
    what = f"its plan is for compute capability {', '.join(targets)}; {card.name} has {card.sm}"
    if built.name == "tensorrt_rtx":
        try:
            backend = find_backend(built.name)
        except BackendError:  # told by `_backend_problems`
            backend = None
        if backend and backend.refusal(card):
            return [Problem(f"{what}, for which {TITLES[built.name]} cannot build", _OTHER_BACKEND)]
        asked = _option(manifest, "sm") or ()
        if backend and card.sm not in backend.supported_sms():
            rebuilt["sm"] = ()  # newer than all that can be named
        else:
            # Turing (7.5) shares no plan with others
            together = [*asked, card.sm] if asked and "7.5" not in (*asked, card.sm) else [card.sm]
            rebuilt["sm"] = sorted(together, key=numbers)
    return [Problem(what, _REBUILD)]


def _fits(card: Gpu, manifest: Manifest, built: BackendInfo) -> bool:
    """Whether the plan may run on `card`; one of TensorRT-RTX also covers newer architectures, unless --sm named some."""
    targets = [numbers(sm) for sm in built.sm_targets]
    sm = numbers(card.sm)
    if not targets or sm in targets:
        return True
    if built.name == "tensorrt_rtx":
        return not _option(manifest, "sm") and sm > max(targets)
    return _option(manifest, "hardware_compatibility_level") == "ampere+" and sm >= (8, 0)


def _shape_problems(manifest: Manifest, shapes: Sequence[Shape], rebuilt: dict[str, Any]) -> list[Problem]:
    """Shapes that no profile takes; the profiles that would are put into `rebuilt`."""
    missing = [shape for shape in shapes if covering(manifest.profiles, shape) is None]
    if not missing:
        return []
    positions = manifest.model.max_position_embeddings
    what = f"the plan takes {show_profiles(manifest.profiles)}, not {', '.join(map(show, missing))}"
    if max(sequence for _, sequence in missing) > positions:
        return [Problem(f"{what}, and the model has {positions} positions", f"use sequences of {positions} or less")]
    rebuilt["profiles"] = _widened(manifest.profiles, missing)
    return [Problem(what, _REBUILD)]


def _widened(profiles: Sequence[ShapeProfile], shapes: Sequence[Shape]) -> tuple[ShapeProfile, ...]:
    """`profiles` made as large as `shapes` need: by larger batches and a further bucket, or a wider single profile."""
    first = profiles[0]
    buckets = {profile.max[1] for profile in profiles}
    if len(profiles) > 1 or first == bucket_profiles((first.max[1],), first.opt[0], first.max[0])[0]:
        longest = max(sequence for _, sequence in shapes)
        buckets |= {longest} if longest > max(buckets) else set()
        return bucket_profiles(sorted(buckets), first.opt[0], max(first.max[0], *(batch for batch, _ in shapes)))
    all_of = [first.min, first.max, *shapes]
    low, high = (tuple(pick(shape[axis] for shape in all_of) for axis in (0, 1)) for pick in (min, max))
    return (ShapeProfile((low[0], low[1]), first.opt, (high[0], high[1])),)
