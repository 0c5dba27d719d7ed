"""Training data in every format, damaged, forged or odd, given to the loader as `finetune.py` gives them."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, spliced, truncated

#: Rows of the sound files, and what the loader makes of them.
ROWS = [("a good film", "positive"), ("a bad film", "negative"), ('He said "no", twice', "negative")]
ANSWER = [[text, int(label == "positive")] for text, label in ROWS]
REFUSED = "refused"
_DEEP = 100_000


@dataclass(frozen=True)
class BadFile:
    """One file.

    Attributes:
        name: what is odd about it.
        file: its name; the extension chooses the reader.
        content: its bytes, or a function that makes the file at a path.
        expected: the rows that it holds, or `REFUSED`, or None where either is right as long as labels are sound.
        task: a GLUE task.
    """

    name: str
    file: str
    content: bytes | Callable[[Path], Any]
    expected: list[list[Any]] | str | None = REFUSED
    task: str = "SST-2"

    def write(self, folder: Path) -> None:
        """Make the file in `folder`."""
        if isinstance(self.content, bytes):
            (folder / self.file).write_bytes(self.content)
        else:
            self.content(folder / self.file)

    def load(self, folder: Path) -> list[list[Any]]:
        """Return the rows that the loader makes of the file. Raises a Q8TRTError for one that it refuses."""
        from q8trt.tasks.data import DataConfig, load_dev

        # A long name is given absolute, as a shell gives it; the folder is part of it.
        config = DataConfig(self.task, validation_file=str(folder / self.file))
        rows: Any = load_dev(config)["dev"]
        texts = rows.first if hasattr(rows, "first") else rows.input_ids
        return [[text, label] for text, label in zip(texts, rows.labels.tolist(), strict=True)]

    def problem(self, rows: list[list[Any]]) -> str:
        """Return what is wrong with rows that were loaded; "" if nothing is."""
        if self.expected is None:
            return "" if rows and all(label in (0, 1) for _, label in rows) else f"{len(rows)} rows, odd labels"
        return "" if rows == self.expected else f"loaded as {str(rows)[:200]}"


def sound_files() -> dict[str, bytes]:
    """Return a sound file of each format, by name."""
    import pyarrow
    import pyarrow.parquet

    table = io.BytesIO()
    columns = {"sentence": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), table)
    quoted = ('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in ROWS)
    return {
        "x.csv": ("sentence,label\n" + "".join(quoted)).encode(),
        "x.tsv": ("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)).encode(),
        "x.jsonl": b"".join(_json({"sentence": text, "label": label}) for text, label in ROWS),
        "x.parquet": table.getvalue(),
        "x.tfrecord": b"".join(record(example()) for _ in ROWS),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def masked_crc(data: bytes) -> bytes:
    """Return the checksum of a TFRecord's length or payload."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))


def record(payload: bytes, length: int | None = None) -> bytes:
    """Return a TFRecord, which may claim another length than it has."""
    head = struct.pack("<Q", len(payload) if length is None else length)
    return head + masked_crc(head) + payload + masked_crc(payload)


def example(**changes: Any) -> bytes:
    """Return a serialized ``tf.train.Example`` as BERT's tools write it, with some features changed."""
    from q8trt.tasks.data.tfrecord import example_class

    features = {"input_ids": [2, 7, 3, 0], "input_mask": [1, 1, 1, 0], "segment_ids": [0, 0, 0, 0], "label_ids": [1]}
    message = example_class()()
    for name, values in sorted((features | changes).items()):
        feature = message.features.feature.add(key=name).value
        kind = {float: feature.float_list, bytes: feature.bytes_list}.get(type(values[0]), feature.int64_list)
        kind.value.extend(values)
    return bytes(message.SerializeToString())


def _records(**changes: Any) -> bytes:
    return record(example()) + record(example(**changes))


def bad_files() -> Iterator[BadFile]:
    """Yield files that were written by hand."""
    yield from _text_files()
    yield from _json_files()
    yield from _tfrecords()
    yield from _tables()
    yield from _paths()


