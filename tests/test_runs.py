"""Run folders: made, found again newest first, and refused in words that say what to do."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from q8trt.errors import ConfigError
from q8trt.runs import RUN_FILE, find_runs, new_run, newest_run, open_run, run_name


def made(path: Path, age: float = 0, **stages: str) -> Path:
    """A run with these finished stages, last written `age` seconds ago."""
    run = new_run(path, {"command": "python finetune.py"}, "STS-B", {})
    for stage, checkpoint in stages.items():
        run.finish_stage(stage, {"checkpoint": checkpoint})
    moment = 1_700_000_000 - age
    os.utime(path / RUN_FILE, (moment, moment))
    return path


def test_new_run_records_what_made_it(tmp_path: Path) -> None:
    config = {"seed": 42, "model": "minilm"}
    run = new_run(tmp_path / "runs" / "one", {"command": "python finetune.py --demo"}, "STS-B", config)
    record = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    assert record == run.record == open_run(run.path).record
    assert record["format"] == 1
    assert (record["provenance"]["command"], record["task"]) == ("python finetune.py --demo", "STS-B")
    assert (record["config"], record["stages"]) == (config, {})
    assert datetime.fromisoformat(record["created"]).tzinfo is not None


def test_new_run_in_a_folder_that_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    new_run(tmp_path, {}, "STS-B", {})
    assert (tmp_path / "notes.txt").exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    path = made(tmp_path / "one", fp32="fp32")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))} is a run already; .*--output_dir.*--resume"):
        new_run(path, {}, "STS-B", {})
    assert open_run(path).stage("fp32") == {"checkpoint": "fp32"}


def test_stages_and_checkpoints(tmp_path: Path) -> None:
    run = new_run(tmp_path / "one", {}, "STS-B", {})
    assert run.stage("fp32") is None
    assert run.checkpoint("fp32") is None
    assert run.best_quantized() is None
    run.finish_stage("fp32", {"checkpoint": "fp32", "seconds": 1.5})
    assert run.best_quantized() is None
    run.finish_stage("ptq", {"checkpoint": "ptq"})
    assert run.best_quantized() == tmp_path / "one" / "ptq"
    run.finish_stage("int8", {"checkpoint": "/elsewhere/int8"})
    assert run.best_quantized() == Path("/elsewhere/int8")
    again = open_run(tmp_path / "one")  # all of it is on disk
    assert again.stage("fp32") == {"checkpoint": "fp32", "seconds": 1.5}
    assert again.checkpoint("fp32") == tmp_path / "one" / "fp32"
    assert list(again.record["stages"]) == ["fp32", "ptq", "int8"]


def test_a_stage_finished_twice_is_the_later_one(tmp_path: Path) -> None:
    run = open_run(made(tmp_path / "one", ptq="a"))
    run.finish_stage("ptq", {"checkpoint": "b"})
    assert run.checkpoint("ptq") == tmp_path / "one" / "b"


def test_a_score_that_is_nan_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    run = open_run(made(tmp_path / "one"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish_stage("fp32", {"checkpoint": "fp32", "pearson": float("nan")})
    assert run.record["stages"] == {}


def test_find_runs_newest_first(tmp_path: Path) -> None:
    made(tmp_path / "b", age=20)
    made(tmp_path / "c", age=5)
    made(tmp_path / "a", age=10)
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").touch()
    made(tmp_path / "a" / "nested")
    assert [run.path.name for run in find_runs(tmp_path)] == ["c", "a", "b"]
    assert find_runs(tmp_path / "none") == []


def test_newest_run_with_a_finished_stage(tmp_path: Path) -> None:
    made(tmp_path / "oldest", age=30, fp32="fp32", ptq="ptq")
    made(tmp_path / "older", age=20, fp32="fp32", ptq="ptq", int8="int8")
    made(tmp_path / "newer", age=10, fp32="fp32")
    made(tmp_path / "newest", age=1)
    assert newest_run(tmp_path, ("fp32",)).path.name == "newer"
    assert newest_run(tmp_path, ("int8", "ptq")).path.name == "older"
    assert newest_run(tmp_path, ("ptq",)).path.name == "older"


@pytest.mark.parametrize("text", ["{", "", "\xff", "[]", '{"format": 1}', '{"stages": []}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    path = made(tmp_path / "one")
    (path / RUN_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.json is damaged: ") as caught:
        open_run(path)
    assert "\n" not in str(caught.value)
    made(tmp_path / "older", age=10, fp32="fp32")
    with pytest.raises(ConfigError, match="is damaged"):  # not passed over in silence for an older run
        newest_run(tmp_path, ("fp32",))


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run folder \(no run\.json\); make one: python finetune\.py$"):
        open_run(tmp_path / "none")
    made(tmp_path / "one", fp32="fp32")
    with pytest.raises(ConfigError, match=r"^no run with a finished int8 or ptq checkpoint under .*--demo"):
        newest_run(tmp_path, ("int8", "ptq"))
    with pytest.raises(ConfigError, match="no run with a finished fp32 checkpoint"):
        newest_run(tmp_path / "none", ("fp32",))


def test_run_name() -> None:
    assert re.fullmatch(r"sts-b-minilm-\d{8}-\d{6}", run_name("STS-B", "MiniLM"))
