"""The development rows on which engines are scored, and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from q8trt.console.progress import progress
from q8trt.engine.folder import EngineFolder
from q8trt.errors import ConfigError
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.runs.config import config_of_run
from q8trt.runtime.base import Runner
from q8trt.runtime.scores import Evaluation, evaluate, predict
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import DataConfig, Features, load_dev, tokenize


def data_config(
    engines: Sequence[EngineFolder], chosen: DataConfig | None, max_eval_samples: int | None = None
) -> DataConfig:
    """Return the data to score on: `chosen`, else those of the run, limited to `max_eval_samples` rows (None: all).

    Raises:
        ConfigError: `chosen` is None and no engine is in a run, or tasks or labels of engines and data differ.
    """
    data = _data_config(engines, chosen)
    return data if max_eval_samples is None else data.limited(max_eval_samples)


def _data_config(engines: Sequence[EngineFolder], chosen: DataConfig | None) -> DataConfig:
    tasks = {engine.manifest.task.name for engine in engines}
    if len(tasks) > 1:
        raise ConfigError(
            f"the engines answer different tasks ({', '.join(sorted(tasks))}); compare one task at a time"
        )
    if chosen is not None and (
        (head := engines[0].manifest.head).kind.value in tasks or head.embedding or head.kind.per_token
    ):
        _check_labels(engines, chosen if chosen.label_list else replace(chosen, head=head, multi_label=False))
        return replace(chosen, head=head, multi_label=False)
    if chosen is not None:
        if chosen.resolved_task.name not in tasks:
            raise ConfigError(f"--task {chosen.task}, but the engine was built for {tasks.pop()}")
        _check_labels(engines, chosen)
        return chosen
    run = next((engine.run for engine in engines if engine.run), None)
    if run is None:
        raise ConfigError(
            f"{engines[0].folder} is in no run folder, so its development set is not known; "
            "give --task and --data_dir (or --no_accuracy)"
        )
    data = config_of_run(run, "give --task and the options of the data to score on other rows").data
    _check_labels(engines, data)
    return data


def _check_labels(engines: Sequence[EngineFolder], data: DataConfig) -> None:
    """Raise ConfigError if the labels of the rows are not those of an engine in the same order."""
    labels = list(data.resolved_task.labels)
    for engine in engines:
        if engine.manifest.task.labels != labels:
            theirs = " ".join(engine.manifest.task.labels) or "none, it answers with a score"
            raise ConfigError(
                f"{engine.folder} has the labels {theirs}, the data {' '.join(labels) or 'scores'}; give --label_list "
                "the engine's labels in their order"
            )


@dataclass(frozen=True)
class Batching:
    """The batches of the development rows.

    Attributes:
        batch_size: maximum rows of a batch.
        max_length: maximum tokens of a row.
        buckets: lengths in tokens to which batches are padded.
        pad_token_id: token id of the padding.
    """

    batch_size: int
    max_length: int
    buckets: tuple[int, ...]
    pad_token_id: int

    @classmethod
    def of(
        cls, engines: Sequence[EngineFolder], data: DataConfig, batch_size: int, buckets: tuple[int, ...]
    ) -> Batching:
        """Return the batching, limited to shapes that every plan accepts."""
        limits = [shape for engine in engines if (shape := engine.manifest.largest_shape)]
        return cls(
            min([batch_size, *(batch for batch, _ in limits)]),
            min([data.max_seq_length, *(length for _, length in limits)]),
            buckets,
            engines[0].manifest.model.pad_token_id,
        )

    def tokenized(self, engine: EngineFolder, data: DataConfig) -> dict[str, Features]:
        """Return the rows of each development split, tokenized by the engine's tokenizer."""
        tokenizer = load_tokenizer(str(engine.folder))
        return {split: tokenize(rows, tokenizer, self.max_length) for split, rows in load_dev(data).items()}

    def references(self, engines: Sequence[EngineFolder], splits: Mapping[str, Features]) -> dict[str, np.ndarray]:
        """Return split -> float32 outputs of the run's FP32 model, for splits whose rows have no labels.

        Raises:
            ConfigError: the engines are in no run with an FP32 checkpoint.
        """
        unlabeled = {split: rows for split, rows in splits.items() if not rows.task.has_labels}
        if not unlabeled:
            return {}
        run = next((engine.run for engine in engines if engine.run), None)
        checkpoint = run.checkpoint("fp32") if run else None
        if checkpoint is None:
            raise ConfigError(
                f"{engines[0].folder} is in no run with an FP32 checkpoint, and answers on rows without labels are compared with "
                "the FP32 model's; give rows with labels, or --no_accuracy"
            )
        task = next(iter(unlabeled.values())).task
        with TorchRunner(checkpoints.load_finetuned(checkpoint, task), Precision.FP32) as runner:
            return {split: self.logits(runner, rows, f"torch FP32 on {split}") for split, rows in unlabeled.items()}

    def score(
        self, runner: Runner, rows: Features, activation: str, title: str, reference: np.ndarray | None = None
    ) -> Evaluation:
        """Score a runner under a progress bar called `title`. The other arguments are those of `evaluate`."""
        with progress(rows.titled(title), len(rows)) as advance:
            return evaluate(
                runner,
                rows,
                self.pad_token_id,
                self.max_length,
                self.batch_size,
                advance,
                self.buckets,
                activation,
                reference,
            )

    def logits(self, runner: Runner, rows: Features, title: str) -> np.ndarray:
        """Return the logits of all rows in the shape of `Evaluation.logits`."""
        with progress(rows.titled(title), len(rows)) as advance:
            return predict(runner, rows, self.pad_token_id, self.max_length, self.batch_size, advance, self.buckets)[0]
