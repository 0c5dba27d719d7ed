"""The checkpoint from which an engine is built, and its training rows."""

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
#: Rows on which the range of FP16 is tested in a few seconds. BERT's outliers occur in any text.
OVERFLOW_ROWS = 64


@dataclass(frozen=True)
class Source:
    """A finished stage of a run, and the engine to build from it.

    Attributes:
        checkpoint: the folder of the model.
        run: the run of the checkpoint.
        config: configuration of the run.
        stage: "fp32", "ptq" or "int8".
        precision: precision of the engine.
        target: device of the engine, the run's or another.
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
    """Return the checkpoint to build from: `checkpoint`, or that of the newest run that fits `precision`.

    Args:
        precision: precision of the engine; None for the target's INT8 precision.
        checkpoint: a run folder, or a checkpoint folder in a run; None for the newest run in `runs_dir`.
        runs_dir: the folder of runs.
        stage: stage of the checkpoint, "fp32", "ptq" or "int8"; None for the last one that fits.
        target: device of the engine; None for the run's.

    Raises:
        ConfigError: there is no run with a suitable checkpoint, or the stage does not fit the precision.
        CheckpointError: the folder `checkpoint` does not exist.
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
    """Return batches of training rows, input name -> int32 array (batch, sequence), and a description of the rows.

    If the data are missing, the built-in sentence pairs replace them, because overflows depend more on the model than on the
    text.
    """
    from q8trt.tasks.data import DataConfig, bucketed_batches, load_train, tokenize

    config = source.config.data
    try:
        examples = load_train(config).take(OVERFLOW_ROWS)
        text = f"{len(examples)} " + (
            "built-in sentence pairs" if config.sample else f"training rows of {source.task.name}"
        )
    except Q8TRTError as error:
        _log.warning("the training rows are missing (%s); the range of FP16 is tested on built-in sentences", error)
        examples = load_train(DataConfig("STS-B", sample=True, max_train_samples=OVERFLOW_ROWS))
        text = f"{len(examples)} built-in sentence pairs, because the training rows are missing"
    features = tokenize(examples, tokenizer, config.max_seq_length)
    names = model_inputs(tokenizer)
    batches = bucketed_batches(features, 16, tokenizer.pad_token_id)
    return [{name: batch.arrays[name].astype("int32") for name in names} for batch in batches], text
