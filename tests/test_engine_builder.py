"""The builder in this process, where a test can put itself in the place of TensorRT's parts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import SMALL, tiny_onnx

from q8trt.engine.backend import Backend
from q8trt.engine.builder import build_here, peak_memory_mib
from q8trt.engine.config import BuildConfig, parse_sms
from q8trt.engine.shapes import ShapeProfile, bucket_profiles
from q8trt.errors import BackendError, ConfigError, EngineError


def small(**options: Any) -> BuildConfig:
    return BuildConfig("rtx", (SMALL,), **options)


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver, without which nothing that passes for TensorRT builds."""
    monkeypatch.setattr("q8trt.engine.backend.driver_cuda", lambda: (13, 4))


@pytest.fixture
def model(rtx: Backend, tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "m.onnx")


class Seen:
    """A builder's configuration that remembers what was set, before TensorRT's own sees it."""

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "set", {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.set[name] = value
        setattr(self.inner, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def seen(rtx: Backend, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """The configurations of the builds that follow."""
    made: list[Seen] = []

    class Watched(rtx.module.Builder):  # type: ignore[misc, name-defined]
        def create_builder_config(self) -> Any:
            made.append(Seen(super().create_builder_config()))
            return made[-1]

        def build_serialized_network(self, network: Any, config: Seen) -> Any:
            return super().build_serialized_network(network, config.inner)

    monkeypatch.setattr(rtx.module, "Builder", Watched)
    return made


def test_options_reach_the_builder(rtx: Backend, model: Path, seen: list[Seen]) -> None:
    options = small(workspace_mib=64, builder_optimization_level=1, sm=("8.6", "12.0"))
    info = build_here(model, model.with_suffix(".plan"), options)
    [config] = seen
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(rtx.module.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.profiling_verbosity == rtx.module.ProfilingVerbosity.DETAILED
    assert info.sm_targets == ["8.6", "12.0"]
    assert info.bytes == model.with_suffix(".plan").stat().st_size > 0


def test_without_options_the_builder_keeps_its_own(rtx: Backend, model: Path, seen: list[Seen]) -> None:
    info = build_here(model, model.with_suffix(".plan"), small())
    assert set(seen[0].set) == {"profiling_verbosity"}
    assert info.sm_targets == rtx.portable_sms()
    assert "8.9" in info.sm_targets
    assert "7.5" not in info.sm_targets


def test_each_bucket_is_a_profile(model: Path, seen: list[Seen]) -> None:
    config = BuildConfig("rtx", bucket_profiles((4, 8, 16), 2, 4))
    info = build_here(model, model.with_suffix(".plan"), config)
    assert seen[0].num_optimization_profiles == 3
    assert info.report.profiles == 3


def test_version_and_hardware_compatibility_of_tensorrt(
    rtx: Backend,
    model: Path,
    seen: list[Seen],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT-RTX has TensorRT's calls; what it cannot do with them it says, which shows that they were made."""
    monkeypatch.setattr("q8trt.engine.builder.find_backend", lambda _: Backend("tensorrt", rtx.module, rtx.version))
    level = BuildConfig(profiles=(SMALL,), hardware_compatibility_level="ampere+")
    build_here(model, model.with_suffix(".plan"), level)
    assert seen[0].set["hardware_compatibility_level"] == rtx.module.HardwareCompatibilityLevel.AMPERE_PLUS
    with pytest.raises(EngineError, match=r"cannot build .*m\.onnx: .*libnvinfer_lean"):
        build_here(model, model.with_suffix(".plan"), BuildConfig(profiles=(SMALL,), version_compatible=True))
    assert seen[1].get_flag(rtx.module.BuilderFlag.VERSION_COMPATIBLE)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("rtx", {"sm": ("9.0",)}, r"TensorRT-RTX \S+ has no SM 9\.0; it builds for 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"),
        (
            "rtx",
            {"sm": ("8.7",)},
            r"has no SM 8\.7 \(Jetson Orin\); .* build with TensorRT, which JetPack contains, on that GPU",
        ),
        ("rtx", {"version_compatible": True}, "cannot build version-compatible plans: leave --version_compatible out"),
        (
            "rtx",
            {"hardware_compatibility_level": "ampere+"},
            r"no --hardware_compatibility_level ampere\+: its plans run",
        ),
        ("tensorrt", {"sm": ("8.9",)}, r"--sm needs TensorRT-RTX; TensorRT \S+ builds for this machine's GPU"),
    ],
)
def test_an_option_that_the_backend_lacks(
    rtx: Backend, tmp_path: Path, backend: str, options: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if backend == "tensorrt":
        monkeypatch.setattr("q8trt.engine.builder.find_backend", lambda _: Backend(backend, rtx.module, rtx.version))
    with pytest.raises(ConfigError, match=message):
        build_here(tmp_path / "m.onnx", tmp_path / "m.plan", small(**options))


def test_an_old_tensorrt_lacks_a_level() -> None:
    import types

    old = types.SimpleNamespace(BuilderFlag=object(), HardwareCompatibilityLevel=types.SimpleNamespace(AMPERE_PLUS=1))
    backend = Backend("tensorrt", old, "10.0")  # type: ignore[arg-type]
    small(hardware_compatibility_level="ampere+").check_supported(backend)
    with pytest.raises(
        ConfigError, match=r"TensorRT 10\.0 has no --hardware_compatibility_level same_compute_capability"
    ):
        small(hardware_compatibility_level="same_compute_capability").check_supported(backend)
    with pytest.raises(ConfigError, match=r"TensorRT 10\.0 cannot build version-compatible plans"):
        small(version_compatible=True).check_supported(backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace_mib": 0}, "--workspace_mib 0, expected 1 or more"),
        ({"builder_optimization_level": 6}, "--builder_optimization_level 6, expected 0 to 5"),
        (
            {"hardware_compatibility_level": "hopper"},
            r"unknown --hardware_compatibility_level 'hopper'; known: none, ampere\+, same_compute_capability",
        ),
        ({"sm": ("8.9", "8.9")}, r"--sm 8\.9,8\.9 names a compute capability twice"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)
    with pytest.raises(ConfigError, match="at least one optimization profile"):
        BuildConfig(profiles=())


def test_sms_are_read() -> None:
    assert parse_sms("8.6, 12.0") == ("8.6", "12.0")
    for text in ("", "8", "sm_89", "8.6,"):
        with pytest.raises(ConfigError, match=r"cannot read --sm .*: write compute capabilities, as 8\.6,8\.9,12\.0"):
            parse_sms(text)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_onnx_is_named(model: Path, tmp_path: Path, keep: float) -> None:
    whole = model.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(EngineError, match=r"cut\.onnx .*truncated.*; export it again"):
        build_here(tmp_path / "cut.onnx", tmp_path / "m.plan", small())
    assert not (tmp_path / "m.plan").exists()


def test_a_parser_error_names_the_node(rtx: Backend, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", operator="NoSuchOperator")
    with pytest.raises(EngineError, match=r"cannot parse .*m\.onnx at node 'pool' \(NoSuchOperator\): \S") as caught:
        build_here(path, tmp_path / "m.plan", small())
    assert "\n" not in str(caught.value)


def test_static_axes_are_refused(rtx: Backend, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", shape=("batch", 128))
    with pytest.raises(EngineError, match=r"input 'input_ids' has shape \(-1, 128\).*both axes dynamic"):
        build_here(path, tmp_path / "m.plan", small())


def test_a_refused_build_quotes_tensorrt(rtx: Backend, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(rtx.module.Builder):  # type: ignore[misc, name-defined]
        def build_serialized_network(self, network: Any, config: Any) -> None:
            self.log.log(rtx.module.ILogger.ERROR, "no kernel for\n  node 'matmul'")

        def __init__(self, log: Any) -> None:
            super().__init__(log)
            self.log = log

    monkeypatch.setattr(rtx.module, "Builder", Refusing)
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot build .*m\.onnx: no kernel for node 'matmul'$"):
        build_here(model, model.with_suffix(".plan"), small())
    assert rtx.logger().listener is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workspace_mib": 1}, r"(OutOfMemory|workspace limit).*; give it more --workspace_mib, or smaller shapes$"),
        ({"sm": ("7.5",)}, r"Turing.*; TensorRT-RTX has no FP32 GEMM on SM 7\.5: build with --fp16, or --int8 --fp16$"),
    ],
)
def test_known_refusals_say_what_to_do(rtx: Backend, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")
    config = BuildConfig("rtx", (ShapeProfile((1, 1), (64, 512), (512, 512)),), **options)
    with pytest.raises(EngineError, match=says):
        build_here(path, tmp_path / "m.plan", config)


def test_a_builder_that_cannot_start(rtx: Backend, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(log: Any) -> None:
        log.log(rtx.module.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(rtx.module, "Builder", builder)
    with pytest.raises(BackendError, match="cannot start a build: CUDA initialization failure with error: 35"):
        build_here(model, model.with_suffix(".plan"), small())


def test_a_failing_progress_callback_is_not_lost(model: Path) -> None:
    def fail(*step: object) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"):
        build_here(model, model.with_suffix(".plan"), small(), fail)


def test_phases_are_told(model: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    build_here(model, model.with_suffix(".plan"), small(), lambda *step: phases.append(step))
    assert phases[0][:2] == ("Building engine", 0)
    assert all(0 <= done <= total for _, done, total in phases)


def test_peak_memory_is_this_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other than ru_maxrss, which a process takes over from its parent."""
    import subprocess
    import sys

    ballast = bytearray(200 << 20)
    code = "from q8trt.engine.builder import peak_memory_mib; print(peak_memory_mib())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    del ballast
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell")
    assert 5 < float(answer.stdout) < 150
    assert (peak_memory_mib() or 0) > 200


# Timing caches. TensorRT-RTX still has TensorRT's calls, though they do nothing, so they stand in for it here.


@pytest.fixture
def as_tensorrt(rtx: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets TensorRT-RTX pass for TensorRT of a given version."""

    def play(version: str) -> None:
        backend = Backend("tensorrt", rtx.module, version)
        monkeypatch.setattr("q8trt.engine.builder.find_backend", lambda _: backend)

    play("11.0")
    return play


def test_rtx_says_that_it_has_no_timing_cache(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "q8trt.engine.builder")
    info = build_here(model, tmp_path / "m.plan", small(timing_cache=str(tmp_path / "cache")))
    assert info.timing_cache == "unsupported"
    assert "TensorRT-RTX has no timing cache" in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore:Use Deprecated")
def test_timings_are_kept_for_the_same_version(as_tensorrt: Callable[[str], None], model: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(small(), timing_cache=str(tmp_path / "timings"))
    plan = tmp_path / "m.plan"
    assert [build_here(model, plan, config).timing_cache for _ in range(2)] == ["new", "loaded"]
    [cache] = (tmp_path / "timings").iterdir()
    assert cache.name == "tensorrt-11.0-unknown_gpu.cache"
    assert cache.stat().st_size > 0
    as_tensorrt("11.1")
    assert build_here(model, plan, config).timing_cache == "new"
    assert len(list((tmp_path / "timings").iterdir())) == 2


@pytest.mark.filterwarnings("ignore:Use Deprecated")
def test_an_unusable_timing_cache_is_named(as_tensorrt: Callable[[str], None], model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = small(timing_cache=str(tmp_path / "file" / "timings.cache"))
    with pytest.raises(EngineError, match=r"timing cache .*file.* cannot be used: Not a directory|File exists"):
        build_here(model, tmp_path / "m.plan", config)