def _text_files() -> Iterator[BadFile]:
    head, row = b"sentence,label\n", b"a,1\n"
    for name, content in {
        "NUL bytes": head + b"a\0b,1\n",
        "Latin-1": head + "café,1\n".encode("latin-1"),
        "UTF-16": (head + row).decode().encode("utf-16"),
        "UTF-16 without a mark": (head + row).decode().encode("utf-16-le"),
        "surrogate in UTF-8": head + b"\xed\xa0\x80,1\n",
        "overlong UTF-8": head + b"\xc0\xaf,1\n",
        "gzip": gzip.compress(head + row),
        "field above csv's limit": head + b'"' + b"x" * 200_000 + b'",1\n',
        "a quote never closed": head + b'"' + b"a,1\n" * 100_000,
        "quote inside a field": head + b'"a"b,1\n',
        "one line of 5 MiB": b"x" * (5 << 20),
        "columns twice": b"sentence,label,sentence\na,1,b\n",
        "labels twice": b"sentence,label,label\na,1,0\n",
        "too few fields": head + b"a\n",
        "too many fields": head + b"a,1,2\n",
        "no rows": head,
        "empty": b"",
        "only newlines": b"\n" * 1000,
        "no header": b"a,1\nb,0\n",
        "blank text": head + b"  ,1\n",
        "no label": head + b"a,\n",
        "label 2": head + b"a,2\n",
        "label of 5,000 digits": head + b"a," + b"1" * 5000 + b"\n",
        "label NaN": head + b"a,NaN\n",
        "100,000 columns": b",".join(b"c%d" % number for number in range(100_000)) + b"\n" + b"," * 99_999 + b"\n",
    }.items():
        yield BadFile(f"csv: {name}", "x.csv", content)
        if b'"' not in content and "limit" not in name:
            yield BadFile(f"tsv: {name}", "x.tsv", content.replace(b",", b"\t"))
    yield BadFile("csv: carriage returns", "x.csv", b"sentence,label\ra,1\rb,0\r", [["a", 1], ["b", 0]])
    yield BadFile(
        "csv: separators of Unicode", "x.csv", "sentence,label\na\u2028b\x0b,1\n".encode(), [["a\u2028b\x0b", 1]]
    )
    scores = b"sentence1,sentence2,score\nA,B,"
    for score in (b"nan", b"inf", b"-inf", b"1e400", b"True", b"1_0", b"0x1", b"5.1", b"-1", b"1" * 5000, "٣".encode()):
        yield BadFile(f"csv score: {score[:8].decode()}", "x.csv", scores + score + b"\n", task="STS-B")


def _json_files() -> Iterator[BadFile]:
    for name, content in {
        "surrogate": b'{"sentence": "\\ud800", "label": 1}',
        "surrogate in a key": b'{"sentence": "a", "label": 1, "\\udfff": 1}',
        "5,000 digits": b'{"sentence": "a", "label": ' + b"1" * 5000 + b"}",
        "5,000 digits beside": b'{"sentence": "a", "label": 1, "id": ' + b"1" * 5000 + b"}",
        "deep": b'{"sentence": ' + b"[" * _DEEP + b"]" * _DEEP + b', "label": 1}',
        "deep and open": b"[" * _DEEP,
        "keys twice": b'{"sentence": "a", "label": 1, "label": 0}',
        "text twice": b'{"sentence": "a", "sentence": "b", "label": 1}',
        "NaN": b'{"sentence": "a", "label": NaN}',
        "1e400": b'{"sentence": "a", "label": 1e400}',
        "label list": b'{"sentence": "a", "label": [1]}',
        "label object": b'{"sentence": "a", "label": {"label": 1}}',
        "label null": b'{"sentence": "a", "label": null}',
        "label true": b'{"sentence": "a", "label": true}',
        "label 0.5": b'{"sentence": "a", "label": 0.5}',
        "text number": b'{"sentence": 3, "label": 1}',
        "text NUL": b'{"sentence": "a\\u0000b", "label": 1}',
        "an array": b'[{"sentence": "a", "label": 1}]',
        "two objects a line": b'{"sentence": "a", "label": 1}{"sentence": "b", "label": 1}',
        "a comment": b'{"sentence": "a", "label": 1} // b',
        "many values": b'{"sentence": "a", "label": 1, "x": [' + b"1," * 100_000 + b"1]}",
        "a bad second line": b'{"sentence": "a", "label": 1}\n{"sentence": "b"',
    }.items():
        yield BadFile(f"json: {name}", "x.jsonl", content + b"\n")
    yield BadFile("json: a text named like its key", "x.jsonl", b'{"sentence": "label", "label": 1}\n', [["label", 1]])


