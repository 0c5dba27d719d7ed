"""Own files, TFRecord, the hub, and the options that choose between them."""

import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas
import pytest

from q8trt.data import DataConfig, Features, load_dev, load_examples, load_train, read_tfrecord, write_tfrecord
from q8trt.data.hub import read_hub
from q8trt.data.tabular import read_table
from q8trt.errors import ConfigError, DataError
from q8trt.tasks import custom_task, get_task

RTE, STSB, SST2 = get_task("RTE"), get_task("STS-B"), get_task("SST-2")
FRAME = pandas.DataFrame(
    {
        "sentence1": ['A "quoted", word.', "Two\nlines.", "Caf\u00e9."],
        "sentence2": ["B", "C", "NA"],
        "label": ["entailment", "not_entailment", "entailment"],
    }
)


def error_of(call, *arguments):
    with pytest.raises((DataError, ConfigError)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# Tables


@pytest.mark.parametrize("extension", ["csv", "jsonl", "json", "parquet"])
def test_what_pandas_writes_is_read(tmp_path, extension):
    path = tmp_path / f"train.{extension}"
    if extension == "csv":
        FRAME.to_csv(path, index=False)
    elif extension == "parquet":
        FRAME.to_parquet(path)
    else:
        FRAME.to_json(path, orient="records", lines=True)
    examples = read_table(path, RTE, "train")
    assert examples.first == FRAME.sentence1.tolist()
    assert examples.second == FRAME.sentence2.tolist()
    assert examples.labels.tolist() == [0, 1, 0]
    assert examples.source == f"file train.{extension}"


def test_tsv_has_no_quoting(tmp_path):
    path = write_lines(tmp_path / "a.TSV", "sentence\tlabel", '"Half a quote\t1')
    assert read_table(path, SST2, "train").first == ['"Half a quote']


@pytest.mark.parametrize(
    ("header", "task"),
    [
        ("#1 String,#2 String,Quality", "MRPC"),  # official
        ("sentence1,sentence2,label", "MRPC"),  # hub
        ("premise,hypothesis,gold_label", "MNLI"),
        ("text1,text2,labels", "QNLI"),  # common
        ("question,sentence,label", "QNLI"),
    ],
)
def test_column_names(tmp_path, header, task):
    path = write_lines(tmp_path / "a.csv", header, "x,y,1")
    examples = read_table(path, get_task(task), "train")
    assert (examples.first, examples.second, examples.labels.tolist()) == (["x"], ["y"], [1])


def test_given_columns_win(tmp_path):
    path = write_lines(tmp_path / "a.csv", "sentence,review,label,stars", "x,good,0,1")
    config = DataConfig("SST-2", train_file=str(path), text_column_names=("review",), label_column_name="stars")
    examples = load_train(config)
    assert (examples.first, examples.labels.tolist()) == (["good"], [1])


def test_label_spellings(tmp_path):
    path = write_lines(tmp_path / "a.csv", "sentence,label", "a,1", "b,negative", "c,0", "d,positive")
    assert read_table(path, SST2, "train").labels.tolist() == [1, 0, 0, 1]
    lines = [json.dumps({"sentence": "a", "label": label}) for label in (1, 1.0, "positive")]
    assert read_table(write_lines(tmp_path / "a.jsonl", *lines), SST2, "train").labels.tolist() == [1, 1, 1]


def test_labels_that_are_numbers_are_names_not_ids(tmp_path):
    stars = custom_task("stars", ["1", "2", "3"], is_pair=False)
    path = write_lines(tmp_path / "a.csv", "text,label", "a,1", "b,3")
    assert read_table(path, stars, "train").labels.tolist() == [0, 2]
    path = write_lines(tmp_path / "a.csv", "text,label", "a,0")
    assert error_of(read_table, path, stars, "train") == f"{path}:2: label '0', expected one of 1, 2, 3"


def test_custom_task_from_options(tmp_path):
    path = str(write_lines(tmp_path / "a.csv", "text,label", "goal,sport", "vote,news"))
    config = DataConfig(
        "custom",
        train_file=path,
        validation_file=path,
        label_list=("news", "sport"),
        text_column_names=("text",),
        max_eval_samples=1,
    )
    assert load_train(config).labels.tolist() == [1, 0]
    assert {split: examples.first for split, examples in load_dev(config).items()} == {"dev": ["goal"]}
    regression = DataConfig("custom", train_file=str(write_lines(tmp_path / "b.csv", "text1,text2,score", "a,b,-70.5")))
    assert load_train(regression).labels.tolist() == [-70.5]


def test_csv_rows_are_named_by_their_first_line(tmp_path):
    path = write_lines(tmp_path / "a.csv", "sentence,label", '"two', 'lines",1', "", '"two', 'lines",7')
    assert error_of(read_table, path, SST2, "train") == (
        f"{path}:5: label '7', expected one of 0, 1, negative, positive"
    )


TABLE_ERRORS = {
    "fields.csv": (["sentence,label", "a,b,1"], ":2: 3 fields, expected 2 as in the header"),
    "fields.tsv": (["sentence\tlabel", "a"], ":2: 1 fields, expected 2 as in the header"),
    "quote.csv": (["sentence,label", '"a"b,1'], ":2: not CSV: ',' expected after '\"'"),
    "text.csv": (
        ["review,label", "a,1"],
        ": no column 'sentence'; found 'review', 'label' (--text_column_names and --label_column_name choose others)",
    ),
    "label.csv": (
        ["sentence,stars", "a,1"],
        ": no column 'label'; found 'sentence', 'stars' (--text_column_names and --label_column_name choose others)",
    ),
    "empty.csv": ([], ": no examples"),
    "header.tsv": (["sentence\tlabel"], ": no examples"),
    "blank.csv": (["sentence,label", " ,1"], ":2: text ' ', expected a string that is not empty"),
    "json.jsonl": (
        ['{"sentence": "a", "label": 1}', '{"sentence": '],
        ":2: not JSON: Expecting value at column 13; expected one object a line",
    ),
    "list.jsonl": (["[1]"], ":1: a JSON list, expected one object a line"),
    "null.jsonl": (['{"sentence": "a", "label": null}'], ":1: column 'label' has no value"),
    "gone.jsonl": (['{"sentence": "a", "label": 1}', "", '{"label": 1}'], ":3: column 'sentence' has no value"),
    "number.jsonl": (['{"sentence": 3, "label": 1}'], ":1: text 3, expected a string that is not empty"),
    "bool.jsonl": (
        ['{"sentence": "a", "label": true}'],
        ":1: label True, expected one of 0, 1, negative, positive",
    ),
    "words.txt": (["a"], ": unknown extension '.txt'; expected one of .csv, .tsv, .jsonl, .json, .parquet"),
}


@pytest.mark.parametrize("name", TABLE_ERRORS)
def test_table_errors(tmp_path, name):
    lines, message = TABLE_ERRORS[name]
    path = write_lines(tmp_path / name, *lines)
    assert error_of(read_table, path, SST2, "train") == f"{path}{message}"


def test_table_errors_of_scores_and_parquet(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}')
    assert error_of(read_table, path, STSB, "train") == f"{path}:1: score True, expected a number from 0 to 5"
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"sentence": ["a", "b"], "label": [0, 2]}).to_parquet(path)
    assert error_of(read_table, path, SST2, "train") == (
        f"{path}: row 2: label 2, expected one of 0, 1, negative, positive"
    )
    write_lines(path, "no parquet at all")
    assert error_of(read_table, path, SST2, "train").startswith(f"{path}: not Parquet: ")
    assert error_of(read_table, tmp_path / "b.csv", SST2, "train") == f"{tmp_path / 'b.csv'}: no such file"
    (tmp_path / "c.csv").write_bytes(b"sentence,label\ncaf\xe9,1\n")
    assert error_of(read_table, tmp_path / "c.csv", SST2, "train").startswith(f"{tmp_path / 'c.csv'}: not UTF-8: ")


