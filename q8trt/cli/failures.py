"""One-line messages for errors that input or the machine caused. Any other error is a defect and keeps its traceback."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Words in exceptions of torch, safetensors, Arrow and other libraries for a failed write or too little memory.
_DISK_FULL = ("No space left on device", "os error 28")
_WRITE_FAILED = ("] . unexpected pos ", "basic_ios::clear: iostream error")
_FILE_TOO_LARGE = ("File too large", "os error 27")
_NO_MEMORY = ("not enough memory", "bad allocation", "std::bad_alloc", "CUDA out of memory", "Cannot allocate memory")

#: Number of a system's error -> remedy.
_REMEDIES = {
    errno.EROFS: "; give a path that you may write to",
    errno.EACCES: "; change its permissions, or give another path",
    errno.EPERM: "; change its permissions, or give another path",
}
#: Names of lock files and temporary files.
_TEMPORARY = re.compile(r"(^|/)\.[^/]*\.(tmp|old|lock)$")


def explain(error: BaseException) -> str | None:
    """Return the message for an error that input or the machine caused; None for a defect of q8trt."""
    chain = list(_chain(error))
    if _has_errno(chain, errno.ENOSPC, errno.EDQUOT) or _says(chain, _DISK_FULL):
        return "no space is left on the disk; free some space and run the command again"
    if _has_errno(chain, errno.EFBIG) or _says(chain, _FILE_TOO_LARGE):
        return (
            f"{_place(chain) or 'a file'} would be larger than this process may write; raise the limit (ulimit -f) or use "
            "another file system"
        )
    if _says(chain, _WRITE_FAILED):
        return (
            "a file could not be written: no space is left on the disk, or a limit of file sizes (ulimit -f) is reached; "
            "change that and run the command again"
        )
    if any(isinstance(link, MemoryError) for link in chain) or _says(chain, _NO_MEMORY):
        return "not enough memory; use smaller batches or shorter texts, or a machine with more memory"
    if isinstance(error, RecursionError):
        return "the input is nested too deep; give data with fewer levels"
    if isinstance(error, UnicodeError):
        return f"a text or a name is not valid {error.encoding if hasattr(error, 'encoding') else 'Unicode'}: {error}"
    if isinstance(error, pickle.UnpicklingError):
        return "a file of torch has more than tensors and states; it is not read, because it could run code"
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path has a NUL character; give a path without it"
    return None


def _of_system(error: OSError) -> str:
    if error.strerror is None:  # raised by a library with its own message
        return " ".join(str(error).split()) or type(error).__name__
    place = _place([error])
    if place and _TEMPORARY.search(place):  # users do not know the names of q8trt's temporary files
        place = str(Path(place).parent)
    remedy = _REMEDIES.get(error.errno or 0, "")
    return f"{place or 'a file'} cannot be used: {error.strerror}{remedy}"


def was_interrupted(error: BaseException) -> bool:
    """Return whether a library turned Ctrl-C into another exception."""
    return any(isinstance(link, KeyboardInterrupt) for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has_errno(chain: Sequence[BaseException], *numbers: int) -> bool:
    return any(isinstance(link, OSError) and link.errno in numbers for link in chain)


def _says(chain: Sequence[BaseException], words: Sequence[str]) -> bool:
    return any(word in str(link) for link in chain for word in words)


def _place(chain: Sequence[BaseException]) -> str | None:
    """Return the first path that a chain of errors names."""
    names = (link.filename for link in chain if isinstance(link, OSError))
    return next((os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike)), None)
