"""Graph passes over an exported ONNX model. Each takes the model, changes it in place and says how much it changed."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper

from q8trt.errors import QuantizationError


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Tensor name -> value, for initializers and outputs of Constant nodes that hold a tensor."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return values


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return consumers


def quantize_array(values: np.ndarray, scale: np.ndarray, axis: int | None) -> np.ndarray:
    """What QuantizeLinear computes with zero_point 0: int8, saturate(round_half_even(values / scale)).

    FP16 is divided in FP32, as ONNX Runtime does it; in FP16 the quotient, rounded twice, would be off by one now and then.

    Args:
        values: float32 or float16, any shape.
        scale: one positive scale, or one per index of `axis`.
        axis: dimension that the scales run along; None for one scale.

    Source: ONNX operator QuantizeLinear, opset 19.
    """
    values, scale = values.astype(np.float32), scale.astype(np.float32)
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[axis if axis is not None else 1] = -1
        scale = scale.reshape(shape)
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int8)


def _axis(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == "axis"), None)


def _drop(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    doomed = {id(node) for node in nodes}
    kept = [node for node in graph.node if id(node) not in doomed]
    del graph.node[:]
    graph.node.extend(kept)


def fold_weights(model: onnx.ModelProto) -> int:
    """Replace float weight -> QuantizeLinear -> DequantizeLinear (-> Transpose) by int8 constant -> DequantizeLinear.

    The integers are those QuantizeLinear would compute at run time, so outputs do not change by a bit; the file holds one
    byte a weight in place of four. A Transpose of the weight (torch keeps (out, in), MatMul wants (in, out)) is applied
    to the constant, and the per-channel axis follows it.

    Returns:
        number of weights folded.

    Raises:
        QuantizationError: a weight's scale is not a constant, so it cannot be folded.
    """
    graph = model.graph
    constants, consumers = _constants(graph), _consumers(graph)
    doomed: list[onnx.NodeProto] = []
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or quantize.input[0] not in constants:
            continue
        if quantize.input[1] not in constants:
            raise QuantizationError(f"{quantize.name}: the scale of a weight must be a constant")
        attribute = _axis(quantize)
        axis = attribute.i if attribute else None
        integers = quantize_array(constants[quantize.input[0]], constants[quantize.input[1]], axis)
        name = f"{quantize.input[0]}.int8"
        for dequantize in consumers[quantize.output[0]]:
            users = consumers[dequantize.output[0]]
            if len(users) == 1 and users[0].op_type == "Transpose" and integers.ndim == 2:
                integers = np.ascontiguousarray(integers.T)
                if (dq_axis := _axis(dequantize)) is not None:
                    dq_axis.i = 1 - dq_axis.i
                dequantize.output[0] = users[0].output[0]
                doomed.append(users[0])
            dequantize.input[0] = name
        graph.initializer.append(numpy_helper.from_array(integers, name))
        doomed.append(quantize)
    _drop(graph, doomed)
    remove_unused(model)
    return sum(node.op_type == "QuantizeLinear" for node in doomed)


def read_shapes_before_quantization(model: onnx.ModelProto) -> int:
    """Let Shape nodes read what enters a QuantizeLinear -> DequantizeLinear pair in place of what leaves it.

    The shape is the same, and the dequantized tensor is then read by GEMMs alone, so that a builder that matches
    Q/DQ patterns need not look past other readers. Tidiness: no effect on ONNX Runtime was measured.

    Returns:
        number of Shape nodes moved.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    moved = 0
    for node in model.graph.node:
        if node.op_type != "Shape":
            continue
        dequantize = producers.get(node.input[0])
        quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
        if quantize is None or dequantize is None:
            continue
        if (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear"):
            node.input[0] = quantize.input[0]
            moved += 1
    return moved


def remove_unused(model: onnx.ModelProto) -> int:
    """Drop initializers and Constant nodes that nothing reads; returns how many went."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    idle = [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in used]
    _drop(graph, idle)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    removed = len(graph.initializer) - len(kept) + len(idle)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return removed
