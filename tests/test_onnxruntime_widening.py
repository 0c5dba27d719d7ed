"""FP16 and BF16 graphs in FP32 on the CPU: the same constants and integers, answers to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from q8trt.export.onnx import export_onnx
from q8trt.files.onnx import messages
from q8trt.quantization.precision import Precision
from q8trt.reporting.measurements import Measurements, Row
from q8trt.runtime.onnxruntime.graph import for_the_cpu
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.onnxruntime.widening import widen

NAMES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
LOWEST = -65504.0
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (8, 4)).astype(np.int8)
CONSTANTS: dict[str, Any] = {
    "table": RNG.normal(size=(11, 8)), "scale": 0.021, "w_scale": RNG.uniform(0.001, 0.01, 4), "bias": RNG.normal(size=4),
    "top": 3.0, "lowest": LOWEST,
}  # fmt: skip


def graph_of(element: int) -> onnx.ModelProto:
    """Embeddings -> Q/DQ -> INT8 GEMM -> bias -> clip -> a masked softmax of its columns, in the float type `element`.

    The type occurs in initializers, raw and typed, in a Constant, a Cast, a ConstantOfShape, a branch of an If, an output and a
    declared type.
    """
    typed = [helper.make_tensor(name, element, np.shape(value), np.ravel(value)) for name, value in CONSTANTS.items()]
    typed[0] = helper.make_tensor("table", element, (11, 8), _raw(CONSTANTS["table"], element), raw=True)
    value, node = helper.make_tensor_value_info, helper.make_node
    integers = {"w": WEIGHT, "zero": np.int8(0), "last": np.array([2]), "yes": np.bool_(True), "one": np.array([1])}
    half = helper.make_tensor("half", element, (), [0.5])
    outer = [value("branch", element, ["b", "s", 4])], [helper.make_tensor("half_", element, (), [0.5])]
    branch = helper.make_graph([node("Mul", ["biased", "half_"], ["branch"])], "branch", [], *outer)
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        node("DequantizeLinear", ["w", "w_scale"], ["dw"], axis=1),
        node("MatMul", ["dq", "dw"], ["product"]),
        node("Add", ["product", "bias"], ["biased"]),
        node("If", ["yes"], ["halved"], then_branch=branch, else_branch=branch),
        node("Constant", [], ["half"], value=half),
        node("Div", ["halved", "half"], ["doubled"]),
        node("Clip", ["doubled", "lowest", "top"], ["clipped"]),
        node("Cast", ["attention_mask"], ["keep"], to=element),
        node("Shape", ["keep"], ["sizes"]),
        node("ConstantOfShape", ["sizes"], ["ones"], value=helper.make_tensor("ones_", element, (1,), [1.0])),
        node("Sub", ["ones", "keep"], ["drop"]),
        node("Mul", ["drop", "lowest"], ["masks"]),
        node("Unsqueeze", ["masks", "last"], ["mask"]),
        node("Add", ["clipped", "mask"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=1),
        node("ReduceSum", ["shares", "one"], ["sums"], keepdims=0),
        node("ReduceMax", ["clipped", "one"], ["largest"], keepdims=0),
        node("Mul", ["sums", "largest"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "halves", [value(name, TensorProto.INT32, ["b", "s"]) for name in ("input_ids", "attention_mask")],
        [value("logits", element, ["b", 4]), value("shares", element, ["b", "s", 4]),
         value("q", TensorProto.INT8, ["b", "s", 8])],
        typed + [numpy_helper.from_array(np.asarray(each), name) for name, each in integers.items()],
        value_info=[value("product", element, ["b", "s", 4])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _raw(array: np.ndarray, element: int) -> bytes:
    if element == TensorProto.BFLOAT16:  # the upper half of FP32, cut
        return (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype(helper.tensor_dtype_to_np_dtype(element)).tobytes()


def batch() -> dict[str, np.ndarray]:
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    return {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)}


def outputs(data: bytes) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, batch())


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_nothing_of_16_bits_is_left_and_constants_are_the_same(element: int) -> None:
    model = graph_of(element)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    branches, values = 2 * 2, 3  # an initializer and an output each; Constant, ConstantOfShape, Cast
    assert widen(model) == len(CONSTANTS) + branches + values + 3  # two outputs, one declared type
    onnx.checker.check_model(model, full_check=True)
    assert "FLOAT16" not in onnx.printer.to_text(model).upper()
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, values in after.items():
        np.testing.assert_array_equal(values, before[name].astype(values.dtype))
        assert values.dtype == (np.float32 if name in CONSTANTS else before[name].dtype)
    assert widen(model) == 0


def test_the_messages_without_the_onnx_package_give_the_same_file() -> None:
    data = graph_of(TensorProto.FLOAT16).SerializeToString()
    ours, theirs = messages.parse(data), onnx.load_from_string(data)
    assert widen(ours) == widen(theirs)
    assert onnx.load_from_string(ours.SerializeToString()) == theirs


def test_answers_are_those_of_fp32_and_of_fp16_to_rounding() -> None:
    fp16 = graph_of(TensorProto.FLOAT16)
    rounded = graph_of(TensorProto.FLOAT)  # its constants as FP16 has them
    for tensor in rounded.graph.initializer:
        if tensor.name in CONSTANTS:
            values = np.asarray(CONSTANTS[tensor.name], np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    as_it_is, exact = outputs(fp16.SerializeToString()), outputs(rounded.SerializeToString())
    widen(fp16)
    widened = outputs(fp16.SerializeToString())
    assert [each.dtype for each in widened] == [np.float32, np.float32, np.int8]
    for ours, reference in zip(widened, exact, strict=True):
        np.testing.assert_array_equal(ours, reference)
    np.testing.assert_allclose(widened[0], as_it_is[0].astype(np.float32), rtol=4e-3)
    np.testing.assert_array_equal(widened[2], as_it_is[2])
    masked = batch()["attention_mask"] == 0
    assert (widened[1][masked] == 0).all()  # -65504 still takes a position out
    assert (widened[1][~masked] > 0).all()


def test_integers_of_the_gemm_are_those_of_the_file() -> None:
    """After all rewrites, unsigned zero points taken off."""
    data = graph_of(TensorProto.FLOAT16).SerializeToString()
    for unsigned in (True, False):
        model = onnx.load_from_string(for_the_cpu(data, unsigned))
        weight = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == "w")
        np.testing.assert_array_equal(weight.astype(int) - 128 * (weight.dtype == np.uint8), WEIGHT)


def test_a_file_that_would_not_fit_protobuf_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = graph_of(TensorProto.FLOAT16).SerializeToString()
    monkeypatch.setattr("q8trt.runtime.onnxruntime.graph._WIDENED", len(data) - 1)
    model = onnx.load_from_string(for_the_cpu(data))
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


@pytest.mark.parametrize("precision", ["fp16", "int8+fp16"])
def test_the_runner_computes_an_export_in_fp32(
    precision: str, tmp_path: Path, tiny_model: Callable[..., Any], tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:  # fmt: skip
    model = tiny_quantized()[0] if Precision(precision).is_quantized else tiny_model()
    feed = {name: tensor.numpy().astype(np.int32) for name, tensor in tiny_batch().items()}
    path = export_onnx(model, tmp_path / "model.onnx", precision, tuple(feed), batches=[feed]).path
    elsewhere = Precision.INT8 if Precision(precision).is_quantized else Precision.FP32
    float_path = export_onnx(model, tmp_path / "fp32.onnx", elsewhere, tuple(feed)).path
    logits = {}
    for name, source, widens in (("widened", path, True), ("as it is", path, False), ("fp32", float_path, True)):
        with OnnxRuntimeRunner(source, precision, threads=1, widen=widens) as runner:
            logits[name] = runner.infer(feed)
    tolerance = Precision(precision).rounding * np.abs(logits["fp32"]).max()
    for name in ("as it is", "fp32"):
        np.testing.assert_allclose(logits["widened"], logits[name], atol=tolerance)
    assert (logits["widened"] != logits["as it is"]).any()


def test_no_row_of_the_cpu_passes_for_fp16() -> None:
    def row(backend: str, device: str, precision: Precision) -> Row:
        return Row(precision.label, "", backend, device, precision, {})

    for backend, device, measured in (
        ("onnxruntime", "cpu", False),
        ("onnxruntime", "NVIDIA L4", True),
        ("tensorrt", "NVIDIA L4", True),
        ("of a later version", "cpu", True),
    ):
        half, quantized = row(backend, device, Precision.FP16), row(backend, device, Precision.INT8_FP16)
        report = Measurements("STS-B", "dev", "", False, 1, "", "pearson", [half, quantized], {})
        assert report.fp16_row(quantized) is (half if measured else None)
        assert half.is_widened is quantized.is_widened is not measured
    assert not row("onnxruntime", "cpu", Precision.INT8).is_widened