# TFRecord


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
    "int64": (bert((1,), label_ids=[0.5]), " has no int64 list 'label_ids'; its features: "),
    "mask": (bert(input_mask=[1, 0, 1, 1, 1, 0]), ": input_mask is not ones followed by zeros"),
    "lengths": (bert(segment_ids=[0] * 5), ": input_ids, input_mask, segment_ids have lengths 6, 6, 5"),
    "label": (bert((2,)), ": label 2, expected 0 to 1"),
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
            f"{path}: record 2 is damaged (its checksum does not fit); make or copy the file again"
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


# Hub


class FakeHub(dict):
    """Columns of a split, as a `datasets.Dataset` gives them."""

    def __init__(self, columns, names=None):
        super().__init__(columns)
        self.features = {"label": types.SimpleNamespace(names=names)} if names else {}

    def __len__(self):
        return len(next(iter(self.values())))


def test_hub_is_asked_for_the_right_split():
    asked = []

    def loader(*arguments, **options):
        asked.append((arguments, options))
        return FakeHub({"premise": ["a"], "hypothesis": ["b"], "label": [2]})

    examples = read_hub(get_task("MNLI"), "dev_mismatched", loader)
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "validation_mismatched"})]
    assert (examples.first, examples.second, examples.labels.tolist()) == (["a"], ["b"], [2])
    assert examples.source == "hub nyu-mll/glue"


def test_hub_scores_and_test_splits():
    columns = {"sentence1": ["a"], "sentence2": ["b"], "label": [3.8]}
    assert read_hub(STSB, "dev", lambda *_, **__: FakeHub(columns)).labels.dtype == np.float32
    columns["label"] = [-1]
    assert read_hub(RTE, "test", lambda *_, **__: FakeHub(columns)).labels is None
    assert error_of(read_hub, RTE, "dev", lambda *_, **__: FakeHub(columns)) == (
        "nyu-mll/glue/rte validation: row 0: label -1, expected one of 0, 1"
    )


