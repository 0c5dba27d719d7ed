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

from q8trt.cli.main import run_command

ROOT = Path(__file__).parents[1]
OPTIONS = [*SHORT, "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "2"]


#: Starts finetune.py in two forks of one interpreter, as torchrun starts it in two processes, and prints their numbers.
FORKS = """
import os, sys, socket
import modelopt.torch.quantization, scipy.stats, sklearn.metrics, torch.utils.tensorboard
import transformers.models.bert.modeling_bert
import q8trt.training.finetuning, q8trt.training.stage
from q8trt.cli.main import run_command

with socket.create_server(("127.0.0.1", 0)) as free:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
sys.argv[0] = sys.argv.pop(1)
processes = []
for rank in ("0", "1"):
    processes.append(os.fork())
    if not processes[-1]:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        code = run_command("finetune")
        sys.stdout.flush()
        os._exit(code)
print(*processes, flush=True)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes))
"""


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes)


def fork(folder: Path, *argv: str) -> tuple[subprocess.Popen[str], list[int]]:
    """finetune.py in two processes, in `folder`; returns what started them and waits for them, and their numbers."""
    parent = start(folder, "-c", FORKS, str(ROOT / "finetune.py"), *argv)
    assert parent.stdout
    return parent, [int(number) for number in parent.stdout.readline().split()]


@pytest.mark.slow
def test_two_processes_make_one_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint)]
    parent, _ = fork(tmp_path, *data, *OPTIONS, "--group_by_length")
    out, err = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0, err
    [run] = (tmp_path / "runs").iterdir()
    assert out.count(f"run: runs/{run.name}\n") == 1
    [line] = [line for line in out.splitlines() if line.startswith("next: ")]
    assert line.endswith(f"{ROOT / 'build_engine.py'} --int8 --checkpoint runs/{run.name}")
    assert err.count("FP32 dev   step 4/4") == 1
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


def test_a_wrong_option_is_said_once_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("q8trt.cli.main._GRACE_SECONDS", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint)]
    for rank, times in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert run_command("finetune", [*data, *OPTIONS, "--fp16"]) == 2
        assert capsys.readouterr().err.count("finetune: error: --fp16") == times
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to_one", [False, True], ids=["to torchrun", "to one process"])
def test_sigterm_stops_both_processes_at_one_step(to_one: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """torchrun passes it on. A process that got it alone, or one step earlier, would wait for the other for ever."""
    from q8trt.training.checkpoints import find_resume_point, load_state, processes_of

    write_sts_b(tmp_path / "data")
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint), *OPTIONS]
    arguments = [*data, "--max_steps", "100000", "--output_dir", "run"]
    checkpoints = tmp_path / "run" / "checkpoints" / "fp32"
    if to_one:
        process, (_, target) = fork(tmp_path, *arguments)
    else:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        process = start(tmp_path, *launch, str(ROOT / "finetune.py"), *arguments)
        target = process.pid
    wait_until(lambda: list(checkpoints.glob("checkpoint-*/hashes.json")), process)
    os.kill(target, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == (143 if to_one else 1), err
    point = find_resume_point(checkpoints)
    assert point.rejected == ()
    assert point.checkpoint is not None
    assert processes_of(point.checkpoint) == 2
    assert f"finetune: stopped at step {load_state(point.checkpoint).global_step} of 100000" in err
