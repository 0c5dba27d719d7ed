import logging
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.engine import backend as seam
from q8trt.engine.backend import Backend, backend_status, find_backend, sm_name
from q8trt.engine.build import BuildConfig, _try_timing_cache, build_plan
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError, ConfigError, EngineError

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
SMALL = ShapeProfile((1, 1), (2, 8), (4, 16))


@pytest.fixture
def rtx() -> Backend:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return find_backend("rtx")


RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(11, 8)).astype(np.float32)
WEIGHT = RANDOM.integers(-127, 128, (8, 3), dtype=np.int8)
SCALE = np.float32(0.02)


def tiny_onnx(
    path: Path, shape: tuple[int | str, ...] = ("batch", "sequence"), operator: str = "ReduceMean", ids: int = 6
) -> Path:
    """Embedding, times mask -> Q/DQ -> INT8 MatMul -> mean over the sequence -> logits (batch, 3); see `tiny_logits`.

    `ids` is the ONNX type of the inputs: 6 is int32, 7 int64, 1 float32.
    """
    node, value, proto = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    constants = {"table": TABLE, "weight": WEIGHT, "scale": SCALE, "zero": np.int8(0)}
    axes = {"one": np.array([1], np.int64), "last": np.array([2], np.int64)}
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"], "embed"),
        node("Cast", ["attention_mask"], ["float_mask"], "cast", to=proto.FLOAT),
        node("Unsqueeze", ["float_mask", "last"], ["mask"], "unsqueeze"),
        node("Mul", ["embedded", "mask"], ["masked"], "mask"),
        node("QuantizeLinear", ["masked", "scale", "zero"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dequantize"),
        node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], "weights"),
        node("MatMul", ["dq", "w"], ["product"], "matmul"),
        node(operator, ["product", "one"], ["logits"], "pool", keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value(name, ids, shape) for name in ("input_ids", "attention_mask")],
        [value("logits", proto.FLOAT, ("batch", 3))],
        [onnx.numpy_helper.from_array(np.asarray(each), name) for name, each in {**constants, **axes}.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def tiny_logits(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """What `tiny_onnx` computes, in NumPy."""
    masked = TABLE[input_ids] * attention_mask[..., None]
    quantized = np.clip(np.rint(masked / SCALE), -128, 127) * SCALE
    return (quantized @ (WEIGHT * SCALE)).mean(1).astype(np.float32)


def test_a_plan_is_built_without_a_gpu(rtx: Backend, tmp_path: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    config = BuildConfig("rtx", SMALL, workspace_mib=64)
    info = build_plan(
        tiny_onnx(tmp_path / "m.onnx"), tmp_path / "out" / "m.plan", config, lambda *step: phases.append(step)
    )
    assert (info.backend, info.version, info.timing_cache) == ("tensorrt_rtx", rtx.version, "none")
    assert info.sm_targets == rtx.portable_sms()
    assert "8.9" in info.sm_targets
    assert "7.5" not in info.sm_targets
    assert info.bytes == (tmp_path / "out" / "m.plan").stat().st_size > 0
    assert info.seconds > 0
    assert phases[0][:2] == ("Building engine", 0)
    assert all(0 <= done <= total for _, done, total in phases)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.plan"]


def test_missing_onnx(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.onnx does not exist; export the model first"):
        build_plan(tmp_path / "gone.onnx", tmp_path / "m.plan", BuildConfig())


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_onnx_is_named(rtx: Backend, tmp_path: Path, keep: float) -> None:
    whole = tiny_onnx(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(EngineError, match=r"cut\.onnx .*truncated.*; export it again"):
        build_plan(tmp_path / "cut.onnx", tmp_path / "m.plan", BuildConfig("rtx", SMALL))
    assert not (tmp_path / "m.plan").exists()


def test_a_parser_error_names_the_node(rtx: Backend, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", operator="NoSuchOperator")
    with pytest.raises(EngineError, match=r"cannot parse .*m\.onnx at node 'pool' \(NoSuchOperator\): \S") as caught:
        build_plan(path, tmp_path / "m.plan", BuildConfig("rtx", SMALL))
    assert "\n" not in str(caught.value)


def test_static_axes_are_refused(rtx: Backend, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", shape=("batch", 128))
    with pytest.raises(EngineError, match=r"input 'input_ids' has shape \(-1, 128\).*both axes dynamic"):
        build_plan(path, tmp_path / "m.plan", BuildConfig("rtx", SMALL))


def test_a_refused_build_quotes_tensorrt(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(rtx.module.Builder):  # type: ignore[misc, name-defined]
        def build_serialized_network(self, network: Any, config: Any) -> None:
            self.log.log(rtx.module.ILogger.ERROR, "no kernel for\n  node 'matmul'")

        def __init__(self, log: Any) -> None:
            super().__init__(log)
            self.log = log

    monkeypatch.setattr(rtx.module, "Builder", Refusing)
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot build .*m\.onnx: no kernel for node 'matmul'$"):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", SMALL))


def test_a_builder_that_cannot_start(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(log: Any) -> None:
        log.log(rtx.module.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(rtx.module, "Builder", builder)
    with pytest.raises(BackendError, match="cannot start a build: CUDA initialization failure with error: 35"):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", SMALL))


def test_ctrl_c_stops_the_build(rtx: Backend, tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("Building engine", 0):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", SMALL), interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_failing_progress_callback_is_not_lost(rtx: Backend, tmp_path: Path) -> None:
    def fail(*step: object) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", SMALL), fail)


def test_an_unwritable_plan(rtx: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot write .*m\.plan: "):
        build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "file" / "m.plan", BuildConfig("rtx", SMALL))


def test_rtx_says_that_it_has_no_timing_cache(rtx: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "q8trt.engine.build")
    config = BuildConfig("rtx", SMALL, timing_cache=str(tmp_path / "cache"))
    info = build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", config)
    assert info.timing_cache == "unsupported"
    assert "TensorRT-RTX has no timing cache" in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore:Use Deprecated")
def test_timing_cache_of_tensorrt(rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX still has TensorRT's calls, though they do nothing, so they stand in for it here."""
    monkeypatch.setattr("q8trt.engine.build.find_backend", lambda _: Backend("tensorrt", rtx.module, rtx.version))
    config = BuildConfig(shapes=SMALL, timing_cache=str(tmp_path / "cache"))
    states = [build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", config).timing_cache for _ in range(2)]
    assert states == ["new", "loaded"]
    assert (tmp_path / "cache").stat().st_size > 0


class TimingConfig:
    """A builder configuration that refuses a cache in one of TensorRT's three ways."""

    def __init__(self, create: Callable[[bytes], Any], accepts: bool = True) -> None:
        self.create_timing_cache = create
        self.accepts = accepts

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return self.accepts


def test_a_refused_timing_cache_is_no_error() -> None:
    def fail(data: bytes) -> None:
        raise RuntimeError("bad cache")

    assert _try_timing_cache(TimingConfig(lambda data: data), b"good") == b"good"
    assert _try_timing_cache(TimingConfig(lambda data: None), b"bad") is None
    assert _try_timing_cache(TimingConfig(lambda data: data, accepts=False), b"other version") is None
    assert _try_timing_cache(TimingConfig(fail), b"bad") is None


def test_a_damaged_timing_cache_is_replaced(
    rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("q8trt.engine.build.find_backend", lambda _: Backend("tensorrt", rtx.module, rtx.version))
    monkeypatch.setattr("q8trt.engine.build._try_timing_cache", lambda config, data: data == b"" or None)
    (tmp_path / "cache").write_bytes(b"garbage")
    config = BuildConfig(shapes=SMALL, timing_cache=str(tmp_path / "cache"))
    info = build_plan(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", config)
    assert info.timing_cache == "new"
    assert "cache is damaged or of another version or GPU; starting a new one" in caplog.text


# The seam


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", "rtx", " RTX "])
def test_spellings_of_tensorrt_rtx(rtx: Backend, name: str) -> None:
    assert find_backend(name).name == "tensorrt_rtx"
    assert find_backend(name).logger() is rtx.logger()


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match=r"unknown backend 'tensort'; choose .* \(did you mean 'tensorrt'\?\)"):
        find_backend("tensort")


@pytest.mark.parametrize(("name", "extra"), [("trt", "tensorrt"), ("rtx", "rtx")])
def test_absent_backend(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr(seam.importlib, "import_module", absent)
    with pytest.raises(BackendError, match=rf'is not installed: pip install "q8trt\[{extra}\]"'):
        find_backend(name)
    with pytest.raises(BackendError, match=r"TensorRT is not installed: .*; TensorRT-RTX is not installed: "):
        find_backend()
    assert all("is not installed" in reason for reason in backend_status().values())


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_broken_backend_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open\nshared object file")

    monkeypatch.setattr(seam.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"cannot be imported: libnvinfer\.so\.10: cannot open shared object file$"):
        find_backend("tensorrt")


def test_tensorrt_comes_before_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("tensorrt")
    fake.__version__ = "10.13.2.6"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    backend = find_backend()
    assert (backend.name, backend.title) == ("tensorrt", "TensorRT 10.13.2.6")
    assert backend.portable_sms() == []


def test_names_of_architectures() -> None:
    assert [sm_name(name) for name in ("SM75", "SM120", "NONE", "CURRENT")] == ["7.5", "12.0", None, None]


def test_the_logger_forwards_and_remembers_errors(rtx: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "q8trt.tensorrt")
    log, severity = rtx.logger(), rtx.module.ILogger.Severity
    rtx.forget_errors()
    assert rtx.last_error() == "no reason was logged"
    log.log(severity.WARNING, "careful")
    log.log(severity.ERROR, "first")
    log.log(severity.INTERNAL_ERROR, "second\n line")
    assert rtx.last_error() == "second line"
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "ERROR"]
