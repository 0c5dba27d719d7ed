"""Data from a GLUE folder, the hub, your own files, TFRecord or the built-in sample, as tokenized, length-bucketed batches."""

from q8trt.tasks.data.batches import (
    DEFAULT_BUCKETS,
    Batch,
    Collator,
    bucket_for,
    bucketed_batches,
    buckets_up_to,
    pad,
    restore_order,
    restore_tokens,
    tokenize,
)
from q8trt.tasks.data.examples import Examples, Features, TokenRows, counted
from q8trt.tasks.data.load import DEFAULT_LENGTH, DataConfig, RunData, load_dev, load_examples, load_train
from q8trt.tasks.data.record import DataRecord, record_splits
from q8trt.tasks.data.sample import sample_examples
from q8trt.tasks.data.tfrecord import read_tfrecord, write_tfrecord

__all__ = [
    "DEFAULT_BUCKETS",
    "DEFAULT_LENGTH",
    "Batch",
    "Collator",
    "DataConfig",
    "DataRecord",
    "Examples",
    "Features",
    "RunData",
    "TokenRows",
    "bucket_for",
    "bucketed_batches",
    "buckets_up_to",
    "counted",
    "load_dev",
    "load_examples",
    "load_train",
    "pad",
    "read_tfrecord",
    "record_splits",
    "restore_order",
    "restore_tokens",
    "sample_examples",
    "tokenize",
    "write_tfrecord",
]
