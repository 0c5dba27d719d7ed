"""Two processes under torchrun, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_data import SHORT, write_sts_b
from waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[1]
OPTIONS = [*SHORT, "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "2"]


def torchrun(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """finetune.py in two processes, in `folder`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [*launch, str(ROOT / "finetune.py"), *argv]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # unlike kill, it lets torchrun end its processes
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
def test_two_processes_make_one_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint)]
    done = torchrun(tmp_path, *data, *OPTIONS, "--group_by_length")
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert done.stdout.count(f"run: runs/{run.name}\n") == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("next: ")]
    assert line.endswith(f"{ROOT / 'build_engine.py'} --int8 --checkpoint runs/{run.name}")
    assert done.stderr.count("FP32 dev   step 4/4") == 1
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert list(stages) == ["fp32", "ptq", "int8"]
    assert stages["fp32"]["steps"] == stages["int8"]["steps"] == 4
    for stage in ("fp32", "int8"):
        # The Trainer scored with two processes, the stage's score comes from one: the same model, the same rows.
        best = stages[stage]["best_metric"]
        assert stages[stage]["scores"]["dev"]["pearson"] == pytest.approx(best, abs=1e-4)
        # A state of the random generators for each process: both took part.
        assert len(list((run / "checkpoints" / stage / "checkpoint-4").glob("rng_state_[01].pth"))) == 2
        state = json.loads((run / "checkpoints" / stage / "checkpoint-4" / "trainer_state.json").read_text())
        assert state["epoch"] == pytest.approx(4 / 3), "48 rows are 3 steps of 2 x 8 rows"


@pytest.mark.slow
def test_a_wrong_option_is_said_once_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint)]
    done = torchrun(tmp_path, *data, *OPTIONS, "--fp16")
    assert done.returncode != 0
    assert done.stderr.count("finetune: error: --fp16") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to_one", [False, True], ids=["to torchrun", "to one process"])
def test_sigterm_stops_both_processes_at_one_step(to_one: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """torchrun passes it on. A process that got it alone, or one step earlier, would wait for the other for ever."""
    from q8trt.training.checkpoints import find_resume_point, load_state, processes_of

    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint), *OPTIONS]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [*launch, str(ROOT / "finetune.py"), *data, "--max_steps", "100000", "--output_dir", "run"]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    checkpoints = tmp_path / "run" / "checkpoints" / "fp32"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        wait_until(lambda: list(checkpoints.glob("checkpoint-*/hashes.json")), process)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[-1]) if to_one else process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    point = find_resume_point(checkpoints)
    assert point.rejected == ()
    assert point.checkpoint is not None
    assert processes_of(point.checkpoint) == 2
    assert f"finetune: stopped at step {load_state(point.checkpoint).global_step} of 100000" in err
