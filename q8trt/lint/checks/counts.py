"""Checks of the numbers of scales and zero points for their tensor, and of the types of a Q/DQ node.

The rules are those of TensorRT's ONNX parser, as experiments with TensorRT-RTX 1.7.1 show them. If the parser ignores an
attribute, the rule is ONNX's.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.graph import FLOATS, Dims, Graph, attribute, dtype_name, op_of, operand
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE

#: Types that TensorRT's DequantizeLinear accepts; also uint8 and int32, which have separate rules, and "" (not known).
_INTEGERS = ("int8", "int4", "float8e4m3fn", "float4e2m1", "uint8", "int32", "")

#: A rule and the facts.
Problem = tuple[str, str]


def check_counts(context: Context) -> None:
    """Check scale-count, scale-axis, zero-point-count, scales-unchecked, scale-type and quantized-type, on every Q and DQ."""
    graph = context.graph
    for node in graph.nodes_of(QUANTIZE, DEQUANTIZE):
        for problem in (_of_zero_points(graph, node) or _of_scales(graph, node), _of_types(graph, node)):
            if problem is not None:
                context.report(*problem, node)


def _of_types(graph: Graph, node: ir.Node) -> Problem | None:
    kind = graph.inferred_type(node.inputs[1])
    if kind and kind not in FLOATS:
        return "scale-type", f"the scale is {kind.upper()}"
    if op_of(node) == QUANTIZE:
        output, zero = dtype_name(attribute(node, "output_dtype", 0)), graph.inferred_type(operand(node, 2))
        if output and zero and output != zero:
            return "quantized-type", f"output_dtype {output.upper()}, but a zero point of {zero.upper()}"
        return None
    kind = graph.inferred_type(node.inputs[0])
    return None if kind in _INTEGERS else ("quantized-type", f"DequantizeLinear of {kind.upper()}")


def _of_zero_points(graph: Graph, node: ir.Node) -> Problem | None:
    scales, points = graph.shape(node.inputs[1]), graph.shape(operand(node, 2))
    if scales is None or points is None or None in (*scales, *points):
        return None
    count, other = graph.size(node.inputs[1]), graph.size(operand(node, 2))
    return (
        None if count == other else ("zero-point-count", f"{_plural(count, 'scale')}, {_plural(other, 'zero point')}")
    )


def _of_scales(graph: Graph, node: ir.Node) -> Problem | None:
    scales, data = graph.shape(node.inputs[1]), graph.shape(node.inputs[0])
    if scales is None or None in scales:
        return _unchecked("the number of scales is not known")
    if 0 in scales:
        return "scale-count", "no scale at all"
    if len(scales) > 1:
        return _of_blocks(node, scales, data)
    if scales in ((), (1,)):
        return None
    count = _plural(scales[0], "scale")
    if data is None:
        return _unchecked(f"{count} for a tensor of unknown rank")
    axis = attribute(node, "axis", 1)
    dimension = axis + len(data) if axis < 0 else axis
    if not 0 <= dimension < len(data):
        return "scale-axis", f"axis {axis} of a tensor with {_plural(len(data), 'dimension')}"
    if attribute(node, "block_size", 0):
        return "scale-count", "a block_size, but scales of one dimension"
    if data[dimension] is None:
        return _unchecked(f"{count} along dimension {dimension}, whose size is not known")
    if data[dimension] != scales[0]:
        return "scale-count", f"{count} along dimension {dimension} of size {data[dimension]}"
    return None


def _of_blocks(node: ir.Node, scales: Dims, data: Dims | None) -> Problem | None:
    """Check scales of several dimensions, one for each block along the axis: they must have the rank of the tensor."""
    text = f"scales of shape {_shape(scales)} for a tensor of"
    if data is None:
        return _unchecked(f"{text} unknown rank")
    axis, rank = attribute(node, "axis", 1), _plural(len(data), "dimension")
    dimension = axis + len(data) if axis < 0 else axis
    if len(scales) != len(data):
        return "scale-count", f"{text} {rank}"
    if not 0 <= dimension < len(data):
        return "scale-axis", f"axis {axis} of a tensor with {rank}"
    text = f"{text} shape {_shape(data)}"
    unequal = [size for number, size in enumerate(data) if number != dimension and size not in (None, scales[number])]
    size, blocks = data[dimension], scales[dimension]
    assert blocks is not None  # the caller checks that all sizes of `scales` are known
    if unequal or math.prod(size or 0 for size in scales) == 1 or scales == data:
        return "scale-count", text
    block_size = attribute(node, "block_size", 0)
    if size is not None and (size % blocks or (block_size and block_size != size // blocks)):
        return "scale-count", f"{text}, block size {block_size or 'not given'}"
    return _unchecked(text) if None in data else None


def _shape(dims: Dims) -> str:
    return "x".join("?" if size is None else str(size) for size in dims)


def _unchecked(reason: str) -> Problem:
    return "scales-unchecked", f"not checked: {reason}"


def _plural(count: int | None, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
