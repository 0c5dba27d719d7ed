"""The options and the result of a build, as plain data that one process sends to another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from q8trt.console.options import at_least, between, check_options, option
from q8trt.engine.backend import BACKEND_NAMES, TITLES, Backend
from q8trt.engine.report import EngineReport
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import ConfigError

COMPATIBILITY_LEVELS = ("none", "ampere+", "same_compute_capability")

#: State of the timing cache of a build: "none" without one, "new" or "loaded", and "unsupported" with TensorRT-RTX.
TimingCacheState = Literal["none", "new", "loaded", "unsupported"]
PhaseCallback = Callable[[str, int, int], None]
"""Function that is called as (phase, finished steps, all steps of the phase). Phases nest."""


def parse_sms(text: str) -> tuple[str, ...]:
    """Read compute capabilities such as "8.6,8.9,12.0". Raises ConfigError if an entry does not look like one."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(re.fullmatch(r"\d+\.\d", part) for part in parts):
        raise ConfigError(f"cannot read --sm {text!r}: write compute capabilities, as 8.6,8.9,12.0")
    return parts


#: Compute capability -> the board of which it is.
_JETSONS = {"8.7": "Jetson Orin", "11.0": "Jetson Thor"}


@dataclass(frozen=True)
class BuildConfig:
    """Options of the build of a plan.

    Attributes:
        profiles: optimization profiles, the (batch, sequence) shapes that the plan accepts.

    Raises:
        ConfigError: there is no profile, a compute capability is named twice, or a value is unknown or out of its range.
    """

    backend: str | None = option(
        None, ", ".join(BACKEND_NAMES), metavar="NAME", unset=" on a GPU that it can use, else ".join(TITLES.values())
    )
    profiles: tuple[ShapeProfile, ...] = (ShapeProfile(),)
    sm: tuple[str, ...] = option(
        (),
        "compute capabilities of the GPUs that run the plan, such as 8.6,8.9,12.0 (TensorRT-RTX only)",
        metavar="N,N,...",
        read=parse_sms,
        show=",".join,
        unset="8.0, 8.6, 8.9, 12.0 and newer",
    )
    timing_cache: str | None = option(
        None,
        "file or folder that keeps kernel timings between builds, one file for each GPU (TensorRT only)",
        metavar="PATH",
    )
    workspace_mib: int | None = option(
        None,
        "scratch memory of a layer, MiB (TensorRT-RTX: of the network)",
        values=at_least(1),
        unset="all of the GPU's",
    )
    builder_optimization_level: int | None = option(
        None, "effort of the build: 5 tries the most kernels", values=between(0, 5), unset="TensorRT's own, 3"
    )
    version_compatible: bool = option(
        False, "the plan also runs on newer TensorRT of the same major version (TensorRT only)"
    )
    hardware_compatibility_level: str = option(
        "none", "GPUs that run the plan besides this one (TensorRT only)", choices=COMPATIBILITY_LEVELS
    )

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ConfigError("a plan needs at least one optimization profile")
        check_options(self)
        if len(set(self.sm)) < len(self.sm):
            raise ConfigError(f"--sm {','.join(self.sm)} names a compute capability twice")

    @property
    def compatibility_member(self) -> str:
        """The level's name in `trt.HardwareCompatibilityLevel`."""
        return self.hardware_compatibility_level.upper().replace("+", "_PLUS")

    def check_supported(self, backend: Backend) -> None:
        """Refuse options that `backend` does not support, before an export that may take minutes.

        TensorRT-RTX 1.7 has `setHardwareCompatibilityLevel` but only warns that it is unsupported. It accepts
        `VERSION_COMPATIBLE`, but its packages lack the lean runtime that such a plan needs.

        Raises:
            ConfigError: the backend does not support an option.
            BackendError: the backend cannot build here.
        """
        trt, rtx = backend.module, backend.is_rtx
        if self.sm and not rtx:
            raise ConfigError(f"--sm needs TensorRT-RTX; {backend.title} builds for this machine's GPU: leave --sm out")
        if unknown := [sm for sm in self.sm if sm not in backend.supported_sms()]:
            board = _JETSONS.get(unknown[0])
            whose, source = (f" ({board})", ", which JetPack contains,") if board else ("", "")
            raise ConfigError(
                f"{backend.title} has no SM {unknown[0]}{whose}; it builds for {', '.join(backend.supported_sms())}: name one "
                f"of them, or build with TensorRT{source} on that GPU (--backend tensorrt)"
            )
        if self.version_compatible and (rtx or not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE")):
            raise ConfigError(f"{backend.title} cannot build version-compatible plans: leave --version_compatible out")
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        if self.hardware_compatibility_level != "none" and (rtx or not hasattr(levels, self.compatibility_member)):
            hint = "its plans run on every GPU from SM 8.0 on, or those of --sm" if rtx else "use a newer TensorRT"
            raise ConfigError(
                f"{backend.title} has no --hardware_compatibility_level {self.hardware_compatibility_level}: {hint}"
            )
        backend.check_build()


@dataclass(frozen=True)
class PlanInfo:
    """The result of a build.

    Attributes:
        backend: "tensorrt" or "tensorrt_rtx".
        version: the backend's version.
        sm_targets: the compute capabilities of the plan, such as ["8.6", "8.9"]; [] if they are not known.
        seconds: wall time of parsing and building, without the start of the building process.
        bytes: size of the plan.
        timing_cache: state of the timing cache.
        peak_memory_mib: peak host memory of the building process in MiB; None if the system does not report it.
        report: the contents of the engine.
    """

    backend: str
    version: str
    sm_targets: list[str]
    seconds: float
    bytes: int
    timing_cache: TimingCacheState
    peak_memory_mib: float | None
    report: EngineReport