def _tfrecords() -> Iterator[BadFile]:
    huge = struct.pack("<Q", 2**62)
    for name, content in {
        "length 2^62": huge + masked_crc(huge) + b"x" * 100,
        "length 2^63 + 1": record(b"x", 2**63 + 1),
        "length beyond the file": record(example(), 10**7),
        "checksum": record(example())[:-1] + b"\0",
        "cut short": record(example())[:-3],
        "no Example": record(b"\xff" * 20),
        "empty": b"",
        "empty Example": record(b""),
        "negative id": _records(input_ids=[2, -7, 3, 0]),
        "negative id in the padding": _records(segment_ids=[0, 0, 9, 0]),
        "segment 9": _records(segment_ids=[0, 9, 0, 0]),
        "segment -1": _records(segment_ids=[0, -1, 0, 0]),
        "mask 2^62": _records(input_mask=[2**62, 1, 1, 0]),
        "mask of zeros": _records(input_mask=[0, 0, 0, 0]),
        "lengths": _records(input_ids=[2, 7]),
        "float ids": _records(input_ids=[2.0, 7.0, 3.0, 0.0]),
        "label 0.5": _records(label_ids=[0.5]),
        "label NaN": _records(label_ids=[float("nan")]),
        "label 2": _records(label_ids=[2]),
        "label -1": _records(label_ids=[-1]),
        "two labels": _records(label_ids=[0, 1]),
        "label no text": _records(label_ids=[b"\xff\xfe"]),
        "gzip cut short": gzip.compress(_records())[:-12],
        "gzip damaged": gzip.compress(_records())[:30] + b"\xff" * 40,
        "gzip of text": gzip.compress(b"a" * 100),
        "gzip bomb": gzip.compress(record(example(x=[b"\0" * 500_000])) * 120),
        "a record of 2 MiB": record(example(x=[b"\0" * (2 << 20)])),
    }.items():
        yield BadFile(f"tfrecord: {name}", "x.tfrecord", content)
    one = [[[2, 7, 3], 1]]
    yield BadFile("tfrecord: gzip", "x.tfrecord", gzip.compress(record(example())), one)
    yield BadFile("tfrecord: label 1.0", "x.tfrecord", record(example(label_ids=[1.0])), one)
    yield BadFile("tfrecord: label by name", "x.tfrecord", record(example(label_ids=[b"positive"])), one)


