"""Errors that the machine or the terminal causes: one line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pack_fixtures import write_engine
from waiting import PATIENCE

from q8trt.cli import main as cli
from q8trt.cli.failures import explain
from q8trt.cli.main import run_command

ROOT = Path(__file__).parents[1]


def _in_chain(error: Exception) -> Exception:
    wrapper = RuntimeError("a library's words")
    wrapper.__cause__ = error
    return wrapper


def _surrogate() -> Exception:
    try:
        "\ud800".encode()
    except UnicodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a/b"), "a/b cannot be used: Too many levels"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "cannot be used: File name too long"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/.e.q8trt.wtf_.tmp"), "/ro cannot be used: Read-only file system; "),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a cannot be used: Permission denied; change its permissions"),
        (OSError(errno.EROFS, "Read-only file system", ".x.csv.lock"), ". cannot be used: Read-only"),
        (OSError(errno.EIO, "Input/output error"), "a file cannot be used: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"b\xff"), r"b\udcff cannot be used: No such file"),
        (OSError("We could not connect\nto the hub"), "error: We could not connect to the hub"),
        (OSError(errno.EFBIG, "File too large", "out.csv"), "out.csv would be larger than this process may write"),
        (_in_chain(OSError(errno.EFBIG, "File too large")), "a file would be larger than this process may write"),
        (RuntimeError("I/O error: File too large (os error 27)"), "a file would be larger"),
        (MemoryError(), "not enough memory"),
        (_in_chain(MemoryError()), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "the input is nested too deep"),
        (_surrogate(), "a text or a name is not valid utf-8"),
        (ValueError("embedded null byte"), "a path has a NUL character"),
    ],
)  # fmt: skip
def test_errors_of_input_and_machine(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(error, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("doctor: error: ")
    assert words in line


def _run(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    return run_command("doctor", [])


def test_a_module_of_python_itself_is_not_to_be_installed_by_pip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(ModuleNotFoundError("No module named '_lzma'", name="_lzma"), monkeypatch) == 2
    assert capsys.readouterr().err == "doctor: error: this Python lacks its own module _lzma; install Python again\n"


def test_importing_q8trt_is_light() -> None:
    """Ctrl-C before the package is imported ends in Python's own traceback, so this must take no time."""
    code = "import sys; old = set(sys.modules); import q8trt; print(sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "typing" not in done.stdout
    assert "difflib" not in done.stdout


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(ValueError("x")) is None
    with pytest.raises(ZeroDivisionError):
        _run(ZeroDivisionError(), monkeypatch)


def test_ctrl_c_that_a_library_wraps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("failed to import")
    error.__context__ = KeyboardInterrupt()
    assert _run(error, monkeypatch) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_ctrl_c_while_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert run_command("doctor", []) == 130
    assert capsys.readouterr().err == "doctor: stopped by Ctrl-C; nothing half-written was left\n"


def test_ctrl_c_in_a_finalizer_comes_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops an exception of ``__del__``, and with it the interrupt."""

    class Dropped:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def run(argv: list[str]) -> int:
        Dropped()
        threading.Event().wait(PATIENCE)
        return 0

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert run_command("doctor", []) == 130
    assert capsys.readouterr().err == "doctor: stopped by Ctrl-C; nothing half-written was left\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_an_import(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C++ code of a library that is being loaded may end the process for an exception, as torch's does."""
    (tmp_path / "slow_library.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.1)\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_library", raising=False)
    whole = []

    def run(argv: list[str]) -> int:
        import slow_library  # type: ignore[import-not-found]

        whole.append(slow_library.WHOLE)
        threading.Event().wait(PATIENCE)
        return 0

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert run_command("doctor", []) == code
    assert whole == [True]
    assert "stopped by" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["finetune.py", "calibrate.py", "build_engine.py", "benchmark.py", "-m"])
def test_ctrl_c_ends_an_importing_process_in_silence(script: str) -> None:
    """The handler that the entry point leaves while it imports; a SIGINT that is ignored stays ignored."""
    path = ["-m", "q8trt"] if script == "-m" else [script]
    hook = (
        "import importlib, os, runpy, signal, sys\n"
        "importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)\n"
        "class Kill:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'q8trt.cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Kill())\n"
        f"sys.argv = {path[-1:]!r} + ['--help']\n"
        f"{'runpy.run_module' if script == '-m' else 'runpy.run_path'}({path[-1]!r}, run_name='__main__')\n"
    )
    for handler, code in (("default_int_handler", -signal.SIGINT), ("SIG_IGN", None)):
        start = f"import signal; signal.signal(signal.SIGINT, signal.{handler})\n"
        done = subprocess.run(
            [sys.executable, "-c", start + hook], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert code is None or (done.returncode, done.stderr) == (code, "")
        assert code is not None or done.returncode != -signal.SIGINT


def _process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "q8trt", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **{"cwd": ROOT, **options})


def test_a_console_that_cannot_print_a_path(tmp_path: Path) -> None:
    packable = write_engine(tmp_path / "日本語" / "engine")
    env = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = _process("pack", str(packable), stdout=subprocess.PIPE, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u65e5\u672c\u8a9e" in done.stdout
    assert (packable.parent / "engine.q8trt").is_file()
    assert r"\u65e5\u672c\u8a9e" in _process("pack", "日本語", env=env).stderr


def test_a_full_disk_behind_stdout() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with Path("/dev/full").open("w") as full:
        done = _process("--help", stdout=full)
        help = _process("pack", "--help", stdout=full)
    assert (done.returncode, done.stderr[:45]) == (2, "q8trt: error: no space is left on the disk; f")
    assert len(done.stderr.splitlines()) == 1
    assert "Exception ignored" not in help.stderr


def test_standard_streams_that_are_closed(tmp_path: Path) -> None:
    """A file that is opened must not get a descriptor of a stream: what is printed would land in it."""
    packable = write_engine(tmp_path / "engine")
    whole = run_command("pack", [str(packable)])
    expected = packable.with_suffix(".q8trt").read_bytes()
    packable.with_suffix(".q8trt").unlink()
    command = [sys.executable, "-m", "q8trt", "pack", str(packable)]
    closed = subprocess.Popen(command, cwd=ROOT, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert (whole, closed.wait(PATIENCE)) == (0, 0)
    assert packable.with_suffix(".q8trt").read_bytes() == expected


def test_a_file_larger_than_the_limit(tmp_path: Path) -> None:
    packable = write_engine(tmp_path / "engine")
    done = _process("pack", str(packable), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999)))
    assert done.returncode == 2
    assert "would be larger than this process may write; raise the limit (ulimit -f)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_an_error_is_one_line_without_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("pack", ["a\n\x1b[31mb"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"a \x1b[31mb" in line


def test_an_error_where_stderr_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_command("pack", ["nowhere"]) == 2
