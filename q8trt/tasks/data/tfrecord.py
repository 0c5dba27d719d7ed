"""BERT's TFRecord files, without TensorFlow: tokenized examples as ``tf.train.Example`` messages.

A record is ``input_ids``, ``input_mask``, ``segment_ids`` (int64 lists of one length) and ``label_ids`` (one int64,
or one float for regression), as run_classifier.py of google-research/bert writes them. `framing` reads the records; the
message classes are made here from a descriptor, for the schema is six small messages.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from q8trt.errors import DataError
from q8trt.files import atomic_file
from q8trt.tasks.data.examples import Features, label_array, require
from q8trt.tasks.data.framing import records
from q8trt.tasks.data.labels import accepted_labels, check_label, check_score
from q8trt.tasks.data.opening import path_name
from q8trt.tasks.glue import Task

EXTENSIONS = (".tfrecord", ".tf_record", ".tfrecords")
#: Features that an error lists.
_SHOWN_FEATURES = 20

# Message -> (field, number, type, is repeated); types that are messages start with a dot.
_SCHEMA: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "BytesList": (("value", 1, "TYPE_BYTES", True),),
    "FloatList": (("value", 1, "TYPE_FLOAT", True),),
    "Int64List": (("value", 1, "TYPE_INT64", True),),
    "Feature": (
        ("bytes_list", 1, ".q8trt.BytesList", False),
        ("float_list", 2, ".q8trt.FloatList", False),
        ("int64_list", 3, ".q8trt.Int64List", False),
    ),
    "Features": (("feature", 1, ".q8trt.Features.FeatureEntry", True),),
    "Example": (("features", 1, ".q8trt.Features", False),),
}


@cache
def _example_class() -> Any:
    """The message class of ``tf.train.Example``, in a descriptor pool of its own so as not to clash with others."""
    descriptor = require("google.protobuf.descriptor_pb2", "reading TFRecord")
    pool = require("google.protobuf.descriptor_pool", "reading TFRecord").DescriptorPool()
    factory = require("google.protobuf.message_factory", "reading TFRecord")
    kinds = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(name="q8trt/example.proto", package="q8trt", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: str, repeated: bool) -> None:
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if kind.startswith("."):
            field.type, field.type_name = kinds.TYPE_MESSAGE, kind
        else:
            field.type = getattr(kinds, kind)

    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for each in fields:
            add(message, *each)
        if name == "Features":
            entry = message.nested_type.add(name="FeatureEntry")
            entry.options.map_entry = True
            add(entry, "key", 1, "TYPE_STRING", False)
            add(entry, "value", 2, ".q8trt.Feature", False)
        if name == "Feature":
            message.oneof_decl.add(name="kind")
            for field in message.field:
                field.oneof_index = 0
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("q8trt.Example"))


def _parse(payload: bytes, where: str) -> Any:
    """Return the ``feature`` map of a serialized ``tf.train.Example``."""
    message = require("google.protobuf.message", "reading TFRecord")
    try:
        return _example_class().FromString(payload).features.feature
    except message.DecodeError:
        raise DataError(f"{where} is not a tf.train.Example") from None


def _integers(feature: Any, name: str, where: str) -> list[int]:
    values = list(feature[name].int64_list.value) if name in feature else []
    if not values:
        raise DataError(f"{where} has no int64 list {name!r}; its features: {_described(feature)}")
    return values


def _described(feature: Any) -> str:
    """Return the features and the kinds of their lists: ``input_ids (int64_list), label_ids (float_list)``."""
    names = [f"{name} ({feature[name].WhichOneof('kind') or 'empty'})" for name in sorted(feature)[:_SHOWN_FEATURES]]
    return ", ".join(names) or "none"


def _label(feature: Any, task: Task, where: str) -> float | int:
    """Return the label: an id or a score as an integer or a float, or the name of a label as bytes."""
    kind = feature["label_ids"].WhichOneof("kind") if "label_ids" in feature else None
    values = list(getattr(feature["label_ids"], kind).value) if kind else []
    if len(values) != 1:
        raise DataError(
            f"{where} has {len(values)} values in 'label_ids', expected one; its features: {_described(feature)}"
        )
    value: Any = values[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if task.is_regression:
        return check_score(value, task, where)
    # BERT's tools write ids, also where the names of the labels are numbers.
    ids = {str(index): index for index in range(task.num_labels)}
    return check_label(value, task, where, accepted_labels(task) if kind == "bytes_list" else ids)


def _tokens(feature: Any, where: str) -> tuple[list[int], list[int]]:
    """Return token ids and segment ids without padding."""
    tokens, mask, segments = (_integers(feature, name, where) for name in ("input_ids", "input_mask", "segment_ids"))
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
    """Read a BERT TFRecord file, gzip or plain; padding is taken off, and so are examples with ``is_real_example`` 0.

    Raises:
        DataError: no such file, no examples, or a record that is cut short, damaged or not BERT's (names its number).
    """
    path = Path(path)
    ids: list[list[int]] = []
    types: list[list[int]] = []
    labels: list[float | int] = []
    for where, payload in records(path):
        feature = _parse(payload, where)
        if "is_real_example" in feature and _integers(feature, "is_real_example", where)[0] == 0:
            continue
        tokens, segments = _tokens(feature, where)
        ids.append(tokens)
        types.append(segments)
        labels.append(_label(feature, task, where))
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
    """Write `features` as BERT's tools do, padded with zeros to `max_length` tokens; whole or not at all.

    Raises:
        DataError: an example has no label or more than `max_length` tokens.
    """
    writer_module = require("tensorboard.summary.writer.record_writer", "writing TFRecord")
    if features.labels is None or features.lengths.max(initial=0) > max_length:
        raise DataError(f"TFRecord needs labels and at most {max_length} tokens, got {features.lengths.max(initial=0)}")
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        writer = writer_module.RecordWriter(file)
        for row in (features[index] for index in range(len(features))):
            example = _example_class()()
            feature = example.features.feature
            padding = [0] * (max_length - len(row["input_ids"]))
            feature["input_ids"].int64_list.value.extend(row["input_ids"] + padding)
            feature["input_mask"].int64_list.value.extend(row["attention_mask"] + padding)
            types = row.get("token_type_ids", [0] * len(row["input_ids"]))
            feature["segment_ids"].int64_list.value.extend(types + padding)
            label = feature["label_ids"]
            (label.float_list if features.task.is_regression else label.int64_list).value.append(row["labels"])
            writer.write(example.SerializeToString(deterministic=True))
