"""One protocol (`q8trt.runners.base.Runner`) and three engines behind it; `open_runner` picks one for a folder."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from q8trt.engine.backend import BACKENDS, TITLES, find_backend
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, Manifest, load_manifest
from q8trt.errors import BackendError, ConfigError, EngineError, nearest
from q8trt.gpu import Gpu, gpus
from q8trt.runners.base import Runner

__all__ = ["CHOICES", "Runner", "open_runner"]

CHOICES = ("auto", "onnxruntime", *BACKENDS)
_log = logging.getLogger(__name__)


def open_runner(engine_folder: str | Path, backend: str | None = None) -> Runner:
    """Open a verified engine folder on the best backend that this machine has.

    Args:
        engine_folder: what `build_engine.py` wrote.
        backend: one of `CHOICES`. None or "auto" takes the plan where its backend and a GPU it was built for are at
            hand, else ``model.onnx`` on ONNX Runtime on the CPU (the reason is logged).

    Raises:
        ConfigError: the backend is unknown.
        EngineError: the folder fails `load_manifest`, or has no model for the backend.
        BackendError: the backend that was asked for cannot be used here.
    """
    choice = (backend or "auto").strip().casefold().replace("-", "_")
    if choice not in CHOICES:
        raise ConfigError(f"unknown backend {backend!r}; choose one of {', '.join(CHOICES)}{nearest(choice, CHOICES)}")
    folder = Path(engine_folder)
    manifest = load_manifest(folder)
    if choice == "onnxruntime":
        return _onnxruntime(folder, manifest)
    obstacle = _obstacle(manifest, None if choice == "auto" else choice)
    if obstacle is None:
        from q8trt.runners.tensorrt_runner import TensorRTRunner

        name = None if manifest.backend is None else manifest.backend.name
        return TensorRTRunner(folder / PLAN_FILE, manifest.precision, name)
    if choice != "auto":
        raise BackendError(f"{folder} cannot run on {TITLES[choice]} here: {obstacle}")
    _say_once(obstacle)
    return _onnxruntime(folder, manifest)


@functools.cache
def _say_once(obstacle: str) -> None:
    """Comparing several engines opens several runners; one remark is enough."""
    _log.info("running on ONNX Runtime on the CPU: %s", obstacle)


def _onnxruntime(folder: Path, manifest: Manifest) -> Runner:
    if ONNX_FILE not in manifest.files:
        raise EngineError(f"{folder} has no {ONNX_FILE} to run on ONNX Runtime; rebuild it with build_engine.py")
    from q8trt.runners.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(folder / ONNX_FILE, manifest.precision)


def _obstacle(manifest: Manifest, wanted: str | None) -> str | None:
    """Why the folder's plan cannot run here (on `wanted`, if given); None when nothing speaks against it."""
    built = manifest.backend
    if built is None or PLAN_FILE not in manifest.files:
        return "it has no plan"
    if wanted not in (None, built.name):
        return f"its plan was built by {TITLES.get(built.name, built.name)}; rebuild it with --backend {wanted}"
    try:
        backend = find_backend(built.name)
    except BackendError as error:
        return str(error)
    if _release(backend.version) != _release(built.version):
        return f"its plan was built by version {built.version}, {backend.version} is installed; rebuild the plan"
    cards = gpus()
    if not cards:
        return "no NVIDIA driver or GPU was found; see `q8trt doctor`"
    return None if _fits(cards[0], built.name, built.sm_targets) else _wrong_gpu(cards[0], built.sm_targets)


def _release(version: str) -> str:
    """``"10.13.2.6"`` -> ``"10.13.2"``: plans do not load across releases."""
    return ".".join(version.split(".")[:3])


def _fits(card: Gpu, backend: str, targets: list[str]) -> bool:
    """Whether a plan for `targets` may run on `card`; TensorRT-RTX also covers architectures newer than it names."""
    if not targets or card.sm in targets:
        return True
    return backend == "tensorrt_rtx" and _number(card.sm) > max(_number(sm) for sm in targets)


def _number(sm: str) -> tuple[int, ...]:
    return tuple(int(part) for part in sm.split(".") if part.isdigit())


def _wrong_gpu(card: Gpu, targets: list[str]) -> str:
    return f"its plan is for compute capability {', '.join(targets)}; {card.name} has {card.sm}"
