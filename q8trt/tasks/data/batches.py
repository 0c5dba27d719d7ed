"""Tokenization, and batches padded to a few fixed lengths.

A batch is padded to the smallest bucket that its longest row fits. An engine has one optimization profile for each bucket.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data.encoding import Encoder, EncodingError
from q8trt.tasks.data.examples import IGNORED, Examples, Features, Labels
from q8trt.tasks.data.question_windows import question_windows
from q8trt.tasks.data.sentences import Sentences
from q8trt.tasks.heads import HeadKind

_log = logging.getLogger("q8trt")
DEFAULT_BUCKETS = (16, 32, 64, 128, 256, 512)

_PADDED = ("input_ids", "attention_mask", "token_type_ids")


def tokenize(examples: Examples | Features, tokenizer: Any, max_length: int) -> Features:
    """Tokenize a split without padding; of a pair, the longer text is truncated first.

    For embeddings, each text becomes a row, with the model's default prompt before it. Contexts of questions are split into
    windows, see `question_windows`.

    Args:
        examples: texts; `Features` (already tokenized, from TFRecord) are only checked.
        tokenizer: a transformers tokenizer; its ``model_input_names`` decide whether the rows have token types.
        max_length: maximum number of tokens of a row, special tokens included.

    Raises:
        ConfigError: `max_length` leaves no room for text, or exceeds the model's positions.
        DataError: tokenized examples exceed `max_length` or the tokenizer's vocabulary, or the tokenizer fails.
    """
    if examples.task.head.kind is HeadKind.QUESTION_ANSWERING and isinstance(examples, Examples):
        return question_windows(examples, tokenizer, max_length)
    if examples.task.embedding and isinstance(examples, Examples):
        examples = examples.single_texts(examples.task.embedding.prompt(None))
    is_pair = examples.task.is_pair and not examples.task.embedding
    special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    shortest = special + 1 + is_pair
    if not shortest <= max_length <= tokenizer.model_max_length:
        raise ConfigError(
            f"max_seq_length {max_length} must be from {shortest} to {tokenizer.model_max_length} for this model"
        )
    if isinstance(examples, Features):
        if examples.token_type_ids is not None and "token_type_ids" not in tokenizer.model_input_names:
            examples = replace(examples, token_type_ids=None)
        return _check_features(examples, len(tokenizer), max_length)
    if isinstance(examples, Sentences):
        return _tagged(examples, tokenizer, max_length)
    texts = [examples.first] if examples.second is None else [examples.first, examples.second]
    try:
        encoder = Encoder(tokenizer.backend_tokenizer, max_length, len(texts) == 2, tokenizer.truncation_side)
        encoded = encoder.encode(list(zip(*texts, strict=True)))
    except EncodingError as error:
        raise DataError(f"{examples.source}: the tokenizer cannot encode the texts: {error}") from None
    types = encoded.type_ids if "token_type_ids" in tokenizer.model_input_names else None
    return Features(**examples.origin, input_ids=encoded.ids, token_type_ids=types, labels=examples.labels)


def _tagged(sentences: Sentences, tokenizer: Any, max_length: int) -> Features:
    """Tokenize sentences with tagged words; a warning gives the number of truncated ones."""
    try:
        features, cut = sentences.tokenized(tokenizer, max_length)
    except EncodingError as error:
        raise DataError(f"{sentences.source}: the tokenizer cannot encode the words: {error}") from None
    if cut:
        _log.warning(
            "%d of %d sentences of %s have more than %d tokens, so their last words are dropped; raise --max_seq_length",
            cut, len(sentences), sentences.split, max_length,
        )  # fmt: skip
    return features


def _check_features(features: Features, vocabulary: int, max_length: int) -> Features:
    longest = int(features.lengths.max(initial=0))
    if longest > max_length:
        raise DataError(f"{features.source}: {longest} tokens in one example; raise --max_seq_length from {max_length}")
    highest = max((max(ids) for ids in features.input_ids), default=0)
    if min((min(ids) for ids in features.input_ids), default=0) < 0:
        raise DataError(f"{features.source}: a token id below 0; the file is damaged")
    if highest >= vocabulary:
        raise DataError(
            f"{features.source}: token id {highest}, but the vocabulary has {vocabulary}; "
            "the file was made with another tokenizer"
        )
    return features


def buckets_up_to(max_length: int, buckets: Sequence[int] = DEFAULT_BUCKETS) -> tuple[int, ...]:
    """Return the buckets below `max_length` in ascending order, and `max_length`."""
    return (*sorted(bucket for bucket in buckets if bucket < max_length), max_length)


def bucket_for(length: int, buckets: Sequence[int] = DEFAULT_BUCKETS) -> int:
    """Return the smallest bucket for `length` tokens. Raises DataError if all buckets are shorter."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise DataError(f"{length} tokens do not fit the longest bucket, {max(buckets)}; lower --max_seq_length")
    return min(fitting)


