"""A scoring job that was interrupted anywhere ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scoring_fixtures import ROWS, StandIn, write_real_engine
from waiting import PATIENCE, wait_until

from q8trt.cli.main import run_command
from q8trt.errors import BackendError, ConfigError, InterruptedRunError
from q8trt.inference.files import ScoringConfig, Summary, job, outputs, score_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def every_chunk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_NOTE_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # for speed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "engine").mkdir()
    path = tmp_path / "in.csv"
    path.write_text(ROWS)
    return path


def run(source: Path, output: str, fail_at: int = 0, error: BaseException | None = None, **options: Any) -> Summary:
    engine = StandIn(source.parent / "engine", fail_at=fail_at, error=error or KeyboardInterrupt())
    config = ScoringConfig(source, source.with_name(output), **{"chunk_rows": 4, **options})
    return score_file(engine, config)  # type: ignore[arg-type]


def results(source: Path, output: str) -> tuple[bytes, bytes]:
    return tuple(source.with_name(output + ending).read_bytes() for ending in ("", ".rejected.csv"))  # type: ignore[return-value]


@pytest.mark.parametrize("fail_at", [2, 3, 7, 10])
def test_ctrl_c_between_two_chunks(source: Path, fail_at: int) -> None:
    whole = run(source, "whole.csv")
    with pytest.raises(InterruptedRunError, match=r"stopped after \d+ rows; the same command continues from there"):
        run(source, "out.csv", fail_at)
    assert not source.with_name("out.csv").exists()
    summary = run(source, "out.csv")
    assert results(source, "out.csv") == results(source, "whole.csv")
    assert (summary.rows, summary.rejected, summary.truncated) == (whole.rows, whole.rejected, whole.truncated)
    assert whole.truncated == 10
    assert 0 < summary.resumed < summary.rows
    assert sorted(path.name for path in source.parent.glob("out*")) == ["out.csv", "out.csv.rejected.csv"]


def test_long_rows_make_short_chunks(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk also ends by its bytes, the same ones after an interruption; the stand-in's answers tell its rows."""
    monkeypatch.setattr(job, "_CHUNK_BYTES", 100)
    run(source, "whole.csv", chunk_rows=1000)
    sizes = {line.rpartition(b".")[2] for line in results(source, "whole.csv")[0].splitlines()[1:] if b"." in line}
    assert {int(size) for size in sizes} <= set(range(1, 10))
    with pytest.raises(InterruptedRunError):
        run(source, "out.csv", 5, chunk_rows=1000)
    run(source, "out.csv", chunk_rows=1000)
    assert results(source, "out.csv") == results(source, "whole.csv")


def test_interrupted_after_every_chunk_in_turn(source: Path) -> None:
    run(source, "whole.csv")
    for _ in range(20):
        try:
            run(source, "out.csv", fail_at=2)
            break
        except InterruptedRunError:
            continue
    else:
        pytest.fail("no progress")
    assert results(source, "out.csv") == results(source, "whole.csv")


@pytest.mark.parametrize("place", ["note", "answers", "rejected"])
@pytest.mark.parametrize("at", [2, 3, 6])
def test_a_crash_between_any_two_writes(source: Path, monkeypatch: pytest.MonkeyPatch, place: str, at: int) -> None:
    """Data after the last write of the journal are dropped, including half a line."""
    run(source, "whole.csv")
    calls = 0

    def crashing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= at + (place == "note"):
                raise MemoryError("crash")
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if place == "note":
            patch.setattr(outputs, "write_state", crashing(outputs.write_state))
        elif place == "rejected":
            patch.setattr(job.Columns, "rejected", crashing(job.Columns.rejected))
        else:
            patch.setattr(job.Columns, "lines", crashing(job.Columns.lines))
        with pytest.raises(MemoryError):
            run(source, "out.csv")
    for ending in (".partial", ".rejected.partial"):  # a write that the crash cut in two
        with source.with_name(f"out.csv{ending}").open("ab") as file:
            file.write(b'"half a li' * 1000)
    run(source, "out.csv")
    assert results(source, "out.csv") == results(source, "whole.csv")


def test_a_backend_that_fails_keeps_what_was_done(source: Path) -> None:
    with pytest.raises(BackendError, match="out of memory"):
        run(source, "out.csv", 5, BackendError("out of memory"))
    assert run(source, "out.csv").resumed > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("refused")])
