"""Fixtures of the tests that feed bad input to the commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_data import SHORT, write_sts_b

from q8trt.cli.main import run_command
from q8trt.files.locks import try_lock

Refused = Callable[..., str]


def is_being_written(path: Path) -> bool:
    """Return whether `path` is a temporary name that another process holds at the moment, or has just renamed."""
    if path.suffix != ".tmp":
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command in `tmp_path`, which must refuse and leave no file behind; returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *argv: str, writes: bool = False) -> str:
        before = set(Path().rglob("*"))
        capsys.readouterr()
        assert run_command(command, list(argv)) == 2
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert len(lines) == 1 or writes, err
        assert "Traceback" not in err
        assert lines[-1].startswith(f"{command.replace('-', '_')}: error: ")
        assert "next:" not in out
        assert "scores" not in out
        left = {path for path in set(Path().rglob("*")) - before if not is_being_written(path)}
        assert not [path for path in left if path.suffix == ".tmp"]
        assert not left or writes, f"left behind: {sorted(map(str, left))}"
        return lines[-1]

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_sts_b(tmp_path / "data")


@pytest.fixture
def options(tiny_checkpoint: Path, data: Path) -> list[str]:
    """Return the options of a short fine-tuning that succeeds."""
    return ["--task", "STS-B", "--data_dir", str(data), "--model_name_or_path", str(tiny_checkpoint), *SHORT]


@pytest.fixture(scope="session")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with FP32 and PTQ checkpoints. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs")
    data = ["--task", "STS-B", "--data_dir", str(write_sts_b(folder / "data")), "--max_seq_length", "32"]
    run = ["--model_name_or_path", str(tiny_checkpoint), "--output_dir", str(folder / "run")]
    assert run_command("calibrate", [*data, *run]) == 0
    return folder / "run"
