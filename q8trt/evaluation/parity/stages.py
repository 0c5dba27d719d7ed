"""The stages of an engine's parity check, and the rows on which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from q8trt.console.commands import command
from q8trt.engine.folder import EngineFolder, find_engines
from q8trt.engine.manifest import MANIFEST_FILE, ONNX_FILE
from q8trt.engine.shapes import covering, show_profiles
from q8trt.errors import ConfigError, DataError
from q8trt.evaluation.config import ParityConfig
from q8trt.evaluation.parity.probed import ProbedOnnxRuntime, ProbedTorch
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.runs.run import RUN_FILE
from q8trt.runtime import label_of, open_runner
from q8trt.runtime.base import Runner
from q8trt.runtime.onnxruntime import ONNX_RUNTIME
from q8trt.runtime.tensorrt import TENSORRT
from q8trt.tasks.data import DEFAULT_BUCKETS, Batch, DataConfig, Features, bucketed_batches, load_dev, tokenize

#: Default number of rows that are scored at batch 1.
ROWS_AT_BATCH_1 = 256


@dataclass(frozen=True)
class ParityStage:
    """One way to run the model.

    Attributes:
        name: name in reports.
        kind: the step from the previous stage to this one, see `Pair.kind`; "" for the first.
        open: function that opens its runner.
    """

    name: str
    kind: str
    open: Callable[[], Runner]


@dataclass(frozen=True)
class Rows:
    """The rows on which stages are compared, and their batches."""

    features: Features
    pad_token_id: int
    max_length: int
    batch_sizes: tuple[int, ...]
    all_at_batch_1: bool
    activation: str = "identity"

    def at(self, batch_size: int) -> Features:
        """Return the rows scored at `batch_size`."""
        return self.features.take(ROWS_AT_BATCH_1 if batch_size == 1 and not self.all_at_batch_1 else None)

    def batches(self, features: Features, batch_size: int) -> Iterator[Batch]:
        """Yield batches sorted by length, so that rows have the same order at every batch size."""
        buckets = range(1, self.max_length) if batch_size == 1 else DEFAULT_BUCKETS
        return bucketed_batches(features, batch_size, self.pad_token_id, buckets, self.max_length)


def engines_of(paths: Sequence[str], runs_dir: str) -> list[EngineFolder]:
    """Return the engines in `paths`, engine folders or runs; without paths, those of the run with the newest engine.

    Raises:
        ConfigError: a run has no engine, or no engine was built yet.
        EngineError: a folder is damaged or is not an engine.
    """
    folders: list[str] = []
    for path in map(Path, paths):
        inside = [str(manifest.parent) for manifest in sorted(path.glob(f"engine*/{MANIFEST_FILE}"))]
        is_run = (path / RUN_FILE).is_file()
        if is_run and not inside:
            raise ConfigError(
                f"{path} has no engine; build one: {command('build-engine', '--int8', '--checkpoint', path)}"
            )
        folders += inside if is_run else [str(path)]
    return find_engines(folders, runs_dir)


def rows_of(engine: EngineFolder, data: DataConfig, config: ParityConfig) -> Rows:
    """Return the tokenized rows of the first development split. Lengths and batches are limited to those of the plan.

    Raises:
        DataError: the data are missing, or lack the labels of their task.
    """
    manifest = engine.manifest
    limits = manifest.largest_shape or (max(config.batch_sizes), data.max_seq_length)
    max_length = min(data.max_seq_length, limits[1])
    examples = next(iter(load_dev(data).values())).take(config.samples)
    features = tokenize(examples, load_tokenizer(str(engine.folder)), max_length)
    if features.labels is None and features.task.has_labels:
        raise DataError(f"{features.split} has no labels, so nothing can be scored on it")
    sizes = tuple(sorted({min(size, limits[0], len(features)) for size in config.batch_sizes}))
    return Rows(
        features,
        manifest.model.pad_token_id,
        max_length,
        sizes,
        all_at_batch_1=config.samples is not None,
        activation=manifest.task.activation,
    )


def stages_of(engine: EngineFolder, rows: Rows) -> tuple[list[ParityStage], dict[str, str]]:
    """Return the stages in order, and the name of each stage that cannot run -> the reason.

    Raises:
        ConfigError: the engine is in no run, or a checkpoint of the run is missing.
    """
    manifest, run = engine.manifest, engine.run
    if run is None:
        raise ConfigError(f"{engine.folder} is in no run folder, so its torch checkpoints are not known")
    fp32, quantized = run.checkpoint("fp32"), run.checkpoint(manifest.stage)
    if fp32 is None or quantized is None:
        raise ConfigError(
            f"{run.path} has no finished {'fp32' if fp32 is None else manifest.stage} checkpoint any more; "
            "restore run.json, or build the engine from another run"
        )
    task = rows.features.task
    stages = [
        ParityStage("torch FP32", "", lambda: ProbedTorch(checkpoints.load_finetuned(fp32, task), Precision.FP32))
    ]
    if manifest.stage != "fp32":
        if manifest.stage == "int8":  # QAT also changes the weights, so training has its own stage
            stages.append(ParityStage("torch, quantizers off", "training", partial(_open_quantized, quantized, False)))
        stages.append(ParityStage("torch fake-quant", "quantization", partial(_open_quantized, quantized, True)))
    onnx = engine.folder / ONNX_FILE
    stages.append(ParityStage(ONNX_RUNTIME.label, "export", lambda: ProbedOnnxRuntime(onnx, manifest.precision)))
    built, profiles = manifest.backend, manifest.profiles
    if built is None or not profiles:
        return stages, {TENSORRT.label: f"{engine.folder} has no plan"}
    title = label_of(built.name)
    if covering(profiles, (1, int(rows.features.lengths.min()))) is None:
        shown = show_profiles(profiles)
        return stages, {title: f"its profile, {shown}, leaves out single short rows; build with --min_shapes 1x1"}
    stages.append(ParityStage(title, "engine", lambda: open_runner(engine.folder, built.name)))
    return stages, {}


def _open_quantized(folder: Path, enabled: bool) -> ProbedTorch:
    from q8trt.quantization.insertion import set_quantization

    model = checkpoints.load_quantized(folder)[0]
    set_quantization(model, enabled)
    return ProbedTorch(model, Precision.INT8)
