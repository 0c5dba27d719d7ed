"""Every command that q8trt prints works as printed: each is taken from the output and run."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_data import write_sts_b
from waiting import PATIENCE

from q8trt.cli.main import run_command
from q8trt.console import commands
from q8trt.console.commands import command
from q8trt.console.options import options_of
from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.rebuild import build_command, rebuild_command
from q8trt.errors import EngineError
from q8trt.quantization.target import Target
from q8trt.runs.config import config_of_run
from q8trt.runs.run import RUN_FILE, open_run
from q8trt.tasks.data import DataConfig

pytestmark = pytest.mark.usefixtures("quick_export")

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
ROOT = Path(__file__).parents[1]
#: What may stand before a command.
_BEFORE = (
    r"(?:next|continue with|continue it|finish it|build it|build one|build its calibrated checkpoint|calibrate that): "
)
QUICK = ["--shapes", "1x8", "--warmup", "1", "--iterations", "2", "--backend", "onnxruntime", "--no_layer_times"]


def printed(text: str) -> list[str]:
    """The words of the last command in `text`, name first: "python build_engine.py --int8" -> build-engine, --int8."""
    line = re.split(_BEFORE, text.strip().splitlines()[-1])[-1]
    words = shlex.split(line)
    if words[0] == "python":
        return [words[1].removesuffix(".py").replace("_", "-"), *words[2:]]
    assert words[0] == "q8trt"
    return words[1:]


def run_printed(text: str, *more: str) -> list[str]:
    name, *arguments = printed(text)
    assert run_command(name, [*arguments, *more]) == 0, text
    return [name, *arguments]


@pytest.fixture
def place(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a newer run under runs/, which no command may take, and a run under "my runs"."""
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(calibrated, "my runs/first")
    write_sts_b(tmp_path / "my data")
    shutil.copytree(calibrated, "runs/newer")
    return tmp_path


def test_from_calibration_to_the_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("calibrate", ["--runs_dir", "my runs", "--output_dir", "my runs/second one"]) == 0
    assert run_printed(capsys.readouterr().out, "--no_baseline") == [
        "build-engine", "--int8", "--checkpoint", "my runs/second one"
    ]  # fmt: skip
    assert load_manifest("my runs/second one/engine-ptq").stage == "ptq"
    benchmark = run_printed(capsys.readouterr().out, *QUICK)
    assert benchmark == ["benchmark", "--engine", "my runs/second one/engine-ptq"]
    assert Path("my runs/second one/benchmark.html").is_file()
    assert run_command("pack", ["my runs/second one/engine-ptq"]) == 0
    run_printed(capsys.readouterr().out)
    assert load_manifest("my runs/second one/engine-ptq.unpacked")
    assert not list(Path("runs/newer").glob("engine*"))


def test_an_engine_outside_its_run_is_scored_on_the_runs_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("build-engine", ["--checkpoint", "my runs/first", "--output_dir", "the engine"]) == 0
    words = run_printed(capsys.readouterr().out, *QUICK)
    assert words[:5] == ["benchmark", "--engine", "the engine", "--task", "STS-B"]
    assert "--max_seq_length" in words


def test_the_baseline_is_compared_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("build-engine", ["--runs_dir", "my runs"]) == 0
    words = printed(capsys.readouterr().out)
    names = ["engine-fp32", "engine-fp16", "engine-ptq"]
    assert words == ["benchmark", *(word for name in names for word in ("--engine", f"my runs/first/{name}"))]
    shutil.copytree("my runs/first/engine-ptq", "my runs/first/engine")  # as of another stage
    assert run_command("build-engine", ["--checkpoint", "my runs/first", "--stage", "ptq"]) == 0
    words = printed(capsys.readouterr().out)
    names[2:2] = ["engine"]
    assert words == ["benchmark", *(word for name in names for word in ("--engine", f"my runs/first/{name}"))]


def test_a_stage_that_the_run_never_had(place: Path, refused: Refused) -> None:
    """`--resume` would change nothing: the run ends with calibration."""
    line = refused("build-engine", "--checkpoint", "my runs/first", "--stage", "int8")
    assert "my runs/first has no finished int8 checkpoint; it ends with calibration; build its calibrated" in line
    assert "--resume" not in line
    assert run_printed(line, "--no_baseline")[-2:] == ["--stage", "ptq"]
    assert load_manifest("my runs/first/engine-ptq").stage == "ptq"


