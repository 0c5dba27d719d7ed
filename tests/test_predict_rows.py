"""The choice of columns, and rows that are hard to read, answer or write."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_fixtures import LABELS, StandIn, manifest

from q8trt.errors import ConfigError, DataError, InputError
from q8trt.inference.files import ScoringConfig, Summary, score_file


@pytest.fixture
def engine(tmp_path: Path) -> StandIn:
    (tmp_path / "engine").mkdir()
    return StandIn(tmp_path / "engine")


def score(engine: Any, text: str | bytes, name: str = "in.csv", output: str = "out.csv", **options: Any) -> Summary:
    folder = engine.folder.parent
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return score_file(engine, ScoringConfig(folder / name, folder / output, **options))


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def reasons(summary: Summary) -> list[tuple[str, str]]:
    assert summary.rejected_file is not None
    return [(line, reason) for line, reason, _ in rows(summary.rejected_file)[1:]]


def test_the_columns_of_the_training_come_before_common_names(engine: StandIn) -> None:
    text = "sentence1,sentence2,query,answer\na,b,cc,dd\n"
    assert score(engine, text).texts == ("sentence1", "sentence2")
    engine.manifest = manifest(columns=("query", "answer"))
    summary = score(engine, text, overwrite=True)
    assert summary.texts == ("query", "answer")
    assert rows(summary.output)[1][-1] == "4.001"
    assert score(engine, text, overwrite=True, text_columns=("answer", "query")).texts == ("answer", "query")


def test_without_the_columns_of_the_training_nothing_is_guessed(engine: StandIn) -> None:
    engine.manifest = manifest(columns=("query", "answer"))
    match = (
        r"no column 'query' and 'answer', on which the engine was trained; found 'sentence1', 'sentence2' \(--text_c"
    )
    with pytest.raises(DataError, match=match):
        score(engine, "sentence1,sentence2\na,b\n")
    assert score(engine, "sentence1,sentence2\na,b\n", text_columns=("sentence1", "sentence2")).rows == 1


def test_a_glue_task_has_two_names_for_the_same_columns(engine: StandIn) -> None:
    engine.manifest = manifest(("no", "yes"), name="MRPC", columns=("#1 String", "#2 String"))
    assert score(engine, "sentence1,sentence2\na,b\n").texts == ("sentence1", "sentence2")
    assert score(engine, "#1 String\t#2 String\na\tb\n", name="in.tsv", output="b.csv").texts[0] == "#1 String"
    with pytest.raises(DataError, match="on which the engine was trained"):
        score(engine, "question1,question2\na,b\n", output="c.csv")


def test_plain_text_has_no_names(engine: StandIn) -> None:
    engine.manifest = manifest(is_pair=False, columns=("review",))
    assert score(engine, "good\n", name="in.txt").texts == ("sentence",)


def test_guessed_columns_are_told(engine: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "q8trt")
    score(engine, "premise,hypothesis\na,b\n", output="a.csv")
    assert not caplog.messages  # no other columns could be meant
    score(engine, "premise,hypothesis,query,document\na,b,c,d\n")
    assert caplog.messages == [
        "columns scored: premise, hypothesis, chosen by name, because the engine does not record its text columns"
    ]
    caplog.clear()
    score(engine, "premise,hypothesis\na,b\n", overwrite=True, text_columns=("premise", "hypothesis"))
    engine.manifest = manifest(columns=("premise", "hypothesis"))
    score(engine, "premise,hypothesis\na,b\n", overwrite=True)
    assert not caplog.messages


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_an_answer_that_is_no_number_rejects_its_row(engine: StandIn, value: float, output: str) -> None:
    engine.logits = lambda items: np.float32([[value if "bad" in item else 1] for item in items])  # type: ignore[method-assign]
    summary = score(engine, "sentence1,sentence2\na,b\nbad,c\n,\nd,bad\n", output=output)
    assert (summary.rows, summary.rejected) == (1, 3)
    assert reasons(summary) == [
        ("3", "the answer of the engine is NaN or infinite"),
        ("4", "column 'sentence1' is empty"),
        ("5", "the answer of the engine is NaN or infinite"),
    ]
    assert not {"nan", "inf", "infinity"} & set(summary.output.read_text().lower().replace(",", " ").split())


def test_a_probability_that_is_no_number_rejects_its_row(engine: StandIn) -> None:
    engine.manifest = manifest(LABELS)
    engine.logits = lambda items: np.full((len(items), 3), math.nan, np.float32)  # type: ignore[method-assign]
    summary = score(engine, "sentence1,sentence2\na,b\n")
    assert (summary.rows, summary.rejected) == (0, 1)
    assert not summary.output.exists()


def test_no_output_is_replaced_where_every_row_is_rejected(engine: StandIn) -> None:
    score(engine, "sentence1,sentence2\na,b\n")
    summary = score(engine, "sentence1,sentence2\na,\n", overwrite=True)
    assert (summary.rows, summary.rejected) == (0, 1)
    assert rows(summary.output)[1] == ["a", "b", "2.001"]
    assert len(reasons(summary)) == 1
    assert sorted(path.name for path in engine.folder.parent.glob("out*")) == ["out.csv", "out.csv.rejected.csv"]


def test_a_text_that_the_engine_refuses_rejects_its_row_alone(engine: StandIn) -> None:
    logits = engine.logits

    def refuse(items: list[Any]) -> np.ndarray:
        if bad := [index for index, item in enumerate(items) if "bad" in item]:
            raise InputError(f"item {bad[0]} is too long", bad[0])
        return logits(items)

    engine.logits = refuse  # type: ignore[method-assign,assignment]
    summary = score(engine, "sentence1,sentence2\na,b\nbad,c\nd,bad\ne,f\n")
    assert rows(summary.output)[1:] == [["a", "b", "2.002"], ["e", "f", "2.002"]]
    assert reasons(summary) == [("3", "item 1 is too long"), ("4", "item 1 is too long")]


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\rx", "\uff1d1"]
PLAIN = ["a=b", "-5", "+1.5e3", ".5", " =x", "'=1", "x"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_safe_csv_marks_what_a_spreadsheet_would_run(engine: StandIn, text: str) -> None:
    engine.manifest = manifest(("=no", "yes"))
    line = json.dumps({"sentence1": "a", "sentence2": text, "@x": text})
    bad = json.dumps({"sentence1": text})
    marked = f"'{text}" if text in FORMULAS else text
    header, first = rows(score(engine, f"{line}\n{bad}\n", "in.jsonl", safe_csv=True).output)
    assert header == ["sentence1", "sentence2", "'@x", "label", "probability_=no", "probability_yes"]
    assert first[:4] == ["a", marked, marked, "yes"]
    plain = score(engine, f"{line}\n{bad}\n", "in.jsonl", "plain.csv").output
    assert rows(plain)[1][:4] == ["a", text, text, "yes"]
    lines = score(engine, f"{line}\n", "in.jsonl", "out.jsonl", safe_csv=True).output
    assert json.loads(lines.read_text())["@x"] == text


def test_safe_csv_marks_rejected_rows_and_numbers_stay(engine: StandIn) -> None:
    engine.logits = lambda items: np.full((len(items), 1), -1.5, np.float32)  # type: ignore[method-assign]
    summary = score(engine, "sentence1,sentence2\n=1\na,b\n", safe_csv=True)
    assert summary.rejected_file is not None
    assert rows(summary.rejected_file)[1][2] == "'=1"
    assert rows(summary.output)[1] == ["a", "b", "-1.5"]


@pytest.mark.parametrize("text", ["a\rb", "a\0b", "\0", "a\u2028b", "a\x85b", 'a"b', "\ufeffa", "a\n\r\nb", "\x1b[31m"])
def test_every_character_comes_back_out_of_csv(engine: StandIn, text: str) -> None:
    line = json.dumps({"sentence1": text, "sentence2": "b"})
    assert rows(score(engine, line, "in.jsonl").output)[1][0] == text


def test_bom_and_crlf(engine: StandIn) -> None:
    for name, tab in (("in.csv", ","), ("in.tsv", "\t")):
        text = f"\ufeffsentence1{tab}sentence2\r\na{tab}b\r\n\r\nc{tab}d\r\n"
        summary = score(engine, text, name, f"{name}.out.csv")
        assert summary.output.read_bytes() == b"sentence1,sentence2,score\na,b,2.002\nc,d,2.002\n"
    lines = '\ufeff{"sentence1": "a", "sentence2": "b"}\r\n'
    assert score(engine, lines, "in.jsonl").rows == 1


def extra(value: str) -> str:
    return f'{{"sentence1": "a", "sentence2": "b", "x": {value}}}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (extra("NaN"), "not JSON: invalid character"),
        (extra("1e400"), "number out of range"),
        (extra("9" * 30), "it contains a whole number that does not fit 64 bits"),
        (extra("9" * 5000), "integer value out of range"),
        ('{"sentence1": "a", "sentence2": "b", "sentence1": "c"}', "key 'sentence1' appears twice"),
        (extra('[{"y": 1, "y": 2}]'), "key 'y' appears twice"),
        ('{"sentence1": "\\ud83d", "sentence2": "b"}', "half of a surrogate pair, which is not a character"),
        ('{"sentence1": "\\ude00", "sentence2": "b"}', "half of a surrogate pair, which is not a character"),
        (extra("[" * 70 + "]" * 70), "it is nested more than 64 levels deep"),
        (extra("[" * 100_000), "it is nested more than 64 levels deep"),
        (extra(f"[{'0,' * 100_000}0]"), "it contains more than 100,000 values"),
    ],
    ids=range(11),
)
def test_json_lines_that_are_hard_to_read(engine: StandIn, line: str, reason: str) -> None:
    good = '{"sentence1": "\\ud83d\\ude00", "sentence2": "b"}'
    summary = score(engine, f"{good}\n{line}\n{good}\n", "in.jsonl", "out.jsonl")
    assert summary.rows == 2
    ((number, text),) = reasons(summary)
    assert number == "2"
    assert text.startswith(reason)


def test_a_label_that_tsv_cannot_hold(engine: StandIn) -> None:
    engine.manifest = manifest(("a\tb", "c"))
    with pytest.raises(ConfigError, match=r"label 'a\\tb' of the engine does not fit into TSV"):
        score(engine, "sentence1\tsentence2\na\tb\n", "in.tsv", "out.tsv")
    assert score(engine, "sentence1\tsentence2\na\tb\n", "in.tsv").rows == 1


def test_an_input_that_grows_is_noticed_at_the_next_chunk(engine: StandIn) -> None:
    path, logits = engine.folder.parent / "in.csv", engine.logits

    def append(items: Any) -> Any:
        with path.open("a") as file:
            file.write("more,rows\n" * 50)
        return logits(items)

    engine.logits = append  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"in\.csv changed while it was scored; score it again with --overwrite"):
        score(engine, "sentence1,sentence2\n" + "a,b\n" * 100, chunk_rows=10)
    assert engine.calls == 1
