"""The kernels that TensorRT-RTX compiles at run time, saved between starts.

A plan of TensorRT-RTX has no machine code for a GPU. Kernels are compiled when they are first needed. A file has the kernels of
one plan, version and GPU, and the library refuses a file of another environment. See "Working with Runtime Cache" in
TensorRT-RTX's documentation.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from q8trt import files

_log = logging.getLogger(__name__)


def runtime_cache_path(folder: Path, plan: bytes, version: str, gpu: str) -> Path:
    """Return the file for a plan, a version of the library and a GPU: ``.runtime-<hash>-<version>-<gpu>.cache`` in `folder`.

    The file is hidden, so it does not count as a file of the engine folder's manifest.
    """
    key = "-".join((hashlib.sha256(plan).hexdigest()[:16], version, gpu))
    return folder / f".runtime-{re.sub(r'[^A-Za-z0-9.-]+', '_', key)}.cache"


class RuntimeCache:
    """A `trt.IRuntimeCache` and its file.

    Attributes:
        path: the file.
        state: "new", or "loaded" if the library accepted the content of the file.
    """

    def __init__(self, runtime_config: Any, path: Path) -> None:
        """Set the cache of a `trt.IRuntimeConfig`, filled from `path` if that file is usable."""
        self.path, self.state = path, "new"
        self._cache = runtime_config.create_runtime_cache()
        self._saved = _read(path)
        if self._saved and self._cache.deserialize(self._saved):
            self.state = "loaded"
        elif self._saved:
            _log.warning("runtime cache %s is damaged or of another environment; starting a new one", path)
        self.share(runtime_config)

    def share(self, runtime_config: Any) -> None:
        """Set the cache of one more `trt.IRuntimeConfig`."""
        if not runtime_config.set_runtime_cache(self._cache):
            _log.warning("runtime cache %s was refused; kernels are compiled again at every start", self.path)

    def save(self) -> None:
        """Write the file if anything was compiled since the last call. If the file cannot be written, log a warning.

        The file is replaced atomically. If two processes save at the same time, the file of the later one stays.
        """
        serialized = self._cache.serialize()
        data = b"" if serialized is None else bytes(memoryview(serialized))
        if not data or data == self._saved:
            return
        try:
            files.write_bytes(self.path, data)
        except OSError as error:
            _log.warning("the runtime cache is not kept, %s cannot be written: %s", self.path, error.strerror or error)
        self._saved = data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        _log.warning("runtime cache %s cannot be read: %s", path, error.strerror or error)
        return b""