def test_a_run_that_ends_with_fp32(
    place: Path, options: list[str], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*options, "--max_steps", "1", "--eval_steps", "1", "--save_steps", "1"]
    assert run_command("finetune", [*short, "--precision", "fp32", "--output_dir", "only fp32"]) == 0
    assert printed(capsys.readouterr().out) == ["build-engine", "--fp32", "--checkpoint", "only fp32"]
    line = refused("build-engine", "--checkpoint", "only fp32")
    assert "has no finished int8 or ptq checkpoint; it ends with FP32; calibrate that: " in line
    run_printed(line, "--output_dir", "calibrated")
    assert open_run("calibrated").stage("ptq")
    assert config_of_run(open_run("calibrated")).data.max_seq_length == 32


def test_a_calibration_that_is_stopped_goes_on_as_it_says(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.training import finetuning

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "quantize", stopped)
        assert run_command("calibrate", ["--runs_dir", "my runs", "--output_dir", "my runs/second"]) == 130
    text = capsys.readouterr().err
    assert open_run("my runs/second").stage("ptq") is None
    assert run_printed(text) == ["finetune", "--resume", "my runs/second"]
    assert open_run("my runs/second").stage("ptq")
    assert printed(capsys.readouterr().out) == ["build-engine", "--int8", "--checkpoint", "my runs/second"]

    assert run_command("calibrate", ["--runs_dir", "my runs", "--output_dir", "my runs/second"]) == 2
    text = capsys.readouterr().err
    assert "my runs/second is a run already; give another --output_dir\n" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["benchmark", "--runs_dir", "my runs"], ["build-engine", "--int8", "--runs_dir", "my runs"]),
        (["parity", "my runs/first"], ["build-engine", "--int8", "--checkpoint", "my runs/first"]),
    ],
)
def test_without_an_engine(argv: list[str], words: list[str], place: Path, refused: Refused) -> None:
    line = refused(*argv)
    assert printed(line) == words
    run_printed(line, "--no_baseline")
    assert load_manifest("my runs/first/engine-ptq")


@pytest.mark.parametrize(
    ("target", "name", "words"),
    [
        ("gpu", "engine", "--int8 --fp16 --stage int8"),
        ("gpu", "engine-ptq", "--int8 --fp16 --stage ptq"),
        ("gpu", "engine-int8-fp32", "--int8 --fp32 --stage int8"),
        ("gpu", "engine-ptq-fp32", "--int8 --fp32 --stage ptq"),
        ("gpu", "engine-fp32", "--fp32"),
        ("gpu", "engine-fp16", "--fp16"),
        ("cpu", "engine", "--int8 --fp32 --stage int8"),
        ("cpu", "engine-ptq", "--int8 --fp32 --stage ptq"),
        ("cpu", "engine-int8-fp16", "--int8 --fp16 --stage int8"),
        ("cpu", "engine-ptq-fp16", "--int8 --fp16 --stage ptq"),
    ],
)
def test_a_rebuild_by_the_name(target: str, name: str, words: str, calibrated: Path, tmp_path: Path) -> None:
    """The command's own parser reads it, and its output is the folder again."""
    from q8trt.cli.build_engine import PARSER
    from q8trt.engine.rebuild import default_folder_name

    run = shutil.copytree(calibrated, tmp_path / "my run")
    set_target(run, target)
    line = rebuild_command(run / name)
    assert line == f"`python build_engine.py {words} --checkpoint '{run}'`" == build_command(run / name)
    options = PARSER.read(shlex.split(line.strip("`"))[2:])
    stage = options.stage or "fp32"
    folder = default_folder_name(stage, options.flags.precision, Target(target))
    assert open_run(options.checkpoint).path / folder == run / name


def set_target(run: Path, target: str) -> None:
    record = open_run(run).record
    open_run(run).write(dataclasses.replace(record, config={**record.config, "target": target}))


