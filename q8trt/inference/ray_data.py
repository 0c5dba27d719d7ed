"""Scoring of data sets with Ray Data on one machine or many, by actors with an `Engine`.

Ray reads, distributes, retries and writes. Rows come in chunks of the same size as in `q8trt predict`, so the answers are the
same to the last digit.

    import ray
    from q8trt.inference.ray_data import score

    rows = ray.data.read_parquet("rows/")
    score(rows, "runs/NAME/engine", workers=2, threads=1).write_parquet("answers/", mode="error")
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.errors import ConfigError
from q8trt.inference import Engine
from q8trt.inference.files.columns import Columns, choose_columns
from q8trt.inference.files.config import ScoringConfig
from q8trt.inference.files.embeddings import span_type
from q8trt.inference.files.scorer import RowScorer
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

#: Rows of a chunk, as in `q8trt predict`.
CHUNK_ROWS = ScoringConfig.chunk_rows
#: The added column with the reason why a row has no answer; null for a row with an answer.
REJECTED = "rejected"
_log = logging.getLogger(__name__)


class EngineActor:
    """A callable class for `ray.data.Dataset.map_batches` with `batch_format="pyarrow"`. Each actor opens the engine once.

    Args:
        engine: the engine folder, under a path that exists on each node.
        text_column_names: the one or two text columns; None for those on which the engine was trained.
        prompt_name: name of the prompt that an embedding model puts before each text; None for the model's default.
        device: "cuda" or "cpu"; None for the GPU if there is one, else the CPU.
        batch_size: maximum rows of a batch of the model.
        threads: threads within an operator on the CPU; None for the runtime's default.
        contexts: number of batches that run at the same time. With 1, an actor uses `threads` CPUs; with 2, a GPU does not wait
            for the next batch.
        threshold: threshold of a multi-label classifier, see `Engine.predict`; None for 0.5.
        null_score_diff_threshold: threshold of question answering, see `Engine.answer`; None to answer each question.

    Raises:
        EngineError, BackendError: see `Engine.load`.
        ConfigError: see `Engine.load`; or `threshold` is not from 0 to 1.
    """

    def __init__(
        self,
        engine: str,
        text_column_names: Sequence[str] | None = None,
        prompt_name: str | None = None,
        device: str | None = None,
        batch_size: int = 32,
        threads: int | None = None,
        contexts: int = 1,
        threshold: float | None = None,
        null_score_diff_threshold: float | None = None,
    ) -> None:
        self.engine = Engine.load(engine, device=device, batch_size=batch_size, threads=threads, contexts=contexts)
        embeds = self.engine.manifest.head.embedding is not None
        self._config = ScoringConfig(
            Path("rows.jsonl"), Path("answers.parquet" if embeds else "answers.jsonl"),
            tuple(text_column_names) if text_column_names else None,
            prompt_name=prompt_name, threshold=threshold, null_score_diff_threshold=null_score_diff_threshold,
        )  # fmt: skip

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Return `rows` with the columns of the answers, named as in `q8trt predict`, and the column `rejected`.

        Raises:
            ConfigError: an argument of the actor is for another kind of head, or a column is called `rejected`.
            DataError: a text column is missing, or a column has the name of an answer.
            BackendError: the backend refused a batch.
        """
        import pyarrow

        columns = self._columns(rows.column_names)
        config = self._config
        scorer = RowScorer(self.engine, columns, config.prompt_name, config.threshold, config.null_score_diff_threshold)
        outcomes = scorer.outcomes(rows.select(columns.texts).to_pylist())
        cells = [
            [None] * len(columns.answers) if outcome.answer is None else list(columns.cells(outcome.answer))
            for outcome in outcomes
        ]
        for index, name in enumerate(columns.answers):
            values = pyarrow.array([row[index] for row in cells], self._arrow_type(columns, name))
            rows = rows.append_column(name, values)
        reasons = pyarrow.array([outcome.reason or None for outcome in outcomes], pyarrow.string())
        return rows.append_column(REJECTED, reasons)

    def _columns(self, header: Sequence[str]) -> Columns:
        """Return the columns of a table, by the rules of `q8trt predict`."""
        if REJECTED in header:
            raise ConfigError(f"column {REJECTED!r} exists already, and would be overwritten; rename it")
        manifest = self.engine.manifest
        return choose_columns(self._config, header, manifest.task, manifest.head.kind)

    def _arrow_type(self, columns: Columns, name: str) -> pyarrow.DataType:
        """Return the type of a column of answers. It does not depend on the chunk, which may have no answers."""
        import pyarrow

        if self.engine.manifest.head.embedding:
            return pyarrow.list_(pyarrow.float32())
        if self.engine.manifest.head.kind is HeadKind.TOKEN_CLASSIFICATION:
            return pyarrow.list_(span_type(pyarrow))
        if self.engine.manifest.head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION and name == columns.answers[0]:
            return pyarrow.list_(pyarrow.string())
        if self.engine.manifest.head.kind is HeadKind.QUESTION_ANSWERING:
            types = pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.float64()
            return types[columns.answers.index(name)]
        return pyarrow.string() if columns.labels and name == columns.answers[0] else pyarrow.float64()


def score(
    dataset: Dataset,
    engine: str | Path,
    workers: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Any,
) -> Dataset:
    """Return a lazy data set with the rows of `dataset` in their order and the answers of an engine.

    Args:
        dataset: rows with the text columns.
        engine: the engine folder, under a path that exists on each node.
        workers: number of actors; each opens the engine.
        num_cpus: CPUs that Ray reserves for an actor; None for `threads`, or 1, and on the CPU times `contexts`.
        num_gpus: GPUs that Ray reserves for an actor, such as 1; None for no GPU.
        options: other arguments of `EngineActor`; the default of `contexts` is 2 with `num_gpus`, else 1.

    Raises:
        ConfigError: `workers` is below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}")
    from ray.data import ActorPoolStrategy

    options.setdefault("contexts", 2 if num_gpus else 1)
    cpus = num_cpus or (options.get("threads") or 1) * (1 if num_gpus else options["contexts"])
    _check_cpus(workers * cpus)
    return chunked(dataset).map_batches(
        EngineActor,
        fn_constructor_kwargs={"engine": str(engine), **options},
        batch_size=None,  # a whole block
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        num_gpus=num_gpus,
    )


def chunked(dataset: Dataset) -> Dataset:
    """Return `dataset` in its order in blocks of `CHUNK_ROWS` rows, so that the last digits do not depend on its files."""
    dataset.context.execution_options.preserve_order = True
    return dataset.repartition(target_num_rows_per_block=CHUNK_ROWS, strict=True)


def _check_cpus(cpus: float) -> None:
    """Warn if the actors reserve all CPUs of the cluster. Ray would silently wait for a CPU to read the input."""
    import ray

    total = ray.cluster_resources().get("CPU", 0) if ray.is_initialized() else 0
    if total and total < cpus + 1:
        _log.warning(
            "the actors reserve %g CPUs, and Ray has %g, but reading needs one more; give fewer workers, a smaller num_cpus, or "
            "ray.init(num_cpus=%g)",
            cpus, total, cpus + 1,
        )  # fmt: skip
