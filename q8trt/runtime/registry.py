"""The runtimes that open engine folders. To add one, add a folder beside this file, and an import and a line here."""

from __future__ import annotations

from q8trt.errors import ConfigError, nearest
from q8trt.runtime.base import EngineRuntime
from q8trt.runtime.onnxruntime import ONNX_RUNTIME
from q8trt.runtime.tensorrt import TENSORRT, TENSORRT_RTX

#: All runtimes, in the order of messages; the preferred runtime for the CPU comes first. Their libraries are not imported.
RUNTIMES: tuple[EngineRuntime, ...] = (
    TENSORRT,
    TENSORRT_RTX,
    ONNX_RUNTIME,
)


def find_runtime(name: str | None) -> EngineRuntime | None:
    """Return the runtime that a manifest or a report calls `name`; None if there is none."""
    return next((runtime for runtime in RUNTIMES if runtime.name == name), None)


def runtime_names() -> list[str]:
    """Return the names that `parse_runtime` accepts, each with its first alias: ``"tensorrt_rtx (or rtx)"``."""
    return [f"{each.name} (or {each.aliases[0]})" if each.aliases else each.name for each in RUNTIMES]


def parse_runtime(text: str | None) -> EngineRuntime | None:
    """Return the runtime that a user names, in any case and by any alias; None for None and "auto".

    Raises:
        ConfigError: no runtime has that name.
    """
    key = (text or "auto").strip().casefold().replace("-", "_")
    if key == "auto":
        return None
    runtime = next((each for each in RUNTIMES if key in (each.name, *each.aliases)), None)
    if runtime is None:
        hint = nearest(key, ["auto", *(each.name for each in RUNTIMES)])
        raise ConfigError(f"unknown backend {text!r}; choose one of {', '.join(['auto', *runtime_names()])}{hint}")
    return runtime


def cpu_runtime() -> EngineRuntime:
    """Return the first runtime that can run on this CPU. If none can, return the first one; its error has the remedy."""
    runtimes = [runtime for runtime in RUNTIMES if runtime.device == "cpu"]
    return next((each for each in runtimes if each.availability().usable), runtimes[0])


def runs_plans(name: str) -> bool:
    """Return whether the runtime that a report calls `name` runs compiled plans."""
    runtime = find_runtime(name)
    return runtime is not None and runtime.capabilities.fixed_shapes


def label_of(name: str) -> str:
    """Return the label of the runtime that a manifest calls `name`; the name itself for a runtime of a later version."""
    runtime = find_runtime(name)
    return name if runtime is None else runtime.label
