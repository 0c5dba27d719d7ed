"""Open an engine folder on the best runtime of this machine."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.preflight import damage, describe, preflight
from q8trt.engine.shapes import Shape
from q8trt.errors import BackendError, EngineError
from q8trt.runtime.base import Runner, RunOptions
from q8trt.runtime.registry import cpu_runtime, find_runtime, parse_runtime

_log = logging.getLogger(__name__)


class UnusablePlanError(BackendError):
    """A plan that cannot run on this machine.

    Attributes:
        names_cpu: whether a remedy in the message is to run the graph on the CPU.
    """

    def __init__(self, message: str, names_cpu: bool) -> None:
        super().__init__(message)
        self.names_cpu = names_cpu


def open_runner(
    engine_folder: str | Path,
    backend: str | None = None,
    shapes: Sequence[Shape] = (),
    options: RunOptions | None = None,
) -> Runner:
    """Open a verified engine folder.

    Args:
        engine_folder: a folder that `build_engine.py` wrote.
        backend: the name of a runtime. None or "auto" chooses the one that built the plan if it can run here, else
            ``model.onnx`` on the CPU (the reason is logged).
        shapes: the (batch, sequence) shapes that a plan must accept, if they are known beforehand.
        options: options of the runner; None for the defaults.

    Raises:
        ConfigError: the backend is unknown.
        EngineError: the folder has no readable manifest, a file of it is missing or changed, or it has no model for the
            backend.
        UnusablePlanError: the requested backend cannot run the plan here; the message has each reason and the command that
            rebuilds the plan.
        BackendError: the backend cannot start.
    """
    chosen = parse_runtime(backend)
    folder = Path(engine_folder)
    manifest = load_manifest(folder, verify=False)
    if broken := damage(folder, manifest):
        raise EngineError(describe(broken))
    if chosen is None and manifest.backend is None:  # an engine for a CPU
        return cpu_runtime().open(folder, manifest, options or RunOptions())
    runtime = chosen or find_runtime(manifest.backend.name if manifest.backend else None)
    obstacles = (
        runtime.obstacles(folder, manifest, shapes) if runtime else preflight(folder, shapes=shapes, verify=False)
    )
    if chosen and obstacles:
        message = f"{folder} cannot run on {chosen.label} here: {describe(obstacles)}"
        raise UnusablePlanError(message, names_cpu=any(each.only_other_runtime for each in obstacles))
    if runtime is None or obstacles:
        runtime = cpu_runtime()
        # The message does not propose ONNX Runtime, because that runs next.
        reasons = [each.cause if each.only_other_runtime else str(each) for each in obstacles]
        _log_once(f"running on {runtime.label} on the CPU: {'; '.join(reasons)}")
    return runtime.open(folder, manifest, options or RunOptions())


@functools.cache
def _log_once(message: str) -> None:
    """Log a message once per process, even if a comparison opens several engines."""
    _log.info("%s", message)
