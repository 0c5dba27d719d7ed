"""Kernel timings that are stored between builds, one file for each backend, version and GPU model.

Timings of another GPU or version would make TensorRT choose wrong kernels. TensorRT refuses most such caches itself. q8trt never
opens them, because the name of the file has backend, version and GPU model. See "Timing Cache" in TensorRT's documentation.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal

from q8trt import files
from q8trt.engine.backend import Backend
from q8trt.hardware.gpu import Gpu

_log = logging.getLogger(__name__)


def timing_cache_path(path: str | Path, backend: Backend, gpu: Gpu | None) -> Path:
    """Return the file of the timings for this backend and GPU (None: no driver reports one).

    `path` is a folder or a file. A path without suffix is a folder. The key is added to the name of a file: ``timings.cache`` ->
    ``timings-<key>.cache``.
    """
    where = (f"sm{gpu.sm}", gpu.name) if gpu else ("unknown-gpu",)
    key = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in (backend.name, backend.version, *where))
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return path / f"{key}.cache"
    return path.with_name(f"{path.stem}-{key}{path.suffix}")


class TimingCache:
    """The timing cache of one build. It is read before the build and written after it.

    Attributes:
        state: "loaded" if the build uses the timings of the file, else "new".
    """

    def __init__(self, config: Any, path: Path) -> None:
        """Attach the cache in `path` to the `trt.IBuilderConfig` `config`, or an empty cache if TensorRT refuses the file.

        Raises:
            OSError: the file cannot be read.
        """
        self._config, self._path = config, path
        self._loaded = path.read_bytes() if path.is_file() else b""
        self.state: Literal["new", "loaded"] = "new"
        if self._loaded and attach(config, self._loaded) is not None:
            self.state = "loaded"
            return
        if self._loaded:
            _log.warning("timing cache %s is damaged or of another version or GPU; starting a new one", path)
        attach(config, b"")

    def save(self) -> None:
        """Write the timings, combined with those that another build has written in the meantime.

        The file is replaced atomically, so parallel builds never read an incomplete file. If two builds end at the same moment,
        one may lose its new timings, but the file is valid.

        Raises:
            OSError: the file cannot be written.
        """
        cache = self._config.get_timing_cache()
        if cache is None:
            return
        now = self._path.read_bytes() if self._path.is_file() else b""
        if now and now != self._loaded:
            _combine(self._config, cache, now)
        files.write_bytes(self._path, bytes(memoryview(cache.serialize())))


def attach(config: Any, data: bytes) -> Any:
    """Make a cache from `data`, set it in `config` and return it; None if TensorRT refuses it."""
    try:
        cache = config.create_timing_cache(data)
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except Exception as error:
        _log.debug("timing cache refused: %s", error)
        return None


def _combine(config: Any, cache: Any, data: bytes) -> None:
    """Add the timings of `data` to `cache`. Existing timings of `cache` stay."""
    try:
        other = config.create_timing_cache(data)
        if other is None or not cache.combine(other, False):
            _log.debug("the timing cache written meanwhile cannot be combined with this build's")
    except Exception as error:
        _log.debug("the timing cache written meanwhile cannot be combined with this build's: %s", error)
