"""`q8trt predict` with a real engine: against NumPy, its messages, its exit codes, and without what training needs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scoring_fixtures import LABELS, real_logits, write_real_engine
from waiting import PATIENCE

from q8trt.cli import predict
from q8trt.cli.main import run_command
from q8trt.inference.files import JobProgress

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
ROOT = Path(__file__).parents[1]
PAIRS = [("a cat runs", "a dog"), ("plane", "a plane takes a cat"), ("sleeps", "a b c")]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_real_engine(tmp_path / "engine")


def write_pairs(path: Path, *more: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in ("sentence1,sentence2", *map(",".join, PAIRS), *more)))
    return path


def options(engine: Path, source: Path, output: str = "out.csv") -> list[str]:
    return [
        "--engine",
        str(engine),
        "--input",
        str(source),
        "--output",
        str(source.with_name(output)),
        "--device",
        "cpu",
    ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_model(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("predict", options(engine, write_pairs(tmp_path / "in.csv"))) == 0
    found = [float(row["score"]) for row in read(tmp_path / "out.csv")]
    assert found == pytest.approx([float(real_logits(*pair)[0]) for pair in PAIRS], rel=1e-5)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].startswith(f"scores: {tmp_path / 'out.csv'}  3 rows, ")
    assert out.splitlines()[0].endswith(" rows/s, on onnxruntime, cpu")
    assert out.splitlines()[1] == "  columns scored: sentence1, sentence2; added: score"


def test_labels_are_those_of_the_model(tmp_path: Path) -> None:
    engine = write_real_engine(tmp_path / "engine", LABELS, is_pair=False)
    (tmp_path / "in.txt").write_text("a cat runs\nplane\n")
    assert run_command("predict", options(engine, tmp_path / "in.txt", "out.jsonl")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row in rows:
        logits = real_logits(row["sentence"])
        powers = np.exp(logits - logits.max())
        found = [row[f"probability_{label}"] for label in LABELS]
        assert found == pytest.approx([*(powers / powers.sum())], rel=1e-5)
        assert row["label"] == LABELS[int(logits.argmax())]


def test_rows_cut_at_the_longest_sequence_are_told(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(tmp_path / "in.csv", f"{'cat ' * 30},dog")
    assert run_command("predict", options(engine, source)) == 0
    out, err = capsys.readouterr()
    assert "  1 row was longer than 16 tokens and cut, as in training" in out
    assert "longer than" not in err


def test_rejected_rows_are_a_warning_or_with_strict_an_error(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(tmp_path / "in.csv", "only one", ",empty")
    line = f"2 of 5 rows rejected, see {tmp_path / 'out.csv.rejected.csv'} (line 5: 1 fields, expected 2 as in the header)\n"
    assert run_command("predict", options(engine, source)) == 0
    assert capsys.readouterr().err == f"predict: warning: {line}"
    assert run_command("predict", [*options(engine, source), "--overwrite", "--strict"]) == 2
    assert capsys.readouterr().err == f"predict: error: {line}"
    assert len(read(tmp_path / "out.csv")) == 3


def test_a_file_without_one_good_row_is_an_error(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("sentence1,sentence2\n,\n")
    assert run_command("predict", options(engine, tmp_path / "in.csv")) == 2
    out, err = capsys.readouterr()
    assert "error: 1 of 1 row rejected" in err
    assert err.endswith("; no output was written\n")
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "in.csv", "out.csv.rejected.csv"]


def test_safe_csv(engine: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("sentence1,sentence2\n=1,b\n")
    assert run_command("predict", [*options(engine, source), "--safe_csv"]) == 0
    assert read(tmp_path / "out.csv")[0]["sentence1"] == "'=1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--input": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"--input": "in.parquet"}, "--input in.parquet ends in '.parquet'; expected one of"),
        ({"--engine": "nowhere"}, "engine folder nowhere does not exist"),
        ({"--engine": "in.csv"}, "in.csv is a file"),
        ({"--output": "in.csv"}, "--output in.csv is the input"),
        ({"--text_column_names": "other"}, "--text_column_names other: mine takes pairs: give two columns"),
        ({"--batch_size": "0"}, "batch_size must be 1 or more"),
        ({"--buckets": "64,32"}, "buckets must be ascending lengths"),
        ({"--device": "tpu"}, "argument --device: invalid choice: 'tpu'"),
        ({"--delimiter": ";"}, "unknown argument '--delimiter'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    refused: Refused, tmp_path: Path, engine: Path, change: dict[str, str], message: str
) -> None:
    write_pairs(tmp_path / "in.csv")
    given = {"--engine": "engine", "--input": "in.csv", "--output": "out.csv", "--device": "cpu", **change}
    assert message in refused("predict", *(word for pair in given.items() for word in pair))


def test_required_options(refused: Refused) -> None:
    assert "the following arguments are required: --engine, --input, --output" in refused("predict")


def test_progress_on_a_terminal_and_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half, end = JobProgress(1500, 500, 3, 0.5, 0.25, 10.0), JobProgress(2500, 500, 3, 1.0, 0.25, 20.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = predict._Shown()
    shown(half)
    shown(end)
    err = capsys.readouterr().err
    assert err.startswith(
        "continuing after 500 rows of an earlier run\n\r 50%  1,500 rows, 100 rows/s, 3 rejected, 0:00:20 left"
    )
    assert err.endswith("100%  2,500 rows, 100 rows/s, 3 rejected, 0:00:00 left\x1b[K\n")
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    shown = predict._Shown()
    shown(half)
    assert capsys.readouterr().err == "continuing after 500 rows of an earlier run\n"
    shown._next = 0.0
    shown(half)
    shown(half)
    assert capsys.readouterr().err == " 50%  1,500 rows, 100 rows/s, 3 rejected, 0:00:20 left\n"


def test_predicting_needs_numpy_tokenizers_and_a_backend_only(engine: Path, tmp_path: Path) -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors", "sklearn", "scipy", "rich", "pyarrow", "pandas"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from q8trt.cli.main import main
sys.exit(main(["predict", *sys.argv[1:]]))
"""
    command = [sys.executable, "-c", code, *options(engine, write_pairs(tmp_path / "in.csv"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out.csv")) == 3
