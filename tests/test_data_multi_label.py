"""Rows with any number of labels: one rule for every format; F1 against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import DataConfig, Features, load_train, record_splits, tokenize
from q8trt.tasks.data.labels import accepted_labels, check_labels, join_labels
from q8trt.tasks.data.tabular import read_table
from q8trt.tasks.glue import custom_task, task_of_head
from q8trt.tasks.heads import Head, HeadKind
from q8trt.tasks.metrics import compute_from_logits

LABELS = ("sad", "glad", "not, really", "tired")
TASK = custom_task("custom", LABELS, is_pair=False, multi_label=True)
#: Labels in a file -> their ids; a text for an error.
VALUES: list[tuple[Any, Any]] = [
    (["sad", "tired"], (0, 3)), (["tired", "sad"], (3, 0)), ([], ()), ("", ()), ("  ", ()), ("glad", (1,)), ("sad,glad", (0, 1)),
    (" Sad , GLAD ", (0, 1)), ("not, really", (2,)), ('["not, really", "sad"]', (2, 0)), ("[]", ()), ([0, 3], (0, 3)), (1, (1,)),
    ("0,3", (0, 3)), ([1.0], (1,)),
    ("angry", "label 'angry', expected one of"), ("sad,", "label '', expected one of"), ([None], "label None, expected one of"),
    (["sad", "sad"], "label 'sad' appears twice"), ("sad,0", "label 'sad' appears twice"), ([[0]], "label"),
    ('["sad"', "are not a JSON list"), ([4], "label 4, expected one of"), (True, "label True, expected one of"),
    ("tird", "did you mean 'tired'"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_the_labels_of_a_row(value: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert check_labels(value, TASK, "x:1", accepted_labels(TASK)) == expected
    else:
        with pytest.raises(DataError, match=r"^x:1: ") as caught:
            check_labels(value, TASK, "x:1", accepted_labels(TASK))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [(), ("sad",), ("sad", "tired"), ("not, really", "sad"), LABELS])
def test_joined_labels_are_read_back(labels: tuple[str, ...]) -> None:
    ids = check_labels(join_labels(labels), TASK, "x", accepted_labels(TASK))
    assert tuple(LABELS[index] for index in ids) == labels


ROWS = [["sad", "tired"], [], ["not, really"], ["glad"]]


def write(path: Path, rows: Any = ROWS) -> Path:
    texts = [f"text {number}" for number in range(len(rows))]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "labels": r}) + "\n" for t, r in zip(texts, rows, strict=True)))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": texts, "labels": rows}), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "labels"), *zip(texts, map(join_labels, rows), strict=True)])
    return path


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_every_format_holds_labels(extension: str, tmp_path: Path) -> None:
    examples = read_table(write(tmp_path / f"x.{extension}"), TASK, "train")
    assert examples.labels is not None
    assert examples.labels.dtype == np.float32
    np.testing.assert_array_equal(examples.labels, [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]])
    other = read_table(write(tmp_path / f"y.{extension}", [*ROWS[:3], ["sad"]]), TASK, "train")
    assert other.fingerprint != examples.fingerprint


def test_parquet_of_numbers_and_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [[0, 3], [], [2], [1]])
    assert read_table(path, TASK, "train").labels.sum() == 4  # type: ignore[union-attr]
    path = write(tmp_path / "x.parquet", [["sad"], None, [], []])
    with pytest.raises(DataError, match=r"x\.parquet: row 2: column 'labels' has no value"):
        read_table(path, TASK, "train")


def test_a_parquet_file_of_endless_lists_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    count, path = 10_000_000, tmp_path / "x.parquet"
    labels = pyarrow.ListArray.from_arrays([0, count], pyarrow.array(np.zeros(count, np.int8)))
    parquet.write_table(pyarrow.table({"text": ["a"], "labels": labels}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="looks like a decompression bomb"):
        read_table(path, TASK, "train")


def test_batches_hold_a_float_for_each_label(tmp_path: Path, tiny_tokenizer: Any) -> None:
    pytest.importorskip("torch")
    from q8trt.tasks.data import Collator

    data = DataConfig("custom", train_file=str(write(tmp_path / "x.jsonl")), label_list=LABELS, text_column_names=("text",),
                      multi_label=True)  # fmt: skip
    rows = tokenize(load_train(data), tiny_tokenizer, 16)
    assert isinstance(rows, Features)
    batch = Collator(0)([rows[0], rows[2]])
    assert str(batch["labels"].dtype) == "torch.float32"
    assert batch["labels"].tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    assert rows.select([2]).labels.tolist() == [[0, 0, 1, 0]]  # type: ignore[union-attr]


def test_a_label_of_no_training_row_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = read_table(write(tmp_path / "x.jsonl", ROWS[:3]), TASK, "train")
    dev = read_table(write(tmp_path / "y.jsonl", ROWS[2:]), TASK, "dev")
    with caplog.at_level("WARNING", "q8trt"):
        record_splits(train, {"dev": dev})
    assert "no training row has the label glad, which rows of dev have" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "SST-2", "multi_label": True}, "--multi_label is for --task custom"),
        ({"task": "custom", "train_file": "x.csv", "multi_label": True}, "several labels a row, but no list of labels"),
    ],
)
def test_options_that_do_not_go_together(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = DataConfig(**options).resolved_task


def test_tfrecord_holds_one_label(tmp_path: Path) -> None:
    (tmp_path / "x.tfrecord").write_bytes(b"")
    data = DataConfig("custom", train_file=str(tmp_path / "x.tfrecord"), label_list=LABELS, multi_label=True)
    with pytest.raises(DataError, match="TFRecord has one label a row, and custom has several"):
        load_train(data)


def test_f1_counts_decisions_of_all_labels_and_of_each() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 4)).astype(np.float32), (rng.random((40, 4)) < 0.4).astype(np.float32)
    logits[:, 3] = -1  # never predicted
    hits = [[(int(p > 0), int(t)) for p, t in zip(logits[:, c], labels[:, c], strict=True)] for c in range(4)]

    def f1(pairs: list[tuple[int, int]]) -> float:
        both, wrong = pairs.count((1, 1)), pairs.count((1, 0)) + pairs.count((0, 1))
        return 2 * both / (2 * both + wrong) if both else 0.0

    scores = compute_from_logits(TASK, logits, labels)
    assert scores["f1_micro"] == pytest.approx(f1([hit for column in hits for hit in column]))
    assert scores["f1_macro"] == pytest.approx(sum(map(f1, hits)) / 4)
    assert list(scores) == ["f1_micro", "f1_macro"]
    with pytest.raises(DataError, match="differ in shape"):
        compute_from_logits(TASK, logits, labels[:, :3])


def test_without_labels_decisions_are_those_of_fp32() -> None:
    task = task_of_head(Head(HeadKind.MULTI_LABEL_CLASSIFICATION, LABELS), is_pair=False, has_labels=False)
    ours, theirs = np.array([[1, -1, 2, -2], [1, 1, 1, 1.0]]), np.array([[1, 1, 2, -2], [1, 1, -1, 1.5]])
    scores = compute_from_logits(task, ours, theirs)
    assert scores["label_agreement"] == 6 / 8
    assert scores["logit_worst"] == 2


def test_the_order_of_documents_is_compared_with_that_of_fp32() -> None:
    from itertools import combinations

    task = task_of_head(Head(HeadKind.RERANKER, activation="sigmoid"), is_pair=False, has_labels=False)
    ours, theirs = np.array([3, 1, 2, 9, 0.0])[:, None], np.array([3, 2, 1, 20, -5.0])[:, None]
    scores = compute_from_logits(task, ours, theirs)
    pairs = [(a - b) * (c - d) > 0 for (a, c), (b, d) in combinations(zip(ours[:, 0], theirs[:, 0], strict=True), 2)]
    assert scores["rank_kendall"] == pytest.approx(2 * np.mean(pairs) - 1)
    places = [np.argsort(np.argsort(each[:, 0])) for each in (ours, theirs)]
    assert scores["rank_spearman"] == pytest.approx(1 - 6 * np.square(places[0] - places[1]).sum() / (5 * 24))
