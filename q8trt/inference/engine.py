"""`Engine`, which opens an engine folder in an app and answers texts.

`predict` runs in the caller's thread, except for batches that run at the same time. `apredict` checks and encodes in the event
loop, or in the loop's executor if the request is long. A batch thread runs the token ids of all requests. That thread and the
runners have no reference to the `Engine`, so they end when an unclosed engine is collected.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import ArrayError, ConfigError, DataError, NotFiniteError
from q8trt.inference.answering import WindowedPairs
from q8trt.inference.answers import THRESHOLD, Answer, LabelSet, answers, check_threshold, scores_of
from q8trt.inference.batching import BatchedModel, BatchLimits, batch_limits
from q8trt.inference.checks import check_arrays, check_model, check_tokenizer
from q8trt.inference.microbatch import MicroBatcher
from q8trt.inference.opening import open_runners
from q8trt.inference.pool import RunnerPool
from q8trt.inference.ranking import Ranked, ranked, ranking_pairs
from q8trt.inference.tagging import Tagger
from q8trt.inference.text import Item, TextEncoder, Tokens
from q8trt.inference.token_methods import TokenMethods
from q8trt.tasks.heads import HeadKind

_log = logging.getLogger(__name__)
#: Name of an item in the error of an answer that is not finite.
_ITEM = "the answer to item"
#: Rows that `predict` encodes and runs at a time, because the token ids of a million texts need gigabytes.
_WINDOW = 8192
#: Maximum characters of a request that is encoded in the event loop (less than a millisecond) instead of in its executor.
_INLINE = 4096
#: Kind of head -> name of its method; `predict` for all others.
_METHODS = {
    HeadKind.EMBEDDING: "embed",
    HeadKind.TOKEN_CLASSIFICATION: "tag",
    HeadKind.QUESTION_ANSWERING: "answer",
}


class Engine(TokenMethods):
    """An open engine folder, returned by `Engine.load`. Any number of threads and event loops can use it at the same time.

    Use it as a context manager, or call `close`.

    Attributes:
        folder: the engine folder.
        manifest: the facts of the folder: task, labels, lengths, precision, scores.
        backend: the name of the runtime that computes, such as "onnxruntime".
        device: "cpu", or the GPU's name.
        limits: lengths and batch sizes.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        pool: RunnerPool,
        limits: BatchLimits,
        contexts: int,
        max_batch: int,
        max_wait_ms: float,
    ) -> None:
        self.folder, self.manifest, self.limits = folder, manifest, limits
        self.backend, self.device = pool.first.backend, pool.first.device
        self._pool, self._reads_in_place = pool, bool(pool.first.runtime.capabilities.array_protocols)
        self._text = TextEncoder(folder, manifest, limits.max_length)
        check_tokenizer(folder, manifest, self._text.tokenizer)
        check_model(folder, manifest, pool, limits, self._text.vocabulary)
        self._questions = WindowedPairs(self._text) if manifest.head.kind is HeadKind.QUESTION_ANSWERING else None
        self._tagger = Tagger(self._text, manifest) if manifest.head.kind is HeadKind.TOKEN_CLASSIFICATION else None
        self._model = BatchedModel(pool, manifest, limits, contexts)
        self._batcher = MicroBatcher(self._model.answers, max_batch, max_wait_ms, limits.batch_size)
        self._truncated, self._lock = 0, threading.Lock()
        weakref.finalize(self, pool.close, wait=False).atexit = False

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        backend: str | None = None,
        buckets: Sequence[int] | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        contexts: int = 2,
        max_batch: int = 32,
        max_wait_ms: float = 2.0,
    ) -> Engine:
        """Verify an engine folder and open it.

        Args:
            folder: the engine folder.
            device: "cuda" for the plan on the GPU, "cpu" for the same graph on the CPU. None for the GPU if there is one, else
                the CPU. If the GPU cannot run the plan, this is an error; the CPU does not replace it.
            backend: name of the runtime, such as "onnxruntime"; None for that of the device.
            buckets: ascending lengths in tokens to which batches are padded. Longer texts are cut at the last one. None for
                those of the plan and the default ones between them, and for any length on the CPU.
            batch_size: maximum rows of a batch, limited by the plan. None for 32, on the CPU for 8.
            threads: threads within an operator on the CPU; None for the runtime's default.
            contexts: number of batches of one `predict` that run at the same time. On a GPU, all calls share them, and each
                has separate memory.
            max_batch: number of rows at which `apredict` starts a batch.
            max_wait_ms: maximum milliseconds that `apredict` waits for `max_batch` rows.

        Raises:
            ConfigError: an option is invalid, or two options contradict each other.
            EngineError: the folder, its manifest or its tokenizer is missing or damaged, or contradicts the model.
            BackendError: the backend is not installed, or the plan was built for another GPU or version.
        """
        folder = Path(folder)
        manifest = load_manifest(folder, verify=False)
        runners = open_runners(folder, manifest, device, backend, threads, contexts)
        capabilities = runners[0].runtime.capabilities
        pool = RunnerPool(runners, shared=capabilities.concurrent)
        try:
            sizes = batch_limits(manifest, capabilities.fixed_shapes, buckets, batch_size)
            return cls(folder, manifest, pool, sizes, contexts, max_batch, max_wait_ms)
        except BaseException:
            pool.close()
            raise

    @property
    def cut_length(self) -> int:
        """The maximum tokens of an item; for question answering, of the question."""
        return self._questions.question_length if self._questions else self.limits.max_length

    @property
    def truncated(self) -> int:
        """The number of items so far that were cut because they had more than `cut_length` tokens."""
        return self._truncated

    def predict(
        self, items: Iterable[Item], threshold: float | None = None
    ) -> list[float] | list[Answer] | list[LabelSet]:
        """Return the task's answers, in the order of `items`.

        Args:
            items: any number of texts, or of pairs of texts for a task of pairs.
            threshold: the probability above which a multi-label classifier assigns a label; None for 0.5.

        Returns:
            for each item, a score (regression, reranker), an `Answer` (classification) or a `LabelSet` (multi-label). A score
            is the logit, or its sigmoid for a cross-encoder with that activation (`manifest.task.activation`).

        Raises:
            ConfigError: the engine's head has another method, or no threshold, or the threshold is not from 0 to 1.
            InputError: an item is not a text, or is empty; `index` is its position.
            PairError: a text was given for a task of pairs, or a pair for a task of texts.
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch, or an answer is not finite.
        """
        self._check_head("predict")
        threshold = check_threshold(threshold, self.manifest.head.kind)
        logits = self._finite(self.logits(items), _ITEM)
        return answers(logits, self.manifest.task, self.manifest.head.kind, threshold)

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Return documents in the order of their relevance to `query`, the most relevant first.

        Args:
            query: a text.
            documents: any number of texts.
            top_k: maximum number of documents to return; None for all.

        Returns:
            for each document, a `Ranked` with its index in `documents`, its score as in `predict`, and its text.

        Raises:
            ConfigError: the engine does not score pairs of texts, or `top_k` is below 1.
            InputError: the query or a document is not a text, or is empty; `index` is its position.
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch, or a score is not finite.
        """
        pairs = ranking_pairs(query, documents, top_k, self.manifest.task)
        return ranked(self.logits(pairs)[:, 0], documents, self.manifest.task, top_k)

    async def arank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Rank like `rank` in an event loop, with dynamic micro-batching."""
        rows = await self._batched(ranking_pairs(query, documents, top_k, self.manifest.task))
        return ranked(np.array(rows, np.float32).reshape(-1), documents, self.manifest.task, top_k)

    def embed(self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None) -> np.ndarray:
        """Return the embeddings of texts, float32, shape (texts, dimension), in order.

        Args:
            texts: any number of texts.
            prompt_name: name of the model's prompt to put before each text (`manifest.head.embedding.prompts`); None for the
                model's default prompt, if there is one.
            prompt: prompt to put before each text instead of the model's prompts, such as "query: "; "" for no prompt.

        Raises:
            ConfigError: the engine does not embed, both arguments are given, or the model has no such prompt.
            InputError: an item is not a text, or is empty; `index` is its position.
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch, or an embedding is not finite.
        """
        return self._finite(self.logits(texts, self._prefix(prompt_name, prompt)))

    async def aembed(self, texts: Any, prompt_name: str | None = None, prompt: str | None = None) -> np.ndarray:
        """Embed like `embed` in an event loop, with dynamic micro-batching; the shape is (dimension,) for one text."""
        prefix = self._prefix(prompt_name, prompt)
        single = isinstance(texts, str)
        rows = await self._batched([texts] if single else texts, prefix)
        vectors = np.array(rows, np.float32).reshape(len(rows), self.manifest.model.num_labels)
        return self._finite(vectors)[0] if single else self._finite(vectors)

    def logits(self, items: Iterable[Item], prompt: str = "") -> np.ndarray:
        """Return the model's outputs in order, float32: logits (items, labels) or embeddings (items, dimension).

        `prompt` is put before each text. The errors are those of `predict`, and ConfigError for a head for tokens.
        """
        if self.manifest.head.kind.per_token:
            self._check_head("logits")
        rows = _prompted(self._checked(items), prompt)
        if not rows:
            return np.empty((0, self.manifest.model.num_labels), np.float32)
        windows = (rows[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW))
        return np.concatenate([self._model.logits(self._encoded(window)) for window in windows])

    def check(self, item: Item) -> tuple[str, ...]:
        """Return the one or two texts of an item. Raises InputError or PairError as `predict` does."""
        return self._text.check(item)

    @overload
    async def apredict(
        self, items: str | tuple[str, str], threshold: float | None = None
    ) -> float | Answer | LabelSet: ...
    @overload
    async def apredict(
        self, items: list[Any], threshold: float | None = None
    ) -> list[float] | list[Answer] | list[LabelSet]: ...
    async def apredict(self, items: Any, threshold: float | None = None) -> Any:
        """Answer like `predict` in an event loop. Simultaneous requests share batches (dynamic micro-batching).

        Args:
            items: one text, one pair (a tuple of two texts), or a list of them.
            threshold: see `predict`.

        Returns:
            one answer for one text or pair, a list of answers for a list. The errors are those of `predict`.
        """
        self._check_head("predict")
        threshold, task = check_threshold(threshold, self.manifest.head.kind), self.manifest.task
        single = isinstance(items, str | tuple)
        replies = await self._batched([items] if single else items)
        numbers = np.array([_numbers(reply) for reply in replies], np.float32)
        self._finite(numbers.reshape(len(replies), self.manifest.model.num_labels), _ITEM)
        if task.is_regression:
            replies = scores_of(np.array(replies, np.float32).reshape(-1), task)
        elif threshold != THRESHOLD:
            replies = [replace(reply, threshold=threshold) for reply in replies]
        return replies[0] if single else replies

    async def _batched(self, items: Iterable[Item], prompt: str = "") -> list[Any]:
        """Return one answer for each item, from the batch thread."""
        rows = _prompted(self._checked(items), prompt)
        if not rows:
            return []
        if sum(len(text) for row in rows for text in row) <= _INLINE:
            tokens = self._encoded(rows)
        else:
            tokens = await asyncio.to_thread(self._encoded, rows)
        return await asyncio.wrap_future(self._batcher.submit(tokens.rows()))

    def run(self, arrays: Mapping[str, Any]) -> np.ndarray:
        """Return the logits of token arrays.

        Args:
            arrays: an integer array for each of `manifest.inputs`, all of one shape (batch, sequence). TensorRT also reads
                C-contiguous int32 arrays on its GPU in place, from objects with DLPack or ``__cuda_array_interface__``
                (torch, CuPy, PyCUDA).

        Returns:
            a float32 array on the host, (batch, outputs), or (batch, sequence, outputs) of a head for tokens.

        Raises:
            ArrayError: an array is missing, does not contain integers, is on another device, or has a wrong shape or values.
            ClosedError: the engine is closed.
            BackendError: the backend refused the batch.
        """
        self._pool.check_open()
        batch = check_arrays(arrays, self.manifest, self._reads_in_place, self._text.vocabulary)
        with self._pool.runner() as runner:
            try:
                return runner.infer(batch)
            except DataError as error:
                raise ArrayError(str(error)) from error

    def close(self) -> None:
        """Answer the queued requests, wait for running batches, and free memory. It is safe to close twice."""
        if not self._pool.forked:  # the copy in a forked process has no threads to end
            self._batcher.close()
            self._pool.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<q8trt.Engine {self.manifest.task.name} {self.manifest.precision} on {self.backend}, {self.device}>"

    def _check_head(self, method: str) -> None:
        """Raise ConfigError if the method of the model's head is not `method`."""
        right = _METHODS.get(self.manifest.head.kind, "predict")
        if method != right:
            raise ConfigError(f"{self.folder} has a head for {self.manifest.head.kind}, not for {method}; call {right}")

    def _prefix(self, prompt_name: str | None, prompt: str | None) -> str:
        """Return the prompt to put before each text."""
        self._check_head("embed")
        assert self.manifest.head.embedding is not None
        if prompt is not None and prompt_name is not None:
            raise ConfigError("prompt and prompt_name exclude each other; give one")
        return self.manifest.head.embedding.prompt(prompt_name) if prompt is None else prompt

    def _finite(self, vectors: np.ndarray, name: str = "the embedding of text") -> np.ndarray:
        """Return `vectors` (N, D). Raises NotFiniteError if one is not finite; the message names it by `name` and its number."""
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise NotFiniteError(
                f"{name} {bad} is NaN or infinite; build the engine again at another precision: {self.folder}"
            )
        return vectors

    def _check_open(self) -> None:
        self._pool.check_open()

    def _checked(self, items: Iterable[Item]) -> list[tuple[str, ...]]:
        self._pool.check_open()
        return self._text.check_all(items)

    def _encoded(self, rows: Sequence[tuple[str, ...]]) -> Tokens:
        tokens = self._text.encode(rows)
        self._count(tokens.truncated)
        return tokens

    def _count(self, truncated: int) -> None:
        """Add to `truncated`, and log a warning the first time."""
        if not truncated:
            return
        with self._lock:
            first, self._truncated = self._truncated == 0, self._truncated + truncated
        if first:
            _log.warning(
                "a %s is longer than %d tokens and was cut, as in training; Engine.truncated counts them",
                "question" if self._questions else "text",
                self.cut_length,
            )


def _numbers(reply: Any) -> Any:
    """Return the probabilities of an answer of a classifier, or the logit of a score as it is."""
    return list(reply.probabilities.values()) if isinstance(reply, Answer | LabelSet) else reply


def _prompted(rows: list[tuple[str, ...]], prompt: str) -> list[tuple[str, ...]]:
    """Return the rows with `prompt` before each text."""
    return [tuple(prompt + text for text in row) for row in rows] if prompt else rows
