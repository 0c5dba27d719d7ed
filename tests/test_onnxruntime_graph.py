"""The rewrite for ONNX Runtime's CPU kernels: same values, all GEMMs in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from q8trt.runtime.onnxruntime.graph import fuse_linears, saturates, use_unsigned_activations, use_unsigned_weights
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

SCALE = np.float32(0.05)


def shared_activation(readers: int = 3, extra: bool = False) -> onnx.ModelProto:
    """ids -> Gather -> Q -> DQ, read by `readers` GEMMs with INT8 weights, summed to logits; `extra` adds a reader of Q."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.normal(size=(50, 16)).astype(np.float32) * 4,
        "scale": np.array(SCALE),
        "zero": np.array(0, np.int8),
        "w_scale": np.array(0.01, np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    for number in range(readers):
        constants[f"w{number}"] = rng.integers(-128, 128, (16, 2)).astype(np.int8)
        nodes.append(helper.make_node("DequantizeLinear", [f"w{number}", "w_scale", "zero"], [f"dw{number}"]))
        nodes.append(helper.make_node("MatMul", ["dq", f"dw{number}"], [f"y{number}"]))
    nodes.append(helper.make_node("Sum", [f"y{number}" for number in range(readers)], ["y"]))
    nodes.append(helper.make_node("ReduceMean", ["y", "axes"], ["logits"], keepdims=0))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])]
    if extra:
        nodes.append(helper.make_node("Identity", ["q"], ["raw"]))
        outputs.append(helper.make_tensor_value_info("raw", TensorProto.INT8, ["b", "s", 16]))
    graph = helper.make_graph(
        nodes, "shared", [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["b", "s"])], outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def logits(model: onnx.ModelProto, ids: np.ndarray, optimize: bool) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(["logits"], {"input_ids": ids})[0]


def test_outputs_do_not_change_by_a_bit() -> None:
    model, ids = shared_activation(), np.arange(48, dtype=np.int32).reshape(4, 12)
    before = logits(model, ids, optimize=False)
    assert use_unsigned_activations(model) == 1
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(logits(model, ids, optimize=False), before)


def test_the_values_are_those_of_the_definition() -> None:
    model, ids = shared_activation(1), np.array([[3, 7]], np.int32)
    use_unsigned_activations(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    x = np.clip(np.rint(weights["table"][ids] / SCALE), -128, 127) * SCALE
    expected = (x @ (weights["w0"].astype(np.float32) * np.float32(0.01))).mean(axis=1)
    np.testing.assert_allclose(logits(model, ids, optimize=False), expected, rtol=1e-5)


@pytest.mark.parametrize(("rewrite", "int8_gemms"), [(False, 0), (True, 3)])
def test_it_lets_every_reader_run_in_int8(tmp_path, rewrite: bool, int8_gemms: int) -> None:
    model = shared_activation()
    if rewrite:
        use_unsigned_activations(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in optimized.graph.node) == int8_gemms


def test_a_quantized_tensor_that_something_else_reads_is_left_alone() -> None:
    model = shared_activation(extra=True)
    untouched = model.SerializeToString()
    assert use_unsigned_activations(model) == 0
    assert model.SerializeToString() == untouched


def test_the_runner_gives_what_the_file_gives(tmp_path) -> None:
    model, ids = shared_activation(), np.arange(24, dtype=np.int32).reshape(2, 12)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with OnnxRuntimeRunner(path, "int8") as runner:
        np.testing.assert_allclose(runner.infer({"input_ids": ids}), logits(model, ids, optimize=False), rtol=1e-5)


def linear(axis: int | None = 1, bias_rank: int = 1, read_twice: bool = False) -> onnx.ModelProto:
    """logits = dequantized(x) @ dequantized(W) + b; W (16, 16), so that either axis could carry its scales."""
    rng = np.random.default_rng(1)
    constants = {
        "scale": np.array(SCALE), "zero": np.array(0, np.int8), "w": rng.integers(-128, 128, (16, 16)).astype(np.int8),
        "w_scale": rng.uniform(0.001, 0.01, () if axis is None else 16).astype(np.float32),
        "w_zero": np.zeros(() if axis is None else 16, np.int8),
        "b": rng.normal(size=(16,) if bias_rank == 1 else (1, 16)).astype(np.float32),
    }  # fmt: skip
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"], **attributes),
        helper.make_node("MatMul", ["dq", "dw"], ["y"], "here/MatMul"),
        helper.make_node("Add", ["y", "b"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 16])]
    if read_twice:
        nodes.append(helper.make_node("Tanh", ["y"], ["also"]))
        outputs.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["b", "s", 16]))
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 16])], outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
def test_linear_with_its_bias_is_one_node_of_integer_sums(axis: int | None, unsigned: bool) -> None:
    model = linear(axis)
    if unsigned:
        assert use_unsigned_activations(model) == 1
        assert use_unsigned_weights(model) == 1
    assert fuse_linears(model) == 1
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert model.graph.node[1].name == "here/MatMul"
    x = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32) * 3
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sums = np.clip(np.rint(x / SCALE), -128, 127).astype(np.int64) @ (weights["w"].astype(np.int64) - 128 * unsigned)
    expected = sums * (np.float64(SCALE) * weights["w_scale"].astype(np.float64)) + weights["b"]
    session = ort.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(["logits"], {"x": x})[0], expected, rtol=2e-6, atol=2e-6)
    assert fuse_linears(model) == 0


