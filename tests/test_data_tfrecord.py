"""BERT's TFRecord files, against the wire format."""

import struct

import numpy as np
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import DataConfig, Features, load_dev, load_train, read_tfrecord, write_tfrecord
from q8trt.tasks.glue import get_task

RTE, STSB, SST2 = get_task("RTE"), get_task("STS-B"), get_task("SST-2")


def error_of(call, *arguments):
    with pytest.raises((DataError, ConfigError)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def crc32c(data):
    """Bit by bit from the polynomial; RFC 3720 gives 0xE3069283 for "123456789"."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(payload):
    def masked(data):
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    header = struct.pack("<Q", len(payload))
    return header + masked(header) + payload + masked(payload)


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


def example(packed=True, **features):
    """A tf.train.Example by the rules of the wire format: small ints are int64 lists, floats are float lists."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], float):
            kind, values_bytes = 2, field(1, struct.pack(f"<{len(values)}f", *values))
        elif packed:
            kind, values_bytes = 3, field(1, bytes(values))
        else:
            kind, values_bytes = 3, b"".join(bytes([8, value]) for value in values)
        entries += field(1, field(1, name.encode()) + field(2, field(kind, values_bytes)))
    return (
        field(1, entries)
        if len(entries) < 128
        else b"\x0a" + bytes([len(entries) & 127 | 128, len(entries) >> 7]) + entries
    )


def bert(label=(1,), **changes):
    fields = {"input_ids": [2, 7, 3, 8, 3, 0], "input_mask": [1] * 5 + [0], "segment_ids": [0, 0, 0, 1, 1, 0]}
    return {**fields, "label_ids": list(label), **changes}


def test_crc_reference():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("packed", [True, False])
def test_tfrecord_made_by_hand(tmp_path, packed):
    path = tmp_path / "train.tf_record"
    padding = bert(is_real_example=[0])
    path.write_bytes(b"".join(frame(example(packed, **each)) for each in (bert(), bert((0,)), padding)))
    features = read_tfrecord(path, RTE, "train")
    assert len(features) == 2
    assert features[0] == {
        "input_ids": [2, 7, 3, 8, 3],
        "attention_mask": [1] * 5,
        "token_type_ids": [0, 0, 0, 1, 1],
        "labels": 1,
    }
    assert features.labels.tolist() == [1, 0]
    assert features.lengths.tolist() == [5, 5]
    assert features.source == "TFRecord train.tf_record"


def test_tfrecord_scores_are_floats_or_ints(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(frame(example(**bert((2.5,)))) + frame(example(**bert((4,)))))
    features = read_tfrecord(path, STSB, "dev")
    assert features.labels.tolist() == [2.5, 4.0]
    assert isinstance(features[1]["labels"], float)


def test_written_records_are_what_the_wire_format_says(tmp_path):
    features = Features(
        task=RTE,
        split="train",
        source="x",
        input_ids=[[2, 7, 3, 8, 3]],
        token_type_ids=[[0, 0, 0, 1, 1]],
        labels=np.array([1]),
    )
    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, features, 6)
    assert path.read_bytes() == frame(example(**dict(sorted(bert().items()))))
    assert read_tfrecord(path, RTE, "train").fingerprint == features.fingerprint
    assert error_of(write_tfrecord, tmp_path / "b.tfrecord", features, 4) == (
        "TFRecord needs labels and at most 4 tokens, got 5"
    )
    assert not (tmp_path / "b.tfrecord").exists()


RECORD_ERRORS = {
    "fraction": (bert((0.5,)), ": label 0.5, expected one of 0, 1"),
    "two labels": (bert((1, 0)), " has 2 values in 'label_ids', expected one; its features: "),
    "int64": (
        bert(input_ids=[0.5]),
        " has no int64 list 'input_ids'; its features: input_ids (float_list), input_mask",
    ),
    "segment": (bert(segment_ids=[0, 0, 0, 9, 1, 0]), ": segment id 9, expected 0 for the first text and 1 for"),
    "mask": (bert(input_mask=[1, 0, 1, 1, 1, 0]), ": input_mask is not ones followed by zeros"),
    "lengths": (bert(segment_ids=[0] * 5), ": input_ids, input_mask, segment_ids have lengths 6, 6, 5"),
    "label": (bert((2,)), ": label 2, expected one of 0, 1"),
}


@pytest.mark.parametrize("case", RECORD_ERRORS)
def test_bad_records_are_named_by_number(tmp_path, case):
    bad, message = RECORD_ERRORS[case]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(frame(example(**bert())) + frame(example(**bad)))
    assert error_of(read_tfrecord, path, RTE, "train").startswith(f"{path}: record 2{message}")


def test_damaged_files_are_named_by_record(tmp_path):
    path, whole = tmp_path / "a.tfrecord", frame(example(**bert()))
    for cut in (3, 10, 40, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert error_of(read_tfrecord, path, RTE, "train") == (
            f"{path}: record 2 is cut short; make or copy the file again"
        )
    for flipped in (0, 30, len(whole) - 1):
        damaged = bytearray(whole + whole)
        damaged[len(whole) + flipped] ^= 1
        path.write_bytes(damaged)
        assert error_of(read_tfrecord, path, RTE, "train") == (
            f"{path}: record 2 is damaged (its checksum does not match); make or copy the file again"
        )
    path.write_bytes(frame(b"\xff\xff\xff"))
    assert error_of(read_tfrecord, path, RTE, "train") == f"{path}: record 1 is not a tf.train.Example"
    path.write_bytes(b"")
    assert error_of(read_tfrecord, path, RTE, "train") == f"{path}: no examples"


def test_folder_of_records(tmp_path):
    for name in ("train.tf_record", "eval.tf_record"):
        (tmp_path / name).write_bytes(frame(example(**bert())) * (2 if name[0] == "t" else 1))
    config = DataConfig("RTE", data_dir=str(tmp_path))
    assert len(load_train(config)) == 2
    assert len(load_dev(config)["dev"]) == 1
    assert load_train(
        DataConfig("RTE", train_file=str(tmp_path / "train.tf_record"), max_train_samples=1)
    ).labels.tolist() == [1]
