"""Scales and zero points against the tensor that they are for; TensorRT-RTX's parser, where it is installed, is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from q8trt.lint import lint

ROWS, COLUMNS = 8, 4


def weight(
    scales: tuple[int, ...], axis: int | None = None, points: tuple[int, ...] | None = None, **changes: Any
) -> onnx.ModelProto:
    """x (batch, 8) times an INT8 weight (8, 4) behind a DequantizeLinear."""
    integers = changes.get("integers", np.ones((ROWS, COLUMNS), np.int8))
    scale = np.full(scales, changes.get("scale", 0.1), changes.get("kind", np.float32))
    attributes = {} if axis is None else {"axis": axis}
    attributes |= {"block_size": changes["block"]} if "block" in changes else {}
    inputs, tensors = ["w", "s"], [numpy_helper.from_array(integers, "w"), numpy_helper.from_array(scale, "s")]
    if points is not None:
        inputs.append("z")
        tensors.append(numpy_helper.from_array(np.zeros(points, np.int8), "z"))
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["d"], "dequantize", **attributes),
        helper.make_node("MatMul", ["x", "d"], ["y"], "product"),
    ]
    return model_of(nodes, tensors, ["batch", ROWS])


def activation(
    scales: tuple[int, ...], axis: int | None, shape: tuple[Any, ...], points: tuple[int, ...] | None = None
) -> onnx.ModelProto:
    """x through a Q/DQ pair."""
    attributes = {} if axis is None else {"axis": axis}
    tensors = [
        numpy_helper.from_array(np.full(scales, 0.1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(scales if points is None else points, np.int8), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize", **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize", **attributes),
    ]
    return model_of(nodes, tensors, shape)


def model_of(nodes: list[Any], tensors: list[Any], shape: Any, opset: int = 21) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


STRINGS = helper.make_tensor("words", TensorProto.STRING, [1], [b"a"])
SHORT = numpy_helper.from_array(np.ones(4, np.int16), "short")
RELU = helper.make_node("Relu", ["x"], ["y"])

#: Graph, and the rule of the error; "" where the parser takes it.
CASES: dict[str, tuple[onnx.ModelProto, str]] = {
    "one": (weight(()), ""),
    "one, as a list": (weight((1,), points=(1,)), ""),
    "one, as a list, zero point a scalar": (weight((1,), points=()), ""),
    "one a column": (weight((4,), 1), ""),
    "one a column, axis from the end": (weight((4,), -1, points=(4,)), ""),
    "one a column, axis left out": (weight((4,)), ""),
    "one a row": (weight((8,), 0), ""),
    "a row's for columns": (weight((8,), 1), "scale-count"),
    "one short": (weight((3,), 1), "scale-count"),
    "one more": (weight((5,), 1, points=(5,)), "scale-count"),
    "none": (weight((0,), 1), "scale-count"),
    "axis too large": (weight((4,), 2), "scale-axis"),
    "axis too small": (weight((4,), -3), "scale-axis"),
    "zero points, one short": (weight((4,), 1, points=(3,)), "zero-point-count"),
    "one zero point for several scales": (weight((4,), 1, points=()), "zero-point-count"),
    "zero points of another rank": (weight((4,), 1, points=(1, 4)), ""),
    "blocks of rows": (weight((2, 4), 0, block=4), ""),
    "blocks that do not divide": (weight((3, 4), 0, block=3), "scale-count"),
    "blocks across two axes": (weight((2, 2), 0, block=4), "scale-count"),
    "one for all, as a matrix": (weight((1, 1)), "scale-count"),
    "one a value": (weight((8, 4), 1), "scale-count"),
    "rank 3": (weight((1, 8, 4), 1), "scale-count"),
    "integers as scales": (weight((), kind=np.int32, scale=1), "scale-type"),
    "INT16": (weight((), integers=np.ones((8, 4), np.int16)), "unsupported-type"),
    "floats dequantized": (weight((), integers=np.ones((8, 4), np.float32)), "quantized-type"),
    "activation": (activation((), None, ("batch", 8)), ""),
    "activation by channel": (activation((8,), 1, ("batch", 8)), ""),
    "activation, one short": (activation((7,), 1, ("batch", 8)), "scale-count"),
    "activation, blocks": (activation((4, 2), 1, (4, 8)), ""),
    "activation, axis out of range": (activation((8,), 5, ("batch", 8)), "scale-axis"),
    "a string, unused": (model_of([RELU], [STRINGS], ["batch", 8]), "unsupported-type"),
    "an INT16, unused": (model_of([RELU], [SHORT], ["batch", 8]), "unsupported-type"),
    "FP16 plus FP32": (
        model_of(
            [helper.make_node("Add", ["x", "c"], ["y"])], [numpy_helper.from_array(np.ones(8, np.float16), "c")], [2, 8]
        ),
        "mixed-types",
    ),
    "sizes that do not fit": (
        model_of(
            [helper.make_node("Add", ["x", "c"], ["y"])], [numpy_helper.from_array(np.ones(7, np.float32), "c")], [2, 8]
        ),
        "contradiction",
    ),
    "an axis that is not there": (model_of([helper.make_node("Softmax", ["x"], ["y"], axis=7)], [], [2, 8]), "contradiction"),
    "reshaped to more": (
        model_of(
            [helper.make_node("Reshape", ["x", "c"], ["y"])], [numpy_helper.from_array(np.array([3, 3]), "c")], [2, 8]
        ),
        "contradiction",
    ),
    "an op that the parser lacks": (
        model_of([helper.make_node("Det", ["x"], ["y"])], [], [4, 4]),
        "unsupported-op",
    ),
    "an op that nobody knows": (model_of([helper.make_node("NotAnOp", ["x"], ["y"])], [], [4, 4]), "unsupported-op"),
}  # fmt: skip


def errors(path: Path) -> list[str]:
    return [finding.rule for finding in lint(path).findings if finding.level == "error"]


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_named(name: str, tmp_path: Path) -> None:
    model, rule = CASES[name]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert (rule in errors(tmp_path / "model.onnx")) if rule else not errors(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", CASES)
def test_the_parser_refuses_what_is_an_error_and_nothing_else(name: str, rtx: Any, tmp_path: Path) -> None:
    model, rule = CASES[name]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    network = rtx.module.Builder(rtx.logger()).create_network(0)
    parsed = rtx.module.OnnxParser(network, rtx.logger()).parse_from_file(str(tmp_path / "model.onnx"))
    assert parsed == (not rule)


def test_what_cannot_be_counted_is_said_to_be_unchecked(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(activation((3,), 0, ("batch", 8)).SerializeToString())
    quantize, dequantize = (f for f in lint(tmp_path / "model.onnx").findings if f.rule == "scales-unchecked")
    assert quantize.level == dequantize.level == "info"
    assert quantize.text == "not checked: 3 scales along dimension 0, whose size is not known"


def test_the_message_tells_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(weight((3,), 1).SerializeToString())
    (finding,) = (each for each in lint(tmp_path / "model.onnx").findings if each.level == "error")
    assert (finding.text, finding.node) == ("3 scales along dimension 1 of size 4", "dequantize")


def test_types_that_are_only_guessed_are_not_called_mixed(tmp_path: Path) -> None:
    """ONNX does not know what the op of another domain gives."""
    nodes = [
        helper.make_node("Mine", ["h"], ["m"], domain="com.microsoft"),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    model = model_of(nodes, [numpy_helper.from_array(np.ones(8, np.float16), "h")], [2, 8])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert errors(tmp_path / "model.onnx") == ["unsupported-op"]


def test_fp16_scales_before_opset_19_do_not_mix_types(tmp_path: Path) -> None:
    """DequantizeLinear gives FP32 there, says ONNX; in TensorRT it gives the type of its scale."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "d"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    tensors = [
        numpy_helper.from_array(np.ones((ROWS, COLUMNS), np.int8), "w"),
        numpy_helper.from_array(np.float16(0.1), "s"),
    ]
    (tmp_path / "model.onnx").write_bytes(model_of(nodes, tensors, [2, ROWS], opset=17).SerializeToString())
    assert "mixed-types" not in errors(tmp_path / "model.onnx")