@pytest.mark.parametrize("case", [{"axis": 0}, {"bias_rank": 2}, {"read_twice": True}], ids=lambda case: str(*case))
def test_what_is_no_linear_is_left_alone(case: dict[str, int]) -> None:
    model = linear(**case)
    untouched = model.SerializeToString()
    assert fuse_linears(model) == 0
    assert model.SerializeToString() == untouched


@pytest.mark.parametrize("axis", [None, 1])
def test_unsigned_weights_are_the_same_to_the_bit(axis: int | None) -> None:
    model = linear(axis)
    use_unsigned_activations(model)
    x = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32) * 3
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    before = ort.InferenceSession(model.SerializeToString(), options).run(["logits"], {"x": x})[0]
    assert use_unsigned_weights(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer}["w"] == TensorProto.UINT8
    after = ort.InferenceSession(model.SerializeToString(), options).run(["logits"], {"x": x})[0]
    np.testing.assert_array_equal(after, before)
    assert use_unsigned_weights(model) == 0


def test_weights_of_signed_activations_stay_signed() -> None:
    model = linear()
    untouched = model.SerializeToString()
    assert use_unsigned_weights(model) == 0
    assert model.SerializeToString() == untouched


@pytest.mark.parametrize(
    ("machine", "flags", "answer"),
    [
        ("x86_64", "fma avx2", True), ("AMD64", "avx512f avx512_vnni", False), ("x86_64", "avx2 avx_vnni", False),
        ("x86_64", None, True), ("aarch64", "fp asimd", False),
    ],
)  # fmt: skip
def test_which_cpus_saturate(tmp_path, monkeypatch, machine: str, flags: str | None, answer: bool) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert saturates(str(tmp_path / "cpuinfo")) is answer


@pytest.mark.parametrize("bias", [True, False], ids=["fused", "weight read by ONNX Runtime's own fusion"])
def test_no_sum_of_the_runner_saturates(tmp_path, bias: bool) -> None:
    """The largest values that there are: two products of unsigned and signed bytes exceed 16 bits (CPUs without VNNI)."""
    constants = {
        "table": np.full((4, 64), 6.35, np.float32), "scale": np.array(SCALE), "zero": np.array(0, np.int8),
        "w": np.full((64, 8), 127, np.int8), "w_scale": np.full(8, 0.01, np.float32), "b": np.ones(8, np.float32),
        "axes": np.array([1], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["dw"], axis=1),
        helper.make_node("MatMul", ["dq", "dw"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["z"]) if bias else helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("ReduceMean", ["z", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "largest", [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    with OnnxRuntimeRunner(tmp_path / "m.onnx", "int8") as runner:
        got = runner.infer({"input_ids": np.zeros((2, 3), np.int32)})
    np.testing.assert_allclose(got, np.full((2, 8), 64 * 6.35 * 1.27 + bias), rtol=1e-6)


def test_a_pair_without_a_zero_point_is_left_alone() -> None:
    model = shared_activation()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            del node.input[2:]
    assert use_unsigned_activations(model) == 0
