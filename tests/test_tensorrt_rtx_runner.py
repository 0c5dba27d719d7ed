"""The runner's behavior on TensorRT-RTX only, with the stand-ins of `tensorrt_fakes`."""

import types
from pathlib import Path

import pytest

from q8trt.errors import ConfigError
from q8trt.runtime import RunOptions
from q8trt.runtime.tensorrt.runner import TensorRTRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from tensorrt_fakes import FakeConfig, batch, check, install, nothing_left


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    return install("tensorrt_rtx", monkeypatch.setattr)


def test_rtx_captures_graphs_itself(rtx: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8", options=RunOptions(specialization="eager")) as runner:
        for _ in range(3):
            assert runner.infer_timed(batch()).cuda_graph is None
        config = rtx.engine.configs[0]
        assert (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == ("whole", "eager")
        assert [how.fake for how in rtx.engine.made_with] == [config]
    assert "cudaStreamBeginCapture" not in rtx.cuda.calls
    with TensorRTRunner(plan, "int8", options=RunOptions(cuda_graph=False)) as runner:
        assert runner.infer_timed(batch()).cuda_graph is False
        assert rtx.engine.configs[1].cuda_graph_strategy == "disabled"


def test_layers_are_timed_without_rtxs_graphs(rtx: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        assert [each.name for each in runner.layer_times(batch(), 2)] == ["table", "mean"]
        ours, profiled = rtx.engine.configs
        assert (profiled.cuda_graph_strategy, profiled.dynamic_shapes_kernel_specialization_strategy) == (
            "disabled", "eager",
        )  # fmt: skip
        assert profiled.cache is ours.cache  # what was compiled once is not compiled again
        assert (ours.cuda_graph_strategy, rtx.engine.made_with[-1].fake) == ("whole", profiled)
    assert nothing_left(rtx)


def test_what_rtx_compiled_is_kept_beside_the_plan(rtx: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        assert runner.runtime_cache_state == "new"
    (cache,) = plan.parent.glob(".runtime-*")
    # the SHA-256 of b"plan" begins so
    assert cache.name == ".runtime-64879f7d6b960a01-1.7.1.116-NVIDIA_Fake.cache"
    assert cache.read_bytes() == FakeConfig.compiled
    stamp = cache.stat().st_mtime_ns
    with TensorRTRunner(plan, "int8") as runner:
        assert runner.runtime_cache_state == "loaded"
    assert cache.stat().st_mtime_ns == stamp  # what did not change is not written
    plan.write_bytes(b"another plan")
    with TensorRTRunner(plan, "int8") as runner:
        assert runner.runtime_cache_state == "new"


def test_a_cache_that_is_refused_is_told(
    rtx: types.SimpleNamespace, plan: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRTRunner(plan, "int8"):
        assert rtx.engine.configs[0].cache is not None
        assert caplog.text == ""
    monkeypatch.setattr(FakeConfig, "takes_cache", False)
    TensorRTRunner(plan, "int8").close()
    assert "was refused; kernels are compiled again at every start" in caplog.text


def test_a_damaged_runtime_cache_is_replaced(
    rtx: types.SimpleNamespace, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = RunOptions(runtime_cache=str(tmp_path / "kept"))
    TensorRTRunner(plan, "int8", options=options).close()
    (cache,) = (tmp_path / "kept").iterdir()
    cache.write_bytes(b"nonsense")
    with TensorRTRunner(plan, "int8", options=options) as runner:
        assert runner.runtime_cache_state == "new"
        assert "is damaged or of another environment; starting a new one" in caplog.text
        runner.save_runtime_cache()
        assert cache.read_bytes() == FakeConfig.compiled


def test_a_folder_that_cannot_be_written_is_a_warning(
    rtx: types.SimpleNamespace, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with TensorRTRunner(plan, "int8", options=RunOptions(runtime_cache=str(tmp_path / "file"))) as runner:
        check(runner)
    assert "the runtime cache is not kept" in caplog.text
    assert nothing_left(rtx)


def test_tensorrt_has_no_runtime_cache(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("tensorrt", monkeypatch.setattr)
    with TensorRTRunner(plan, "int8") as runner:
        runner.save_runtime_cache()
        assert runner.runtime_cache_state == "none"
    assert [path.name for path in plan.parent.iterdir()] == ["model.plan"]


def test_an_unknown_specialization_is_refused() -> None:
    with pytest.raises(ConfigError, match="specialization must be one of lazy, eager, none; got 'quick'"):
        RunOptions(specialization="quick")