def test_hub_label_order_is_checked():
    data = FakeHub({"sentence1": ["a"], "sentence2": ["b"], "label": [0]}, names=["not_entailment", "entailment"])
    assert error_of(read_hub, RTE, "dev", lambda *_, **__: data) == (
        "nyu-mll/glue/rte validation: labels not_entailment, entailment, expected entailment, not_entailment"
    )


def test_hub_skips_qqp_s_broken_rows_with_a_count(caplog):
    data = FakeHub({"question1": ["a", "", "c"], "question2": ["b", "b", "d"], "label": [0, 1, 1]})
    assert read_hub(get_task("QQP"), "train", lambda *_, **__: data).labels.tolist() == [0, 1]
    assert [record.getMessage() for record in caplog.records] == ["nyu-mll/glue/qqp train: skipped 1 broken rows of 3"]


def test_any_failure_of_the_client_is_one_line():
    def loader(*_, **__):
        raise RuntimeError("first line\nsecond line")

    assert error_of(read_hub, RTE, "train", loader) == (
        "nyu-mll/glue/rte train cannot be loaded from the hub (RuntimeError: first line); without a network give "
        "--data_dir FOLDER with the official GLUE TSV files, or --demo for the built-in sample"
    )


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_hub_the_real_client_fails_fast(tmp_path, environment):
    code = (
        "import time\nfrom q8trt.data import DataConfig, load_train\nimport datasets\nstart = time.monotonic()\n"
        "try:\n    load_train(DataConfig('RTE'))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print(time.monotonic() - start)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    message, seconds = run.stdout.splitlines()
    assert message.startswith(
        "DataError nyu-mll/glue/rte train cannot be loaded from the hub (ConnectionError: no network, or offline mode, "
        "and no cached copy); without a network give --data_dir FOLDER"
    )
    assert float(seconds) < 10
    assert "Retry" not in run.stderr


# Options


def test_max_samples_take_a_prefix():
    whole = DataConfig("STS-B", sample=True)
    config = DataConfig("STS-B", sample=True, max_train_samples=7, max_eval_samples=3)
    assert load_train(config).first == load_train(whole).first[:7]
    dev = load_dev(config)["dev"]
    assert dev.second == load_dev(whole)["dev"].second[:3]
    assert len(dev.labels) == 3
    assert dev.is_sample


OPTION_ERRORS = [
    ({"task": "STSC"}, "unknown task 'STSC' (did you mean 'STS-B'?)"),
    ({"max_seq_length": 0}, "--max_seq_length 0, expected 1 or more"),
    ({"max_train_samples": -1}, "--max_train_samples -1, expected 1 or more"),
    ({"max_eval_samples": 0}, "--max_eval_samples 0, expected 1 or more"),
    (
        {"data_dir": "a", "validation_file": "b"},
        "--data_dir and --train_file/--validation_file exclude each other: give one source of data",
    ),
    ({"data_dir": "a", "sample": True}, "--data_dir and --sample exclude each other"),
    ({"task": "MRPC", "sample": True}, "the built-in sample is sentence similarity: use --task STS-B, not MRPC"),
    ({"task": "custom"}, "--task custom needs --train_file and --validation_file"),
    ({"label_list": ("a", "b")}, "--label_list is for --task custom; the labels of STS-B are fixed"),
    ({"task": "custom", "train_file": "a", "label_list": ("a",)}, "task 'custom' needs two or more different labels"),
    ({"text_column_names": ("a", "b")}, "--text_column_names and --label_column_name need --train_file"),
    ({"train_file": "a", "text_column_names": ("a",)}, "STS-B has 2 text columns, got 1"),
    ({"train_file": "a", "text_column_names": ("a", "b", "c")}, "--text_column_names takes one or two columns, got 3"),
]


@pytest.mark.parametrize(("options", "message"), OPTION_ERRORS)
def test_options_that_cannot_be(options, message):
    assert error_of(lambda: DataConfig(**{"task": "STS-B", **options})).startswith(message)


def test_splits_that_are_not_there():
    assert error_of(load_dev, DataConfig("STS-B", train_file="a.csv")) == (
        "--validation_file is missing: own data come as --train_file and --validation_file"
    )
    assert error_of(load_examples, DataConfig("MNLI"), "dev") == (
        "no split 'dev'; expected one of train, dev_matched, dev_mismatched"
    )


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, q8trt.data, q8trt.metrics\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'scipy', 'sklearn', 'tensorboard', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]", run.stderr


def test_every_option_has_help():
    assert all(field.metadata["help"] for field in DataConfig.__dataclass_fields__.values())
