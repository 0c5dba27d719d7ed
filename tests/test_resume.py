"""Ctrl-C and SIGTERM in the middle of a run, damaged checkpoints, and what `--resume` makes of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_data import SHORT, write_sts_b
from waiting import PATIENCE, wait_until

from q8trt import files
from q8trt.cli.main import run_command
from q8trt.console import signals
from q8trt.training import checkpoints as trainer_checkpoints
from q8trt.training import finetuning
from q8trt.training import stage as training
from q8trt.training.callbacks import StopOnInterrupt

ROOT = Path(__file__).parents[1]

#: What a callback reads of the Trainer's.
ARGUMENTS = SimpleNamespace(device="cpu", save_total_limit=1)
#: 6 steps are an epoch, so step 8 lies in the second one.
STEPS = 10
OPTIONS = [*SHORT, "--max_steps", str(STEPS), "--eval_steps", "4", "--save_steps", "4", "--logging_steps", "5"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def arguments(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """finetune's options for a run from the tiny checkpoint, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "data")
    return ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint), *OPTIONS]


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `OPTIONS` from start to end."""
    folder = tmp_path_factory.mktemp("whole")
    data = ["--task", "STS-B", "--data_dir", str(write_sts_b(folder / "data"))]
    model = ["--model_name_or_path", str(tiny_checkpoint), "--output_dir", str(folder / "run")]
    assert run_command("finetune", [*data, *model, *OPTIONS]) == 0
    return folder / "run"


def weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    import torch

    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_same_training(left: str | Path, right: str | Path, stage: str) -> None:
    """The saved model, which is the best checkpoint, and the weights after the last step."""
    for where in (stage, f"checkpoints/{stage}/checkpoint-{STEPS}"):
        assert_same_weights(Path(left, where), Path(right, where))


def record(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "run.json").read_text())


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, stage: str, step: int, times: int = 1, number: int = signal.SIGINT
) -> None:
    """Raise a signal `times` times in the middle of an optimizer step of `stage`."""
    original = training._Trainer.training_step
    seen = []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(self.args.output_dir).name == stage and self.state.global_step == step - 1 and not seen:
            seen.append(step)
            for _ in range(times):
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(training._Trainer, "training_step", training_step)


def complete_checkpoints(run: str, stage: str) -> list[int]:
    folders = Path(run, "checkpoints", stage).glob("checkpoint-*")
    assert all((folder / "trainer_state.json").is_file() for folder in folders)
    return sorted(int(path.name.split("-")[1]) for path in Path(run, "checkpoints", stage).glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("stage", "step", "number"),
    [("fp32", 7, signal.SIGINT), ("int8", 7, signal.SIGTERM), ("fp32", STEPS, signal.SIGTERM)],
)
def test_interrupted_run_resumes_bit_for_bit(
    stage: str, step: int, number: int, arguments: list[str], uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = [signal.getsignal(each) for each in signals.SIGNALS]
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, step, number=number)
        assert run_command("finetune", [*arguments, "--output_dir", "run"]) == 128 + number
    assert [signal.getsignal(each) for each in signals.SIGNALS] == handlers
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == (
        f"finetune: stopped at step {step} of {STEPS} of stage {stage}; continue with: python finetune.py --resume run"
    )
    assert step in complete_checkpoints("run", stage)
    assert stage not in record("run")["stages"]

    assert run_command("finetune", ["--resume", "run"]) == 0
    assert list(record("run")["stages"]) == ["fp32", "ptq", "int8"]
    assert_same_weights(Path("run/ptq"), uninterrupted / "ptq")
    for name in ("fp32", "int8"):
        assert_same_training("run", uninterrupted, name)
    for name in ("fp32", "ptq", "int8"):
        assert record("run")["stages"][name]["scores"] == record(uninterrupted)["stages"][name]["scores"]


RECIPE = """
name: mine
activations: {calibrator: max}
weights: {axis: 0}
qat: {ranges: RANGES, ema_decay: 0.5}
sites: {embeddings: {}, qkv_input: {}, query.weight: {}, bmm_q: {}, ffn_residual: {}, gelu_out: {}, ffn_output.weight: {}}
"""


@pytest.mark.parametrize(("ranges", "step"), [("ema", 7), ("lsq", 7), ("pact", 7), ("lsq", 3), ("ema", 5)])
def test_qat_resumes_bit_for_bit(
    ranges: str, step: int, arguments: list[str], tiny_checkpoint: Path, tiny_model: Any, tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With ranges that move, a start after 5 steps, and a wider teacher whose projection learns along."""
    from q8trt.models.checkpoints import save_checkpoint

    Path("mine.yaml").write_text(RECIPE.replace("RANGES", ranges))
    save_checkpoint("teacher", tiny_model(seed=1, hidden_size=48, num_attention_heads=3), tiny_tokenizer)
    # The schedule of the ranges' rate and their moments in Adam must go on, too, so let them move far.
    own = ["--recipe", "mine.yaml", "--quant_start_step", "5", "--range_learning_rate", "0.05"]
    teacher = [
        "--teacher_model_name_or_path",
        "teacher",
        "--hidden_loss_weight",
        "0.1",
        "--attention_loss_weight",
        "0.1",
    ]
    options = [*arguments, "--from_fp32", str(tiny_checkpoint), *own, *teacher]
    assert run_command("finetune", [*options, "--output_dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, "int8", step)
        assert run_command("finetune", [*options, "--output_dir", "run"]) == 130
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", "whole", "int8")
    calibrated, trained = weights(Path("run/ptq")), weights(Path("run/checkpoints/int8", f"checkpoint-{STEPS}"))
    assert [name for name in calibrated if name.endswith("_amax") and (calibrated[name] == trained[name]).all()] == []
    assert weights(Path("run/int8")).keys() == calibrated.keys(), "the projection is no part of the model"


def test_grouped_rows_keep_their_order_over_an_interruption(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = [*arguments, "--group_by_length", "--precision", "fp32"]
    assert run_command("finetune", [*grouped, "--output_dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 8)
        assert run_command("finetune", [*grouped, "--output_dir", "run"]) == 130
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", "whole", "fp32")


def test_newest_unfinished_run_is_resumed_by_default(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 2)
        assert run_command("finetune", [*arguments, "--precision", "fp32"]) == 130
    [run] = Path("runs").iterdir()
    capsys.readouterr()
    assert run_command("finetune", ["--resume"]) == 0
    assert f"run: {run}\n" in capsys.readouterr().out
    assert list(record(run)["stages"]) == ["fp32"]


def test_resume_of_one_checkpoint_limit_goes_on_where_it_stopped(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 1 the Trainer likes to keep the best checkpoint only, which is not where the run stopped."""
    monkeypatch.setattr(training, "score", lambda *_: {"pearson": next(falling)})
    falling = iter([0.9, 0.8, 0.7, 0.6])
    limited = [*arguments, "--precision", "fp32", "--output_dir", "run", "--save_total_limit", "1"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 6)
        assert run_command("finetune", limited) == 130
    assert 6 in complete_checkpoints("run", "fp32")
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert complete_checkpoints("run", "fp32") == [4]


def test_moved_run_still_ends_with_its_best_checkpoint(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(training, "score", lambda *_: {"pearson": next(falling)})
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 6)
        assert run_command("finetune", [*arguments, "--precision", "fp32", "--output_dir", "run"]) == 130
    Path("run").rename("moved")
    assert run_command("finetune", ["--resume", "moved"]) == 0
    assert record("moved")["stages"]["fp32"]["best_metric"] == 0.9
    assert_same_weights(Path("moved/fp32"), Path("moved/checkpoints/fp32/checkpoint-4"))


def flip(path: Path, position: int = -1) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def stopped(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The Trainer's checkpoints of a run that stopped at step 8, in `run`: 4 is the best and 8 the newest."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 8)
        assert run_command("finetune", [*arguments, "--precision", "fp32", "--output_dir", "run"]) == 130
    capsys.readouterr()
    folder = Path("run/checkpoints/fp32")
    assert trainer_checkpoints.load_state(folder / "checkpoint-8").best_global_step == 4
    return folder


def test_a_damaged_checkpoint_is_not_used_and_the_one_before_it_is(
    stopped: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(stopped / "checkpoint-8" / "optimizer.pt")
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert (
        "stage fp32 continues from checkpoint-4 (checkpoint-8 is not used: optimizer.pt is damaged: its SHA-256 is not the "
        "one in hashes.json)\n"
    ) in capsys.readouterr().err
    assert_same_training("run", uninterrupted, "fp32")


def test_no_checkpoint_is_used_whose_best_is_damaged(
    stopped: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training would end with other weights, if nothing better came."""
    flip(stopped / "checkpoint-4" / "model.safetensors", 9000)
    assert run_command("finetune", ["--resume", "run"]) == 0
    err = capsys.readouterr().err
    assert "stage fp32 starts from its beginning (checkpoint-8 is not used: the best checkpoint so far, check" in err
    assert "; checkpoint-4 is not used: model.safetensors is damaged" in err
    assert_same_training("run", uninterrupted, "fp32")


@pytest.mark.parametrize("torn_seal", [None, '{"format": 1, "fi'], ids=["no seal", "torn seal"])
def test_half_written_checkpoint_is_ignored(torn_seal: str | None, stopped: Path, uninterrupted: Path) -> None:
    torn = stopped / "checkpoint-10"
    shutil.copytree(stopped / "checkpoint-8", torn)
    (torn / "hashes.json").unlink()
    (torn / "model.safetensors").write_bytes(b"half")
    if torn_seal:
        (torn / "hashes.json").write_text(torn_seal)
    assert trainer_checkpoints.find_resume_point(stopped).checkpoint == stopped / "checkpoint-8"
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", uninterrupted, "fp32")


def test_every_file_of_a_checkpoint_is_verified(stopped: Path, tmp_path: Path) -> None:
    names = {path.name for path in (stopped / "checkpoint-8").iterdir()}
    assert names == {
        "config.json", "hashes.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
        "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
    }  # fmt: skip
    for name in names:
        for change in (Path.unlink, flip, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])):
            copy = Path(shutil.copytree(stopped, tmp_path / "copy"))
            change(copy / "checkpoint-8" / name)
            point = trainer_checkpoints.find_resume_point(copy)
            assert point.checkpoint == copy / "checkpoint-4", name
            assert [(rejected, name in reason) for rejected, reason in point.rejected] == [("checkpoint-8", True)]
            shutil.rmtree(copy)


def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted then: another user, or a disk that is back tomorrow, may be able to read it."""

    def unreadable(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("q8trt.files.seals.sha256", unreadable)
    assert run_command("finetune", ["--resume", "run"]) == 2
    assert complete_checkpoints("run", "fp32") == [4, 8]


def test_foreign_folders_among_the_checkpoints_are_left_alone(stopped: Path) -> None:
    (stopped / "checkpoint-mine").mkdir()
    assert trainer_checkpoints.find_resume_point(stopped).checkpoint == stopped / "checkpoint-8"
    trainer_checkpoints.remove_incomplete(stopped)
    assert (stopped / "checkpoint-mine").is_dir()


def test_best_checkpoint_damaged_while_training_goes_on(
    stopped: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = training._Trainer._load_best_model

    def damaged(self: Any) -> None:
        flip(stopped / f"checkpoint-{self.state.best_global_step}" / "model.safetensors", 9000)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_load_best_model", damaged)
        assert run_command("finetune", ["--resume", "run"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "model.safetensors is damaged" in line
    assert "--resume" in line
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", uninterrupted, "fp32")


def test_older_checkpoints_go_only_when_the_new_one_is_complete(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seal = trainer_checkpoints.seal

    def full_disk(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-8":
            raise OSError(28, "No space left on device")
        seal(checkpoint)

    monkeypatch.setattr(trainer_checkpoints, "seal", full_disk)
    options = ["--precision", "fp32", "--output_dir", "run", "--no_do_eval", "--save_total_limit", "1"]
    assert run_command("finetune", [*arguments, *options]) == 2
    assert "no space is left" in capsys.readouterr().err
    assert complete_checkpoints("run", "fp32") == [4]


def test_another_number_of_processes_is_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = stopped / "checkpoint-8"
    (newest / "rng_state.pth").rename(newest / "rng_state_0.pth")
    shutil.copy(newest / "rng_state_0.pth", newest / "rng_state_1.pth")
    files.write_seal(newest)
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert "checkpoint-8 was written by 2 processes and this run has 1" in capsys.readouterr().err


def test_second_interrupt_stops_at_once_and_the_run_goes_on_from_its_last_checkpoint(
    arguments: list[str], uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fp32", 7, times=2)
        assert run_command("finetune", [*arguments, "--output_dir", "run"]) == 130
    assert "--resume run" in capsys.readouterr().err.splitlines()[-1]
    assert complete_checkpoints("run", "fp32") == [4]
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", uninterrupted, "int8")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_interrupt_between_stages_is_resumed(
    number: int,
    arguments: list[str],
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*args: Any) -> None:
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "quantize", interrupted)
        assert run_command("finetune", [*arguments, "--output_dir", "run"]) == 128 + number
    assert "--resume run" in capsys.readouterr().err.splitlines()[-1]
    assert list(record("run")["stages"]) == ["fp32"]
    before = (Path("run/fp32/model.safetensors")).stat().st_mtime_ns

    assert run_command("finetune", ["--resume", "run"]) == 0
    assert Path("run/fp32/model.safetensors").stat().st_mtime_ns == before, "the finished stage was done again"
    assert_same_training("run", uninterrupted, "int8")


def test_resuming_a_finished_run_changes_nothing(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[str, tuple[int, int]]:
        files = (path for path in uninterrupted.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    monkeypatch.chdir(tmp_path)
    before = contents()
    assert run_command("finetune", ["--resume", str(uninterrupted)]) == 0
    assert contents() == before
    assert "QAT INT8" in capsys.readouterr().out


def test_nothing_left_to_resume_is_said(
    uninterrupted: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("finetune", ["--resume", "--runs_dir", str(uninterrupted.parent)]) == 2
    assert "no unfinished run" in capsys.readouterr().err


def test_a_signal_during_an_evaluation_saves_right_after_it(
    arguments: list[str], uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.score

    def compute(*args: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "score", compute)
        assert run_command("finetune", [*arguments, "--precision", "fp32", "--output_dir", "run"]) == 143
    assert complete_checkpoints("run", "fp32") == [4]
    assert run_command("finetune", ["--resume", "run"]) == 0
    assert_same_training("run", uninterrupted, "fp32")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_interrupt_handler_counts(number: int) -> None:
    with StopOnInterrupt() as stopper:
        signal.raise_signal(number)
        stopper.on_step_end(ARGUMENTS, None, SimpleNamespace())
        assert stopper.requested
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(number)
    assert isinstance(caught.value, signals.TerminatedError) == (number == signal.SIGTERM)


def test_a_signal_after_training_goes_to_the_earlier_handler() -> None:
    with pytest.raises(KeyboardInterrupt), StopOnInterrupt() as stopper:
        signal.raise_signal(signal.SIGINT)
    assert not stopper.requested


def test_a_signal_that_torchrun_passes_on_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late: it would end a process in the middle of its checkpoint."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopOnInterrupt() as stopper:
        signal.raise_signal(signal.SIGTERM)
        stopper.on_step_end(ARGUMENTS, None, SimpleNamespace())
        monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
        signal.raise_signal(signal.SIGTERM)


def all_reduce(monkeypatch: pytest.MonkeyPatch, reduce: Callable[[torch.Tensor], object]) -> None:
    """Stand in for the exchange between two processes: `reduce` changes this process's value."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, _: reduce(tensor))


def test_a_signal_to_another_process_of_torchrun_stops_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    all_reduce(monkeypatch, lambda value: value.fill_(signal.SIGTERM))
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    with StopOnInterrupt() as stopper:
        stopper.on_step_end(ARGUMENTS, None, control)
        signal.raise_signal(signal.SIGTERM)  # torchrun ends this process when the other has ended
    assert control == SimpleNamespace(should_save=True, should_training_stop=True)
    assert isinstance(stopper.interrupt, signals.TerminatedError)


def test_a_signal_during_the_exchange_stops_this_process_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has not heard of it: it would wait for this one in the next step for ever."""
    all_reduce(monkeypatch, lambda value: signal.raise_signal(signal.SIGTERM))
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    with StopOnInterrupt() as stopper:
        stopper.on_step_end(ARGUMENTS, None, control)
        assert control == SimpleNamespace(should_save=False, should_training_stop=False)
        stopper.on_step_end(ARGUMENTS, None, control)
    assert control == SimpleNamespace(should_save=True, should_training_stop=True)


def test_a_thread_of_an_app_may_train() -> None:
    """Python lets only the main thread install handlers."""
    before = signal.getsignal(signal.SIGINT)
    problems: list[BaseException] = []

    def train() -> None:
        try:
            with StopOnInterrupt():
                assert signal.getsignal(signal.SIGINT) is before
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert problems == []


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnInterrupt() as stopper:
            signal.raise_signal(signal.SIGINT)
            assert not stopper.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_command_outside_training_stops_in_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from q8trt.cli import doctor

    monkeypatch.setattr(doctor, "run", lambda argv: signal.raise_signal(number))
    assert run_command("doctor", []) == 128 + number
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert capsys.readouterr().err == f"doctor: stopped by {name}; nothing half-written was left\n"


def test_sigterm_to_the_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As a cluster does it: the process saves, says how to go on, and ends with 128 + 15."""
    long = [*arguments, "--precision", "fp32", "--output_dir", "run", "--max_steps", "100000"]
    command = [sys.executable, str(ROOT / "finetune.py"), *long]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(Path("run").glob("checkpoints/fp32/checkpoint-*/hashes.json")), process)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("finetune: stopped at step ")
    _, _, goes_on = err.splitlines()[-1].partition("; continue with: ")
    assert goes_on.endswith(f"{ROOT / 'finetune.py'} --resume run")
    point = trainer_checkpoints.find_resume_point(Path("run/checkpoints/fp32"))
    assert point.rejected == ()
    assert point.checkpoint is not None
    step = trainer_checkpoints.load_state(point.checkpoint).global_step
    assert f"stopped at step {step} of 100000" in err
