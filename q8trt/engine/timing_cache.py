"""Kernel timings kept between builds, one file for each backend, version and GPU.

Timings of another GPU or version would make TensorRT choose wrong kernels. TensorRT refuses most such caches itself. Here they
are never opened, because the name of the file has backend, version and GPU. See "Timing Cache" in
TensorRT's documentation.
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

    `path` is a folder, as is any path without suffix, or a file whose name the key is added to: ``timings.cache`` ->
    ``timings-<key>.cache``.
    """
    where = (f"sm{gpu.sm}", gpu.name) if gpu else ("unknown-gpu",)
    key = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in (backend.name, backend.version, *where))
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return path / f"{key}.cache"
    return path.with_name(f"{path.stem}-{key}{path.suffix}")


class TimingCache:
    """The timings of one build: read before it, written after it.

    Attributes:
        state: "new" or "loaded".
    """

    def __init__(self, config: Any, path: Path) -> None:
        """Attach the cache in `path` to the `trt.IBuilderConfig` `config`; an empty cache if the file is not usable."""
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
        """Write the timings, merged with those that another build has written in the meantime.

        The file is replaced atomically, so parallel builds never see half of it. If two builds end at the same moment, one may
        lose its new timings, but the file stays sound.

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
    """Return the cache made from `data` and used by `config`; None if TensorRT refuses it (null, False or an exception)."""
    try:
        cache = config.create_timing_cache(data)
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except Exception as error:
        _log.debug("timing cache refused: %s", error)
        return None


def _combine(config: Any, cache: Any, data: bytes) -> None:
    """Add the timings of `data` to `cache`; existing timings of `cache` stay."""
    try:
        other = config.create_timing_cache(data)
        if other is None or not cache.combine(other, False):
            _log.debug("the timing cache written meanwhile cannot be combined with this build's")
    except Exception as error:
        _log.debug("the timing cache written meanwhile cannot be combined with this build's: %s", error)
