"""For every option of every command that takes a path: names that no system can hold, files that cannot be read, odd files."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, run_area
from benchmarks.campaign.sample import tests_on_path

#: Options and positionals that take a path; parsers do not say.
_PATHS = (
    "input", "output", "rejected", "output_dir", "runs_dir", "engine", "archive", "model", "data_dir", "train_file", "dev_file",
    "validation_file", "test_file", "tfrecord", "recipe", "checkpoint", "run", "from_fp32", "model_name_or_path",
    "teacher_model_name_or_path", "resume", "timing_cache", "onnx", "compare", "json", "html", "report", "repository",
    "model_repository", "cache_dir", "vocab_file", "folder", "dir", "file", "baseline", "engines", "repo", "paths", "path",
    "runtime_cache",
    "write_recipe", "from_pytorch_quantization",
)  # fmt: skip
#: What else a command needs so that it comes to the path.
_CONTEXT = {
    "finetune": {"--task": "STS-B"},
    "calibrate": {"--task": "STS-B"},
    "predict": {"--engine": "engine", "--input": "in.csv"},
    "pack": {"": "engine"},
    "unpack": {"": "engine.q8trt"},
    "triton": {"": "engine"},
    "lint": {"": "engine/model.onnx"},
}


def _unreadable(path: Path) -> None:
    path.write_text("x")
    path.chmod(0)


def _closed_folder(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0)


#: Kind -> a path in the case's folder, and what makes it; None: it is not there.
_KINDS: dict[str, tuple[str, Callable[[Path], Any] | None]] = {
    "nothing": ("nowhere", None),
    "name of 300 letters": ("n" * 300, None),
    "path of 6,000 letters": ("/".join(["d" * 200] * 30), None),
    "empty": ("", None),
    "unreadable": ("secret", _unreadable),
    "in a closed folder": ("closed/x", _closed_folder),
    "below a file": ("plain/x", lambda path: path.parent.write_text("x")),
    "loop of links": ("loop", lambda path: path.symlink_to("loop")),
    "pipe": ("pipe", os.mkfifo),
    "folder": ("folder", Path.mkdir),
    "binary": ("binary", lambda path: path.write_bytes(bytes(range(256)) * 20)),
    "odd name": ("\x1b[31m\n\u202e日本\udcff", lambda path: path.write_text("x")),
}


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield a case for each option and each kind of path."""
    from q8trt.cli.main import COMMANDS, command_module

    tests_on_path()
    for command in COMMANDS:
        for option, count in options(command_module(command).PARSER):
            for kind, (path, make) in _KINDS.items():
                yield Case(
                    f"{kind}: {command} {option}",
                    partial(_call, command, option, [path] * count),
                    partial(_setup, path, make),
                    writes=("*",),
                    seconds=90,
                )


def options(parser: Any) -> Iterator[tuple[str, int]]:
    """Yield the options of a parser that take a path, as ``--engine`` or ``""`` for a positional, and how many they take."""
    for action in parser._actions:
        if action.dest in _PATHS and action.nargs != 0:
            yield (action.option_strings or [""])[-1], action.nargs if isinstance(action.nargs, int) else 1


def _setup(path: str, make: Callable[[Path], Any] | None, folder: Path) -> None:
    from pack_fixtures import write_engine

    from q8trt.deployment.archive import pack

    pack(write_engine(folder / "engine"))
    (folder / "in.csv").write_text("sentence1,sentence2\na,b\n")
    if make:
        make(folder / path)


def _call(command: str, option: str, paths: Sequence[str], folder: Path) -> None:
    """Run the command as an ordinary user: root may read everything."""
    from q8trt.cli.main import run_command

    if os.geteuid() == 0:
        _drop_access()
    context = _CONTEXT.get(command, {})
    context = {} if option == "--resume" else context
    words = [word for name, value in context.items() if name != option for word in (name, value) if word]
    # With "=", a path that begins with a dash, or is empty, is a value all the same.
    sys.exit(run_command(command, [*words, *([f"{option}={paths[0]}", *paths[1:]] if option else paths)]))


def _drop_access() -> None:
    """Give up the right to read and write what permissions forbid: capset(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[0] &= ~0b110  # effective: DAC_OVERRIDE, DAC_READ_SEARCH
        libc.capset(header, sets)
    if os.access("secret", os.R_OK, effective_ids=True):
        raise OSError("the case's unreadable file can be read")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("paths", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
