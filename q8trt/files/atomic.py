"""Files and folders that are written completely or not at all.

A writer uses a temporary name in the same folder, flushes the data to the disk, and renames it when it is complete. A
crash, Ctrl-C or a full disk never leaves half a file under a real name.

A writer locks its temporary name. `remove_stale` deletes the files of killed writers: a lock ends with its process, so files of
running writers are never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from q8trt.files.locks import same_file, try_lock

#: Flag of renameat2(2): swap two names in one step, so the folder is never missing.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.[^.]+\.(tmp|old)")


def target_of(name: str) -> str | None:
    """Return the name of the file or folder that a temporary name belongs to; None if `name` is not temporary."""
    match = _TEMPORARY.fullmatch(name)
    return match["target"] if match else None


def umask_permissions(path: Path, mode: int) -> None:
    """Set the permissions of `path` to `mode` without the umask, because `tempfile` and safetensors make private files."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _temporary(path: Path, make: Callable[[Path], str]) -> tuple[Path, int]:
    """Make a temporary file or folder beside `path` and lock it; return it and the descriptor of the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    while True:
        temporary = Path(make(path))
        handle = os.open(temporary, os.O_RDONLY)
        # A sweep in another process may have seen the new name before it was locked, and removed it.
        if try_lock(handle) and same_file(handle, temporary):
            return temporary, handle
        os.close(handle)


def _new_file(path: Path) -> str:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    return name


def _new_folder(path: Path) -> str:
    return tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any exception.

    Raises:
        OSError: the folder cannot be made or written, for example on a full disk; no temporary file remains.
    """
    path = Path(path)
    temporary, handle = _temporary(path, _new_file)
    try:
        umask_permissions(temporary, 0o666)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`, and the old folder is deleted.

    The caller must check that `path` may be replaced. Files in the folder get ordinary permissions. On any exception the
    temporary folder is removed, and an old `path` does not change.

    Raises:
        OSError: the folder cannot be made or written, for example on a full disk.
    """
    path = Path(path)
    with scratch_folder(path) as temporary:
        umask_permissions(temporary, 0o777)
        yield temporary
        finish_folder(temporary)
        _swap(temporary, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and remove it afterwards. If the process is killed, the next one removes it.

    Raises:
        OSError: the folder cannot be made.
    """
    folder, handle = _temporary(Path(path), _new_folder)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(handle)


def finish_folder(folder: Path) -> None:
    """Give every file in `folder` ordinary permissions and flush it to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if not file.is_symlink():
                umask_permissions(file, 0o666)
                sync(file)
        _sync_folder(Path(place))


def _swap(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; an old `path` ends up under the temporary name, which the caller removes."""
    if not (path.exists() or path.is_symlink()):
        folder.replace(path)
        return
    if _exchange(folder, path):
        return
    retired = folder.with_suffix(".old")
    path.replace(retired)
    try:
        folder.replace(path)
    except BaseException:
        retired.replace(path)
        raise
    _remove(retired)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; return False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder. Errors are ignored, because the result is already complete."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_stale(path: str | Path) -> list[Path]:
    """Delete temporary files and folders of `path` whose writer was killed; return the deleted paths.

    If `path` is missing, a folder ``.old`` is renamed to `path` again, because its writer was killed between two renames.
    """
    path = Path(path)
    removed = []
    # Names are compared, not matched, because the user's name may contain wildcards of glob.
    prefix, endings = f".{path.name}.", (".tmp", ".old")
    with contextlib.suppress(OSError):
        for stale in sorted(path.parent.iterdir()):
            name = stale.name
            if not (name.startswith(prefix) and name.endswith(endings)):
                continue
            if stale.is_symlink() or name.count(".") != path.name.count(".") + 3:
                continue  # `.a.b.x.tmp` is a temporary name of `a.b`, not of `a`
            with contextlib.suppress(OSError):
                handle = os.open(stale, os.O_RDONLY)
                try:
                    if not try_lock(handle, without_locks=False):  # its writer may still run
                        continue
                    if name.endswith(".old") and not path.exists():
                        stale.replace(path)
                    else:
                        _remove(stale)
                        removed.append(stale)
                finally:
                    os.close(handle)
    return removed


def sweep(folder: str | Path, patterns: Sequence[str]) -> list[Path]:
    """Delete temporary files of killed writers in `folder`, for targets that match one of `patterns`; return their paths."""
    with contextlib.suppress(OSError):
        names = {name for each in Path(folder).iterdir() if (name := target_of(each.name))}
        targets = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
        return [removed for name in targets for removed in remove_stale(Path(folder, name))]
    return []


def sync(path: str | Path) -> None:
    """Flush a file's data to the disk. Raises OSError, for example if the disk is full."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        sync(path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, completely or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, completely or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
