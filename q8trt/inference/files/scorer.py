"""The scoring of rows with an engine. A row without an answer has a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q8trt.errors import InputError, NotFiniteError
from q8trt.inference.answers import THRESHOLD, answers
from q8trt.inference.files.columns import Columns, Reply, is_finite
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from q8trt.inference import Engine


@dataclass(frozen=True)
class Outcome:
    """The outcome of a row: its `answer`, or the `reason` why it has none."""

    answer: Reply | None = None
    reason: str = ""


class RowScorer:
    """A scorer of rows with an engine.

    Args:
        engine: an open engine.
        columns: the columns of the rows, from `choose_columns`.
        prompt_name: name of the prompt of an embedding model; None for the model's default.
        threshold: threshold of a multi-label classifier, see `Engine.predict`.
        null_score_diff_threshold: threshold of question answering, see `Engine.answer`.
    """

    def __init__(
        self,
        engine: Engine,
        columns: Columns,
        prompt_name: str | None = None,
        threshold: float | None = None,
        null_score_diff_threshold: float | None = None,
    ) -> None:
        self.engine, self.columns, self.prompt_name, self.threshold = engine, columns, prompt_name, threshold
        self.null_score_diff_threshold = null_score_diff_threshold

    def outcomes(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Return the outcome of each row, in order.

        Raises:
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch.
        """
        reasons = [self.columns.reason(row) for row in rows]
        replies: Sequence[Reply] = []
        while good := [index for index, reason in enumerate(reasons) if not reason]:
            try:
                replies = self._replies([self.columns.text(rows[index]) for index in good])
                break
            except InputError as error:
                if error.index is None:
                    raise
                reasons[good[error.index]] = str(error)
        outcomes = [Outcome(reason=reason) for reason in reasons]
        for index, reply in zip(good, replies, strict=True):
            outcomes[index] = (
                Outcome(reply) if is_finite(reply) else Outcome(reason="the answer of the engine is NaN or infinite")
            )
        return outcomes

    def _replies(self, items: list[Any]) -> Sequence[Reply]:
        """Return the engine's answers, including embeddings, scores and probabilities that are not finite."""
        embedding = self.engine.manifest.head.embedding
        if embedding:
            return list(self.engine.logits(items, embedding.prompt(self.prompt_name)))
        kind = self.engine.manifest.head.kind
        if kind.per_token:
            return self._of_tokens(items)
        threshold = THRESHOLD if self.threshold is None else self.threshold
        return answers(self.engine.logits(items), self.engine.manifest.task, kind, threshold)

    def _of_tokens(self, items: list[Any]) -> Sequence[Reply]:
        """Return the answers of a head that answers each token; NaN for an item with logits that are not finite."""
        try:
            if self.engine.manifest.head.kind is HeadKind.TOKEN_CLASSIFICATION:
                return self.engine.tag(items)
            questions, contexts = zip(*items, strict=True)
            return self.engine.answer(questions, contexts, null_score_diff_threshold=self.null_score_diff_threshold)
        except NotFiniteError:
            if len(items) == 1:
                return [math.nan]
            return [self._of_tokens([item])[0] for item in items]
