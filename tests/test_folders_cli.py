"""Commands and folders: nothing of the user's is replaced, one writer at a time, nothing left of a killed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waiting import wait_until

from q8trt import files
from q8trt.cli.main import run_command
from q8trt.engine.manifest_file import load_manifest

pytestmark = pytest.mark.usefixtures("quick_export")

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _needs_a_builder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")


@pytest.fixture
def run(calibrated: Path, tmp_path: Path) -> Path:
    """A run of one's own, runs/mine, with finished FP32 and PTQ stages."""
    return shutil.copytree(calibrated, tmp_path / "runs" / "mine")


@pytest.fixture(scope="module")
def built(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the engine of its PTQ stage in the default folder. Copy it before changing it."""
    run = shutil.copytree(calibrated, tmp_path_factory.mktemp("built") / "run")
    assert run_command("build-engine", ["--checkpoint", str(run), "--no_baseline"]) == 0
    return run


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            "documents",
            "is not replaced: it contains 'thesis.tex' and is not an engine folder of q8trt; give a new folder",
        ),
        ("link", "is not replaced: it contains 'thesis.tex'"),
        ("documents/thesis.tex", "documents/thesis.tex is a file"),
        ("runs/mine", "is not replaced: it contains 'fp32'"),
        ("runs", "is not replaced: it contains 'mine'"),
        ("runs/mine/fp32", "runs/mine/fp32, which belongs to a run; give a folder outside it"),
        ("runs/mine/ptq/engine", "runs/mine/ptq, which belongs to a run; give a folder outside it"),
        (".", "is the current folder or contains it"),
        ("runs/..", "is the current folder or contains it"),
        ("/", "is the current folder or contains it"),
    ],
)
def test_build_engine_replaces_nothing_of_the_users(
    output: str, says: str, overwrite: list[str], run: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to("documents")
    before = contents(tmp_path)
    assert says in refused("build-engine", "--checkpoint", "runs/mine", "--output_dir", output, *overwrite)
    assert contents(tmp_path) == before


def test_an_engine_is_replaced_by_default_in_its_run_and_elsewhere_with_overwrite(
    built: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(built, tmp_path / "run")
    engine = shutil.copytree(run / "engine-ptq", tmp_path / "elsewhere")
    (run / "engine-ptq" / "notes.txt").write_text("mine")
    line = refused("build-engine", "--checkpoint", "run")
    assert "run/engine-ptq is not replaced: it contains 'notes.txt', which q8trt did not write; move that away" in line
    (run / "engine-ptq" / "notes.txt").unlink()
    for name in ("benchmark.json", "MODEL_CARD.md", ".runtime-1.cache"):
        (run / "engine-ptq" / name).write_text("{}")
    options = ["--checkpoint", "run", "--no_baseline", "--max_batch", "8", "--opt_batch", "8"]
    assert run_command("build-engine", options) == 0
    assert load_manifest(run / "engine-ptq").profiles[0].max == (8, 32)
    assert not (run / "engine-ptq" / "benchmark.json").exists()  # of the engine that is gone

    assert "add --overwrite to replace it" in refused("build-engine", *options, "--output_dir", "elsewhere")
    (tmp_path / "link").symlink_to("elsewhere")
    assert run_command("build-engine", [*options, "--output_dir", "link", "--overwrite"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert load_manifest(engine).profiles[0].max == (8, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "run"]


def test_a_file_that_was_put_there_during_the_build_stays(
    built: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.deployment import engine_folder

    run = shutil.copytree(built, tmp_path / "run")
    build_plan = engine_folder.build_plan

    def slow(*arguments: object) -> object:
        (run / "engine-ptq" / "notes.txt").write_text("mine")
        return build_plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_folder, "build_plan", slow)
    assert "notes.txt" in refused("build-engine", "--checkpoint", "run", writes=True)
    assert (run / "engine-ptq" / "notes.txt").read_text() == "mine"
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("name", ["fp32", "ptq", "int8", "checkpoints", "logs"])
@pytest.mark.parametrize("command", ["finetune", "calibrate"])
def test_a_new_run_replaces_nothing_of_the_users(
    command: str, name: str, options: list[str], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / name / "weights").write_text("mine")
    if command == "calibrate":
        options = [each for each in options if each != "--use_cpu"]
        at = options.index("--per_device_train_batch_size")
        options = options[:at] + options[at + 2 :]
    before = contents(tmp_path)
    line = refused(command, *options, "--output_dir", "mine")
    assert f"--output_dir mine contains '{name}' already, which the run would write; give a new folder" in line
    assert contents(tmp_path) == before


def test_a_new_run_inside_a_checkpoint(options: list[str], run: Path, refused: Refused) -> None:
    before = contents(run)
    for output in ("runs/mine/fp32", "runs/mine/fp32/new", "runs/mine/checkpoints/x"):
        assert "which belongs to a run; give a folder outside it" in refused(
            "finetune", *options, "--output_dir", output
        )
    assert "runs/mine is a run already; give another --output_dir" in refused(
        "finetune", *options, "--output_dir", "runs/mine"
    )
    assert contents(run) == before


def test_a_report_replaces_no_file_of_the_users(built: Path, tmp_path: Path, refused: Refused) -> None:
    run = shutil.copytree(built, tmp_path / "run")
    for name in ("benchmark.md", "parity.json"):
        (run / name).write_text("mine")
    line = refused("benchmark", "--engine", "run/engine-ptq", "--no_accuracy")
    assert "run/benchmark.md exists already, and is not replaced; choose another --name or --output_dir" in line
    assert "run/parity.json exists already, and is not replaced" in refused("parity", "run")
    model = "run/engine-ptq/model.onnx"
    assert "not replaced" in refused("lint", model, "--output", model)
    assert (run / "parity.json").read_text() == "mine"
    load_manifest(run / "engine-ptq")


# One writer


@pytest.mark.parametrize(
    ("target", "argv"),
    [
        ("runs/mine/run.json", ["finetune", "--resume", "runs/mine"]),
        ("runs/mine/run.json", ["calibrate", "--sensitivity"]),
        ("runs/mine/engine-ptq", ["build-engine", "--checkpoint", "runs/mine"]),
        ("elsewhere", ["build-engine", "--checkpoint", "runs/mine", "--output_dir", "elsewhere"]),
        ("new/run.json", ["calibrate", "--output_dir", "new"]),
        ("link/run.json", ["calibrate", "--output_dir", "new"]),
    ],
)
def test_the_second_writer_gets_one_line(
    target: str, argv: list[str], run: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to("new")
    code = (
        "import sys\nfrom q8trt import files\nwith files.exclusive(sys.argv[1]):\n    print(flush=True)\n    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    try:
        assert holder.stdout
        holder.stdout.readline()
        before = contents(tmp_path)
        assert f" is in use by process {holder.pid} (" in refused(*argv)
        assert contents(tmp_path) == before
    finally:
        holder.communicate(b"\n")


def test_a_new_run_in_a_folder_whose_parent_is_not_ours(
    calibrated: Path, options: list[str], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume of a container: the lock, too, must be inside it. A refusal leaves the folder as it was."""
    from q8trt.runs import fresh

    (tmp_path / "volume" / "run").mkdir(parents=True)
    (tmp_path / "volume" / "run" / "notes.txt").write_text("mine")
    monkeypatch.setattr(fresh, "provenance", lambda command: {"score": float("nan")})  # run.json cannot be written
    (tmp_path / "volume").chmod(0o555)
    try:
        with pytest.raises(ValueError, match="not JSON"):
            run_command("finetune", [*options, "--output_dir", "volume/run"])
        assert contents(tmp_path / "volume") == {"run/notes.txt": b"mine"}
    finally:
        (tmp_path / "volume").chmod(0o755)


def test_readers_are_not_blocked(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(built, tmp_path / "runs" / "mine")
    timing = ["--shapes", "1x8", "--warmup", "1", "--iterations", "2", "--backend", "onnxruntime", "--no_layer_times"]
    with files.exclusive(run / "run.json"), files.exclusive(run / "engine-ptq"):
        assert run_command("benchmark", ["--no_accuracy", *timing]) == 0


def test_only_the_first_process_of_torchrun_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt.runs.fresh import sole_writer

    monkeypatch.setenv("RANK", "1")
    with files.exclusive(tmp_path / "run" / "run.json"), sole_writer(tmp_path / "run"):
        pass


# What killed writers leave


@pytest.fixture
def building(run: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A build of `run` that stands still in the middle: half an engine is under a temporary name."""
    code = (
        "import sys, time\nfrom q8trt.deployment import engine_folder\nfrom q8trt.cli.main import run_command\n"
        "engine_folder.build_plan = lambda *_: (print(flush=True), time.sleep(600))\n"
        "run_command('build-engine', ['--checkpoint', 'runs/mine', '--exporter', 'torchscript'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment
    )
    wait_until(lambda: list(run.glob(".engine-ptq.*.tmp/model.onnx")), process)
    yield process
    process.kill()
    process.communicate()


def test_a_killed_build_blocks_nobody_and_the_next_one_sweeps(
    building: subprocess.Popen[bytes], run: Path, tmp_path: Path, refused: Refused
) -> None:
    assert f"is in use by process {building.pid} " in refused("build-engine", "--checkpoint", "runs/mine")
    building.send_signal(signal.SIGKILL)
    building.wait()
    [left] = run.glob(".engine-ptq.*.tmp")
    assert (left / "model.onnx").is_file()
    shutil.copytree(left, run / ".engine-fp16.abcd1234.tmp")  # of another engine of the run
    (run / ".notes.abcd1234.tmp").touch()  # the user's
    assert run_command("build-engine", ["--checkpoint", "runs/mine", "--no_baseline"]) == 0
    assert sorted(path.name for path in run.glob(".*")) == [".notes.abcd1234.tmp"]
    load_manifest(run / "engine-ptq")


def test_resuming_a_run_sweeps_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".fp32.abcd1234.tmp", ".engine.abcd1234.tmp"):
        (run / name).mkdir()
    (run / ".run.json.abcd1234.tmp").touch()
    assert run_command("finetune", ["--resume", "runs/mine"]) == 0
    assert not list(run.glob(".*"))


def test_what_a_killed_build_left_is_no_engine_and_no_run(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(built, tmp_path / "runs" / "mine")
    time.sleep(0.02)
    shutil.copytree(run / "engine-ptq", run / ".engine.abcd1234.tmp")
    (run / ".engine.abcd1234.tmp" / "model.onnx").unlink()
    os.utime(run / ".engine.abcd1234.tmp" / "manifest.json")
    shutil.copytree(run, tmp_path / "runs" / ".mine.abcd1234.tmp")
    timing = ["--shapes", "1x8", "--warmup", "1", "--iterations", "2", "--backend", "onnxruntime", "--no_layer_times"]
    assert run_command("benchmark", ["--no_accuracy", *timing]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("engine: ")] == [
        "engine: runs/mine/engine-ptq"
    ]


def test_a_damaged_run_blocks_no_command(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built, tmp_path / "runs" / "sound")
    damaged = shutil.copytree(built, tmp_path / "runs" / "damaged")
    record = json.loads((damaged / "run.json").read_text())
    record["config"]["data"]["max_seq_length"] = "32"
    time.sleep(0.02)
    (damaged / "run.json").write_text(json.dumps(record))
    os.utime(damaged / "engine-ptq" / "manifest.json")
    timing = ["--shapes", "1x8", "--warmup", "1", "--iterations", "2", "--backend", "onnxruntime", "--no_layer_times"]
    capsys.readouterr()
    assert run_command("benchmark", ["--no_accuracy", *timing]) == 0
    out, err = capsys.readouterr()
    assert "engine: runs/sound/engine-ptq" in out
    assert err.startswith("skipping a run: runs/damaged/run.json is damaged: ")
    assert run_command("finetune", ["--resume"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("skipping a run: runs/damaged/run.json is damaged: ")
    assert err[1].startswith("finetune: error: no unfinished run under runs/; start one: ")


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("models/mine", "is the model's own folder; give a folder apart from it"),
        ("link", "is the model's own folder"),
        ("models/mine/new", "is inside the model"),
        ("link/new/run", "is inside the model"),
        ("models", "contains the model"),
        ("up", "contains the model"),
    ],
)
@pytest.mark.parametrize("model", ["models/mine", "link"])
def test_no_output_is_the_folder_of_a_model_or_inside_it_or_around_it(
    model: str, output: str, says: str, tiny_checkpoint: Path, options: list[str], tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "mine")
    (tmp_path / "link").symlink_to("models/mine")
    (tmp_path / "up").symlink_to("models")
    before = contents(tmp_path)
    finetune = ["finetune", *options, "--output_dir", output]
    task = options[: options.index("--model_name_or_path")]
    assert says in refused("quantize", model, "--output_dir", output)
    assert says in refused(*finetune, "--model_name_or_path", model)
    assert says in refused(*finetune, "--from_fp32", model)
    assert says in refused(*finetune, "--teacher_model_name_or_path", model)
    assert says in refused("calibrate", *task, "--model_name_or_path", model, "--output_dir", output)
    build = ["build-engine", "--checkpoint", model, "--fp32"]
    if "contains" in says:  # runs and reports beside a model are usual
        assert "is not replaced: it contains 'mine'" in refused(*build, "--output_dir", output)
    else:
        sensitivity = ["calibrate", "--sensitivity", *task, "--model_name_or_path", model]
        assert says in refused(*build, "--output_dir", output)
        assert says in refused(*sensitivity, "--output_dir", output)
        for words in (["quantize", model], build, [*finetune[:-2], "--model_name_or_path", model]):
            assert f"--runs_dir {output} {says}" in refused(*words, "--runs_dir", output)
    assert contents(tmp_path) == before


def test_quantize_replaces_no_report_and_no_engine_of_the_users(
    tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    for name, says in (
        ("benchmark.html", "benchmark.html exists already"),
        ("engine-ptq/notes", "contains 'engine-ptq'"),
    ):
        path = tmp_path / name.replace("/", "-") / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        output = path.relative_to(tmp_path).parts[0]
        assert says in refused("quantize", str(tiny_checkpoint), "--output_dir", output)
        assert path.read_text() == "mine"


def test_build_engine_makes_no_run_for_a_folder_that_it_may_not_write(
    tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("mine")
    line = refused("build-engine", "--checkpoint", str(tiny_checkpoint), "--fp32", "--output_dir", "documents")
    assert "is not replaced: it contains 'thesis.tex'" in line
