"""Passes that turn the exporters' `QuantizeDequantize` nodes into QuantizeLinear, DequantizeLinear and INT8 constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from q8trt.export.graph import (
    SCOPE,
    above_qdq,
    attribute,
    constant,
    make,
    new_constant,
    nodes,
    only_reader,
    producer,
    replace,
)
from q8trt.quantization.precision import FORMATS, Format

_FAKE = "QuantizeDequantize"


def quantize_array(
    values: np.ndarray, scale: np.ndarray, axis: int | None, format: Format = FORMATS["int8"]
) -> np.ndarray:
    """Return what QuantizeLinear computes with zero_point 0: saturate(round_half_even(values / scale)).

    FP16 is divided in FP32, as in ONNX Runtime. In FP16 the quotient would be rounded twice, and some integers would be off by
    one.

    Args:
        values: float32 or float16, any shape.
        scale: one positive scale, or one per index of `axis`.
        axis: dimension that several scales run along; not read for one scale.
        format: the number format of the result.

    Returns:
        the quantized values, in the shape of `values` and the NumPy type of `format`.

    Source: ONNX operator QuantizeLinear, opset 19.
    """
    values, scale = values.astype(np.float32), scale.astype(np.float32)
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[axis if axis is not None else 1] = -1
        scale = scale.reshape(shape)
    quotients, dtype = values / scale, _dtype(format)
    rounded = np.rint(quotients) if np.issubdtype(dtype, np.integer) else quotients
    return np.clip(rounded, format.lowest, format.largest).astype(dtype)


def _dtype(format: Format) -> np.dtype:
    return ir.DataType[format.onnx_type].numpy()


def _format(node: ir.Node) -> Format:
    return FORMATS[attribute(node, "format", "")]


def fold_weights(model: ir.Model) -> int:
    """Replace a quantized constant by an INT8 constant and a DequantizeLinear, and apply a following Transpose to it.

    The integers are those that QuantizeLinear would compute at run time, so the outputs stay the same to the bit. The file has
    one byte per weight instead of four. An embedding table becomes `DequantizeLinear -> Gather`, which TensorRT keeps in INT8. A
    weight that several layers share is one constant, and counts once for each of its quantizers.
    """
    folded, tables = 0, dict[tuple[ir.Value, bool], ir.Value]()
    for node in nodes(model.graph, _FAKE):
        values, scale = constant(node.inputs[0]), constant(node.inputs[1])
        if values is None or scale is None:
            continue
        axis, format = attribute(node, "axis", -1), _format(node)
        integers, target = quantize_array(values, scale, axis, format), node.outputs[0]
        transpose = only_reader(target, "Transpose")
        is_transposed = transpose is not None and integers.ndim == 2
        if is_transposed:
            integers, target = np.ascontiguousarray(integers.T), transpose.outputs[0]
            axis = 1 - axis if scale.ndim else axis
        table = tables.get((node.inputs[0], is_transposed))
        if table is None:
            table = new_constant(model.graph, f"{node.inputs[0].name}.{format.name}", integers)
            tables[node.inputs[0], is_transposed] = table
        # No zero point: the default is 0, and one per row of an embedding table would be 30 KB of zeros.
        dequantize = make("DequantizeLinear", [table, node.inputs[1]], node, **({"axis": axis} if scale.ndim else {}))
        dequantize.metadata_props[SCOPE] = attribute(node, "site", "")
        replace(target, dequantize.outputs[0])
        folded += 1
    common.RemoveUnusedNodesPass()(model)
    return folded


def separate_weights(model: ir.Model) -> int:
    """Add a separate DequantizeLinear for each further product that reads a shared INT8 weight, so TensorRT can fuse the two."""
    separated = 0
    for node in nodes(model.graph, "DequantizeLinear"):
        if constant(node.inputs[0]) is None:
            continue
        for reader, index in list(node.outputs[0].uses())[1:]:
            if reader.op_type == "MatMul":
                attributes = {name: each.value for name, each in node.attributes.items()}
                reader.replace_input_with(index, make("DequantizeLinear", node.inputs, node, **attributes).outputs[0])
                separated += 1
    return separated


def insert_qdq(model: ir.Model) -> int:
    """Replace the node of each quantized activation by QuantizeLinear and DequantizeLinear with constant scale, zero_point 0."""
    inserted = 0
    for node in nodes(model.graph, _FAKE):
        scale = node.inputs[1]
        zeros = np.zeros(constant(scale).shape, _dtype(_format(node)))
        zero_point, value = new_constant(model.graph, "zero_point", zeros), node.inputs[0]
        smoothing = producer(value, "Mul")
        if smoothing is not None and smoothing.metadata_props.get(SCOPE, "").endswith("quantizer"):
            smoothing.metadata_props[SCOPE] = attribute(node, "site", "")
        axis = {"axis": attribute(node, "axis", -1)} if constant(scale).ndim else {}
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            quantization = make(op_type, [value, scale, zero_point], node, **axis)
            quantization.metadata_props[SCOPE] = attribute(node, "site", "")
            value = quantization.outputs[0]
        replace(node.outputs[0], value)
        inserted += 1
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.pop("q8trt", None)
    model.graph.opset_imports.pop("q8trt", None)
    return inserted


def share_quantizers(model: ir.Model) -> int:
    """Make the readers of an activation that is quantized twice in the same way share one Q/DQ pair.

    The ranges of two sites may be equal, such as those of a projection and of the residual beside it. The pass is exact.
    """
    shared, first = 0, dict[tuple[Any, ...], ir.Value]()
    for node in nodes(model.graph, "QuantizeLinear"):
        dequantize = only_reader(node.outputs[0], "DequantizeLinear")
        scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2])
        if dequantize is None or scale is None or zero_point is None:
            continue
        arrays = tuple((str(each.dtype), each.shape, each.tobytes()) for each in (scale, zero_point))
        scheme = (node.inputs[0], *arrays, attribute(node, "axis", None), attribute(dequantize, "axis", None))
        output = first.setdefault(scheme, dequantize.outputs[0])
        if output is not dequantize.outputs[0]:
            replace(dequantize.outputs[0], output)
            shared += 1
    common.RemoveUnusedNodesPass()(model)
    return shared


def read_shapes_before_quantization(model: ir.Model) -> int:
    """Make Shape nodes read the input of a Q/DQ pair instead of its output, so that only computations read the output."""
    moved = 0
    for node in nodes(model.graph, "Shape"):
        source = above_qdq(node.inputs[0])
        if source is not node.inputs[0]:
            node.replace_input_with(0, source)
            moved += 1
    return moved
