"""Timing caches: whose file, what is refused, and builds beside each other."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8trt.engine.backend import Backend
from q8trt.engine.timing_cache import TimingCache, attach, timing_cache_path
from q8trt.hardware.gpu import Gpu

L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
TENSORRT = Backend("tensorrt", types.ModuleType("tensorrt"), "10.13.2.6")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("timings.cache", "timings-tensorrt-10.13.2.6-sm8.9-NVIDIA_L40S.cache"),
        ("timings", "timings/tensorrt-10.13.2.6-sm8.9-NVIDIA_L40S.cache"),
    ],
)
def test_backend_version_and_gpu_are_in_the_name(given: str, expected: str) -> None:
    assert timing_cache_path(given, TENSORRT, L40S) == Path(expected)


def test_no_two_machines_share_a_file(tmp_path: Path) -> None:
    other = Backend("tensorrt", types.ModuleType("tensorrt"), "10.14.0.1")
    cards = (L40S, Gpu("NVIDIA L4", "8.9", 1, ""), Gpu("NVIDIA H100", "9.0", 1, ""), None)
    paths = {timing_cache_path(tmp_path, backend, gpu) for backend in (TENSORRT, other) for gpu in cards}
    assert len(paths) == 8
    assert {path.parent for path in paths} == {tmp_path}


class FakeCache:
    """Timings as a set of words; those of the word "bad" cannot be combined."""

    def __init__(self, data: bytes) -> None:
        self.words = set(data.split())

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if b"bad" in other.words:
            return False
        self.words |= other.words
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.words))


class FakeConfig:
    """A builder configuration; `create` makes the cache of its bytes."""

    def __init__(self, create: Callable[[bytes], Any] = FakeCache, accepts: bool = True) -> None:
        self.create_timing_cache = create
        self.accepts = accepts
        self.cache: Any = None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if self.accepts:
            self.cache = cache
        return self.accepts

    def get_timing_cache(self) -> Any:
        return self.cache


def test_a_refused_cache_is_no_error() -> None:
    def fail(data: bytes) -> None:
        raise RuntimeError("bad cache")

    assert attach(FakeConfig(lambda data: data), b"good") == b"good"
    assert attach(FakeConfig(lambda data: None), b"bad") is None
    assert attach(FakeConfig(lambda data: data, accepts=False), b"other version") is None
    assert attach(FakeConfig(fail), b"bad") is None


def test_a_damaged_cache_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timings.cache"
    path.write_bytes(b"garbage")
    config = FakeConfig(lambda data: None if data == b"garbage" else FakeCache(data))
    cache = TimingCache(config, path)
    assert cache.state == "new"
    assert "timings.cache is damaged or of another version or GPU; starting a new one" in caplog.text
    config.cache.words.add(b"gemm")
    cache.save()
    assert path.read_bytes() == b"gemm"


def test_builds_beside_each_other_keep_both_their_timings(tmp_path: Path) -> None:
    path = tmp_path / "timings.cache"
    path.write_bytes(b"old")
    first, second = FakeConfig(), FakeConfig()
    caches = [TimingCache(config, path) for config in (first, second)]
    assert [cache.state for cache in caches] == ["loaded", "loaded"]
    first.cache.words.add(b"gemm")
    second.cache.words.add(b"softmax")
    for cache in caches:
        cache.save()
    assert path.read_bytes() == b"gemm old softmax"
    assert [each.name for each in tmp_path.iterdir()] == ["timings.cache"]


def test_what_cannot_be_combined_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timings.cache"
    config = FakeConfig()
    cache = TimingCache(config, path)
    config.cache.words.add(b"gemm")
    path.write_bytes(b"bad")
    cache.save()
    assert path.read_bytes() == b"gemm"
