"""Run folders: made, found again newest first, and refused in words that say what to do."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import reduce
from operator import getitem
from pathlib import Path
from random import Random
from typing import Any

import pytest

from q8trt.errors import ConfigError
from q8trt.runs.config import FinetuneConfig, config_of_run, model_name
from q8trt.runs.run import (
    RUN_FILE,
    StageRecord,
    check_new_run,
    find_runs,
    new_folder,
    new_run,
    open_run,
    parse_record,
)
from q8trt.runs.search import how_to_finish, newest_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig

CONFIG = FinetuneConfig(DataConfig("STS-B", sample=True), TrainingConfig())


def made(path: Path, age: float = 0, **stages: str) -> Path:
    """A run with these finished stages, last written `age` seconds ago."""
    run = new_run(path, {"command": "python finetune.py"}, "STS-B", CONFIG.to_dict())
    for stage, checkpoint in stages.items():
        run.finish_stage(stage, {"checkpoint": checkpoint})
    moment = 1_700_000_000 - age
    os.utime(path / RUN_FILE, (moment, moment))
    return path


def test_a_model_is_called_what_its_run_began_with(tmp_path: Path) -> None:
    run = made(tmp_path / "run", fp32="fp32")
    began = replace(CONFIG, model_name_or_path="bert-base-uncased")
    new_run(tmp_path / "other", {}, "STS-B", began.to_dict())
    assert model_name(began) == "bert-base-uncased"
    assert model_name(replace(CONFIG, from_fp32=str(tmp_path / "other" / "fp32"))) == "bert-base-uncased"
    assert model_name(replace(CONFIG, from_fp32=str(tmp_path / "elsewhere" / "mine"))) == "mine"
    (run / RUN_FILE).write_text("{}")  # damaged, which no build of an engine from its checkpoint should hang on
    assert model_name(replace(CONFIG, from_fp32=str(run / "fp32"))) == "fp32"


def test_new_run_records_what_made_it(tmp_path: Path) -> None:
    config = CONFIG.to_dict()
    run = new_run(tmp_path / "runs" / "one", {"command": "python finetune.py --demo"}, "STS-B", config)
    record = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    assert parse_record(record) == run.record == open_run(run.path).record
    assert record == json.loads(json.dumps(run.record.to_dict()))
    assert record["format"] == 1
    assert (record["provenance"]["command"], record["task"]) == ("python finetune.py --demo", "STS-B")
    assert (record["config"], record["stages"]) == (json.loads(json.dumps(config)), {})
    assert replace(config_of_run(run), data=CONFIG.data) == CONFIG
    assert datetime.fromisoformat(record["created"]).tzinfo is not None


def test_new_run_in_a_folder_that_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    new_run(tmp_path, {}, "STS-B", CONFIG.to_dict())
    assert (tmp_path / "notes.txt").exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    path = made(tmp_path / "one", fp32="fp32")
    with pytest.raises(
        ConfigError,
        match=f"^{re.escape(str(path))} is a run already; .*--output_dir, or continue it: python finetune.py --resume ",
    ):
        new_run(path, {}, "STS-B", CONFIG.to_dict())
    assert open_run(path).stage("fp32") == StageRecord("fp32")


@pytest.mark.parametrize("path", ["..", "/", "../.."])
def test_no_run_is_made_above_the_current_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="is above the current folder"):
        check_new_run(path)


def test_no_run_is_made_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", str(tmp_path)):
        with pytest.raises(ConfigError, match="is the current folder; give a new folder, such as runs/NAME"):
            check_new_run(path)


def test_a_finished_run_is_not_to_be_continued(tmp_path: Path) -> None:
    path = made(tmp_path / "one", fp32="fp32", ptq="ptq", int8="int8")
    with pytest.raises(ConfigError, match=r"is a run already; give another --output_dir$"):
        check_new_run(path)


def test_a_run_is_resumed_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt.training.execution import unfinished_run

    path = made(tmp_path / "runs" / "one", fp32="fp32")
    monkeypatch.chdir(tmp_path)
    assert unfinished_run("one", path.parent).path == path
    assert unfinished_run("runs/one", "runs").path == Path("runs/one")
    with pytest.raises(ConfigError, match=r"^two is not a run folder"):
        unfinished_run("two", "runs")


def test_a_run_json_of_another_program_is_not_a_run_to_continue(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("x: 1\n")
    with pytest.raises(ConfigError, match=r"run\.json is damaged: not JSON"):
        new_run(tmp_path, {}, "STS-B", CONFIG.to_dict())
    assert (tmp_path / "run.json").read_text() == "x: 1\n"


def test_stages_and_checkpoints(tmp_path: Path) -> None:
    run = new_run(tmp_path / "one", {}, "STS-B", CONFIG.to_dict())
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
    assert again.stage("fp32") == StageRecord("fp32", {}, {"seconds": 1.5})
    assert again.checkpoint("fp32") == tmp_path / "one" / "fp32"
    assert list(again.record.stages) == ["fp32", "ptq", "int8"]


def test_a_stage_finished_twice_is_the_later_one(tmp_path: Path) -> None:
    run = open_run(made(tmp_path / "one", ptq="a"))
    run.finish_stage("ptq", {"checkpoint": "b"})
    assert run.checkpoint("ptq") == tmp_path / "one" / "b"


def test_a_score_that_is_nan_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    run = open_run(made(tmp_path / "one"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish_stage("fp32", {"checkpoint": "fp32", "pearson": float("nan")})
    assert run.record.stages == {}


def test_find_runs_newest_first(tmp_path: Path) -> None:
    made(tmp_path / "b", age=20)
    made(tmp_path / "c", age=5)
    made(tmp_path / "a", age=10)
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").touch()
    made(tmp_path / "a" / "nested")
    made(tmp_path / ".d.1x2y3z4w.tmp")  # a hidden folder is a temporary name
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / RUN_FILE).symlink_to("nowhere")
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\xff", "not UTF-8|not JSON"),
        ("[]", "must be an object"),
        ("[" * 100_000, "nested"),
        ('{"format": 1}', "missing key: config"),
        ('{"format": 9, "config": {}, "stages": {}}', "format 9, expected 1 at most; upgrade q8trt"),
        ('{"format": 1, "config": {}, "stages": []}', "stages must be an object"),
        ('{"format": 1, "config": {}, "stages": {"fp64": {"checkpoint": "fp64"}}}', "fp64"),
        ('{"format": 1, "config": {}, "stages": {"fp32": "fp32"}}', "stages"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {}}}', "missing key in stages.*: checkpoint"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {"checkpoint": 3}}}', "must be a string"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {"checkpoint": ""}}}', "not a folder inside the run"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {"checkpoint": "../../etc"}}}', "not a folder inside the run"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {"checkpoint": "a\\u0000b"}}}', "not a folder inside the run"),
        ('{"format": 1, "config": {}, "stages": {"fp32": {"checkpoint": "a", "scores": {"dev": 1}}}}', "scores"),
        ('{"format": 1, "config": {}, "stages": {}}', "configuration cannot be read"),
        ('{"format": 1, "config": {"data": {"task": "nose"}, "training": {}, "recipe": {}}, "stages": {}}', "nose"),
        ('{"format": 1, "config": {"data": {"task": 3}, "training": {}, "recipe": {}}, "stages": {}}', "task must be"),
        ('{"format": 1, "config": {"data": 3, "training": {}, "recipe": {}}, "stages": {}}', "not a mapping"),
    ],
)
def test_a_damaged_run_is_one_line_and_blocks_no_other(
    tmp_path: Path, text: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = made(tmp_path / "one")
    (path / RUN_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"run\.json is damaged: .*({says})") as caught:
        config_of_run(open_run(path))
    assert "\n" not in str(caught.value)
    made(tmp_path / "older", age=10, fp32="fp32")
    assert newest_run(tmp_path, ("fp32",)).path.name == "older"
    assert [record.getMessage() for record in caplog.records] == [f"skipping a run: {caught.value}"]


def mutations(value: Any, random: Random) -> Iterator[Any]:
    """Copies of JSON data with one value exchanged, one key renamed or one key left out."""
    odd = [None, True, -1, 2**63, 1e308, "", "x" * 300, "../..", [], {}, [[]], {"a": 1}]
    places = [()]
    for place in places:
        inner = reduce(getitem, place, value)
        keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        places += [(*place, key) for key in keys]
    for place in places[1:]:
        for change in (random.choice(odd), random.choice(odd), "rename", "remove"):
            copy = json.loads(json.dumps(value))
            holder = reduce(getitem, place[:-1], copy)
            old = holder.pop(place[-1])
            if isinstance(holder, list):
                holder.insert(place[-1], change)
            elif change == "rename":
                holder[f"{place[-1]}x"] = old
            elif change != "remove":
                holder[place[-1]] = change
            yield copy


def test_no_mutation_of_run_json_is_a_traceback(tmp_path: Path) -> None:
    path = made(tmp_path / "one")
    run = open_run(path)
    run.finish_stage("fp32", {"checkpoint": "fp32", "scores": {"dev": {"pearson": 0.5}}, "steps": 3})
    whole, outcomes = json.loads((path / RUN_FILE).read_text()), Counter[str]()
    for data in mutations(whole, Random(0)):
        (path / RUN_FILE).write_text(json.dumps(data))
        try:
            run = open_run(path)
            _ = config_of_run(run)
            _ = [run.checkpoint(stage) for stage in ("fp32", "ptq", "int8")]
            outcomes[how_to_finish(run, ("int8",)).partition(":")[0]] += 1
        except ConfigError as error:
            outcomes["refused" if "\n" not in str(error) else "lines"] += 1
    assert not outcomes["lines"]
    assert outcomes["refused"] > 200
    assert outcomes["finish it"] > 10  # values that are as good as the old ones


def test_no_run(tmp_path: Path) -> None:
    make = r"make one: python finetune\.py --task STS-B \(or --demo"
    with pytest.raises(ConfigError, match=rf"is not a run folder \(no run\.json\); {make}"):
        open_run(tmp_path / "none")
    made(tmp_path / "one", fp32="fp32")
    with pytest.raises(ConfigError, match=r"^no run with a finished int8 or ptq checkpoint under .*--demo"):
        newest_run(tmp_path, ("int8", "ptq"))
    with pytest.raises(ConfigError, match="no run with a finished fp32 checkpoint"):
        newest_run(tmp_path / "none", ("fp32",))


def test_new_folder_names_task_model_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"runs/sts-b-minilm-\d{8}-\d{6}", new_folder("runs", "STS-B", "MiniLM"))
    monkeypatch.setattr(time, "strftime", lambda form: "20261122-160512")
    for end in ("", "-2", "-3"):
        folder = Path(new_folder(tmp_path, "STS-B", "v1.5"))
        assert folder == tmp_path / f"sts-b-v1.5-20261122-160512{end}"
        folder.mkdir()
