"""The configuration of a run of fine-tuning, calibration and QAT: plain data, stored with the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from q8trt import files
from q8trt.console.options import at_least, check_options, group, option, same_option
from q8trt.errors import ConfigError
from q8trt.models import short_name
from q8trt.quantization.libraries import LIBRARIES
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.target import Target
from q8trt.runs.run import RUN_FILE, Run, open_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DEFAULT_LENGTH, DataConfig, DataRecord, RunData
from q8trt.tasks.heads import with_head_fields

_T = TypeVar("_T")
#: Fields that are always paths, and fields that may also be names of hub models.
_DATA_PATHS = ("data_dir", "train_file", "validation_file", "texts")
_MODEL_PATHS = ("model_name_or_path", "from_fp32", "teacher_model_name_or_path", "from_pytorch_quantization")
#: The target of runs that record none. Their engines had FP32 beside INT8, and three GEMMs for Q, K and V.
_EARLIER_TARGET = Target.CPU


@dataclass(frozen=True)
class FinetuneConfig:
    """The configuration of a run. It is stored in run.json, and `--resume` continues with it.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    data: DataConfig = group("data (default: GLUE from the hub)")
    training: TrainingConfig = group("training")
    model_name_or_path: str = option(
        "bert-base-uncased", "model to train: folder, hub name, or minilm (from a pip package)", metavar="MODEL"
    )
    from_fp32: str | None = option(
        None, "fine-tuned FP32 checkpoint; skips the stage of FP32 fine-tuning", metavar="DIR"
    )
    precision: Precision = option(
        Precision.INT8, "fp32 stops before quantization", choices=(Precision.FP32.value, Precision.INT8.value)
    )
    distillation: bool = option(True, "QAT learns from the FP32 teacher as well as from labels")
    teacher_model_name_or_path: str | None = option(
        None,
        "teacher of QAT: a fine-tuned FP32 checkpoint of the same task and vocabulary, which may be larger",
        metavar="DIR",
        unset="the run's own FP32 model",
    )
    qat: bool = option(True, "train with quantizers after calibration")
    target: Target = option(
        Target.GPU,
        "device that will run the engines; sets the defaults of the recipe, of the precision of INT8 engines and of fused "
        "Q, K and V",
        choices=tuple(each.value for each in Target),
    )
    recipe: Recipe = option(
        None,
        "name of a recipe of q8trt, or a YAML file",
        metavar="NAME|PATH",
        read=load_recipe,
        unset="the target's",
    )
    quantizer: str = option("modelopt", "library of the quantizers and calibrators", choices=LIBRARIES)
    calibration_samples: int = option(512, "training rows, or texts, to calibrate on", values=at_least(1))
    allow_pickle: bool = option(False, "read pytorch_model.bin; only for files that you trust")
    #: The checkpoint that `CalibrationConfig.from_pytorch_quantization` named.
    from_pytorch_quantization: str | None = None
    #: The name of the settings that were applied, see `q8trt.runs.settings`.
    settings: str | None = None

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "precision", Precision(self.precision))
        object.__setattr__(self, "target", Target(self.target))
        object.__setattr__(self, "recipe", self.recipe or load_recipe(self.target.recipe))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data, which `from_dict` reads."""
        return {**asdict(self), "data": self.data.to_dict(), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FinetuneConfig:
        """Return the configuration that `to_dict` wrote. Options that an earlier version lacked get its behavior.

        Raises:
            ConfigError: the data are damaged or from another version of q8trt.
        """
        try:
            rows = {
                "max_seq_length": DEFAULT_LENGTH,
                **data["data"],
                "head": with_head_fields(data["data"].get("head")),
            }
            nested = _decoded(DataConfig, rows), _decoded(TrainingConfig, data["training"])
            plain = cls(*nested, target=_EARLIER_TARGET)
            options = {name: value for name, value in {**vars(plain), **data}.items() if name not in _NESTED}
            return replace(plain, **vars(files.decode(_Options, options)), recipe=Recipe.from_dict(data["recipe"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"the run's configuration cannot be read ({error}); start a new run") from None

    def with_paths(self, change: Callable[[str], str]) -> FinetuneConfig:
        """Return the configuration with `change` applied to each path, but not to names of hub models."""
        data: Any = {name: change(path) for name in _DATA_PATHS if (path := getattr(self.data, name))}
        named = {name: str(path) for name in _MODEL_PATHS if (path := getattr(self, name))}
        models: Any = {n: change(path) for n, path in named.items() if Path(path).is_absolute() or _exists(path)}
        return replace(self, data=replace(self.data, **data), **models)

    @property
    def models(self) -> tuple[str, ...]:
        """The folders or hub names of the models that a run reads."""
        return tuple(str(path) for name in _MODEL_PATHS if (path := getattr(self, name)))

    def absolute(self) -> FinetuneConfig:
        """Return the configuration with absolute paths."""
        return self.with_paths(lambda path: str(Path(path).absolute()))


@dataclass(frozen=True)
class CalibrationConfig:
    """Options of a calibration without training.

    Raises:
        ConfigError: a value is out of range, or `recipe` and `from_pytorch_quantization` are both set.
    """

    target: Target = same_option(FinetuneConfig, "target")
    recipe: Recipe | None = same_option(FinetuneConfig, "recipe", default=None)
    quantizer: str = same_option(FinetuneConfig, "quantizer")
    calibration_samples: int = same_option(FinetuneConfig, "calibration_samples")
    per_device_eval_batch_size: int = same_option(TrainingConfig, "per_device_eval_batch_size")
    seed: int = same_option(TrainingConfig, "seed")
    allow_pickle: bool = same_option(FinetuneConfig, "allow_pickle")
    from_pytorch_quantization: str | None = option(
        None,
        "take weights and ranges from a pytorch-quantization or QDQBERT checkpoint instead of calibrating; "
        "--model_name_or_path is then the FP32 model that it was made from",
        metavar="PATH",
    )

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "target", Target(self.target))
        if self.recipe and self.from_pytorch_quantization:
            raise ConfigError("--recipe and --from_pytorch_quantization exclude each other; give one")

    def apply(self, recipe: Recipe) -> dict[str, Any]:
        """Return the fields of a `FinetuneConfig` that calibrates with `recipe` and does not train."""
        return {
            "training": TrainingConfig(seed=self.seed, per_device_eval_batch_size=self.per_device_eval_batch_size),
            "precision": Precision.INT8,
            "qat": False,
            "settings": None,
            "target": self.target,
            "recipe": recipe,
            "quantizer": self.quantizer,
            "calibration_samples": self.calibration_samples,
            "allow_pickle": self.allow_pickle,
            "from_pytorch_quantization": self.from_pytorch_quantization,
        }


_NESTED = ("data", "training", "recipe")
#: A dataclass with the fields of `FinetuneConfig` that are plain values, for decoding.
_Options = make_dataclass(
    "_Options", [each for each in get_type_hints(FinetuneConfig).items() if each[0] not in _NESTED]
)


def _decoded(cls: type[_T], data: dict[str, Any]) -> _T:
    """Return `data` as the dataclass `cls`; missing fields get their defaults."""
    defaults = {each.name: each.default for each in fields(cls) if each.default is not MISSING}  # type: ignore[arg-type]
    return files.decode(cls, {**defaults, **data})


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - False, where Path.exists raises for a name that is too long


def config_of_run(run: Run, remedy: str = "") -> FinetuneConfig:
    """Return the configuration of a run, with data that are checked against run.json when they are read.

    If a path is missing, q8trt looks for it in the same place relative to the run, because a project may have been moved.

    Args:
        run: the run.
        remedy: advice for the error that reports missing or changed rows.

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
    return replace(config, data=RunData(**config.data.options, record=rows, remedy=remedy))


