"""The origin of a figure: command, commit, versions and hardware, without absolute paths."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import q8trt
from q8trt.hardware.gpu import gpu_names
from q8trt.hardware.packages import RUNTIME_PACKAGES, installed_version

DISTRIBUTIONS = (
    "q8trt",
    "torch",
    "transformers",
    "nvidia-modelopt",
    "onnx",
    *RUNTIME_PACKAGES,
    "numpy",
)


def portable(path: str | Path) -> str:
    """Return `path` without the folders of this machine.

    An absolute path under the current folder becomes relative to it. Any other absolute path keeps its last two parts. A
    relative path does not change.
    """
    pure = _absolute(path)
    if pure is None:
        return str(path)
    return _below_here(pure) or "/".join(pure.parts[1:][-2:]) or "."


def _absolute(path: str | Path) -> PurePath | None:
    """Return an absolute POSIX or Windows path, or one in a ``file://`` URL; None for any other text."""
    text = str(path).removeprefix("file://")
    flavors: tuple[type[PurePath], ...] = (PurePosixPath, PureWindowsPath)
    return next((pure for pure in (flavor(text) for flavor in flavors) if pure.is_absolute()), None)


def _below_here(pure: PurePath) -> str | None:
    """Return an absolute path relative to the current folder; None if it is outside that folder."""
    for folder in (Path.cwd(), Path.cwd().resolve()):
        if pure.is_relative_to(folder):
            return pure.relative_to(folder).as_posix()
    return None


def _shortened(path: str) -> str:
    """Return `path` for a command line: ``.../name`` if it is absolute and outside the current folder."""
    pure = _absolute(path)
    return path if pure is None else _below_here(pure) or f".../{pure.name}"


def _shortened_argument(argument: str) -> str:
    """Return `argument` with every path in it shortened, also in ``--a=/x``, ``/x,/y`` and ``name:/x``, but not in a URL."""
    return "".join(_shortened(piece) for piece in re.split(r"([=,]|:(?=/(?!/)))", argument))


def command_line(argv: Sequence[str]) -> str:
    """Return the command line of `argv`, program first, as a user would type it: ``python benchmark.py --data_dir data``.

    An absolute path outside the current folder is shortened to ``.../name``.
    """
    program, *arguments = argv
    if Path(program).name == "__main__.py":
        head = ["python", "-m", Path(program).parent.name]
    elif program.endswith(".py"):
        head = ["python", _shortened(program)]
    else:
        head = [Path(program).name]
    return shlex.join(head + [_shortened_argument(argument) for argument in arguments])


def _output(*command: str) -> str | None:
    """Return the stripped standard output of `command`; None if it is missing, fails or takes over 10 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git(root: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the checkout at `root`, and whether tracked files differ from it; None for what is not known.

    `root` must be the top folder of the checkout. Otherwise q8trt in an environment inside another project's checkout would
    report that project's commit.
    """
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return commit, None if commit is None or status is None else bool(status)


def _versions() -> dict[str, str]:
    """Return distribution -> version for the installed ones of `DISTRIBUTIONS`."""
    versions = {name: installed_version(name) for name in DISTRIBUTIONS}
    return {"q8trt": q8trt.__version__} | {name: version for name, version in versions.items() if version}


def _cpu_model() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


#: CPU features that the speed of INT8 depends on, as in /proc/cpuinfo. Without VNNI, ONNX Runtime's INT8 gains little.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")


def _cpu_features(cpuinfo: str = "/proc/cpuinfo") -> list[str] | None:
    """Return the CPU_FEATURES that the CPU has; None if the system does not report them."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path(cpuinfo).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return [name for name in CPU_FEATURES if name in flags[1].split()] if flags else None


def _memory_gib() -> float | None:
    """Return the physical memory in GiB; None if the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _cores() -> int | None:
    """Return the number of logical CPUs that this process may use; None if it is not known.

    ``taskset`` and a container's set of CPUs reduce it. A container's quota of CPU time does not.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Return the facts that a reader needs to reproduce a figure, as JSON-ready data.

    Args:
        argv: ``sys.argv`` of the run, program first.

    Returns:
        ``command``, ``git_commit`` and ``git_dirty`` (None outside a checkout of q8trt), ``date_utc`` (ISO 8601),
        ``versions``, ``hardware`` (``cpu``, ``cpu_features``, ``cores``, ``memory_gib``, ``gpus``) and
        ``platform`` (``os``, ``python``). ``cores`` counts the logical CPUs that the process may use, ``gpus`` lists names.
        The data contain no absolute path of this machine.
    """
    commit, dirty = _git(Path(q8trt.__file__).resolve().parents[1])
    return {
        "command": command_line(argv),
        "git_commit": commit,
        "git_dirty": dirty,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_features": _cpu_features(),
            "cores": _cores(),
            "memory_gib": _memory_gib(),
            "gpus": gpu_names(),
        },
        "platform": {"os": _os_name(), "python": platform.python_version()},
    }
