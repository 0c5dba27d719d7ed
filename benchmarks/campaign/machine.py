"""The machine against a command: limits of file size, full disks, signals while it imports, streams that are closed."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign.driver import Case, Outcome, Process, run_area
from benchmarks.campaign.sample import calibrated_run, tests_on_path

#: Bytes that a file may have (``ulimit -f``). The output of a case goes to files as well.
_FILE_SIZES = (4096, 6000, 10_000, 20_000, 50_000, 100_000, 200_000)
_DISK_SIZES = (4096, 20_480, 65_536, 131_072, 262_144, 524_288, 1_048_576)
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18  # of unshare(2) and mount(2)
#: A training that ends early keeps what `--resume` goes on from.
_LEAVES = {"finetune": ("out",)}
_SIGINT = (130, -signal.SIGINT)
_SIGTERM = (143, -signal.SIGTERM)


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield limits of files, full disks, signals and odd streams."""
    tests_on_path()
    from pack_fixtures import write_engine

    from q8trt.deployment.archive import pack

    run = calibrated_run(base)
    archive = pack(write_engine(base / "engine"), base / "engine.q8trt").path
    data = ("--task", "STS-B", "--data_dir", str(base / "data"), "--max_seq_length", "32")
    model = ("--model_name_or_path", str(base / "checkpoint"))
    training = (*data, *model, "--use_cpu", "--max_steps", "2", "--save_steps", "1", "--eval_steps", "1")
    commands: dict[str, Sequence[str]] = {
        "calibrate": ("calibrate", *data, *model, "--output_dir", "out"),
        "finetune": ("finetune", *training, "--output_dir", "out"),
        "build": ("build-engine", "--checkpoint", str(run), "--output_dir", "out", "--backend", "tensorrt_rtx"),
        "pack": ("pack", str(base / "engine"), "--output", "out"),
        "unpack": ("unpack", str(archive), "--output_dir", "out"),
    }
    for name, call in commands.items():
        case = Case("", call, oracle=_whole, writes=("out",), leaves=_LEAVES.get(name, ()), seconds=120, mib=2048)
        yield replace(case, name=f"sound {name}", expect="ok")
        some = slice(None, None, 3 if name in ("finetune", "build") else 1)  # these take long
        for size in _FILE_SIZES[some]:
            yield replace(case, name=f"file size: {name} {size}", prepare=partial(_limit, size))
        for size in _DISK_SIZES[some] if os.geteuid() == 0 else ():
            yield replace(case, name=f"disk: {name} {size}", prepare=partial(_mount, size), oracle=None, leaves=())
    yield from _signals(commands)
    yield from _streams(base, commands)


def _limit(size: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _mount(size: int, folder: Path) -> None:
    """Put a file system of `size` bytes over the case's folder, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls = (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()),
    )
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a file system")
    os.chdir(folder)


def _whole(outcome: Outcome, folder: Path) -> str:
    """No half-written file: an output is there whole, or not at all."""
    return "" if (folder / "out").exists() else "the command says that it succeeded, and there is no output"


def _signals(commands: dict[str, Sequence[str]]) -> Iterator[Case]:
    """Ctrl-C and SIGTERM at 30 points of the time in which a command imports and starts.

    Before the first point, the interpreter itself starts, and answers Ctrl-C with a traceback of its own.
    """
    for number, exits, text in ((signal.SIGINT, _SIGINT, "Ctrl-C"), (signal.SIGTERM, _SIGTERM, "SIGTERM")):
        for name in ("finetune", "build"):
            for point in range(15):
                process = Process(signal=number, after=0.5 + 0.2 * point)
                yield Case(
                    f"{text}: {name} {process.after:.1f} s",
                    commands[name],
                    process=process,
                    exits=exits,
                    writes=("out",),
                    leaves=_LEAVES.get(name, ()),
                    seconds=60,
                )


def _streams(base: Path, commands: dict[str, Sequence[str]]) -> Iterator[Case]:
    for closed in ((0,), (1,), (2,), (1, 2), (0, 1, 2)):
        process = Process(closed=closed)
        yield Case(f"closed: {closed}", commands["pack"], process=process, writes=("out",), expect="ok", seconds=60)
        if 2 not in closed:
            yield Case(f"closed: refusal {closed}", ("pack", "nowhere"), process=process, exits=(2,), seconds=60)
    for encoding in ("cp1252", "ascii", "latin-1:strict"):
        env = {"PYTHONIOENCODING": encoding, "LANG": "C", "PYTHONUTF8": "0"}
        for name, call in (
            ("pack", ("pack", "日本語", "--output", "out")),
            ("lint", ("lint", "日本語/model.onnx")),
            ("missing", ("pack", "日本語が無い")),
            ("unpack", ("unpack", "日本語.q8trt", "--output_dir", "out")),
        ):
            yield Case(
                f"console: {encoding} {name}",
                call,
                partial(_japanese, base),
                process=Process(env=env),
                writes=("out",),
                seconds=60,
            )


def _japanese(base: Path, folder: Path) -> None:
    shutil.copytree(base / "engine", folder / "日本語")
    shutil.copy(base / "engine.q8trt", folder / "日本語.q8trt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("machine", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
