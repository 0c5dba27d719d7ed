"""`q8trt runs` lists runs and engines; `q8trt info` describes a folder. Both read run.json and manifests alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import make_report
from test_cli_help import probe
from test_manifest import MANIFEST

from q8trt.cli.main import run_command
from q8trt.engine.manifest import MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from q8trt.engine.manifest_file import write_manifest
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import RUN_FILE, new_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig
from q8trt.tasks.heads import Head, HeadKind

CONFIG = FinetuneConfig(DataConfig("STS-B", sample=True), TrainingConfig(seed=7), model_name_or_path="minilm")
ORIGIN = {"command": "python finetune.py --sample", "git_commit": "0123abcd", "versions": {"torch": "2.9.1"}}
BACKEND = f"{MANIFEST.backend.name} {MANIFEST.backend.version}" if MANIFEST.backend else "-"
SPLITS = {"train": {"rows": 12, "fingerprint": "aa"}, "dev": {"rows": 6, "fingerprint": "bb"}}
ROWS = {"splits": SPLITS, "text_columns": [], "label_column": ""}


def make_run(path: Path, age: float = 0, config: FinetuneConfig = CONFIG, **scores: float) -> Path:
    """Make a run whose stages have these main metrics, last written `age` seconds ago."""
    task = config.data.resolved_task
    run = new_run(path, ORIGIN, task.name, config.to_dict(), ROWS)
    for stage, score in scores.items():
        (path / stage).mkdir()
        (path / stage / "model.safetensors").write_bytes(bytes(2**20))
        run.finish_stage(stage, {"checkpoint": stage, "scores": {"dev": {task.main_metric: score}}, "steps": 30})  # type: ignore[arg-type]
    os.utime(path / RUN_FILE, (1_700_000_000 - age,) * 2)
    return path


def make_engine(folder: Path, **changes: Any) -> Path:
    """Make an engine folder of 3 MiB with a score."""
    folder.mkdir()
    (folder / ONNX_FILE).write_bytes(bytes(2**20))
    (folder / PLAN_FILE).write_bytes(bytes(2**21))
    metrics = {"torch_int8": {"dev": {MANIFEST.task.main_metric: 0.8719}}}
    write_manifest(
        folder,
        replace(MANIFEST, **{"metrics": metrics, "created": "2026-11-28T10:00:00+00:00", "stage": "int8", **changes}),
    )
    return folder


def write_benchmark(run: Path, date: str) -> None:
    """Write a report that has a score of the engine."""
    report = make_report()
    rows = [replace(report.rows[1], folder=str(run / "engine"), metrics={"pearson": 0.8724})]
    report = replace(report, rows=rows, provenance={**report.provenance, "date_utc": date})
    (run / "benchmark.json").write_text(json.dumps(report.to_dict()))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs: `late` with an engine, and `early` of a model without a task."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    make_run(Path("runs/late"), fp32=0.8684, ptq=0.8631, int8=0.8719)
    make_engine(Path("runs/late/engine"))
    write_benchmark(Path("runs/late"), "2026-11-28T10:00:01+00:00")
    head = Head(HeadKind.SEQUENCE_CLASSIFICATION, ("no", "yes"))
    make_run(Path("runs/early"), 99, replace(CONFIG, data=DataConfig("custom", head=head), qat=False), ptq=0.991)
    return Path("runs")


def run_json(capsys: pytest.CaptureFixture[str], command: str, *argv: str) -> Any:
    assert run_command(command, [*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_runs_are_listed_newest_first_with_their_scores(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run_command("runs", []) == 0
    lines = lines_of(capsys.readouterr().out)
    late = lines.index("late minilm STS-B finished gpu gpu pearson x100 86.84 86.31 87.19")
    assert lines[late + 1] == "early minilm sequence-classification finished gpu gpu agreement - 99.1% -"
    assert f"late/engine QAT {MANIFEST.precision.label} 2.0 model.plan {BACKEND} pearson x100 87.24" in lines
    assert not any("not shown" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_name_task_model_state_and_scores(
    width: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "multi-label-classification-mpnet-20261128-093012"
    make_run(runs / name, -1, fp32=0.8947)
    make_engine(runs / name / "engine-fp32")
    assert run_command("runs", []) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    lines = lines_of(out)
    if width == 80:
        run = next(number for number, line in enumerate(lines) if line.startswith(f"{name} "))
        assert lines[run].endswith("89.47 - -")
        assert lines[run + 1] == "STS-B, minilm, unfinished"
        late = next(number for number, line in enumerate(lines) if line.startswith("late "))
        assert lines[late].endswith("86.84 86.31 87.19")
        assert lines[late + 1] == "STS-B, minilm, finished"
        engine = next(number for number, line in enumerate(lines) if line.startswith(f"{name}/ "))
        assert lines[engine + 1] == "engine-fp32"
        assert "not shown at this width: recipe, target" in " ".join(lines)
    else:  # a paragraph for each run and engine
        assert {name, f"{name}/engine-fp32", "late", "late/engine"} <= set(out.splitlines())
        assert not any(line.startswith("finished") for line in out.splitlines())
    assert {"89.47", "86.84", "86.31", "87.19", "99.1%", "87.24"} <= set(out.split())


@pytest.mark.parametrize("width", [40, 80])
def test_a_long_name_can_be_copied(
    width: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "multi-label-classification-paraphrase-multilingual-minilm-20261128-093012"
    make_run(runs / name, -1, fp32=0.8947)
    make_engine(runs / name / "engine-fp32")
    assert run_command("runs", []) == 0
    out = capsys.readouterr().out
    assert {name, f"{name}/engine-fp32"} <= set(out.splitlines())
    facts = [line for line in out.splitlines() if not line.startswith((name, "late", "early"))]
    assert all(line.startswith("  ") for line in facts if line.strip())
    assert max(map(len, facts)) <= width


def test_a_run_of_quantize_without_its_report_is_unfinished(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((runs / "early" / RUN_FILE).read_text())
    (runs / "early" / RUN_FILE).write_text(
        json.dumps({**record, "engines": {"build": {"backend": "auto"}, "baseline": True}})
    )
    states = {run["name"]: run["state"] for run in run_json(capsys, "runs")["runs"]}
    assert states == {"late": "finished", "early": "unfinished"}
    (runs / "early" / "benchmark.json").write_text("{}")
    assert {run["state"] for run in run_json(capsys, "runs")["runs"]} == {"finished"}


def test_a_list_as_json_has_the_same_facts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late, early = run_json(capsys, "runs")["runs"]
    assert (late["name"], late["task"], late["recipe"], late["target"]) == ("late", "STS-B", "gpu", "gpu")
    assert late["state"] == early["state"] == "finished"
    assert late["scores"] == {"fp32": 0.8684, "ptq": 0.8631, "int8": 0.8719}
    (engine,) = late["engines"]
    assert (engine["name"], engine["bytes"], engine["score"]) == ("engine", 2**21, pytest.approx(0.8724))
    assert engine["precision"] == MANIFEST.precision.value
    assert (early["main_metric"], early["scores"], early["engines"]) == ("agreement", {"ptq": 0.991}, [])


@pytest.mark.parametrize("report", ["older", "damaged", "missing"])
def test_a_score_is_of_the_engine_that_is_there(report: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(runs / "late", "2026-11-28T09:59:59+00:00")
    if report == "damaged":
        (runs / "late" / "benchmark.json").write_text("{")
    if report == "missing":
        (runs / "late" / "benchmark.json").unlink()
    assert run_json(capsys, "runs")["runs"][0]["engines"][0]["score"] is None


def test_a_run_of_an_earlier_version_is_of_the_cpu(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((runs / "late" / RUN_FILE).read_text())
    del data["config"]["target"]
    (runs / "late" / RUN_FILE).write_text(json.dumps(data))
    assert run_json(capsys, "runs")["runs"][0]["target"] == "cpu"
    assert run_json(capsys, "info", "runs/late")["target"] == "cpu"


def test_a_damaged_run_and_engine_are_one_line_each(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "late" / "engine" / MANIFEST_FILE).write_text("{}")
    (runs / "early" / RUN_FILE).write_text("{\x1b[31m")
    assert run_command("runs", []) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "damaged: runs/early/run.json is damaged: not JSON" in out
    assert "damaged: runs/late/engine/manifest.json" in out
    assert "87.19" in out
    assert "\x1b" not in out
    early, late = run_json(capsys, "runs")["runs"]
    assert early["problem"].startswith("runs/early/run.json is damaged")
    assert late["engines"][0]["problem"].startswith("runs/late/engine/manifest.json")


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder_says_how_to_make_a_run(
    exists: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "none"
    if exists:
        folder.mkdir()
    assert run_command("runs", ["--runs_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"no runs under {folder}/; make one: python finetune.py --task STS-B --runs_dir ")
    assert run_json(capsys, "runs", "--runs_dir", str(folder)) == {"runs_dir": str(folder), "runs": []}


def test_names_do_not_act_on_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs / "bad\x1b[2J\x7f", config=replace(CONFIG, model_name_or_path="[red]x\x1b"))
    for command in (["runs"], ["info", "runs/bad\x1b[2J\x7f"]):
        assert run_command(command[0], command[1:]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "[red]x\\x1b" in out
    assert "bad\x1b[2J\x7f" in {each["name"] for each in run_json(capsys, "runs")["runs"]}


def info(capsys: pytest.CaptureFixture[str], folder: str) -> str:
    assert run_command("info", [folder]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_info_of_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = info(capsys, "runs/late")
    for fact in (
        "run runs/late", "model minilm", "task STS-B", "precision INT8", "recipe gpu (modelopt)", "target gpu",
        "data built-in sample, not GLUE", "rows train 12, dev 6", "training --seed 7", "fp32 dev pearson 86.84",
        "int8 dev pearson 87.19", "command python finetune.py --sample", "commit 0123abcd", "versions torch 2.9.1",
        f"engines engine (QAT {MANIFEST.precision.label}, 2.0 MiB)", "ptq 1.0 MiB",
    ):  # fmt: skip
        assert fact in text
    data = run_json(capsys, "info", "runs/late")
    assert (data["kind"], data["run"], data["data"]["rows"]) == ("run", "runs/late", {"train": 12, "dev": 6})
    assert data["scores"]["int8"] == {"dev": {"pearson": 0.8719}}
    assert data["sizes"]["int8"] == 2**20


def test_info_of_a_checkpoint_has_the_scores_of_its_stage(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = info(capsys, "runs/late/ptq/")
    assert "checkpoint runs/late/ptq run runs/late model minilm" in text
    assert "ptq dev pearson 86.31 steps 30" in text
    assert "87.19" not in text
    assert "head sequence-classification" in info(capsys, "runs/early/ptq")
    monkeypatch.chdir(runs / "late" / "ptq")
    assert run_json(capsys, "info", ".")["scores"] == {"ptq": {"dev": {"pearson": 0.8631}}}


def test_info_of_an_engine(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = info(capsys, "runs/late/engine")
    for fact in (
        "engine runs/late/engine", "run runs/late", f"task {MANIFEST.task.name}", "target gpu", "stage int8",
        f"precision {MANIFEST.precision.label}", "backend ", "profiles batch x sequence ",
        f"torch int8 dev {MANIFEST.task.main_metric} 87.19",
        "command python finetune.py --sample", "model.onnx 1.0 MiB, model.plan 2.0 MiB",
    ):  # fmt: skip
        assert fact in text
    data = run_json(capsys, "info", "runs/late/engine")
    assert (data["kind"], data["precision"], data["target"]) == ("engine", MANIFEST.precision.value, "gpu")
    assert data["sizes"] == {"model.onnx": 2**20, "model.plan": 2**21}


def test_info_of_an_engine_in_no_run_and_in_a_damaged_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_engine(Path("alone"), precision=Precision.FP32, recipe=None, stage="fp32", profiles=[], backend=None)
    data = run_json(capsys, "info", "alone")
    assert (data["run"], data["target"], data["recipe"], data["backend"]) == (None, None, "", None)
    assert "backend no plan" in info(capsys, "alone")
    (runs / "late" / RUN_FILE).write_text("{}")
    assert "precision" in info(capsys, "runs/late/engine")


@pytest.mark.parametrize("name", ["nowhere", "plain", "file", "runs/late/checkpoints", "runs"])
def test_another_folder_is_one_line(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain").mkdir()
    Path("file").touch()
    (runs / "late" / "checkpoints").mkdir()
    assert run_command("info", [name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"info: error: {name} ")
    assert "; expected a run (runs/NAME), a checkpoint of a run (runs/NAME/int8) or an engine folder" in err


def test_a_damaged_run_has_no_facts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "late" / RUN_FILE).write_text("{}")
    assert run_command("info", ["runs/late"]) == 2
    assert capsys.readouterr().err.startswith("info: error: runs/late/run.json is damaged: ")


def test_no_file_is_hashed_and_no_library_of_models_is_imported(runs: Path) -> None:
    (runs / "late" / "engine" / PLAN_FILE).write_bytes(b"another plan")
    for words in (["runs"], ["info", "runs/late"], ["info", "runs/late/int8"], ["info", "runs/late/engine"]):
        folder = str(runs.parent.absolute())
        code = f"import os; os.chdir({folder!r}); from q8trt.cli.main import main; assert main({words!r}) == 0"
        out = probe(code)
        assert "87.19" in out
        assert "damaged" not in out
