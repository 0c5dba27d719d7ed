"""BERT's TFRecord files, without TensorFlow: tokenized examples as ``tf.train.Example`` messages.

A record has ``input_ids``, ``input_mask``, ``segment_ids`` (int64 lists of the same length) and ``label_ids`` (one int64, or
one float for regression), as run_classifier.py of google-research/bert writes them. In a file, plain or compressed with gzip,
each record is its length and its bytes, each followed by a CRC-32C. TensorBoard's reader is not used, because it trusts the
length that a record claims.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from q8trt.errors import DataError
from q8trt.files import atomic_file
from q8trt.files.protobuf import Schema, message_class
from q8trt.tasks.data.examples import Features, label_array, require
from q8trt.tasks.data.labels import accepted_labels, check_label, check_score
from q8trt.tasks.data.opening import Allowance, is_gzip, open_data, path_name
from q8trt.tasks.glue import Task

EXTENSIONS = (".tfrecord", ".tf_record", ".tfrecords")
#: Number of features that an error lists.
_SHOWN_FEATURES = 20

_Decoded = dict[str, tuple[str, list[Any]]]
"""Feature -> the kind of its list, and its values."""

_SCHEMA: Schema = {
    "BytesList": {"value": (1, "bytes", True)},
    "FloatList": {"value": (1, "float", True)},
    "Int64List": {"value": (1, "int64", True)},
    "Feature": {
        "bytes_list": (1, "BytesList", False),
        "float_list": (2, "FloatList", False),
        "int64_list": (3, "Int64List", False),
    },
    "Entry": {"key": (1, "string", False), "value": (2, "Feature", False)},
    "Features": {"feature": (1, "Entry", True)},
    "Example": {"features": (1, "Features", False)},
}
#: Maximum number of bytes of a record; one of 512 tokens has less than 16 KiB.
LONGEST_RECORD = 2**20
#: Bytes that any file may expand to. The checksum of 10 MiB takes a second.
_EXPANSION = 8 * 2**20
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the place and the payload of each record, after its checksums are verified.

    Raises:
        DataError: the file is missing, or a record is cut short, damaged or longer than `LONGEST_RECORD`.
    """
    name, number = path_name(path), 0
    with open_data(path) as file:
        allowance = Allowance(name, path.stat().st_size, _EXPANSION)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip(file) else file
        while True:
            number += 1
            where = f"{name}: record {number}"
            try:
                payload = _record(stream, where)
            except (OSError, EOFError, zlib.error) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(f"{where} cannot be read ({reason}); make or copy the file again") from None
            if payload is None:
                return
            allowance.spend(len(payload))
            yield where, payload


def _record(stream: BinaryIO, where: str) -> bytes | None:
    """Return the next record, or None at the end of the file."""
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    head += _exactly(stream, _LENGTH.size - len(head), where)
    _check(head, _exactly(stream, _CHECKSUM.size, where), where)
    length = _LENGTH.unpack(head)[0]
    if length > LONGEST_RECORD:
        raise DataError(f"{where} claims {length:,} bytes, more than any example has; make or copy the file again")
    payload = _exactly(stream, length, where)
    _check(payload, _exactly(stream, _CHECKSUM.size, where), where)
    return payload


