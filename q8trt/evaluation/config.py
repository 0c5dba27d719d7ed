"""Options of benchmarks, parity checks and sensitivity analyses. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from q8trt.console.options import at_least, check_options, group, option, options_in, same_option
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.runtime import RunOptions
from q8trt.runtime.registry import runtime_names
from q8trt.runtime.timing.config import TimingConfig, parse_sizes
from q8trt.tasks.data import DataConfig
from q8trt.tasks.data.batches import DEFAULT_BUCKETS

_LIMIT = "max_eval_samples"


def data_group() -> Any:
    """Return the field of the rows to score on: the options of `DataConfig` except the limit, which is a separate option."""
    names = [each.name for each in options_in(DataConfig) if each.name != _LIMIT]
    return group("data (default: the run's; others need --task)", only=names, unset="the data of the run")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of a benchmark.

    Raises:
        ConfigError: a number is out of range, or `parity` is set without `accuracy`.
    """

    backend: str | None = option(None, ", ".join(runtime_names()), metavar="NAME", unset="the best that runs here")
    accuracy: bool = option(True, "score the engines on the development set")
    layer_times: bool = option(True, "profile the layers of each engine, at the largest shape")
    parity: bool = option(False, "also compare the logits with those of the torch checkpoint")
    per_device_eval_batch_size: int = option(
        32, "rows in a batch of the development set", values=at_least(1), group="development set"
    )
    buckets: tuple[int, ...] = option(
        DEFAULT_BUCKETS,
        "lengths in tokens that batches are padded to, compared with one fixed length",
        metavar="N,...",
        read=partial(parse_sizes, "--buckets"),
        show=lambda buckets: ",".join(map(str, buckets)),
        group="development set",
    )
    timing: TimingConfig = group("timing", default=TimingConfig())
    #: Kernels are compiled before the timing instead of in the background, because each timed shape is repeated.
    plans: RunOptions = group(
        "plans (TensorRT and TensorRT-RTX)",
        only=("cuda_graph", "runtime_cache"),
        default=RunOptions(specialization="eager"),
    )
    max_eval_samples: int | None = same_option(DataConfig, _LIMIT, group="development set")

    def __post_init__(self) -> None:
        check_options(self)
        if self.parity and not self.accuracy:
            raise ConfigError("--parity compares logits on the development set; drop --no_accuracy")


@dataclass(frozen=True)
class ParityConfig:
    """Options of a parity check.

    Raises:
        ConfigError: a number is not positive.
    """

    batch_sizes: tuple[int, ...] = option(
        (1, 32), "rows in a batch; 1 runs without padding, others are padded to a bucket"
    )
    samples: int | None = option(
        None, "development rows", values=at_least(1), unset="all of them, and the first 256 at batch 1"
    )
    tolerance: float | None = option(
        None,
        "relative error that a layer may add between stages with the same arithmetic",
        metavar="X",
        unset=", ".join(f"{each.rounding:g} for {each.label}" for each in Precision),
    )
    #: Recipe `full` with PTQ adds up to 0.36 to a layer of MiniLM, `linear` up to 0.13.
    quantization_tolerance: float = option(0.5, "relative error that quantization may add to a layer", metavar="X")
    max_eval_samples: int | None = same_option(DataConfig, _LIMIT)

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"--batch_sizes {' '.join(map(str, self.batch_sizes))}, expected numbers of 1 or more")
        for name in ("tolerance", "quantization_tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name} {value}, expected a relative error above 0, such as 0.01")
        check_options(self)


@dataclass(frozen=True)
class SensitivityConfig:
    """Options of a sensitivity analysis.

    Raises:
        ConfigError: a number is out of range, or only one of `max_drop` and `write_recipe` is set.
    """

    samples: int = option(256, "development rows to score on", flag="sensitivity_samples", values=at_least(2))
    max_drop: float | None = option(
        None,
        "leave the most harmful sites in float until the task's main metric x100 on the whole development set loses no more "
        "than X; needs --write_recipe",
        metavar="X",
    )
    write_recipe: str | None = option(None, "YAML file for the recipe that keeps --max_drop", metavar="PATH")
    overwrite: bool = option(False, "replace the file of --write_recipe if it exists")

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < float("inf"):
            raise ConfigError(f"--max_drop {self.max_drop:g}, expected 0 or more (the main metric x100), such as 1.0")
        check_options(self)
        if (self.max_drop is None) != (self.write_recipe is None):
            missing = "--write_recipe PATH" if self.write_recipe is None else "--max_drop X"
            raise ConfigError(f"--max_drop and --write_recipe go together; add {missing}")
        if self.overwrite and self.write_recipe is None:
            raise ConfigError("--overwrite replaces the file of --write_recipe, which is missing; drop it")
