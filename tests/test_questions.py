"""Questions with answers from files: SQuAD's JSON, and JSON Lines and Parquet as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from q8trt.errors import DataError
from q8trt.tasks.data.questions import Reference, read_questions
from q8trt.tasks.glue import custom_task

TASK = custom_task("qa", (), is_pair=True)
CONTEXT = "the boy eats an apple. his sister drinks milk, and milk is cold"
ROWS = [
    {"question": "who eats?", "context": CONTEXT, "answers": [("the boy", 0), ("boy", 4)]},
    {"question": "who sleeps?", "context": CONTEXT, "answers": []},
    {"question": "what is cold?", "context": "caf\u00e9 \U0001f600 ice", "answers": [("ice", 7)]},
]


def hub(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "id": str(number),
            "answers": {
                "text": [text for text, _ in row["answers"]],
                "answer_start": [start for _, start in row["answers"]],
            },
        }
        for number, row in enumerate(rows)
    ]


def squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def paragraph(row: dict[str, Any]) -> dict[str, Any]:
        answers = [{"text": text, "answer_start": start} for text, start in row["answers"]]
        return {
            "context": row["context"],
            "qas": [{"id": "x", "question": row["question"], "answers": answers, "is_impossible": not answers}],
        }

    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph(row) for row in rows]}]}


def write(path: Path, value: Any) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(value), path, row_group_size=2)
    elif path.suffix == ".jsonl" or path.name.startswith("lines"):
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(json.dumps(value, indent=1 if path.name.startswith("pretty") else None))
    return path


@pytest.mark.parametrize("name", ["a.json", "pretty.json", "a.jsonl", "lines.json", "a.parquet"])
def test_each_format_gives_the_same_questions(tmp_path: Path, name: str) -> None:
    is_document = name in ("a.json", "pretty.json")
    path = write(tmp_path / name, squad(ROWS) if is_document else hub(ROWS))
    questions = read_questions(path, TASK, "dev")
    assert questions.first == [row["question"] for row in ROWS]
    assert questions.second == [row["context"] for row in ROWS]
    assert questions.references == [tuple(Reference(*each) for each in row["answers"]) for row in ROWS]
    assert questions.has_unanswerable
    assert not questions.take(1).has_unanswerable
    assert len(questions.take(2)) == 2
    assert (questions.text_columns, questions.label_column) == (
        ((), "") if is_document else (("question", "context"), "answers")
    )
    other = read_questions(write(tmp_path / "lines2.json", hub(ROWS)), TASK, "dev")
    assert questions.fingerprint == other.fingerprint
    moved = hub([{**ROWS[0], "answers": [("milk", CONTEXT.index("milk"))]}, *ROWS[1:]])
    again = hub([{**ROWS[0], "answers": [("milk", CONTEXT.rindex("milk"))]}, *ROWS[1:]])
    prints = {read_questions(write(tmp_path / "b.jsonl", rows), TASK, "dev").fingerprint for rows in (moved, again)}
    assert len({questions.fingerprint, *prints}) == 3


def test_columns_of_other_names_and_answers_as_a_list(tmp_path: Path) -> None:
    rows = [{"q": "who?", "c": CONTEXT, "gold": [{"text": "boy", "answer_start": 4}]}]
    for name in ("a.jsonl", "a.parquet", "lines.json"):
        path = write(tmp_path / name, rows)
        questions = read_questions(path, TASK, "dev", ("q", "c"), "gold")
        assert questions.references == [(Reference("boy", 4),)]
        assert questions.text_columns == ("q", "c")


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_questions(path, TASK, "dev", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad(answers: Any = None, **changes: Any) -> list[dict[str, Any]]:
    rows = hub(ROWS)
    rows[1] = {**rows[1], **changes, **({} if answers is None else {"answers": answers})}
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (bad({"text": ["boy"], "answer_start": [5]}), "the answer 'boy' is not at answer_start 5, where the context has 'oy '"),
        (bad({"text": ["boy"], "answer_start": [-3]}), ":2: the answer 'boy' is not at answer_start -3"),
        (bad({"text": ["boy"], "answer_start": [10**6]}), "not at answer_start 1000000, where the context has ''"),
        (bad({"text": [" "], "answer_start": [3]}), ":2: an answer has no text"),
        (bad({"text": ["boy", "boy"], "answer_start": [4]}), ":2: column 'answers': 2 texts, but 1 values of answer_start"),
        (bad({"text": ["boy"], "answer_start": ["4"]}), "answer_start[0] must be a whole number, not \"4\""),
        (bad({"text": ["boy"]}), ":2: column 'answers': missing key: answer_start"),
        (bad("boy"), ":2: column 'answers': the document must be an object"),
        (bad([{"text": "boy"}]), ":2: column 'answers'[0]: missing key: answer_start"),
        (bad(question=" "), ":2: text ' ', expected a string that is not empty"),
        (bad(context=7), ":2: text 7, expected a string"),
        (bad(context="x" * (2**20 + 1)), ":2: a context of 1,048,577 characters; q8trt reads 1,048,576 or fewer"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    assert message in error_of(write(tmp_path / "a.jsonl", rows))


def test_bad_documents_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    document = squad(ROWS)
    document["data"][0]["paragraphs"][2]["qas"][0]["answers"][0]["answer_start"] = 6
    assert "a.json: data[0].paragraphs[2].qas[0]: the answer 'ice' is not at answer_start 6" in error_of(
        write(path, document)
    )
    document = squad(ROWS)
    document["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert "data[0].paragraphs[0].qas[0]: is_impossible is true, and there are answers" in error_of(
        write(path, document)
    )
    document = squad(ROWS)
    document["data"][0]["paragraphs"][1]["qas"][0]["question"] = None
    assert "data[0].paragraphs[1].qas[0].question must be a string, not null" in error_of(write(path, document))
    assert "no questions" in error_of(write(path, {"data": []}))
    assert "expected SQuAD's JSON" in error_of(write(path, [1, 2]))
    path.write_text(json.dumps(squad(ROWS))[:-40])
    assert "a.json: not JSON" in error_of(path)
    path.write_text("")
    assert "a.json: not JSON" in error_of(path)


def test_files_that_hold_no_questions(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "a.json")
    assert "unknown extension '.csv'" in error_of(write(tmp_path / "a.csv", "question,context\n"))
    (tmp_path / "a.jsonl").write_text("")
    assert "no questions" in error_of(tmp_path / "a.jsonl")
    rows = write(tmp_path / "b.jsonl", [{"question": "a", "contexts": "b", "answers": []}])
    assert "no column 'context'; found 'question', 'contexts', 'answers' (did you mean 'contexts'?)" in error_of(rows)
    flat = write(tmp_path / "a.parquet", [{"question": "a", "context": "b", "answers": "c"}])
    assert "column 'answers' has the type string, expected lists or structs" in error_of(flat)


def test_nested_columns_cannot_expand_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt.tasks.data import opening

    rows = hub([{**ROWS[0], "answers": [("the boy", 0)] * 5000}] * 10)
    path = write(tmp_path / "a.parquet", rows)
    assert len(read_questions(path, TASK, "dev")) == 10
    monkeypatch.setattr(opening.Allowance.__init__, "__defaults__", (2**20,))
    assert "decompression bomb" in error_of(path)
