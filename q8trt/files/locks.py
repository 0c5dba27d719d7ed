"""Advisory locks: one writer for each run folder, engine folder and scoring job.

The lock is `flock(2)` on a hidden file beside the target. The system releases it when the process ends, even if it is killed,
so a killed process never blocks the next one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from q8trt.errors import BusyError, ConfigError
from q8trt.files.decoding import MalformedError, decode, parse_json

try:
    import fcntl
except ImportError:  # Windows: q8trt runs there without locks
    fcntl = None  # type: ignore[assignment]

#: Largest size in bytes of the holder's note.
_NOTE_BYTES = 4096
_NOTE_START = b'{"pid": '
#: Number of attempts to create a lock file while other processes remove its empty folder.
_ATTEMPTS = 100
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
#: Descriptors of the locks that this process holds.
_handles: set[int] = set()


@dataclass(frozen=True)
class _Note:
    """The holder of a lock, as stored in the lock file."""

    pid: int
    host: str
    command: str


def _forget_in_child() -> None:
    """Close the parent's locks in a forked child, so that a lock ends with the process that acquired it."""
    while _handles:
        with contextlib.suppress(OSError):
            os.close(_handles.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def lock_path(target: str | Path) -> Path:
    """Return the path of the lock file, ``.<name>.lock`` beside the target. Links to one target share one lock."""
    target = Path(target).resolve()
    return target.parent / f".{target.name}.lock"


@contextlib.contextmanager
def exclusive(target: str | Path) -> Iterator[None]:
    """Hold the lock of `target`, which need not exist, until the block ends.

    Missing parent folders are made, and removed afterwards if they are still empty.

    Raises:
        BusyError: another process or this one already holds the lock; the message contains the holder's pid.
        ConfigError: a file that q8trt did not write, or a link, has the name of the lock file; or the folder cannot be written.
        OSError: no space is left.
    """
    path, owner = lock_path(target), os.getpid()
    missing = [folder for folder in path.parents if not folder.exists()]
    handle = None
    try:  # around the acquisition, because Ctrl-C may arrive before the first statement of the block
        handle = _acquire(path, target)
        _handles.add(handle)
        yield
    finally:
        if handle is not None and os.getpid() == owner:  # a forked child that leaves the block does not hold the lock
            path.unlink(missing_ok=True)  # while the lock is held, so that a waiting process sees that it is gone
            _handles.discard(handle)
            os.close(handle)
            with contextlib.suppress(OSError):
                for folder in missing:
                    folder.rmdir()


def _acquire(path: Path, target: str | Path) -> int:
    """Lock the file `path`, write the holder's note into it, and return its descriptor."""
    while True:
        handle = _open(path, target)
        if not try_lock(handle):
            holder = _holder(handle)
            os.close(handle)
            raise BusyError(
                f"{target} is in use by {holder}; wait until it ends, or stop it, and run the command again"
            )
        if not same_file(handle, path):
            os.close(handle)  # the holder removed its lock file between the two calls
            continue
        if _is_lock_file(handle):
            break
        os.close(handle)
        raise ConfigError(f"{path} is not a lock file of q8trt, and the lock of {target} needs that name; move it away")
    note = _Note(os.getpid(), socket.gethostname(), Path(sys.argv[0]).name)
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(note)).encode(), 0)
    return handle


def _open(path: Path, target: str | Path) -> int:
    """Open the lock file, and make it and its folder if they are missing."""
    try:
        for attempt in range(_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                raise ConfigError(f"{path} is a link, and the lock of {target} needs that name; move it away")
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
            except FileNotFoundError:  # another process removed the empty parent folder between the two calls
                if attempt == _ATTEMPTS - 1:  # or no file can be created in the folder, as in /proc
                    raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        raise ConfigError(
            f"{target} cannot be written: {error.strerror or error}; give a path in a folder that you may write to"
        ) from error
    raise AssertionError("not reached")


def _is_lock_file(handle: int) -> bool:
    """Return whether an open file is a lock file of q8trt: it is empty or contains the note of a holder."""
    size = os.fstat(handle).st_size
    return size == 0 or (size <= _NOTE_BYTES and os.pread(handle, len(_NOTE_START), 0) == _NOTE_START)


def _holder(handle: int) -> str:
    """Return a description of the process that holds the lock."""
    try:
        note = decode(_Note, parse_json(os.pread(handle, _NOTE_BYTES, 0)), partial=True)
    except MalformedError:
        return "another process"  # it has not written its note yet
    elsewhere = "" if note.host == socket.gethostname() else f" on {note.host}"
    return f"process {note.pid} ({note.command}){elsewhere}"


def try_lock(handle: int, without_locks: bool = True) -> bool:
    """Lock an open file or folder without waiting; return False if another descriptor holds the lock.

    `without_locks` is returned if the system or the file system has no locks, as on some network mounts.
    """
    if fcntl is None:
        return without_locks
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True


def same_file(handle: int, path: Path) -> bool:
    """Return whether `path` still names the open file."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)
