"""Bad data files of every format end in one line of DataError; the same files as the campaign's, written by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.campaign.data import ANSWER, REFUSED, BadFile, bad_files, sound_files
from q8trt.errors import Q8TRTError


def verdict(bad: BadFile, folder: Path) -> str:
    """Return what is wrong with the loader's answer; "" if nothing is."""
    folder.mkdir()
    bad.write(folder)
    started = time.process_time()
    try:
        problem = bad.problem(bad.load(folder))
    except Q8TRTError as error:
        line = str(error)
        problem = "" if bad.expected in (REFUSED, None) and line.isprintable() and len(line) < 2000 else line
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"[:300]
    return problem if time.process_time() - started < 30 else f"{problem} slow"


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "tfrecord", "parquet", "path"])
def test_each_file_is_read_as_it_is_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    files = [bad for bad in bad_files() if bad.name.startswith(kind) and bad.name != "tfrecord: gzip bomb"]
    assert len(files) >= 19
    answers = {bad.name: verdict(bad, tmp_path / str(number)) for number, bad in enumerate(files)}
    assert {name: problem for name, problem in answers.items() if problem} == {}


def test_sound_files_are_read_alike(tmp_path: Path) -> None:
    for name, data in sound_files().items():
        expected = [[[2, 7, 3], 1]] * 3 if name == "x.tfrecord" else ANSWER
        assert verdict(BadFile(name, name, data, expected), tmp_path / name) == ""


def test_errors_name_file_and_row(tmp_path: Path) -> None:
    wanted = {
        "csv: Latin-1": "x.csv:2: not UTF-8",
        "csv: NUL bytes": "x.csv:2: a NUL byte",
        "csv: gzip": "x.csv: is compressed with gzip",
        "csv: field above csv's limit": "x.csv:2: not CSV: field larger than field limit (131072)",
        "csv: columns twice": "x.csv: column 'sentence' appears twice",
        "tsv: labels twice": "x.tsv: column 'label' appears twice",
        "json: keys twice": "x.jsonl:1: column 'label' appears twice",
        "json: surrogate": "(half of a surrogate pair?)",
        "json: deep": "x.jsonl:1: it is nested more than 16 levels deep",
        "tfrecord: length 2^62": "record 1 claims 4,611,686,018,427,387,904 bytes",
        "tfrecord: negative id": "record 2: token id -7",
        "tfrecord: segment 9": "record 2: segment id 9",
        "tfrecord: float ids": "record 2 has no int64 list 'input_ids'; its features: input_ids (float_list)",
        "parquet: columns twice": "x.parquet: column 'label' appears twice",
        "parquet: a bomb of rows": "expands to more than",
        "parquet: a bomb of text": "expands to more than",
        "path: folder csv": "is a folder; expected a file of data",
        "path: pipe csv": "is not a regular file",
        "path: 300 letters csv": "cannot be read: File name too long",
    }
    files = {bad.name: bad for bad in bad_files()}
    for number, (name, words) in enumerate(wanted.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        files[name].write(folder)
        with pytest.raises(Q8TRTError) as caught:
            files[name].load(folder)
        assert words in str(caught.value), name


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert verdict(BadFile("x", "x.csv", b"sentence,label\na,1\n", REFUSED), tmp_path / "a") == ""
