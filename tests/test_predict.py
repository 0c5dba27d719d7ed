"""Offline scoring: what is read, what is written, what is set aside, by a stand-in for the engine."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from scoring_fixtures import LABELS, StandIn, manifest

from q8trt.errors import ConfigError, DataError
from q8trt.inference.files import ScoringConfig, Summary, score_file

PAIRS = "id,sentence1,sentence2\n1,one,two\n2,three,four\n"


@pytest.fixture
def engine(tmp_path: Path) -> StandIn:
    (tmp_path / "engine").mkdir()
    return StandIn(tmp_path / "engine")


@pytest.fixture
def single(engine: StandIn) -> StandIn:
    engine.manifest = manifest(is_pair=False)
    return engine


def score(engine: Any, text: str | bytes, name: str = "in.csv", output: str = "out.csv", **options: Any) -> Summary:
    folder = engine.folder.parent
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return score_file(engine, ScoringConfig(folder / name, folder / output, **options))


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def rejected(summary: Summary) -> list[tuple[int, str]]:
    assert summary.rejected_file is not None
    header, *lines = rows(summary.rejected_file)
    assert header == ["line", "reason", "row"]
    assert len(lines) == summary.rejected
    return [(int(line), reason) for line, reason, _ in lines]


def test_the_columns_of_the_input_and_the_score(engine: StandIn) -> None:
    summary = score(engine, PAIRS)
    assert rows(summary.output) == [
        ["id", "sentence1", "sentence2", "score"],
        ["1", "one", "two", "6.002"],
        ["2", "three", "four", "9.002"],
    ]
    assert (summary.rows, summary.rejected, summary.rejected_file, summary.names) == (2, 0, None, ("score",))
    assert sorted(path.name for path in engine.folder.parent.iterdir()) == ["engine", "in.csv", "out.csv"]


def test_a_label_and_the_probability_of_each(engine: StandIn) -> None:
    engine.manifest = manifest(LABELS)
    summary = score(engine, PAIRS)
    header, first, _ = rows(summary.output)
    assert header[3:] == ["label", "probability_no", "probability_maybe", "probability_yes"]
    assert first[3:] == ["yes", "0.3333333", "0.3333333", "0.3333333"]


def test_columns_of_the_input_are_never_overwritten(engine: StandIn) -> None:
    summary = score(engine, "sentence1,sentence2,score\na,b,gold\n")
    assert rows(summary.output) == [["sentence1", "sentence2", "score", "predicted_score"], ["a", "b", "gold", "2.001"]]
    with pytest.raises(DataError, match="column 'predicted_score' exists already, and would be overwritten"):
        score(engine, "sentence1,sentence2,score,predicted_score\na,b,c,d\n", output="other.csv")


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("question1,question2", {}),
        ("premise,hypothesis", {}),
        ("left,right", {"text_columns": ("left", "right")}),
    ],
)
def test_text_columns_by_common_names_or_as_asked(engine: StandIn, header: str, options: dict[str, Any]) -> None:
    assert rows(score(engine, f"{header}\nab,cde\n", **options).output)[1][2] == "5.001"


def test_text_columns_of_a_glue_task(engine: StandIn) -> None:
    engine.manifest = manifest(("no", "yes"), name="MRPC")
    assert score(engine, "#1 String\t#2 String\na\tb\n", name="in.tsv").rows == 1


def test_the_order_of_given_columns_is_the_order_of_the_texts(engine: StandIn) -> None:
    seen: list[Any] = []
    logits = engine.logits
    engine.logits = lambda items: seen.extend(items) or logits(items)  # type: ignore[method-assign]
    score(engine, "a,b\n1,2\n", text_columns=("b", "a"))
    assert seen == [("2", "1")]


def test_quoted_newlines_commas_and_quotes(engine: StandIn) -> None:
    text = 'sentence1,sentence2\n"one\ntwo, ""three""",b\nc,d\n"unfinished'
    summary = score(engine, text)
    assert rows(summary.output)[1:] == [['one\ntwo, "three"', "b", "17.002"], ["c", "d", "2.002"]]
    assert rejected(summary) == [(5, "not CSV: unexpected end of data")]


