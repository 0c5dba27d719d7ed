"""What decides a run of fine-tuning, calibration and QAT: plain data, stored with the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from q8trt import files
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.runs.run import RUN_FILE, Run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig, DataRecord, RunData

_T = TypeVar("_T")
#: Fields that always name a file or a folder, and those that may name a model of the hub too.
_DATA_PATHS = ("data_dir", "train_file", "validation_file")
_MODEL_PATHS = ("model_name_or_path", "from_fp32", "teacher_model_name_or_path", "from_pytorch_quantization")


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides a run; stored in run.json, so that `--resume` continues the same run.

    Attributes:
        data: which rows.
        training: how to train.
        model_name_or_path: where training starts.
        from_fp32: a fine-tuned FP32 checkpoint to take in place of the first stage.
        precision: FP32 stops after the first stage, INT8 goes on; a name is parsed.
        distillation: whether a floating-point model teaches the quantized one.
        teacher_model_name_or_path: the teacher, a fine-tuned FP32 checkpoint of the same task and vocabulary; None: the
            run's own FP32 stage.
        qat: False stops after calibration.
        recipe: what to quantize; the recipe itself, not its name, so that a run does not change with the package.
        quantizer: the library whose quantizers and calibrators are used, one of `quantization.libraries.LIBRARIES`.
        calibration_samples: training rows that calibration looks at.
        allow_pickle: read pickled weights (pytorch_model.bin).
        from_pytorch_quantization: a checkpoint of pytorch-quantization to take weights and ranges from in place of
            calibration; its recipe is `recipe`.

    Raises:
        ConfigError: an unknown precision, or no calibration rows.
    """

    data: DataConfig
    training: TrainingConfig
    model_name_or_path: str = "bert-base-uncased"
    from_fp32: str | None = None
    precision: Precision = Precision.INT8
    distillation: bool = True
    teacher_model_name_or_path: str | None = None
    qat: bool = True
    recipe: Recipe = field(default_factory=lambda: load_recipe("linear"))
    quantizer: str = "modelopt"
    calibration_samples: int = 512
    allow_pickle: bool = False
    from_pytorch_quantization: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in (Precision.FP32, Precision.INT8):
            raise ConfigError(f"--precision {self.precision}, expected fp32 or int8")
        object.__setattr__(self, "precision", Precision(self.precision))
        if self.calibration_samples < 1:
            raise ConfigError(f"--calibration_samples {self.calibration_samples}, expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration ready for JSON; `from_dict` reads it back."""
        return {**asdict(self), "data": self.data.to_dict(), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FinetuneConfig:
        """Read what `to_dict` returned; options that an earlier q8trt did not have get their defaults.

        Raises:
            ConfigError: written by another version of q8trt, or damaged.
        """
        try:
            plain = cls(_decoded(DataConfig, data["data"]), _decoded(TrainingConfig, data["training"]))
            options = {name: value for name, value in {**vars(plain), **data}.items() if name not in _NESTED}
            return replace(plain, **vars(files.decode(_Options, options)), recipe=Recipe.from_dict(data["recipe"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"the run's configuration cannot be read ({error}); start a new run") from None

    def with_paths(self, change: Callable[[str], str]) -> FinetuneConfig:
        """Return the configuration with each path changed; names of hub models stay."""
        data: Any = {name: change(path) for name in _DATA_PATHS if (path := getattr(self.data, name))}
        models: Any = {name: change(path) for name in _MODEL_PATHS if (path := getattr(self, name)) and _is_path(path)}
        return replace(self, data=replace(self.data, **data), **models)

    def absolute(self) -> FinetuneConfig:
        """Return the configuration with absolute paths, which mean the same in every working folder."""
        return self.with_paths(lambda path: str(Path(path).absolute()))


_NESTED = ("data", "training", "recipe")
#: The fields of `FinetuneConfig` that are plain values, as a class to decode.
_Options = make_dataclass(
    "_Options", [each for each in get_type_hints(FinetuneConfig).items() if each[0] not in _NESTED]
)


def _decoded(cls: type[_T], data: dict[str, Any]) -> _T:
    """Return the dataclass `cls`; fields that `data` lack get their defaults."""
    defaults = {each.name: each.default for each in fields(cls) if each.default is not MISSING}  # type: ignore[arg-type]
    return files.decode(cls, {**defaults, **data})


def _is_path(name: str) -> bool:
    return Path(name).is_absolute() or _exists(name)


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - False, where Path.exists raises for a name that is too long


def config_of_run(run: Run, remedy: str = "") -> FinetuneConfig:
    """Return the configuration of a run, whose data are checked against run.json when they are read.

    A file that is gone is looked for in the same place relative to the run: a project may have been moved.

    Args:
        run: the run.
        remedy: what the user may do where the rows are gone or have changed; "" for nothing.

    Raises:
        ConfigError: run.json is damaged.
    """
    record = run.record
    try:
        config = FinetuneConfig.from_dict(record.config)
        rows = None if record.data is None else DataRecord.from_dict(record.data)
        if record.folder:
            config = config.with_paths(partial(_moved, record.folder, run.path))
    except ConfigError as error:
        raise ConfigError(f"{run.path / RUN_FILE} is damaged: {error}") from None
    return replace(config, data=RunData(**config.data.to_dict(), record=rows, remedy=remedy))


def _moved(old_folder: str, new_folder: Path, path: str) -> str:
    """Return `path`; or, where it is gone and the run was moved together with it, the new place of the file."""
    if not Path(path).is_absolute() or _exists(path):
        return path
    moved = os.path.normpath(new_folder.absolute() / os.path.relpath(path, old_folder))
    return moved if _exists(moved) else path


def last_stage(config: FinetuneConfig) -> str:
    """The stage that ends a run of `config`."""
    return "fp32" if not config.precision.is_quantized else "int8" if config.qat else "ptq"
