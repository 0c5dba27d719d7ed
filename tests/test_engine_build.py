"""The building process: its answer, its end, Ctrl-C, and what is left on disk."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_fixtures import SMALL, tiny_onnx
from waiting import wait_until

from q8trt.deployment import engine_folder
from q8trt.engine.backend import Backend, builders
from q8trt.engine.build_process import build_plan, started_backend
from q8trt.engine.config import BuildConfig
from q8trt.engine.determinism import compare_plans
from q8trt.errors import BackendError, ConfigError, EngineError
from q8trt.hardware.gpu import Gpu
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target

CONFIG = BuildConfig("rtx", (SMALL,))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_plan_is_built_without_a_gpu(rtx: Backend, tmp_path: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    path, plan = tiny_onnx(tmp_path / "m.onnx"), tmp_path / "out" / "m.plan"
    info = build_plan(path, plan, CONFIG, lambda *step: phases.append(step))
    assert (info.backend, info.version, info.timing_cache) == ("tensorrt_rtx", rtx.version, "none")
    assert info.sm_targets == rtx.portable_sms()
    assert info.bytes == plan.stat().st_size > 0
    assert info.seconds > 0
    assert info.peak_memory_mib is None or 30 < info.peak_memory_mib < 2000
    assert info.report.int8_gemms == 1
    assert phases[0][:2] == ("Building engine", 0)
    assert names(tmp_path / "out") == ["m.plan"]


def test_two_processes_build_the_same_plan_but_for_names(rtx: Backend, tmp_path: Path) -> None:
    """TensorRT-RTX's compiler may number its temporary tensors otherwise each time; kernels and weights are the same."""
    path = tiny_onnx(tmp_path / "m.onnx")
    for name in ("a", "b"):
        build_plan(path, tmp_path / name, CONFIG)
    difference = compare_plans(tmp_path / "a", tmp_path / "b")
    assert difference.sizes[0] == difference.sizes[1]
    assert difference.text_regions == difference.regions, str(difference)


def test_the_process_is_small() -> None:
    """Only what it needs: a heavy import would cost each build seconds and a GiB."""
    heavy = ("torch", "transformers", "onnx", "numpy")
    code = f"import sys, q8trt.engine.build_worker; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_missing_onnx(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.onnx does not exist; export the model first"):
        build_plan(tmp_path / "gone.onnx", tmp_path / "m.plan", CONFIG)


