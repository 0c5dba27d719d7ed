"""The scores of a model's outputs on the rows that they answer, whatever its head.

A head that answers each token gives outputs (tokens, outputs): those of the tokens of all rows, one after the other, without
padding. All others give one row of outputs for each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from q8trt.errors import DataError
from q8trt.tasks.data.examples import Features
from q8trt.tasks.metrics import METRICS, check_finite, compute_from_logits

Outputs = npt.NDArray[np.float32]


def score(
    rows: Features, outputs: Outputs, reference: Outputs | None = None, activation: str = "identity"
) -> dict[str, float]:
    """Return the metrics of the rows' task, by name.

    Args:
        rows: the rows; their labels are read where the task has labels.
        outputs: (rows, outputs) float32, or (tokens, outputs) of a head that answers each token.
        reference: the FP32 model's outputs, for a task whose rows have no labels; None where `outputs` are those.
        activation: see `compute_from_logits`.

    Raises:
        DataError: rows without labels that need them, outputs of another shape, or outputs that are not finite.
    """
    task, others = rows.task, outputs if reference is None else reference
    if task.has_labels and rows.labels is None:
        raise DataError(f"{rows.split} has no labels, so nothing can be scored on it")
    if not task.per_token:
        labels = rows.labels if task.has_labels and rows.labels is not None else others
        return compute_from_logits(task, outputs, labels, activation)
    expected = int(rows.lengths.sum()), task.num_labels
    if outputs.shape != expected or others.shape != expected or not len(outputs):
        raise DataError(f"{task.name}: outputs have shape {outputs.shape}, expected {expected} for {len(rows)} rows")
    check_finite(outputs, "tokens' logits")
    by_row = split_rows(outputs, rows.lengths), split_rows(others, rows.lengths)
    metrics = {name: METRICS[name] for name in task.metrics}
    return {name: each.compute(*(by_row if each.by_row else (outputs, others))) for name, each in metrics.items()}


def split_rows(outputs: Outputs, lengths: npt.NDArray[np.int64]) -> Sequence[Outputs]:
    """Return outputs (tokens, outputs) as an array (tokens of the row, outputs) for each row of these lengths."""
    return np.split(outputs, np.cumsum(lengths)[:-1])
