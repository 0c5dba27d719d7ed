"""The options of quantizing a fine-tuned model. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.console.commands import command
from q8trt.console.options import at_least, check_options, group, option, same_option
from q8trt.errors import ConfigError
from q8trt.runs.config import CalibrationConfig
from q8trt.runs.run import RUN_FILE, Run
from q8trt.tasks.data import DataConfig
from q8trt.tasks.data.opening import open_data
from q8trt.tasks.heads import POOLING_MODES, HeadKind

#: The fields of `DataConfig` that are options here.
ROWS = (
    "texts", "text_column_names", "validation_file", "label_column_name", "max_train_samples", "max_eval_samples"
)  # fmt: skip


@dataclass(frozen=True)
class QuantizeConfig:
    """Options of quantizing a fine-tuned model, with labels or without.

    Raises:
        ConfigError: an unknown head or pooling, an empty name, or a number out of range.
    """

    head: str | None = option(
        None, "head of the model", choices=tuple(kind.value for kind in HeadKind), unset="read from the folder"
    )
    pooling: tuple[str, ...] = option(
        (),
        f"pooling of an encoder without modules.json: {', '.join(POOLING_MODES)}",
        metavar="MODE",
        unset="read from the folder",
    )
    texts: str | None = option(
        None,
        "texts to calibrate on, without labels: .txt (one a line), .csv, .tsv, .jsonl or .parquet; a few hundred are enough",
        metavar="FILE",
        unset="the built-in sentences",
    )
    text_column_names: tuple[str, ...] | None = option(
        None,
        "the one or two text columns of your files",
        metavar="COLUMN",
        unset="sentence, text or sentence1; pairs: sentence1 and sentence2, or query and document",
    )
    validation_file: str | None = option(
        None,
        "rows with labels to score on: .csv, .tsv, .jsonl or .parquet; for embeddings pairs with their similarity",
        metavar="FILE",
        unset="answers are compared with the FP32 model's",
    )
    label_column_name: str | None = same_option(DataConfig, "label_column_name")
    max_seq_length: int | None = option(
        None,
        "tokens per text, special tokens included",
        values=at_least(1),
        unset="the folder's, else 128 (question answering 384, rerankers 512)",
    )
    max_train_samples: int | None = option(
        None, "texts to draw from a file for calibration and --distill", values=at_least(1), unset="10,000"
    )
    max_eval_samples: int | None = option(
        None,
        "rows to score, or to compare answers on",
        values=at_least(1),
        unset="1,000 of --texts; all of --validation_file",
    )
    distill: float = option(
        0.0,
        "epochs of QAT on the texts, with the FP32 model as teacher; needs no labels",
        values=at_least(0),
    )
    calibration: CalibrationConfig = group(
        "calibration",
        only=(
            "target",
            "recipe",
            "quantizer",
            "calibration_samples",
            "per_device_eval_batch_size",
            "seed",
            "allow_pickle",
        ),
        default=CalibrationConfig(),
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("texts", "validation_file", "label_column_name"):
            if getattr(self, name) == "":
                raise ConfigError(f"--{name} is empty; give a value, or leave the option out")
        if unknown := [mode for mode in self.pooling if mode not in POOLING_MODES]:
            raise ConfigError(f"--pooling {unknown[0]}, expected {', '.join(POOLING_MODES)}")
        if self.head is not None:
            object.__setattr__(self, "head", HeadKind(self.head))

    @property
    def kind(self) -> HeadKind | None:
        """The chosen head; None if it is read from the folder."""
        return None if self.head is None else HeadKind(self.head)

    def data(self, **facts: Any) -> DataConfig:
        """Return the `DataConfig` of a run; `facts` are the fields that the model decides."""
        return DataConfig("custom", **{name: getattr(self, name) for name in ROWS}, **facts)


def check_paths(model: str | Path, config: QuantizeConfig) -> None:
    """Check without torch that `model` is neither a run nor a quantized checkpoint of one, and that the files can be opened.

    Raises:
        ConfigError: `model` is a run, or a quantized checkpoint of a run.
        DataError: a file of `config` cannot be opened.
    """
    path = Path(model)
    for run, kind in ((Run(path), "a run of q8trt"), (Run(path.parent), "a quantized checkpoint of a run")):
        if (run.path / RUN_FILE).is_file() and (run.path == path or path.name in ("ptq", "int8")):
            record = run.record
            build = command(
                "build-engine", "--int8" if {"ptq", "int8"} & {*record.stages} else "--fp32", "--checkpoint", path
            )
            following = f"continue it: {run.resume_command}" if run.lacks_engines else f"build its engine: {build}"
            raise ConfigError(f"{path} is {kind}, not a model in floating point; {following}")
    for file in (config.texts, config.validation_file):
        if file is not None:
            open_data(Path(file)).close()
