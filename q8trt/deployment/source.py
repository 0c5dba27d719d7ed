"""The checkpoint that an engine is built from: which one, in which precision, its folder and its training rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.errors import CheckpointError, ConfigError, Q8TRTError
from q8trt.models import model_inputs
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import RUN_FILE, STAGES, Run, open_run
from q8trt.runs.search import how_to_finish, newest_run

if TYPE_CHECKING:
    from q8trt.tasks.glue import Task

_log = logging.getLogger(__name__)
#: Rows that FP16's range is tried on: a few seconds, and outliers of BERT show on any text.
OVERFLOW_ROWS = 64


@dataclass(frozen=True)
class Source:
    """A finished stage of a run, and the engine to build of it.

    Attributes:
        checkpoint: the model folder.
        run: the run that it belongs to.
        config: the run's configuration.
        stage: "fp32", "ptq" or "int8".
        precision: the engine's.
        target: the device that the engine is for; the run's own or another.
    """

    checkpoint: Path
    run: Run
    config: FinetuneConfig
    stage: str
    precision: Precision
    target: Target

    @property
    def task(self) -> Task:
        """The task that the checkpoint was trained for."""
        return self.config.data.resolved_task


def find_source(
    precision: Precision | None,
    checkpoint: str | None,
    runs_dir: str,
    stage: str | None = None,
    target: Target | None = None,
) -> Source:
    """Return the checkpoint to build from: the one given, or the newest run's that fits `precision`.

    Args:
        precision: the engine's; None for the target's INT8 precision.
        checkpoint: a run folder, or a checkpoint folder inside a run; None for the newest run in `runs_dir`.
        runs_dir: the folder of runs.
        stage: take this stage's checkpoint, "fp32", "ptq" or "int8"; None for the best that fits.
        target: the device that the engine is for; None for the run's.

    Raises:
        ConfigError: there is no run, or none that fits; or the stage does not fit the precision.
        CheckpointError: there is no such folder.
    """
    stages = ("int8", "ptq") if precision is None or precision.is_quantized else ("fp32",)
    path = Path(checkpoint) if checkpoint else None
    if path and not path.is_dir():
        raise CheckpointError(f"{path} does not exist; expected a run folder or a checkpoint folder inside one")
    if path and path.name in STAGES and not (path / RUN_FILE).is_file():
        path, stage = path.parent, path.name
    if stage:
        if stage not in stages:
            raise ConfigError(
                f"the {stage} checkpoint cannot make an engine of precision {precision or Precision.INT8}; use {stages[0]}"
            )
        stages = (stage,)
    run = open_run(path) if path else newest_run(runs_dir, stages)
    for name in stages:
        folder = run.checkpoint(name)
        if folder:
            config = config_of_run(run)
            target = target or config.target
            return Source(folder, run, config, name, precision or target.int8, target)
    raise ConfigError(f"{run.path} has no finished {' or '.join(stages)} checkpoint; {how_to_finish(run, stages)}")


def overflow_batches(source: Source, tokenizer: Any) -> tuple[list[dict[str, Any]], str]:
    """Return training rows of the run's task, as (batch, sequence) int32 arrays by name, and their description.

    Where the data are missing, the built-in sentence pairs stand in: overflows depend on the model more than on the text.
    """
    from q8trt.tasks.data import DataConfig, bucketed_batches, load_train, tokenize

    config = source.config.data
    try:
        examples = load_train(config).take(OVERFLOW_ROWS)
        text = f"{len(examples)} " + (
            "built-in sentence pairs" if config.sample else f"training rows of {source.task.name}"
        )
    except Q8TRTError as error:
        _log.warning("the training rows are not at hand (%s): FP16's range is tried on built-in sentences", error)
        examples = load_train(DataConfig("STS-B", sample=True, max_train_samples=OVERFLOW_ROWS))
        text = f"{len(examples)} built-in sentence pairs, because the training rows are missing"
    features = tokenize(examples, tokenizer, config.max_seq_length)
    names = model_inputs(tokenizer)
    batches = bucketed_batches(features, 16, tokenizer.pad_token_id)
    return [{name: batch.arrays[name].astype("int32") for name in names} for batch in batches], text
