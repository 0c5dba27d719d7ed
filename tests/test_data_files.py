"""Own files: CSV, TSV, JSONL, Parquet."""

import json
import pathlib

import pandas
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import DataConfig, load_dev, load_train
from q8trt.tasks.data.tabular import read_table
from q8trt.tasks.glue import custom_task, get_task

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


def test_the_label_is_no_text_column(tmp_path):
    path = write_lines(tmp_path / "a.csv", "label,score", "good,1", "bad,0")
    assert read_table(path, SST2, "train", ["label"]).labels.tolist() == [1, 0]
    path = write_lines(tmp_path / "c.csv", "sentence,text", "good,1", "bad,0")
    assert read_table(path, SST2, "train", label_column="text").labels.tolist() == [1, 0]
    assert read_table(path, SST2, "train", label_column="text").first == ["good", "bad"]
    path = write_lines(tmp_path / "d.csv", "text,sentence", "good,1", "bad,0")
    assert read_table(path, SST2, "train", label_column="sentence").first == ["good", "bad"]
    path = write_lines(tmp_path / "b.csv", "label,id", "good,1")
    assert "no column 'label'" in error_of(read_table, path, SST2, "train", ["label"])


@pytest.mark.parametrize("option", ["data_dir", "train_file"])
@pytest.mark.parametrize("path", ["x" * 300, "\0", "x/" * 3000, "a\nb"])
def test_paths_that_cannot_be(option, path):
    line = error_of(load_train, DataConfig("SST-2", **{option: path}))
    assert line.isprintable()


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


def test_only_the_columns_that_are_missing_are_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sentence1,sentence2,label\na,b,1\n")
    message = error_of(read_table, path, custom_task("custom", ("0", "1"), True), "train", ["sentence1", "sentnce2"])
    assert "no column 'sentnce2'; found 'sentence1', 'sentence2', 'label'" in message


TABLE_ERRORS = {
    "fields.csv": (["sentence,label", "a,b,1"], ":2: 3 fields, expected 2 as in the header"),
    "fields.tsv": (["sentence\tlabel", "a"], ":2: 1 fields, expected 2 as in the header"),
    "quote.csv": (["sentence,label", '"a"b,1'], ":2: not CSV: ',' expected after '\"'"),
    "text.csv": (
        ["review,label", "a,1"],
        ": no text column; expected 'sentence', 'text' or 'sentence1'; found 'review', 'label' "
        "(--text_column_names and --label_column_name choose others)",
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
        ":2: not JSON: Input data was truncated; expected one JSON object a line",
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
    assert error_of(read_table, tmp_path / "c.csv", SST2, "train").startswith(f"{tmp_path / 'c.csv'}:2: not UTF-8: ")


def test_a_custom_label_that_is_no_number_points_at_label_list(tmp_path):
    path = write_lines(tmp_path / "a.csv", "sentence1,sentence2,label", "A,B,no")
    message = error_of(read_table, path, custom_task("custom", (), is_pair=True), "train")
    assert message == f"{path}:2: score 'no', expected a finite number (or name the labels: --label_list)"