def pad(
    rows: Sequence[Mapping[str, Any]],
    pad_token_id: int,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    max_length: int | None = None,
) -> dict[str, npt.NDArray[np.int64]]:
    """Pad rows on the right to one bucket.

    Args:
        rows: dicts with ``input_ids`` and, optionally, ``attention_mask`` and ``token_type_ids``; other keys are ignored.
        pad_token_id: the padding value of ``input_ids``; that of the mask and the token types is 0.
        buckets: the allowed lengths.
        max_length: the longest allowed length, which is also a bucket; None for the longest bucket.

    Returns:
        (B, S) int64 arrays by the names in the rows.

    Raises:
        DataError: a row is longer than the longest bucket.
    """
    allowed = buckets if max_length is None else buckets_up_to(max_length, buckets)
    length = bucket_for(max(len(row["input_ids"]) for row in rows), allowed)
    arrays = {}
    for name in _PADDED:
        if name in rows[0]:
            array = np.full((len(rows), length), pad_token_id if name == "input_ids" else 0, dtype=np.int64)
            for target, row in zip(array, rows, strict=True):
                target[: len(row[name])] = row[name]
            arrays[name] = array
    return arrays


@dataclass(frozen=True)
class Collator:
    """A ``collate_fn`` of a DataLoader or Trainer that pads rows of `Features` to a batch of torch tensors.

    The inputs are (B, S) int64, see `pad`. ``labels`` have the shape and type of those of `Features`; with `tags_tokens` they
    are (B, S) int64, IGNORED in the padding.
    """

    pad_token_id: int
    buckets: Sequence[int] = DEFAULT_BUCKETS
    max_length: int | None = None
    tags_tokens: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch of `rows`. Raises DataError, see `pad`."""
        import torch

        arrays = pad(rows, self.pad_token_id, self.buckets, self.max_length)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            if self.tags_tokens:
                width = arrays["input_ids"].shape[1]
                labels = [each + [IGNORED] * (width - len(each)) for each in labels]
            batch["labels"] = torch.tensor(labels)
        return batch


@dataclass(frozen=True, eq=False)
class Batch:
    """A padded batch.

    Attributes:
        arrays: model inputs by name, (B, S) int64.
        indices: (B,) int64, the position of each row in the split.
        labels: the labels of the rows, as in `Features`, or None.
    """

    arrays: dict[str, npt.NDArray[np.int64]]
    indices: npt.NDArray[np.int64]
    labels: Labels | None


class Tokenized(Protocol):
    """Tokenized rows, such as `Features`."""

    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens per example."""

    @property
    def labels(self) -> Labels | None:
        """N labels, or None."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row for `pad`."""


def bucketed_batches(
    features: Tokenized,
    batch_size: int,
    pad_token_id: int,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    max_length: int | None = None,
) -> Iterator[Batch]:
    """Yield batches of rows in ascending order of length, which is stable. `restore_order` undoes the sorting.

    Raises:
        ConfigError: `batch_size` is not positive.
        DataError: a row is longer than the longest bucket.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size}, expected 1 or more")
    order = np.argsort(features.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        arrays = pad([features[index] for index in indices.tolist()], pad_token_id, buckets, max_length)
        yield Batch(arrays, indices, None if features.labels is None else features.labels[indices])


def restore_order(chunks: Sequence[npt.NDArray[Any]], indices: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
    """Return the results of batches, each (B, ...), as one array (N, ...) in the order of the split.

    Raises:
        ValueError: the indices are not a permutation of 0 to N - 1, or the numbers of rows and indices differ.
    """
    rows, order = np.concatenate(chunks), np.concatenate(indices)
    if len(rows) != len(order) or not np.array_equal(np.sort(order), np.arange(len(order))):
        raise ValueError(f"{len(rows)} rows with {len(order)} indices that are not a permutation of them")
    restored = np.empty_like(rows)
    restored[order] = rows
    return restored


def restore_tokens(
    chunks: Sequence[npt.NDArray[Any]], masks: Sequence[npt.NDArray[np.int64]], indices: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[Any]:
    """Return the outputs of tokens, (B, S, ...) for each batch, as one array (tokens, ...) in the order of the split.

    Args:
        chunks: the outputs of each batch.
        masks: (B, S) for each batch, 1 for tokens and 0 for padding, whose outputs are dropped.
        indices: (B,) for each batch, the position of each row in the split.

    Raises:
        ValueError: see `restore_order`.
    """
    rows = [
        output[mask != 0]
        for chunk, batch in zip(chunks, masks, strict=True)
        for output, mask in zip(chunk, batch, strict=True)
    ]
    order = restore_order([np.arange(len(rows))], [np.concatenate(indices)])
    return np.concatenate([rows[index] for index in order.tolist()])