def test_errors_keep_their_class_and_line(rtx: Backend, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", operator="NoSuchOperator")
    with pytest.raises(EngineError, match=r"cannot parse .*m\.onnx at node 'pool'"):
        build_plan(path, tmp_path / "m.plan", CONFIG)
    with pytest.raises(ConfigError, match=r"has no SM 9\.0"):
        build_plan(path, tmp_path / "m.plan", BuildConfig("rtx", (SMALL,), sm=("9.0",)))
    with pytest.raises(ConfigError, match="unknown backend 'trtt'"):
        build_plan(path, tmp_path / "m.plan", BuildConfig("trtt"))
    assert names(tmp_path) == ["m.onnx"]


def test_an_unwritable_plan(rtx: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot write .*m\.plan: "):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "file" / "m.plan", CONFIG)


def test_a_full_disk_is_an_error_of_one_line(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib\n"
        "def full(self, data): raise OSError(28, 'No space left on device', str(self))\n"
        "pathlib.Path.write_bytes = full\n"
    )
    path = tiny_onnx(tmp_path / "m.onnx")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"^cannot write .*m\.plan: No space left on device$"):
        build_plan(path, tmp_path / "out" / "m.plan", CONFIG)
    assert names(tmp_path / "out") == []


def test_what_the_builder_logs_is_logged_here(rtx: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "q8trt")
    caplog.set_level(logging.INFO, "q8trt.tensorrt")  # a command may have silenced it
    build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", (SMALL,), timing_cache="cache"))
    assert "TensorRT-RTX has no timing cache" in caplog.text
    assert any(record.name == "q8trt.tensorrt" for record in caplog.records)
    assert not any(record.levelno < logging.INFO for record in caplog.records)


def test_a_failing_progress_callback_is_not_lost(rtx: Backend, tmp_path: Path) -> None:
    def fail(*step: object) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", CONFIG, fail)
    assert names(tmp_path) == ["m.onnx"]


def test_ctrl_c_ends_the_build(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)

    def interrupt(phase: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", CONFIG, interrupt)
    assert names(tmp_path) == ["m.onnx"]
    assert [each.returncode for each in started] == [-signal.SIGKILL]


# A builder that ends its process: a package named tensorrt that does so stands in for the real one.

#: The first lines of that package: the process that imports it has a driver, without which nothing is built.
WITH_DRIVER = "from q8trt.engine import backend\nbackend.driver_cuda = lambda: (13, 4)\n"
FAKE = (
    f"{WITH_DRIVER}import os, signal, sys, time\n"
    "__version__ = '11.0.0'\n"
    "class ILogger:\n"
    "    class Severity: INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)\n"
    "class BuilderFlag: VERSION_COMPATIBLE = 1\n"
    "def Builder(log):\n    {code}\n"
)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``broken(code)`` builds with a TensorRT whose Builder runs `code`; returns what is said of it."""

    def build(code: str) -> str:
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "tensorrt.py").write_text(FAKE.format(code=code))
        monkeypatch.syspath_prepend(folder)
        (tmp_path / "m.onnx").write_bytes(b"")
        with pytest.raises(EngineError) as caught:
            build_plan(tmp_path / "m.onnx", tmp_path / "out" / "m.plan", BuildConfig("tensorrt"))
        assert names(tmp_path / "out") == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return build


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the builder crashed (SIGSEGV) while it built"),
        (
            "print('terminate called after throwing\\n  std::bad_alloc\\n', file=sys.stderr); os.abort()",
            "crashed (SIGABRT) while it built {onnx}: std::bad_alloc; try another --builder_optimization_level",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "was killed (SIGKILL) while it built {onnx}; most likely memory ran out",
        ),
        (
            "print('goodbye'); sys.stdout.flush(); os._exit(3)",
            "ended without an answer (exit code 3) while it built {onnx}: goodbye",
        ),
    ],
)
def test_the_end_of_the_builder_is_one_line(broken: Callable[[str], str], tmp_path: Path, code: str, says: str) -> None:
    assert says.format(onnx=tmp_path / "m.onnx") in broken(code)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the builder crashed (SIGSEGV) when it started; no GPU can be used"),
        (
            "print('what():  CUDA', file=sys.stderr); os.abort()",
            "crashed (SIGABRT) when it started: what(): CUDA; no GPU",
        ),
        ("raise TypeError", "TensorRT 11.0.0 cannot start a build: no reason was logged"),
    ],
)
def test_a_builder_that_does_not_start_is_left_for_one_that_does(
    rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(FAKE.format(code=code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("q8trt.engine.backend.gpus", lambda: [Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")])
    monkeypatch.setattr("q8trt.engine.backend.driver_cuda", lambda: (13, 4))
    try:
        assert [each.name for each in builders()] == ["tensorrt", "tensorrt_rtx"]
        assert started_backend(BuildConfig()).title == rtx.title
        with pytest.raises(BackendError) as caught:
            started_backend(BuildConfig("tensorrt"))
    finally:
        del sys.modules["tensorrt"]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_exported_for_a_builder_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: BuildConfig) -> Backend:
        raise BackendError("the builder crashed")

    monkeypatch.setattr(engine_folder, "load_config", lambda checkpoint: None)
    monkeypatch.setattr(engine_folder, "positions", lambda config: 512)
    monkeypatch.setattr(engine_folder, "started_backend", fail)
    monkeypatch.setattr(engine_folder, "load_model", lambda source: pytest.fail("loaded"))
    run = SimpleNamespace(path=tmp_path)
    source: Any = SimpleNamespace(
        checkpoint=tmp_path, stage="int8", run=run, precision=Precision.INT8, target=Target.CPU
    )
    with pytest.raises(BackendError, match="the builder crashed"):
        engine_folder.build_engine(source, CONFIG, tmp_path / "engine")
    assert names(tmp_path) == []


def test_a_builder_that_starts_leaves_nothing(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert started_backend(CONFIG) == rtx
    assert names(tmp_path) == []
    with pytest.raises(ConfigError, match=r"has no SM 9\.0"):
        started_backend(BuildConfig("rtx", (SMALL,), sm=("9.0",)))


def test_a_defect_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: Backend) -> None:
    (tmp_path / "tensorrt.py").write_text(f"{WITH_DRIVER}__version__ = '11.0.0'\nILogger = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"the building process failed:\nTraceback[\s\S]*'int' object has no attribute"
    ):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("tensorrt"))


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(BackendError, match="cannot start a process to build in: No such file"):
        build_plan(tmp_path / "m.onnx", tmp_path / "m.plan", CONFIG)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_the_process_ends_with_the_one_that_waits_for_it(tmp_path: Path) -> None:
    """Even where that is killed and can put nothing in order."""
    (tmp_path / "tensorrt.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r} + '.part', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid')!r} + '.part', {str(tmp_path / 'pid')!r})\ntime.sleep(600)\n"
    )
    (tmp_path / "m.onnx").write_bytes(b"")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig
from q8trt.engine.determinism import compare_plans
build_plan({str(tmp_path / "m.onnx")!r}, {str(tmp_path / "m.plan")!r}, BuildConfig("tensorrt"))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until((tmp_path / "pid").is_file, parent)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: state(child) == "Z")


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