def test_line_numbers_are_physical_and_a_bad_quote_costs_its_own_line(engine: StandIn) -> None:
    text = 'sentence1,sentence2\r\n"x\r\ny",z\r\n\r\n"bad"quote,b\r\nonly\r\n"a\r\nb",c,d\r\n  ,x\r\nlast,one\r\n'
    summary = score(engine, text)
    assert [row[0] for row in rows(summary.output)[1:]] == ["x\r\ny", "last"]
    assert rejected(summary) == [
        (5, "not CSV: ',' expected after '\"'"),
        (6, "1 fields, expected 2 as in the header"),
        (7, "3 fields, expected 2 as in the header (lines 7 to 8)"),
        (9, "column 'sentence1' is empty"),
    ]
    assert summary.first_reason == "line 5: not CSV: ',' expected after '\"'"


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(engine: StandIn) -> None:
    lines = ["sentence1,sentence2", '"never closed,b', *(f"{number},b" for number in range(20_000))]
    summary = score(engine, "\n".join(lines))
    assert summary.rows == 20_000
    assert rejected(summary) == [(2, "not CSV: field larger than field limit (131072)")]


def test_rejected_rows_are_quoted_as_they_stood(engine: StandIn) -> None:
    summary = score(engine, b'sentence1,sentence2\n\xff\xfe,b\na,b,"c d"\na,b\n')
    assert summary.rejected_file == engine.folder.parent / "out.csv.rejected.csv"
    assert [row[2] for row in rows(summary.rejected_file)[1:]] == ["��,b", 'a,b,"c d"']
    assert rejected(summary)[0] == (2, "not UTF-8: invalid start byte; convert the file to UTF-8")


