"""Progress without a terminal: lines at intervals, however long a step takes, and the first line before torch."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import PATIENCE

from q8trt.console import progress
from q8trt.console.progress import phases, shown_by


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what stderr holds once `text` is in it."""
    printed, end = "", time.monotonic() + PATIENCE
    while text not in printed and time.monotonic() < end:
        time.sleep(0.005)
        printed += capsys.readouterr().err
    assert text in printed
    return printed


def test_lines_come_while_a_step_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("Calibrating", 2000) as advance:
        wait_for("Calibrating 0/2,000, 0:00:00 so far\n", capsys)
        advance(500)
        wait_for("Calibrating 500/2,000, about 0:00:0", capsys)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""
    assert "q8trt progress" not in {thread.name for thread in threading.enumerate()}


def test_many_short_works_are_no_silence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.5)
    end = time.monotonic() + 30
    with shown_by(True):
        while "Evaluating 0/8" not in capsys.readouterr().err:
            assert time.monotonic() < end
            with progress.progress("Evaluating", 8):
                time.sleep(0.02)


def test_the_estimate_counts_what_this_process_did() -> None:
    lines = progress._Lines("FP32", 100, 400)
    lines.advance(100)
    assert lines.line(60) == "FP32 200/400, about 0:02:00 left"
    lines.advance(200)
    assert lines.line(90) == "FP32 400/400, 0:01:30 so far"


def test_phases_have_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with phases("Building int8") as show:
        wait_for("Building int8, 0:00:0", capsys)
        show("exporting", 1, 4)
        wait_for("Building int8: exporting 1/4", capsys)


def test_nothing_is_printed_where_progress_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_by(False), progress.progress("Timing", 2), phases("Building"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_training_counts_from_the_step_that_it_resumes_at() -> None:
    from q8trt.training.callbacks import TrainingLog

    shown: list[tuple[str, int, int]] = []
    state: Any = SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=2)
    with shown_by(lambda *each: shown.append(each)):
        callback = TrainingLog("INT8")
        callback.on_train_begin(None, state, None)
        callback.on_step_end(None, state, None)
        callback.close()
    assert shown == [("INT8", 3, 4)]


@pytest.mark.parametrize("words", [["--task", "STS-B", "--model_name_or_path", "no such folder"], ["--resume", "none"]])
def test_the_first_line_comes_before_torch_is_imported(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom q8trt.cli import finetune\n"
        "def stop(text):\n    print(text, sorted({'torch', 'transformers'} & set(sys.modules)))\n    sys.exit()\n"
        "finetune.say = stop\nfinetune.run(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert "loading PyTorch" in done.stdout, done.stderr
    assert done.stdout.endswith(" []\n")
