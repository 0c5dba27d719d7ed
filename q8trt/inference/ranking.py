"""The ranking of documents by their relevance to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q8trt.engine.manifest import TaskInfo
from q8trt.errors import BackendError, ConfigError, InputError
from q8trt.inference.answers import scores_of


@dataclass(frozen=True)
class Ranked:
    """A ranked document.

    Attributes:
        index: position in the given documents, from 0.
        score: relevance: the model's logit, or its sigmoid if the model has that activation.
        text: the document.
    """

    index: int
    score: float
    text: str


def ranking_pairs(query: str, documents: Sequence[str], top_k: int | None, task: TaskInfo) -> list[tuple[str, str]]:
    """Return pairs of the query and each document.

    Raises:
        ConfigError: the engine's `task` is not the score of a pair of texts, or `top_k` is below 1.
        InputError: the query is not a text or is empty, or the documents are not a list.
    """
    if not (task.is_regression and task.is_pair):
        raise ConfigError(f"the engine answers {task.name}, not the score of a pair; rank needs a reranker's engine")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k must be 1 or more, got {top_k}")
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"the query {query!r:.40} is not a text, or is empty; expected a string")
    if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
        raise InputError(f"expected a list of documents, got {type(documents).__name__}")
    return [(query, document) for document in documents]


def ranked(logits: np.ndarray, documents: Sequence[str], task: TaskInfo, top_k: int | None) -> list[Ranked]:
    """Return the documents sorted by descending logits (documents,). Documents with equal logits keep their order.

    The order follows the logits, because float32 sigmoids near 0 and 1 are equal for different logits.

    Raises:
        BackendError: a logit is not finite.
    """
    if len(bad := np.flatnonzero(~np.isfinite(logits))):
        raise BackendError(
            f"the score of document {bad[0]} is NaN or infinite; build the engine again at another precision"
        )
    order = np.argsort(-logits, kind="stable")[:top_k].tolist()
    scores = scores_of(logits, task)
    return [Ranked(index, scores[index], documents[index]) for index in order]
