"""`--help` and `import q8trt` are light; the version and the doctor answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

import q8trt
from q8trt.cli.main import COMMANDS, command_module, main

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "matplotlib",
    "modelopt",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "datasets",
    "accelerate",
)
SCRIPTS = {
    "finetune.py": "--from_fp32",
    "calibrate.py": "--recipe",
    "build_engine.py": "--int8",
    "benchmark.py": "--engine",
}
#: Runs what follows, then fails with the heavy modules that it imported.
PROBE = """
import runpy, sys
try:
    {code}
except SystemExit as exit:
    assert not exit.code, exit.code
loaded = sorted(set({heavy!r}) & set(sys.modules))
sys.exit(f"imported {{loaded}}" if loaded else 0)
"""


def probe(code: str) -> str:
    """Run `code` in a new interpreter; returns what it printed, fails if it took long or imported something heavy."""
    command = [sys.executable, "-c", PROBE.format(code=code, heavy=HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "module", ["q8trt", "q8trt.cli.main", "q8trt.errors", "q8trt.tasks.glue", "q8trt.runs.run", "q8trt.engine"]
)
def test_importing_is_light(module: str) -> None:
    probe(f"import {module}")


@pytest.mark.parametrize(("script", "option"), SCRIPTS.items())
def test_scripts_show_help_without_heavy_imports(script: str, option: str) -> None:
    text = probe(f"sys.argv = ['{script}', '--help']; runpy.run_path('{script}', run_name='__main__')")
    assert text.startswith(f"usage: {script}")
    assert option in text
    assert "example: python " in text


def test_sub_command_shows_help_without_heavy_imports() -> None:
    text = probe("from q8trt.cli.main import main; main(['parity', '--help'])")
    assert text.startswith("usage: q8trt parity")
    assert "example: q8trt parity" in text


def test_package_runs_as_a_module() -> None:
    text = probe("sys.argv = ['q8trt', '--version']; runpy.run_module('q8trt', run_name='__main__')")
    assert text == f"q8trt {q8trt.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_show_help_in_process(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_overview_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"q8trt {q8trt.__version__}\n"


def test_doctor_prints_the_three_steps(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    lines = [line.strip() for line in capsys.readouterr().out.partition("Runs here")[2].splitlines() if line]
    answers = [line.split()[0] for line in lines]
    for line, step in zip(lines, ("fine-tune", "build engine", "benchmark"), strict=True):
        assert line.partition(" ")[2].strip().startswith(step)
    assert set(answers) <= {"yes", "no"}
    assert code == (1 if "no" in answers else 0)


def test_a_help_names_only_options_of_its_command() -> None:
    for name in COMMANDS:
        parser = command_module(name).PARSER
        flags = {flag for action in parser._actions for flag in action.option_strings}
        named = {
            flag
            for action in parser._actions
            for flag in re.findall(r"(?<!\.py )--[a-z]\w+", (action.help or "").replace("--demo --recipe", ""))
        }
        assert named <= flags, (name, named - flags)
