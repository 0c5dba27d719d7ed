"""Texts without labels: what each format gives, samples of large files, and files that cannot be used."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.errors import DataError
from q8trt.tasks.data import DataConfig, load_dev, load_train, tokenize
from q8trt.tasks.data.tabular import read_table
from q8trt.tasks.data.texts import read_texts, sample_texts
from q8trt.tasks.glue import Task, task_of_head
from q8trt.tasks.heads import Embedding, Head, HeadKind

EMBEDDING = Head(HeadKind.EMBEDDING, embedding=Embedding(4, prompts={"query": "find : "}, default_prompt_name="query"))
LABELS = Head(HeadKind.SEQUENCE_CLASSIFICATION, ("no", "yes"))


def task(head: Head = LABELS, is_pair: bool = False) -> Task:
    return task_of_head(head, is_pair, has_labels=False)


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)


def test_each_format_gives_the_same_texts(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(9)]
    (tmp_path / "a.txt").write_text("\n".join([*texts[:4], "", "  ", *texts[4:]]))
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}", "n": 1}}\n' for text in texts) + '{"text": null}\n')
    write_parquet(tmp_path / "a.parquet", {"n": list(range(9)), "text": texts})
    read = {
        path.suffix: (read_texts(path, task(), "train"), read_texts(path, task(), "dev")) for path in tmp_path.iterdir()
    }
    assert {len(dev) for _, dev in read.values()} == {3}
    for train, dev in read.values():
        assert sorted([*train.first, *dev.first]) == texts
        assert train.labels is None
        assert train.second is None
    assert len({tuple(train.first) for train, _ in read.values()}) == 1


def test_a_large_file_is_sampled_evenly(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number}\n" for number in range(20_000)))
    train, dev = (read_texts(path, task(), split, train_rows=2000, dev_rows=500) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (2000, 500)
    assert not {*train.first} & {*dev.first}
    quarters = collections.Counter(int(text) // 5000 for text in train.first)
    assert all(400 < quarters[quarter] < 600 for quarter in range(4))
    assert read_texts(path, task(), "train", train_rows=2000, dev_rows=500).first == train.first


def test_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence1,sentence2,x\na,b,c\nd,,e\n")
    assert read_texts(tmp_path / "a.csv", task(is_pair=True), "dev").second == ["b"]
    assert read_texts(tmp_path / "a.csv", task(EMBEDDING), "dev").second == ["b"]
    assert read_texts(tmp_path / "a.csv", task(), "dev", ("x",)).text_columns == ("x",)
    (tmp_path / "b.csv").write_text("whatever\na\nb\n")
    assert sorted(read_texts(tmp_path / "b.csv", task(), "dev").first) == ["a", "b"]
    with pytest.raises(
        DataError, match="expected 'sentence', 'text' or 'sentence1'; found 'sentence1', 'sentence2', 'x'"
    ):
        read_texts(tmp_path / "a.csv", task(), "dev")
    for name in ("sentence", "text", "sentence1"):
        (tmp_path / "d.csv").write_text(f"label,{name}\nyes,a\nno,b\n")
        assert read_texts(tmp_path / "d.csv", task(), "dev").text_columns == (name,)
        assert read_table(tmp_path / "d.csv", task(), "dev").first == ["a", "b"]
    (tmp_path / "e.csv").write_text("text,sentence1,label\na,b,yes\n")
    for read in (read_texts, read_table):
        with pytest.raises(DataError, match=r"columns 'text' and 'sentence1' may .* one: --text_column_names text$"):
            read(tmp_path / "e.csv", task(), "dev")
        assert read(tmp_path / "e.csv", task(), "dev", ("sentence1",)).first == ["b"]
    (tmp_path / "c.txt").write_text("a\n")
    with pytest.raises(DataError, match="plain text has one text a line, and the model needs pairs"):
        read_texts(tmp_path / "c.txt", task(is_pair=True), "dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: no text; expected a text in each row; add rows"),
        ("a.txt", b"\n \n", "a.txt: no text"),
        ("a.csv", b"text\n", "a.csv: no text"),
        ("a.txt", b"\x00\x01\x02", "a.txt:1: a NUL byte"),
        ("a.txt", b"\xff\xfe\xfa", "a.txt:1: not UTF-8"),
        ("a.txt", b"a" * (5 * 2**20), "a.txt:1: a line of more than 4,194,304 bytes"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: text 3, expected a string"),
        ("a.parquet", b"PAR1", "a.parquet: not Parquet"),
        ("a.docx", b"a", "unknown extension '.docx'"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_texts(tmp_path / name, task(), "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_built_in_sentences() -> None:
    single, pairs = sample_texts(task(), "dev"), sample_texts(task(is_pair=True), "dev")
    assert pairs.second
    assert single.second is None
    assert single.first == [*pairs.first, *pairs.second]
    assert single.labels is None


def test_each_text_of_a_pair_is_embedded_after_the_default_prompt(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "dev.csv"
    path.write_text("sentence1,sentence2,score\na dog,a cat,1.5\nsnow,the moon,4\n")
    data = DataConfig("custom", validation_file=str(path), head=EMBEDDING)
    rows = tokenize(load_dev(data)["dev"], tiny_tokenizer, 16)
    texts = ["find : a dog", "find : a cat", "find : snow", "find : the moon"]
    assert rows.input_ids == tiny_tokenizer(texts)["input_ids"]
    assert rows.labels is not None
    np.testing.assert_array_equal(rows.labels, np.float32([1.5, 1.5, 4, 4]))
    assert load_train(data).is_sample


@pytest.mark.parametrize(
    ("name", "header", "mark"),
    [("a.csv", "id;text", "semicolons"), ("a.tsv", "id,text", "commas"), ("a.csv", "id\ttext", "tabs")],
)
def test_another_separator_is_not_a_text(name: str, header: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"{header}\n1 the chair is great\n2 the table, too\n")
    with pytest.raises(DataError, match=rf"a\.\w+: the header .* is a single column with {mark}; a \.\w+ file has"):
        read_texts(tmp_path / name, task(), "train")


def test_rows_without_a_text_are_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text('text,id\na,1\n"",2\nb,3\n" ",4\nc,5\n')
    rows = [read_texts(tmp_path / "a.csv", task(), split).first for split in ("train", "dev")]
    assert sorted(rows[0] + rows[1]) == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.csv'}: skipped 2 rows without a text"
    ]
