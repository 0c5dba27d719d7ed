"""The official GLUE files, against rows written by hand and against the real files where they are at hand."""

import csv
import logging

import numpy as np
import pandas
import pytest

from q8trt.errors import DataError
from q8trt.tasks.data import DataConfig, load_dev, load_examples, load_train
from q8trt.tasks.data.tsv import read_folder, read_tsv
from q8trt.tasks.glue import get_task

HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}
ROWS = {
    "SST-2": ("fine \t1", ("fine ", None, 1)),
    "MRPC": ('0\t1\t2\tHe said "no.\tHe did not "say', ('He said "no.', 'He did not "say', 0)),
    "STS-B": ("0\tnone\tnone\tnone\t1\tnone\tnone\tA dog.\tA cat.\t2.500", ("A dog.", "A cat.", 2.5)),
    "QQP": ("9\t1\t2\tWhy?\tWhy not?\t1", ("Why?", "Why not?", 1)),
    "QNLI": ("0\tWho?\tHe did.\tnot_entailment", ("Who?", "He did.", 1)),
    "RTE": ("0\tIt rains.\tIt is wet.\tentailment", ("It rains.", "It is wet.", 0)),
    "WNLI": ("0\tIt fit.\tThe box fit.\t1", ("It fit.", "The box fit.", 1)),
}


def write(path, *lines, bom=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "".join(f"{line}\n" for line in lines).encode())
    return path


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("bom", [False, True])
def test_one_row_of_each_task(tmp_path, name, bom):
    line, (first, second, label) = ROWS[name]
    examples = read_tsv(write(tmp_path / "dev.tsv", HEADERS[name], line, bom=bom), get_task(name), "dev")
    assert examples.first == [first]
    assert examples.second == (None if second is None else [second])
    assert examples.labels.tolist() == [label]
    assert examples.labels.dtype == (np.float32 if name == "STS-B" else np.int64)
    assert (examples.split, examples.source, examples.is_sample) == ("dev", "GLUE folder", False)


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    cola = get_task("CoLA")
    train = read_tsv(
        write(tmp_path / "train.tsv", "gj04\t1\t\tOur friends won.", "gj04\t0\t*\tThey drank the pub."), cola, "train"
    )
    assert train.first == ["Our friends won.", "They drank the pub."]
    assert train.labels.tolist() == [1, 0]
    test = read_tsv(write(tmp_path / "test.tsv", "index\tsentence", "0\tBill left."), cola, "test")
    assert (test.first, test.labels) == (["Bill left."], None)


def test_mnli_dev_files_have_more_columns_and_its_test_files_fewer(tmp_path):
    columns = "index\tpromptID\tpairID\tgenre\tparse1\tparse2\ttree1\ttree2\tsentence1\tsentence2"
    dev = "\t".join([columns, *(f"label{n}" for n in range(1, 6)), "gold_label"])
    body = "0\t1\t2\tfiction\tx\tx\tx\tx\tYes.\tNo."
    write(
        tmp_path / "MNLI" / "dev_matched.tsv",
        dev,
        f"{body}\tneutral\tneutral\tneutral\tneutral\tneutral\tcontradiction",
    )
    write(
        tmp_path / "MNLI" / "dev_mismatched.tsv", dev, f"{body}\tneutral\tneutral\tneutral\tneutral\tneutral\tneutral"
    )
    write(tmp_path / "MNLI" / "test_matched.tsv", columns, body)
    splits = load_dev(DataConfig(task="mnli", data_dir=str(tmp_path)))
    assert {name: split.labels.tolist() for name, split in splits.items()} == {
        "dev_matched": [2],
        "dev_mismatched": [1],
    }
    test = read_folder(tmp_path, get_task("MNLI"), "test_matched")
    assert (test.first, test.second, test.labels) == (["Yes."], ["No."], None)


