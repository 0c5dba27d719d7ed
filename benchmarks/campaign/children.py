"""Processes of cases: forks of a warm interpreter, and real ones where signals and limits matter."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.campaign.driver import Case, Outcome

ROOT = Path(__file__).resolve().parents[2]
#: What a fork finds imported. A module that is not installed is left out.
WARM = (
    "torch",
    "transformers",
    "transformers.models.bert.modeling_bert",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "pyarrow.parquet",
    "safetensors.torch",
    "yaml",
    "q8trt.cli.main",
    "q8trt.inference",
    "q8trt.deployment.archive",
    "q8trt.inference.files",
    "q8trt.lint",
    "q8trt.quantization.insertion",
    "q8trt.models.checkpoints",
    "q8trt.training.stage",
    "q8trt.training.finetuning",
    "q8trt.deployment.engine_folder",
)
#: Address space that a case may have above its limit of resident memory, MiB: it protects the machine.
_SPARE_MIB = 8192
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MIB = 2**20


def warm_up() -> None:
    """Import the heavy modules once. No kernel may run here: a fork does not inherit threads."""
    os.environ |= dict.fromkeys(_THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def in_child(work: Callable[[], object]) -> None:
    """Call `work` in a fork and wait for it; for what needs torch and is shared by cases. Raises RuntimeError."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("the files that the cases share could not be made")


def run_forked(case: Case, folder: Path) -> Outcome:
    """Run `case` in a fork of this process."""
    output = folder.parent / f"{folder.name}.output"
    output.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(case, folder, output)
    # A child that has ended already has no memory: then this process tells where it began.
    return _watch(pid, case, output, _resident_mib(pid) or _resident_mib(os.getpid()))


def _child(case: Case, folder: Path, output: Path) -> None:
    """Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        _redirect(output)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        limit = _address_space() + (case.mib + _SPARE_MIB) * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if case.prepare:
            case.prepare(folder)
        code = _answer(case, folder)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _answer(case: Case, folder: Path) -> int:
    if not callable(case.call):
        from q8trt.cli.main import main

        return main([str(argument) for argument in case.call])
    from q8trt.errors import Q8TRTError

    try:
        case.call(folder)
    except Q8TRTError as error:
        print(f"q8trt: error: {error}", file=sys.stderr)
        return 2
    return 0


def _redirect(output: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o666), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - of a descriptor
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def run_process(case: Case, folder: Path) -> Outcome:
    """Run `case` as a process of its own."""
    how = case.process
    assert how is not None
    output = folder.parent / f"{folder.name}.output"
    output.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **how.env}

    def prepare() -> None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for kind, limit in how.limits.items():
            resource.setrlimit(kind, (limit, limit))
        for descriptor in how.closed:
            os.close(descriptor)

    arguments = [] if callable(case.call) else [str(each) for each in case.call]
    with (output / "stdout").open("wb") as stdout, (output / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [*how.command, *arguments] if how.command else [sys.executable, "-m", "q8trt", *arguments],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, preexec_fn=prepare,
            env={name: value for name, value in env.items() if value is not None},
        )  # fmt: skip
    if how.signal is not None:
        time.sleep(how.after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, how.signal)
    outcome = _watch(child.pid, case, output, _resident_mib(os.getpid()))  # it began as a fork of this process
    child.returncode = outcome.code if outcome.code is not None else -signal.SIGKILL  # it was waited for here
    return outcome


def _watch(pid: int, case: Case, output: Path, start_mib: float) -> Outcome:
    """Wait for a process, and end its group where it takes too long or too much memory."""
    from benchmarks.campaign.driver import Outcome

    started, stopped, peak = time.monotonic(), "", 0.0
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if done:
            break
        peak = max(peak, _resident_mib(pid) - start_mib)
        if not stopped and (peak > case.mib or seconds > case.seconds):
            stopped = "memory" if peak > case.mib else "hang"
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
        time.sleep(0.002 if seconds < 1 else 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started itself and did not end
    peak = max(peak, usage.ru_maxrss / 1024 - start_mib)
    if not stopped and peak > case.mib:
        stopped = "memory"
    text = [(output / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr")]
    return Outcome(None if stopped else os.waitstatus_to_exitcode(status), *text, seconds, peak, stopped)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / _MIB
    except (OSError, IndexError):
        return 0.0