def _tables() -> Iterator[BadFile]:
    import pyarrow

    text, label = pyarrow.array(["a"]), pyarrow.array([1])
    for name, columns in {
        "lists": (pyarrow.array([["a"]]), label),
        "structs": (pyarrow.array([{"a": 1}]), label),
        "dates": (pyarrow.array([0], pyarrow.date32()), label),
        "binary": (pyarrow.array([b"a"]), label),
        "numbers": (label, label),
        "label list": (text, pyarrow.array([[1]])),
        "label date": (text, pyarrow.array([0], pyarrow.timestamp("us"))),
        "label true": (text, pyarrow.array([True])),
        "label null": (text, pyarrow.array([None], pyarrow.int64())),
        "label NaN": (text, pyarrow.array([float("nan")])),
        "no text": (pyarrow.array([None], pyarrow.string()), label),
        "not UTF-8": (pyarrow.StringArray.from_buffers(1, *_not_utf8()), label),
    }.items():
        yield BadFile(f"parquet: {name}", "x.parquet", _parquet(["sentence", "label"], columns))
    import decimal

    for name, values in {
        "1.0": pyarrow.array([1.0]),
        "decimal": pyarrow.array([decimal.Decimal("1.00")]),
        "categories": pyarrow.array(["positive"]).dictionary_encode(),
    }.items():
        yield BadFile(f"parquet: {name}", "x.parquet", _parquet(["sentence", "label"], (text, values)), [["a", 1]])
    yield BadFile("parquet: columns twice", "x.parquet", _parquet(["sentence", "label", "label"], (text, label, label)))
    yield BadFile("parquet: no rows", "x.parquet", _parquet(["sentence", "label"], (text[:0], label[:0])))
    yield BadFile("parquet: a bomb of text", "x.parquet", partial(_write_bomb, rows=20_000, text="x" * 1_000_000))
    yield BadFile("parquet: a bomb of rows", "x.parquet", partial(_write_bomb, rows=20_000_000, text="a"))
    yield BadFile("parquet: text", "x.parquet", b"sentence,label\na,1\n")
    yield BadFile("parquet: magic alone", "x.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1")
    yield BadFile("parquet: footer of 2 GiB", "x.parquet", b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1")


def _not_utf8() -> Any:
    """Return the buffers of one string of two bytes that are no character: offsets and data."""
    import pyarrow

    return pyarrow.py_buffer(struct.pack("<ii", 0, 2)), pyarrow.py_buffer(b"\xff\xfe")


def _parquet(names: Sequence[str], columns: Sequence[Any]) -> Callable[[Path], None]:
    import pyarrow
    import pyarrow.parquet

    return lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_arrays(list(columns), names=list(names)), path)


def _write_bomb(path: Path, rows: int, text: str) -> None:
    import numpy
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array(numpy.zeros(rows, "int32")), pyarrow.array([text]))
    table = pyarrow.table({"sentence": texts, "label": pyarrow.array(numpy.zeros(rows, "int8"))})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _paths() -> Iterator[BadFile]:
    for extension in ("csv", "jsonl", "parquet", "tfrecord"):
        yield BadFile(f"path: missing {extension}", f"x.{extension}", lambda path: None)
        yield BadFile(f"path: folder {extension}", f"x.{extension}", Path.mkdir)
        yield BadFile(f"path: pipe {extension}", f"x.{extension}", os.mkfifo)
        yield BadFile(f"path: endless device {extension}", f"x.{extension}", lambda path: path.symlink_to("/dev/zero"))
        yield BadFile(f"path: link to itself {extension}", f"x.{extension}", lambda path: path.symlink_to(path))
        yield BadFile(f"path: 300 letters {extension}", f"{'x' * 300}.{extension}", lambda path: None)
        yield BadFile(f"path: below a file {extension}", f"y/x.{extension}", lambda path: path.parent.write_bytes(b"x"))
        yield BadFile(f"path: a NUL {extension}", f"x\0.{extension}", lambda path: None)
        yield BadFile(f"path: a newline {extension}", f"x\ny.{extension}", lambda path: None)
    yield BadFile("path: extension", "x.xlsx", b"x")
    yield BadFile("path: none", "x", b"x")


def _case(bad: BadFile) -> Case:
    return Case(bad.name, partial(_print, bad), bad.write, partial(_judge, bad), seconds=20, mib=512)


def _print(bad: BadFile, folder: Path) -> None:
    print(json.dumps(bad.load(folder)))


def _judge(bad: BadFile, outcome: Outcome, folder: Path) -> str:
    return bad.problem(json.loads(outcome.stdout.splitlines()[-1]))


def _mutated(random: Random) -> Iterator[BadFile]:
    """Yield sound files with some bytes changed. A checksum lets no changed TFRecord pass but one cut between records."""
    for name, data in sound_files().items():
        for mutate, count in ((flipped, 80), (truncated, 40), (spliced, 80)):
            for number in range(count):
                yield BadFile(f"{mutate.__name__} {name[2:]}: {number}", name, mutate(data, random), None)


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 1,200 files."""
    for name, data in sound_files().items():
        expected = [[[2, 7, 3], 1]] * len(ROWS) if name == "x.tfrecord" else ANSWER
        yield _case(BadFile(f"sound {name}", name, data, expected))
    yield from map(_case, bad_files())
    yield from map(_case, _mutated(random))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("data", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