def test_a_rebuild_elsewhere(calibrated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(calibrated, tmp_path / "run")
    line = f"python build_engine.py --int8 --checkpoint {run} --output_dir {run / 'mine'} --overwrite"
    assert rebuild_command(run / "mine") == f"`{line}`"
    (run / RUN_FILE).unlink()
    assert rebuild_command(run / "mine").endswith("--overwrite` (RUN: the run that it was made from)")
    assert build_command(run / "mine") == "`python build_engine.py --int8`"


def test_a_run_in_place_of_an_engine_names_its_own_build(calibrated: Path, tmp_path: Path) -> None:
    """Not the build of the newest run, and in a precision that the run has a checkpoint for."""
    run = shutil.copytree(calibrated, tmp_path / "my run")
    with pytest.raises(EngineError, match="so it is not an engine folder") as caught:
        load_manifest(run)
    assert str(caught.value).endswith(f"build one with `python build_engine.py --int8 --checkpoint '{run}'`")
    record = open_run(run).record
    open_run(run).write(dataclasses.replace(record, stages={"fp32": record.stages["fp32"]}))
    assert build_command(run) == f"`python build_engine.py --fp32 --checkpoint '{run}'`"
    (run / RUN_FILE).write_text("{")
    assert build_command(run) == f"`python build_engine.py --int8 --checkpoint '{run}'`"


def test_a_damaged_engine_is_rebuilt_as_its_error_says(
    place: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("build-engine", ["--checkpoint", "my runs/first", "--no_baseline"]) == 0
    engine = Path("my runs/first/engine-ptq")
    for damage in ("model.plan", "manifest.json"):
        (engine / damage).write_bytes((engine / damage).read_bytes()[:-10])
        line = refused("benchmark", "--engine", str(engine), "--no_accuracy")
        if "`" in line:
            name, *arguments = printed(line.split("`")[1])
            assert run_command(name, [*arguments, "--no_baseline"]) == 0
        else:
            assert run_command("build-engine", ["--checkpoint", "my runs/first", "--no_baseline"]) == 0
        assert load_manifest(engine)


# The words themselves


@pytest.mark.parametrize(
    ("typed", "name", "expected"),
    [
        ("finetune.py", "build-engine", "PYTHON build_engine.py --x 'a b'"),
        ("/home/me/q8trt/finetune.py", "build-engine", "PYTHON /home/me/q8trt/build_engine.py --x 'a b'"),
        ("finetune.py", "lint", "q8trt lint --x 'a b'"),
        ("/venv/bin/q8trt", "build-engine", "q8trt build-engine --x 'a b'"),
        ("/other/bin/q8trt", "build-engine", "/other/bin/q8trt build-engine --x 'a b'"),
        ("/lib/q8trt/__main__.py", "build-engine", "PYTHON -m q8trt build-engine --x 'a b'"),
        ("/usr/bin/jupyter", "build-engine", "python build_engine.py --x 'a b'"),
    ],
)
def test_a_command_is_started_as_the_last_one_was(
    typed: str, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr(commands, "_python", lambda: "PYTHON")
    monkeypatch.setattr(shutil, "which", lambda program: f"/venv/bin/{program}")
    assert command(name, "--x", "a b") == expected


def test_without_an_installed_program_the_package_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune.py"])
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv" / "bin" / "python"))
    assert command("lint", "x") == ".venv/bin/python -m q8trt lint x"
    monkeypatch.setattr(shutil, "which", lambda program: str(Path.cwd() / ".venv" / "bin" / program))
    assert command("benchmark") == "python benchmark.py"
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(sys, "executable", "/opt/env/bin/python")
    assert command("benchmark") == "/opt/env/bin/python benchmark.py"


def test_a_shell_runs_what_a_script_in_another_folder_prints(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmark.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    line = done.stderr.strip()
    assert line.startswith("benchmark: error: no engine under runs/; build one: ")
    again = subprocess.run(
        line.split("build one: ")[1],
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert again.stderr.startswith(
        "build_engine: error: no run with a finished int8 or ptq checkpoint under runs/; make"
    )


def test_options_read_back() -> None:

    from q8trt.cli.finetune import PARSER

    for data in (
        DataConfig("STS-B", sample=True, max_seq_length=64),
        DataConfig("MRPC", data_dir="my glue", max_eval_samples=3),
        DataConfig(
            "custom", train_file="-a b.csv", validation_file="c.csv", label_list=("no", "yes"), label_column_name="y"
        ),
    ):
        assert PARSER.read(shlex.split(shlex.join(options_of(data)))).config.data == data