def _exactly(stream: BinaryIO, count: int, where: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{where} is cut short; make or copy the file again")
    return data


def _check(data: bytes, checksum: bytes, where: str) -> None:
    """Raise DataError if `checksum` is not that of `data`."""
    crc = require("tensorboard.compat.tensorflow_stub.pywrap_tensorflow", "reading TFRecord").masked_crc32c(data)
    if crc != _CHECKSUM.unpack(checksum)[0]:
        raise DataError(f"{where} is damaged (its checksum does not match); make or copy the file again")


@cache
def example_class() -> Any:
    """Return the message class of ``tf.train.Example``, with its map of features as a list of entries."""
    require("google.protobuf", "reading TFRecord")
    return message_class(_SCHEMA, "Example", "q8trt.tfrecord", "proto3")


def _features(payload: bytes, where: str) -> _Decoded:
    """Return name -> (kind of list, values) of a serialized ``tf.train.Example``; the kind is "empty" without a list."""
    try:
        entries = example_class().FromString(payload).features.feature
    except Exception as error:  # google.protobuf.message.DecodeError
        raise DataError(f"{where} is not a tf.train.Example") from error
    features = {}
    for entry in entries:
        lists = [(field.name, list(values.value)) for field, values in entry.value.ListFields()]
        features[entry.key] = lists[-1] if lists else ("empty", [])
    return features


def _integers(features: _Decoded, name: str, where: str) -> list[int]:
    kind, values = features.get(name, ("", []))
    if kind != "int64_list" or not values:
        raise DataError(f"{where} has no int64 list {name!r}; its features: {_described(features)}")
    return values


def _described(features: _Decoded) -> str:
    """Return the features and the kinds of their lists: ``input_ids (int64_list), label_ids (float_list)``."""
    return ", ".join(f"{name} ({features[name][0]})" for name in sorted(features)[:_SHOWN_FEATURES]) or "none"


def _label(features: _Decoded, task: Task, where: str) -> float | int:
    """Return the label id or the score of an example; a label may be stored as an integer, a float or a name in bytes."""
    kind, values = features.get("label_ids", ("", []))
    if len(values) != 1:
        raise DataError(
            f"{where} has {len(values)} values in 'label_ids', expected one; its features: {_described(features)}"
        )
    [value] = values
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if task.is_regression:
        return check_score(value, task, where)
    # google-research/bert writes ids, even if the names of the labels are numbers.
    ids = {str(index): index for index in range(task.num_labels)}
    return check_label(value, task, where, accepted_labels(task) if kind == "bytes_list" else ids)


def _tokens(features: _Decoded, where: str) -> tuple[list[int], list[int]]:
    """Return token ids and segment ids without padding."""
    tokens, mask, segments = (_integers(features, name, where) for name in ("input_ids", "input_mask", "segment_ids"))
    length = mask.count(1)
    if not length or mask != [1] * length + [0] * (len(mask) - length):
        raise DataError(f"{where}: input_mask is not ones followed by zeros")
    if not len(tokens) == len(mask) == len(segments):
        raise DataError(
            f"{where}: input_ids, input_mask, segment_ids have lengths {len(tokens)}, {len(mask)}, {len(segments)}"
        )
    tokens, segments = tokens[:length], segments[:length]
    if min(tokens) < 0:
        raise DataError(f"{where}: token id {min(tokens)}, expected 0 or more")
    if wrong := [each for each in segments if each not in (0, 1)]:
        raise DataError(f"{where}: segment id {wrong[0]}, expected 0 for the first text and 1 for the second")
    return tokens, segments


def read_tfrecord(path: str | Path, task: Task, split: str) -> Features:
    """Read a BERT TFRecord file, plain or gzip, without padding and without examples whose ``is_real_example`` is 0.

    Raises:
        DataError: the file is missing, has no examples, or has a record that is cut short, damaged or not BERT's (the message
            names its number); or the task has several labels a row.
    """
    path = Path(path)
    if task.is_multi_label:
        raise DataError(
            f"{path_name(path)}: TFRecord has one label a row, and {task.name} has several; use .jsonl or .parquet"
        )
    ids: list[list[int]] = []
    types: list[list[int]] = []
    labels: list[float | int] = []
    for where, payload in _records(path):
        features = _features(payload, where)
        if "is_real_example" in features and _integers(features, "is_real_example", where)[0] == 0:
            continue
        tokens, segments = _tokens(features, where)
        ids.append(tokens)
        types.append(segments)
        labels.append(_label(features, task, where))
    if not ids:
        raise DataError(f"{path_name(path)}: no examples")
    return Features(
        task=task,
        split=split,
        source=f"TFRecord {path.name}",
        input_ids=ids,
        token_type_ids=types,
        labels=label_array(labels, task),
    )


def write_tfrecord(path: str | Path, features: Features, max_length: int) -> None:
    """Write `features` in BERT's format, padded with zeros to `max_length` tokens; the write is atomic.

    Raises:
        DataError: an example has no label or more than `max_length` tokens.
    """
    writer_module = require("tensorboard.summary.writer.record_writer", "writing TFRecord")
    if features.labels is None or features.lengths.max(initial=0) > max_length:
        raise DataError(f"TFRecord needs labels and at most {max_length} tokens, got {features.lengths.max(initial=0)}")
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        writer = writer_module.RecordWriter(file)
        for row in (features[index] for index in range(len(features))):
            writer.write(_example(row, max_length).SerializeToString())


def _example(row: dict[str, Any], max_length: int) -> Any:
    """Return the message of a row of `Features`, with its features in alphabetical order."""
    example = example_class()()
    length = len(row["input_ids"])
    types = row.get("token_type_ids", [0] * length)
    lists = {"input_ids": row["input_ids"], "input_mask": row["attention_mask"], "segment_ids": types}
    padded = {name: values + [0] * (max_length - length) for name, values in lists.items()}
    for name, values in sorted({**padded, "label_ids": [row["labels"]]}.items()):
        feature = example.features.feature.add(key=name).value
        (feature.float_list if isinstance(values[0], float) else feature.int64_list).value.extend(values)
    return example
