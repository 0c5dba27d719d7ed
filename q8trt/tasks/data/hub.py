"""GLUE from the Hugging Face hub, ``nyu-mll/glue``, through the `datasets` library and its cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from q8trt.errors import DataError
from q8trt.hardware.hub import hub_answers
from q8trt.tasks.data.examples import Examples, Row, check_row, collect, require
from q8trt.tasks.glue import Task

log = logging.getLogger("q8trt")

REPOSITORY = "nyu-mll/glue"


def read_hub(task: Task, split: str, loader: Callable[..., Any] | None = None) -> Examples:
    """Return a split from the hub or from its local cache.

    Broken rows of QQP are skipped, and a warning gives their number, as for its TSV files. `loader` replaces
    ``datasets.load_dataset`` in tests.

    Raises:
        DataError: the hub does not answer and nothing is cached, or columns, labels or rows are not as expected.
    """
    where = f"{REPOSITORY}/{task.hub_config} {task.hub_splits[split]}"
    try:
        data = (loader or _load)(REPOSITORY, task.hub_config, split=task.hub_splits[split])
    except DataError:
        raise
    # The hub's client raises OSError, ValueError and errors of its HTTP library, which have no common base class.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{where} cannot be loaded from the hub ({reason}); without a network give --data_dir FOLDER with the "
            "official GLUE TSV files, or --demo for the built-in sample"
        ) from error
    names = getattr(data.features.get("label"), "names", None) if hasattr(data, "features") else None
    if names is not None and tuple(names) != task.labels:
        raise DataError(f"{where}: labels {', '.join(names)}, expected {', '.join(task.labels)}")
    try:
        rows = _rows(data, task, split, where)
    except KeyError as error:
        raise DataError(f"{where}: no column {error}; expected {', '.join((*task.hub_columns, 'label'))}") from None
    if not rows:
        raise DataError(f"{where}: no examples")
    columns = {"text_columns": task.hub_columns, "label_column": "label"}
    return collect(rows, task=task, split=split, source=f"hub {REPOSITORY}", **columns)


def _rows(data: Any, task: Task, split: str, where: str) -> list[Row]:
    ids = {str(index): index for index in range(len(task.labels))}
    # The hub marks the missing labels of test splits with -1.
    labels = [None] * len(data) if split in task.test_splits else list(data["label"])
    columns = [list(data[name]) for name in task.hub_columns]
    rows = []
    for number, (label, *texts) in enumerate(zip(labels, *columns, strict=True)):
        try:
            rows.append(check_row(texts, label, task, f"{where}: row {number}", ids))
        except DataError:
            if not task.has_broken_rows:
                raise
    if len(rows) < len(data):
        log.warning("%s: skipped %d broken rows of %d", where, len(data) - len(rows), len(data))
    return rows


def _load(*arguments: Any, **options: Any) -> Any:
    """Call ``datasets.load_dataset``, with the cache only if the hub does not answer.

    The client retries each request five times with growing pauses and gives up after about 25 s. One short request before
    it avoids this wait.
    """
    datasets = require("datasets", "loading GLUE from the hub")
    if hub_answers():
        return datasets.load_dataset(*arguments, trust_remote_code=False, **options)
    try:
        with _offline(datasets):
            return datasets.load_dataset(*arguments, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConnectionError("no network, or offline mode, and no cached copy") from error


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Set HF_HUB_OFFLINE in both libraries, which read the environment only when they are imported."""
    holders = (datasets.config, require("huggingface_hub", "loading GLUE from the hub").constants)
    saved = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
        yield
    finally:
        for holder, value in zip(holders, saved, strict=True):
            holder.HF_HUB_OFFLINE = value
