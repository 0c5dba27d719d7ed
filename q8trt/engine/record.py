"""The facts of a build that a manifest stores under ``report``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from q8trt.engine.config import BuildConfig, TimingCacheState
from q8trt.engine.determinism import PlanDifference
from q8trt.engine.report import EngineReport
from q8trt.export.options import ExportOptions
from q8trt.export.report import KeptOp, PassReport


@dataclass(frozen=True)
class ExportRecord:
    """The export of the graph.

    Attributes:
        passes: the graph passes, in order.
        kept_fp32: with FP16, the operations that stay in FP32.
        overflow_rows: the rows that were searched for overflow, in words; "" without FP16.
        options: the options of the export.
    """

    passes: tuple[PassReport, ...] = ()
    kept_fp32: tuple[KeptOp, ...] = ()
    overflow_rows: str = ""
    options: ExportOptions = field(default_factory=ExportOptions)


@dataclass(frozen=True)
class BuildRecord:
    """The build of the plan.

    Attributes:
        seconds: wall time, see `PlanInfo`.
        peak_memory_mib: peak host memory of the building process in MiB; None if the system does not report it.
        timing_cache: state of the timing cache.
        options: the options of the build. The manifest has its backend and profiles.
        built_twice: the difference from a second build; None without a second build.
    """

    seconds: float = 0.0
    peak_memory_mib: float | None = None
    timing_cache: TimingCacheState = "none"
    options: BuildConfig = field(default_factory=BuildConfig)
    built_twice: PlanDifference | None = None


@dataclass(frozen=True)
class EngineRecord:
    """The facts of an engine that are known before it runs.

    Attributes:
        is_sample: whether the model was trained and scored on the built-in sample.
        export: the export of the graph.
        forecast: the linter's forecast for the graph, `q8trt.lint.report.Forecast` as plain data.
        findings: the number of the linter's errors and warnings.
        in_float: products and residual Adds that the linter expects in floating point here and in INT8 in other layers. A
            recipe that leaves sites of single layers in floating point loses this speed.
        engine: the contents of the plan; None without a plan.
        build: the build of the plan.
    """

    is_sample: bool = False
    export: ExportRecord = field(default_factory=ExportRecord)
    forecast: dict[str, Any] = field(default_factory=dict)
    findings: int = 0
    in_float: tuple[str, ...] = ()
    engine: EngineReport | None = None
    build: BuildRecord = field(default_factory=BuildRecord)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, as ``manifest.json`` has it."""
        data = asdict(self)
        build = data["build"]
        build["options"] = {key: value for key, value in build["options"].items() if key not in ("backend", "profiles")}
        if difference := self.build.built_twice:
            build["built_twice"] = {
                "identical": difference.identical, "difference": str(difference), **build["built_twice"]
            }  # fmt: skip
        return data
