"""One rule for labels and scores: the same spellings are accepted, and the same refused, in every format."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pytest

from benchmarks.campaign.data import example, record
from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import DataConfig, load_train
from q8trt.tasks.data.labels import accepted_labels, check_label, label_id
from q8trt.tasks.data.tsv import read_tsv
from q8trt.tasks.glue import custom_task, get_task

#: Label as a value -> label id; None: refused. Text formats hold ``str(value)``.
SST2: dict[Any, int | None] = {
    "1": 1, "1.0": 1, " 1 ": 1, "1.": 1, "1e0": 1, "01": 1, "-0": 0, "0.0": 0, "positive": 1, "Positive": 1,
    " NEGATIVE ": 0, "2": None, "-1": None, "0.5": None, "1_0": None, "nan": None, "true": None, "True": None,
    "yes": None, "posit": None, "1" * 5000: None, "٠": None,
}  # fmt: skip
VALUES: list[tuple[Any, int | None]] = [
    (1, 1), (0, 0), (1.0, 1), (0.0, 0), (0.5, None), (2, None), (-1, None), (True, None), (False, None),
    (float("nan"), None), (float("inf"), None),
]  # fmt: skip
FORMATS = ("csv", "tsv", "jsonl", "parquet", "tfrecord")


def write(path: Path, value: Any, column: str = "label") -> None:
    """Write one row with the label `value`; text formats hold its spelling."""
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        separator = "," if kind == ".csv" else "\t"
        path.write_text(f"sentence{separator}{column}\na{separator}{value}\n", encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text(json.dumps({"sentence": "a", column: value}), encoding="utf-8")
    elif kind == ".parquet":
        pandas.DataFrame({"sentence": ["a"], column: [value]}).to_parquet(path)
    else:
        path.write_bytes(record(example(label_ids=[value.encode() if isinstance(value, str) else value])))


def read(path: Path, value: Any, task: str = "SST-2", **options: Any) -> Any:
    """Return the label that the loader makes of `value`; None where it refuses it."""
    write(path, value)
    try:
        return load_train(DataConfig(task, train_file=str(path), **options)).labels.tolist()[0]
    except DataError:
        return None


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_takes_the_same_labels(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{extension}"
    assert {text: read(path, text) for text in SST2} == SST2
    # An int64 list has no truth values: True is 1 there.
    values = [each for each in VALUES if extension != "tfrecord" or not isinstance(each[0], bool)]
    assert [read(path, value) for value, _ in values] == [expected for _, expected in values]


@pytest.mark.parametrize("extension", FORMATS[:-1])
def test_a_truth_value_is_the_label_of_that_name(extension: str, tmp_path: Path) -> None:
    options = {"label_list": ("true", "false"), "text_column_names": ("sentence",)}
    path = tmp_path / f"x.{extension}"
    assert [read(path, value, "custom", **options) for value in (True, False, "TRUE", "1")] == [0, 1, 0, 1]


@pytest.mark.parametrize("extension", FORMATS[:-1])
def test_labels_that_are_numbers_are_equal_as_numbers(extension: str, tmp_path: Path) -> None:
    options = {"label_list": ("1.0", "2", "0.5"), "text_column_names": ("sentence",)}
    path = tmp_path / f"x.{extension}"
    values = (1, "1", 1.0, 2.0, "2.00", 0.5, ".50", 0, True)
    assert [read(path, value, "custom", **options) for value in values] == [0, 0, 0, 1, 1, 2, 2, None, None]


@pytest.mark.parametrize("extension", FORMATS[:-1])
def test_scores(extension: str, tmp_path: Path) -> None:
    options = {"label_list": (), "text_column_names": ("sentence",), "label_column_name": "label"}
    path = tmp_path / f"x.{extension}"
    for value, expected in {"1.5": 1.5, " -2 ": -2, "1e3": 1000, ".5": 0.5, 3: 3, 0.25: 0.25}.items():
        assert read(path, value, "custom", **options) == expected
    for value in ("nan", "inf", "-inf", "1e400", "1e39", 1e39, "1_0", "0x1", "True", "", "1,5", "١"):
        assert read(path, value, "custom", **options) is None, value
    if extension != "csv":
        assert read(path, True, "custom", **options) is None


def test_labels_that_differ_in_case_alone_are_matched_to_the_letter() -> None:
    spellings = accepted_labels(custom_task("x", ["No", "no", "Yes"], is_pair=False))
    assert [label_id(label, spellings) for label in ("No", "no", "NO", "YES", " yes")] == [0, 1, None, 2, 2]


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"1", Decimal("NaN"), Decimal("sNaN"), (1,), object()])
def test_what_is_no_label(value: object) -> None:
    assert label_id(value, accepted_labels(get_task("SST-2"))) is None


def test_decimals_are_numbers() -> None:
    assert label_id(Decimal("1.00"), accepted_labels(get_task("SST-2"))) == 1


def test_a_label_and_a_column_that_are_nearly_right(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of .* \(did you mean 'entailment'\?\)$"):
        check_label("entailmnt", get_task("RTE"), "train.tsv:2", {"entailment": 0, "not_entailment": 1})
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentense2\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(DataError, match=r"no column 'sentence2'; found .* \(did you mean 'sentense2'\?\)$"):
        read_tsv(tmp_path / "train.tsv", get_task("RTE"), "train")


def test_f1_is_for_two_labels() -> None:
    with pytest.raises(ConfigError, match="the metric f1 needs two labels, got 3; use accuracy or matthews"):
        dataclasses.replace(get_task("MNLI"), metrics=("f1",), main_metric="f1")


def test_labels_with_a_comma_are_quoted_in_errors(tmp_path: Path) -> None:
    for labels, expected in {
        ("no", "yes"): "0, 1, no, yes",
        ("no", "yes, please"): "'0', '1', 'no', 'yes, please'",
    }.items():
        (tmp_path / "x.csv").write_text("sentence,label\na,7\n")
        with pytest.raises(DataError, match=rf"expected one of {expected}$"):
            load_train(
                DataConfig(
                    "custom", train_file=str(tmp_path / "x.csv"), text_column_names=("sentence",), label_list=labels
                )
            )
