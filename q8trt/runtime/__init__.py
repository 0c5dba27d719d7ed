"""One protocol (`q8trt.runtime.base.Runner`) and three engines behind it; `open_runner` picks one for a folder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.engine.backend import BACKENDS, TITLES
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, Manifest, load_manifest
from q8trt.engine.preflight import ON_ONNXRUNTIME, damage, describe, needs_host_code, preflight
from q8trt.engine.shapes import Shape
from q8trt.errors import BackendError, ConfigError, EngineError, nearest
from q8trt.runtime.base import Runner

if TYPE_CHECKING:
    from q8trt.runtime.tensorrt.engine import TensorRTOptions

__all__ = ["CHOICES", "Runner", "open_runner"]

CHOICES = ("auto", "onnxruntime", *BACKENDS)
_log = logging.getLogger(__name__)


def open_runner(
    engine_folder: str | Path,
    backend: str | None = None,
    shapes: Sequence[Shape] = (),
    options: TensorRTOptions | None = None,
    threads: int | None = None,
) -> Runner:
    """Open a verified engine folder on the best backend that this machine has.

    Args:
        engine_folder: what `build_engine.py` wrote.
        backend: one of `CHOICES`. None or "auto" takes the plan where `preflight` finds nothing against it, else
            ``model.onnx`` on ONNX Runtime on the CPU (the reason is logged).
        shapes: the (batch, sequence) that a plan must take, where they are known beforehand.
        options: how a plan is run; no concern of ONNX Runtime.
        threads: threads within an operator of ONNX Runtime, no concern of a plan; None for its own choice.

    Raises:
        ConfigError: the backend is unknown.
        EngineError: the folder has no readable manifest, a file of it is missing or changed, or it has no model for the
            backend.
        BackendError: the backend that was asked for cannot be used here; each reason and the command that rebuilds the
            plan are in the line.
    """
    choice = (backend or "auto").strip().casefold().replace("-", "_")
    if choice not in CHOICES:
        raise ConfigError(f"unknown backend {backend!r}; choose one of {', '.join(CHOICES)}{nearest(choice, CHOICES)}")
    folder = Path(engine_folder)
    manifest = load_manifest(folder, verify=False)
    if broken := damage(folder, manifest):
        raise EngineError(describe(broken))
    if choice == "onnxruntime":
        return _onnxruntime(folder, manifest, threads)
    problems = preflight(folder, None if choice == "auto" else choice, shapes, verify=False)
    if not problems:
        from q8trt.runtime.tensorrt.runner import TensorRTRunner

        name = None if manifest.backend is None else manifest.backend.name
        return TensorRTRunner(
            folder / PLAN_FILE, manifest.precision, name, options=options, host_code=needs_host_code(manifest)
        )
    if choice != "auto":
        raise BackendError(f"{folder} cannot run on {TITLES[choice]} here: {describe(problems)}")
    # Not that ONNX Runtime would do: that is what is done.
    _say_once("; ".join(each.what if each.mend == ON_ONNXRUNTIME else str(each) for each in problems))
    return _onnxruntime(folder, manifest, threads)


@functools.cache
def _say_once(obstacle: str) -> None:
    """Comparing several engines opens several runners; one remark is enough."""
    _log.info("running on ONNX Runtime on the CPU: %s", obstacle)


def _onnxruntime(folder: Path, manifest: Manifest, threads: int | None) -> Runner:
    if ONNX_FILE not in manifest.files:
        raise EngineError(f"{folder} has no {ONNX_FILE} to run on ONNX Runtime; rebuild it with build_engine.py")
    from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(folder / ONNX_FILE, manifest.precision, threads=threads)
