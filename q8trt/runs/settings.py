"""Settings: the training options that reached the best development score of a model on a task.

Settings are data in `q8trt/settings/*.yaml`, one file for each model. They replace defaults, and never an option that the user
gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from q8trt import files
from q8trt.console.keywords import check_known, take
from q8trt.errors import CheckpointError, ConfigError, nearest
from q8trt.models import load_config
from q8trt.runs.config import FinetuneConfig, last_stage
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.glue import TASKS

_FOLDER = "settings"
_LIMITS = files.Limits(size=2**16, depth=8, values=2_000)
#: Fields of a transformers configuration that identify a model.
_MODEL_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
#: Options that only FP32 fine-tuning reads, and options that only QAT reads.
_FP32_OPTIONS = ("num_train_epochs", "learning_rate", "dropout")
_QAT_OPTIONS = ("qat_epochs", "qat_learning_rate", "qat_dropout", "range_learning_rate", "quant_start_step")


@dataclass(frozen=True)
class TaskSettings:
    """The best known options of a model on one task.

    Attributes:
        options: field of `TrainingConfig` -> value.
        score: development scores with and without these options, as text.
    """

    options: dict[str, Any]
    score: str


@dataclass(frozen=True)
class Settings:
    """The best known options of a model.

    Attributes:
        name: name of the file, without its ending.
        model: field of the model's configuration -> its required value.
        description: one sentence for readers.
        options: field of `TrainingConfig` -> value, for every task.
        tasks: name of a task -> its settings, which override `options`.
    """

    name: str
    model: dict[str, str | int]
    description: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, TaskSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names(self.model, _MODEL_KEYS, "model")
        if missing := [key for key in _MODEL_KEYS if key not in self.model]:
            raise ConfigError(f"model: key {missing[0]!r} is missing")
        _check_names(self.tasks, tuple(task.name for task in TASKS.values()), "tasks")
        for options in (self.options, *(task.options for task in self.tasks.values())):
            check_known(options, TrainingConfig)
            take(TrainingConfig, None, dict(options))

    @property
    def path(self) -> str:
        """The path of the file in the repository."""
        return f"q8trt/{_FOLDER}/{self.name}.yaml"

    def suit(self, model: Any) -> bool:
        """Return whether a transformers configuration belongs to this model."""
        return all(getattr(model, key, None) == value for key, value in self.model.items())

    def on(self, task: str) -> dict[str, Any]:
        """Return the options for a task."""
        return {**self.options, **(self.tasks[task].options if task in self.tasks else {})}


def _check_names(names: Collection[str], known: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: unknown {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def parse_settings(data: bytes, where: str) -> Settings:
    """Return the settings in a YAML document.

    Args:
        data: the document.
        where: name of the document in errors.

    Raises:
        ConfigError: the document is not YAML, or has an unknown key, task or option, or a value that an option rejects.
    """
    try:
        content = files.parse_yaml(data, _LIMITS)
        if not isinstance(content, dict):
            raise files.MalformedError("expected the keys name, model, options and tasks")
        return files.decode(Settings, {"description": "", "options": {}, "tasks": {}, **content})
    except (files.MalformedError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None


def builtin_settings() -> Iterator[Settings]:
    """Yield the settings in the package, in the order of their names."""
    folder = resources.files("q8trt") / _FOLDER
    for item in sorted(folder.iterdir(), key=lambda each: each.name):
        if item.name.endswith(".yaml"):
            yield parse_settings(item.read_bytes(), f"settings {item.name}")


def with_settings(config: FinetuneConfig, typed: Collection[str]) -> tuple[FinetuneConfig, str]:
    """Return `config` with the settings for its model and task, and a line that lists them; "" if none apply.

    Args:
        config: the configuration from the user's options.
        typed: names of the options that the user gave, which settings do not replace.
    """
    settings = _settings_for(config.from_fp32 or config.model_name_or_path)
    if settings is None:
        return config, ""
    task = config.data.resolved_task.name
    idle = (
        *typed,
        *(_FP32_OPTIONS if config.from_fp32 else ()),
        *(_QAT_OPTIONS if last_stage(config) != "int8" else ()),
    )
    options = {name: value for name, value in settings.on(task).items() if name not in idle}
    if not options:
        return config, ""
    values = ", ".join(
        f"{name} {value:g}" if type(value) in (int, float) else f"{name} {value}" for name, value in options.items()
    )
    line = f"settings for {settings.name} on {task}: {values} ({settings.path})"
    return replace(config, training=replace(config.training, **options), settings=settings.name), line


def _settings_for(model_name_or_path: str) -> Settings | None:
    """Return the settings of a model; None if there are none or the model cannot be read."""
    try:
        model = load_config(model_name_or_path)
    except CheckpointError:  # the run reports it later
        return None
    return next((each for each in builtin_settings() if each.suit(model)), None)