def _moved(old_folder: str, new_folder: Path, path: str) -> str:
    """Return the new path of a file that was moved together with the run; `path` if it exists or was not moved."""
    if not Path(path).is_absolute() or _exists(path):
        return path
    moved = os.path.normpath(new_folder.absolute() / os.path.relpath(path, old_folder))
    return moved if _exists(moved) else path


def last_stage(config: FinetuneConfig) -> str:
    """Return the stage that ends a run of `config`."""
    return "fp32" if not config.precision.is_quantized else "int8" if config.qat else "ptq"


def run_of_checkpoint(config: FinetuneConfig) -> Run | None:
    """Return the run that contains the checkpoint `config.from_fp32`; None if there is no such run or checkpoint."""
    folder = Path(config.from_fp32).parent if config.from_fp32 else None
    return open_run(folder) if folder and (folder / RUN_FILE).is_file() else None


def model_name(config: FinetuneConfig) -> str:
    """Return a short name of the model; for a checkpoint in a run, the name of the model that the run started from."""
    name = config.from_fp32 or config.model_name_or_path
    try:
        run = run_of_checkpoint(config)
        return short_name(config_of_run(run).model_name_or_path if run else name)
    except ConfigError:  # the run is damaged, but the checkpoint may be sound
        return short_name(name)