def test_a_job_that_fails_at_once_leaves_nothing(source: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(source, "out.csv", 1, error)
    assert sorted(path.name for path in source.parent.iterdir()) == ["engine", "in.csv"]


def interrupted(source: Path) -> Path:
    with pytest.raises(InterruptedRunError):
        run(source, "out.csv", 4)
    return source.with_name("out.csv.state.json")


def test_another_job_does_not_go_on(source: Path) -> None:
    interrupted(source)
    match = "is unfinished, and its job has another {}; finish that job first, or start over with --overwrite"
    with pytest.raises(ConfigError, match=match.format("chunk size")):
        run(source, "out.csv", chunk_rows=5)
    with pytest.raises(ConfigError, match=match.format("text columns")):
        run(source, "out.csv", text_columns=("sentence2", "sentence1"))
    os.utime(source, (0, 0))
    with pytest.raises(ConfigError, match=match.format("input")):
        run(source, "out.csv")
    assert run(source, "out.csv", overwrite=True).resumed == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"backend": "tensorrt"}, "backend"),
        ({"limits": None}, "batch size or buckets"),
    ],
)
def test_another_engine_does_not_go_on(source: Path, change: dict[str, Any], what: str) -> None:
    from q8trt.inference.batching import BatchLimits

    interrupted(source)
    change = {"limits": BatchLimits(16, (16,), 32)} if "limits" in change else change
    config = ScoringConfig(source, source.with_name("out.csv"), chunk_rows=4)
    with pytest.raises(ConfigError, match=f"another {what}"):
        score_file(StandIn(source.parent / "engine", **change), config)  # type: ignore[arg-type]
    engine = StandIn(source.parent / "engine")
    (engine.folder / "manifest.json").write_text('{"rebuilt": true}')
    with pytest.raises(ConfigError, match="another engine"):
        score_file(engine, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ['{\n  "job": {', '{"job": {}, "input_bytes": 1, "format": 2}', '"input_bytes"\udcff', ""]
)
def test_a_damaged_state(source: Path, text: str) -> None:
    interrupted(source).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"out\.csv\.state\.json is damaged; start over with --overwrite"):
        run(source, "out.csv")
    assert run(source, "out.csv", overwrite=True).resumed == 0


def test_a_state_of_another_version(source: Path) -> None:
    path = interrupted(source)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ConfigError, match="is of another version of q8trt; start over with --overwrite"):
        run(source, "out.csv")
    assert run(source, "out.csv", overwrite=True).resumed == 0


@pytest.mark.parametrize("ending", [".partial", ".rejected.partial"])
def test_an_output_that_lost_its_end(source: Path, ending: str) -> None:
    """As after a power cut, which may keep the note and lose what it is about."""
    interrupted(source)
    source.with_name(f"out.csv{ending}").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"out\.csv{ending} differs from its record in out\.csv\.state\.json; start"):
        run(source, "out.csv")


def test_a_state_without_its_output_is_nothing(source: Path) -> None:
    interrupted(source)
    source.with_name("out.csv.partial").unlink()
    assert run(source, "out.csv").resumed == 0


SLOW = """
import os, q8trt, signal, sys, time
sys.argv[0] = os.path.join(os.path.dirname(q8trt.__file__), "__main__.py")
signal.signal(signal.SIGINT, signal.default_int_handler)
from q8trt.inference import Engine
from q8trt.cli.main import run_command
logits = Engine.logits
Engine.logits = lambda self, items: time.sleep(0.2) or logits(self, items)
sys.exit(run_command("predict", sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_real_command_stopped_by_a_signal(tmp_path: Path, number: int, code: int) -> None:
    """The command that is printed goes on, also where it is to replace an output and its paths need quotes."""
    folder = tmp_path / "it's a $folder"
    engine = write_real_engine(folder / "engine")
    source, output = folder / "in.tsv", folder / "out.csv"
    lines = (f"{'a cat runs ' * (row % 4 + 1)}\t{'a dog' if row % 700 else ''}\n" for row in range(6000))
    source.write_text("sentence1\tsentence2\n" + "".join(lines))
    options = ["--engine", str(engine), "--input", str(source), "--device", "cpu"]
    assert run_command("predict", [*options, "--output", str(folder / "whole.csv")]) == 0
    output.write_text("sentence1,score\nof an earlier job,1\n")
    options += ["--output", str(output), "--overwrite"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        state = output.with_name("out.csv.state.json")
        wait_until(lambda: state.is_file() and json.loads(state.read_text())["rows"], process)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, err
    assert output.read_text() == "sentence1,score\nof an earlier job,1\n"
    command = shlex.join([sys.executable, "-m", "q8trt", "predict", *options])
    if code > 0:
        said, _, command = err.splitlines()[-1].partition(" rows; the same command continues from there: ")
        assert said.startswith("predict: stopped after ")
        assert shlex.split(command)[-len(options) :] == options
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "continuing after " in done.stderr
    for ending in ("", ".rejected.csv"):
        assert output.with_name(f"out.csv{ending}").read_bytes() == (folder / f"whole.csv{ending}").read_bytes()
    assert not state.exists()