def test_lines_end_at_newlines_only_and_carriage_returns_go(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_bytes("sentence\tlabel\r\none\u2028two\x0bthree\x85\rfour\t0\r\n".encode())
    assert read_tsv(path, get_task("SST-2"), "dev").first == ["one\u2028two\x0bthree\x85\rfour"]


@pytest.mark.parametrize("folder", ["RTE", "rte", ""])
def test_data_dir_is_the_task_or_the_glue_folder(tmp_path, folder):
    write(tmp_path / folder / "train.tsv", HEADERS["RTE"], ROWS["RTE"][0])
    assert load_train(DataConfig(task="RTE", data_dir=str(tmp_path))).first == ["It rains."]


def test_the_root_finds_sts_b_however_it_is_written(tmp_path):
    write(tmp_path / "sts_b" / "dev.tsv", HEADERS["STS-B"], ROWS["STS-B"][0])
    assert len(load_examples(DataConfig(task="stsb", data_dir=str(tmp_path)), "dev")) == 1


BAD = {
    "too few fields": ("RTE", "0\tIt rains.\tentailment", "2: 3 tab-separated fields, expected 4 as in the header"),
    "too many fields": ("SST-2", "a\tb\t1", "2: 3 tab-separated fields, expected 2 as in the header"),
    "blank line": ("SST-2", "", "2: 1 tab-separated fields, expected 2 as in the header"),
    "label": ("RTE", "0\ta\tb\tmaybe", "2: label 'maybe', expected one of entailment, not_entailment"),
    "label id where words are official": (
        "RTE",
        "0\ta\tb\t1",
        "2: label '1', expected one of entailment, not_entailment",
    ),
    "score too high": ("STS-B", "0\t\t\t\t\t\t\ta\tb\t5.1", "2: score '5.1', expected a number from 0 to 5"),
    "score negative": ("STS-B", "0\t\t\t\t\t\t\ta\tb\t-0.1", "2: score '-0.1', expected a number from 0 to 5"),
    "score no number": ("STS-B", "0\t\t\t\t\t\t\ta\tb\thigh", "2: score 'high', expected a number from 0 to 5"),
    "score nan": ("STS-B", "0\t\t\t\t\t\t\ta\tb\tnan", "2: score 'nan', expected a number from 0 to 5"),
    "empty text": ("RTE", "0\ta\t \tentailment", "2: text ' ', expected a string that is not empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, case):
    name, line, message = BAD[case]
    path = write(tmp_path / "dev.tsv", HEADERS[name], line, ROWS[name][0])
    with pytest.raises(DataError) as caught:
        read_tsv(path, get_task(name), "dev")
    assert str(caught.value) == f"{path}:{message}"


def test_the_line_is_the_right_one_without_a_header_too(tmp_path):
    path = write(tmp_path / "train.tsv", "gj04\t1\t\tFine.", "gj04\t1\tFine.")
    with pytest.raises(DataError) as caught:
        read_tsv(path, get_task("CoLA"), "train")
    assert str(caught.value) == f"{path}:2: 3 tab-separated fields, expected 4"


def test_another_task_s_file_is_recognized_by_its_header(tmp_path):
    path = write(tmp_path / "dev.tsv", HEADERS["SST-2"], ROWS["SST-2"][0])
    with pytest.raises(DataError) as caught:
        read_tsv(path, get_task("RTE"), "dev")
    assert (
        str(caught.value)
        == f"{path}:1: no column 'sentence1', 'sentence2'; found 'sentence', 'label' (did you mean 'sentence'?)"
    )


def test_qqp_skips_broken_rows_and_says_how_many(tmp_path, caplog):
    good = ROWS["QQP"][0]
    path = write(tmp_path / "train.tsv", HEADERS["QQP"], good, "10\t1\t2\tWhy?", good, "11\t1\t2\t\tWhy not?\t1", good)
    with caplog.at_level(logging.WARNING, logger="q8trt"):
        assert len(read_tsv(path, get_task("QQP"), "train")) == 3
    assert [record.getMessage() for record in caplog.records] == [f"{path}: skipped 2 broken rows of 5"]


def test_qqp_mostly_broken_is_not_qqp(tmp_path):
    path = write(tmp_path / "train.tsv", HEADERS["QQP"], "x", "y", ROWS["QQP"][0])
    with pytest.raises(DataError, match=r"train\.tsv:2: 1 tab-separated fields, expected 6"):
        read_tsv(path, get_task("QQP"), "train")


def test_whole_qqp_does_not_warn(tmp_path, caplog):
    read_tsv(write(tmp_path / "train.tsv", HEADERS["QQP"], ROWS["QQP"][0]), get_task("QQP"), "train")
    assert not caplog.records


def test_missing_folder_file_and_rows(tmp_path):
    fix = "give --data_dir the folder with train.tsv, dev.tsv, or the GLUE folder with RTE/"
    rte = get_task("RTE")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path / "nowhere", rte, "train")
    assert str(caught.value) == f"{tmp_path / 'nowhere'}: no such folder; {fix}"
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, rte, "train")
    assert str(caught.value) == f"{tmp_path}: no train.tsv of RTE in it; {fix}"
    path = write(tmp_path / "RTE" / "train.tsv", HEADERS["RTE"])
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, rte, "train")
    assert str(caught.value) == f"{path}: no examples; expected RTE's official file with sentence1, sentence2, label"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no column 'sentence1', 'sentence2', 'label'; found ''"):
        read_folder(tmp_path, rte, "train")


def test_not_utf8(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"dev\.tsv:2: not UTF-8: .*convert the file to UTF-8"):
        read_tsv(path, get_task("SST-2"), "dev")


def test_fingerprint_sees_texts_labels_and_order(tmp_path):
    def fingerprint(*lines):
        return read_tsv(write(tmp_path / "dev.tsv", HEADERS["RTE"], *lines), get_task("RTE"), "dev").fingerprint

    a, b = "0\ta\tb\tentailment", "0\tc\td\tentailment"
    prints = [
        fingerprint(a, b),
        fingerprint(b, a),
        fingerprint(a, b[:-10] + "not_entailment"),
        fingerprint(a),
        fingerprint("0\ta\tbc\tentailment", "0\tc\td\tentailment"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(a, b) == prints[0]
    assert len(prints[0]) == 16
    int(prints[0], 16)


@pytest.mark.parametrize(
    ("name", "train", "dev", "columns"),
    [
        ("STS-B", 5749, 1500, ("sentence1", "sentence2", "score")),
        ("MRPC", 3576, 500, ("#1 String", "#2 String", "Quality")),
        ("RTE", 2490, 277, ("sentence1", "sentence2", "label")),
    ],
)
def test_the_real_files_are_read_whole_and_as_pandas_reads_them(glue_dir, name, train, dev, columns):
    config = DataConfig(task=name, data_dir=str(glue_dir))
    splits = {"train": load_train(config), **load_dev(config)}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": train, "dev": dev}
    for split, examples in splits.items():
        path = glue_dir / name / f"{split}.tsv"
        frame = pandas.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, encoding="utf-8-sig", dtype=str
        )
        assert examples.first == frame[columns[0]].tolist()
        assert examples.second == frame[columns[1]].tolist()
        words = {"entailment": 0, "not_entailment": 1}
        labels = [words.get(label) if label in words else float(label) for label in frame[columns[2]]]
        np.testing.assert_array_equal(examples.labels, np.array(labels, dtype=examples.labels.dtype))