def test_a_line_that_is_no_text_at_all(engine: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8trt.inference.files.records.LONGEST", 2**20)
    summary = score(engine, "sentence1,sentence2\na,b\n" + "x" * (3 * 2**20) + "\nc,d\n")
    assert summary.rows == 2
    assert rejected(summary) == [(3, "longer than 1 MiB")]


def test_tsv_has_no_quotes(engine: StandIn) -> None:
    text = '\ufeffsentence1\tsentence2\n"one\ttwo"\n\nthree\n'
    summary = score(engine, text, name="in.tsv", output="out.tsv")
    assert summary.output.read_text() == 'sentence1\tsentence2\tscore\n"one\ttwo"\t8.001\n'
    assert rejected(summary) == [(4, "1 fields, expected 2 as in the header")]


def test_plain_text_is_one_text_a_line(single: StandIn) -> None:
    summary = score(single, 'first\n\nno, quotes "here\n', name="in.txt")
    assert rows(summary.output) == [["sentence", "score"], ["first", "5.002"], ['no, quotes "here', "16.002"]]
    assert rejected(summary) == [(2, "column 'sentence' is empty")]


def test_json_lines_keep_every_key(engine: StandIn) -> None:
    lines: list[Any] = [
        {"id": 7, "sentence1": "ä", "sentence2": "b", "nested": {"x": [1, None]}},
        {"sentence1": "a", "sentence2": "b", "other": True},
        {"sentence1": "a"},
        {"sentence1": "a", "sentence2": None},
        {"sentence1": 5, "sentence2": "b"},
        {"sentence1": "a", "sentence2": "b", "score": 1},
        [1],
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n{\n" + '{"sentence1": "\\ud800", "sentence2": "b"}\n'
    summary = score(engine, text + "[" * 100_000, name="in.jsonl", output="out.jsonl")
    assert [json.loads(line) for line in summary.output.read_text().splitlines()] == [
        {**lines[0], "score": 2.002},
        {**lines[1], "score": 2.002},
    ]
    assert "ä" in summary.output.read_text()
    assert rejected(summary) == [
        (3, "column 'sentence2' is missing"),
        (4, "column 'sentence2' has no value"),
        (5, "column 'sentence1' is 5, expected a string"),
        (6, "key 'score' would be overwritten by the answer; the first row has no such key"),
        (7, "a JSON list, expected one object a line"),
        (9, "not JSON: Input data was truncated"),
        (10, "half of a surrogate pair, which is not a character"),
        (11, "it is nested more than 64 levels deep"),
    ]


def test_json_lines_as_csv_have_the_columns_of_the_first_row(engine: StandIn) -> None:
    lines: list[Any] = [
        {"sentence1": "a", "n": 1.5, "sentence2": "b"},
        {"sentence1": "a", "sentence2": "b"},
        {"sentence1": "a", "sentence2": "b", "extra": 1},
    ]
    summary = score(engine, "oops\n" + "\n".join(map(json.dumps, lines)), name="in.json")
    assert rows(summary.output) == [
        ["sentence1", "n", "sentence2", "score"],
        ["a", "1.5", "b", "2.002"],
        ["a", "", "b", "2.002"],
    ]
    assert rejected(summary)[1] == (
        4, "key 'extra' is not among the first row's (sentence1, n, sentence2); --output .jsonl keeps all keys"
    )  # fmt: skip


def test_rows_that_were_cut_are_counted(engine: StandIn) -> None:
    assert score(engine, f"sentence1,sentence2\n{'long ' * 9},b\na,b\n").truncated == 1


@pytest.mark.parametrize("text", ["sentence1,sentence2\n", "sentence1,sentence2"])
def test_no_rows_give_no_answers(engine: StandIn, text: str) -> None:
    summary = score(engine, text)
    assert (summary.rows, rows(summary.output)) == (0, [["sentence1", "sentence2", "score"]])
    assert engine.calls == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7])
def test_every_row_once_and_in_order_whatever_the_chunk(engine: StandIn, number: int) -> None:
    text = "id,sentence1,sentence2\n" + "".join(f"{each},a,{'b' if each % 3 else ''}\n" for each in range(10))
    summary = score(engine, text, chunk_rows=number)
    assert [row[0] for row in rows(summary.output)[1:]] == ["1", "2", "4", "5", "7", "8"]
    assert [line for line, _ in rejected(summary)] == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "in.csv", "in.csv:1: empty; expected a header"),
        ("\na,b\n", "in.csv", "in.csv:1: empty; expected a header"),
        ('"a', "in.csv", "in.csv:1: not CSV: unexpected end of data; expected a header"),
        (b"\xff", "in.tsv", "in.tsv:1: not UTF-8: invalid start byte; convert the file to UTF-8; expected a header"),
        ("a,a\n", "in.csv", "in.csv:1: column 'a' appears twice"),
        (
            "a,b\n1,2\n",
            "in.csv",
            r"no text column; expected 'sentence1' and 'sentence2', .* or .*; found 'a', 'b' \(--text_column_names",
        ),
        ('{"a": 1}', "in.jsonl", "no text column; expected 'sentence1' and 'sentence2', .*; found 'a'"),
        ("text\n", "in.txt", "plain text has one text a line, and mine takes pairs"),
    ],
)
def test_a_file_that_cannot_be_scored_leaves_nothing(
    engine: StandIn, text: str | bytes, name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(engine, text, name=name)
    assert sorted(path.name for path in engine.folder.parent.iterdir()) == ["engine", name]


def test_a_file_that_is_not_there(engine: StandIn) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file$"):
        score_file(engine, ScoringConfig(Path("nowhere.csv"), engine.folder / "out.csv"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("a.parquet", "b.csv", r"--input a\.parquet ends in '\.parquet'; expected one of \.csv, \.tsv"),
        (
            "a.csv",
            "b.txt",
            r"--output b\.txt ends in '\.txt'; expected one of \.csv, \.tsv, \.jsonl; for embeddings also",
        ),
        ("a.csv", "b.tsv", "texts may contain tabs"),
        ("a.csv", "./a.csv", "is the input"),
    ],
)
def test_endings_that_do_not_do(source: str, output: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoringConfig(Path(source), Path(output))
    with pytest.raises(ConfigError, match="chunk_rows must be 1 or more, got 0"):
        ScoringConfig(Path("a.csv"), Path("b.csv"), chunk_rows=0)


def test_text_columns_of_the_wrong_number(engine: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--text_column_names sentence1: mine takes pairs: give two columns"):
        score(engine, PAIRS, text_columns=("sentence1",))
    engine.manifest = manifest(is_pair=False)
    with pytest.raises(ConfigError, match="mine takes single texts: give one column"):
        score(engine, PAIRS, text_columns=("sentence1", "sentence2"))


def test_an_output_that_is_there_is_kept_unless_told(engine: StandIn) -> None:
    first = score(engine, PAIRS + "3,a\n")
    assert first.rejected_file is not None
    with pytest.raises(ConfigError, match=r"out\.csv exists already; give another --output, or --overwrite"):
        score(engine, "sentence1,sentence2\na,b\n")
    assert score(engine, "sentence1,sentence2\na,b\n", overwrite=True).rows == 1
    assert not first.rejected_file.exists()
    (engine.folder.parent / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.csv is a folder"):
        score(engine, PAIRS, output="folder.csv")


def test_an_input_that_changes_meanwhile(engine: StandIn) -> None:
    path = engine.folder.parent / "in.csv"
    logits = engine.logits

    def append(items: Any) -> Any:
        with path.open("a") as file:
            file.write("3,more,rows\n")
        os.utime(path, (0, 0))
        return logits(items)

    engine.logits = append  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"in\.csv changed while it was scored"):
        score(engine, PAIRS)
    assert not (engine.folder.parent / "out.csv").exists()


def test_memory_does_not_grow_with_the_file(engine: StandIn) -> None:
    def peak(number: int, output: str) -> tuple[int, int]:
        path = engine.folder.parent / f"{number}.csv"
        with path.open("w") as file:
            file.write("sentence1,sentence2\n")
            file.writelines(f"{'some words ' * 8}{row},{'others ' * 8}\n" for row in range(number))
        tracemalloc.start()
        summary = score_file(engine, ScoringConfig(path, path.with_name(output), chunk_rows=256))  # type: ignore[arg-type]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summary.rows == number
        return most, path.stat().st_size

    small, _ = peak(1_000, "small.csv")
    large, size = peak(20_000, "large.csv")
    assert size > 2 * 2**20
    assert large < 1.2 * small
    assert large < size / 3


def test_progress_is_told_after_each_chunk(engine: StandIn) -> None:
    told: list[Any] = []
    path = engine.folder.parent / "in.csv"
    path.write_text(PAIRS + "3,,b\n4,c,d\n")
    score_file(engine, ScoringConfig(path, path.with_name("o.csv"), chunk_rows=2), told.append)  # type: ignore[arg-type]
    assert [(each.rows, each.rejected) for each in told] == [(2, 0), (3, 1), (3, 1)]
    assert [each.done for each in told] == [46 / 57, 1.0, 1.0]
    assert all(each.rows_per_s > 0 and each.seconds_left >= 0 for each in told)


@pytest.mark.parametrize(
    "content", ["id,sentence1,label,stars\n1,a,2,3\n", "my notes\n", "\n", '{"score": 1}\n', "\x00\xff", '"open,score']
)
def test_overwrite_replaces_outputs_only(engine: StandIn, content: str) -> None:
    """--overwrite is for an earlier output; a table or notes of the user's stay, whatever the flag."""
    path = engine.folder.parent / "out.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"out\.csv exists and is not an output of q8trt predict"):
        score(engine, PAIRS, overwrite=True)
    assert path.read_text() == content
    path.write_text("")
    assert score(engine, PAIRS, overwrite=True).rows == 2


def test_an_earlier_output_of_json_lines_is_replaced(engine: StandIn) -> None:
    first = score(engine, PAIRS, output="out.jsonl")
    before = first.output.read_text()
    assert score(engine, PAIRS, output="out.jsonl", overwrite=True).output.read_text() == before
    first.output.write_text('{"sentence1": "a"}\n')
    with pytest.raises(ConfigError, match="is not an output of q8trt predict"):
        score(engine, PAIRS, output="out.jsonl", overwrite=True)
