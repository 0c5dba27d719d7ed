"""The engines that `q8trt quantize` builds from a run. run.json records them, so that `--resume` builds the same engines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeOptions
from q8trt.errors import ConfigError
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import RUN_FILE, Run


@dataclass(frozen=True)
class EnginePlan:
    """The engines of a run.

    Attributes:
        build: options of the builder, with the profiles of the plans; None builds no engine.
        baseline: whether to build the engines to compare with, too.
    """

    build: BuildConfig | None
    baseline: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, with an absolute path of the timing cache. `plan_of_run` reads it."""
        build = self.build
        if build is not None and build.timing_cache is not None:
            build = replace(build, timing_cache=str(Path(build.timing_cache).absolute()))
        return asdict(replace(self, build=build))


def plan_of_run(run: Run, config: FinetuneConfig) -> EnginePlan:
    """Return the plan in run.json, or the defaults for a run of an earlier version without a plan.

    Raises:
        ConfigError: run.json is damaged, or the run is not of `q8trt quantize`.
    """
    record = run.record
    if record.engines is None:
        if config.data.head is None:
            raise ConfigError(f"{run.path} is not a run of q8trt quantize; continue it: {run.resume_command}")
        return EnginePlan(BuildConfig(profiles=ShapeOptions().profiles(config.data.max_seq_length)))
    try:
        return files.decode(EnginePlan, record.engines)
    except files.MalformedError as error:
        raise ConfigError(f"{run.path / RUN_FILE} is damaged: engines: {error}") from None
