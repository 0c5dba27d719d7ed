"""Checks of the numbers of scales and zero points against the tensor that they are for, and of the types of a Q/DQ node.

The rules are those of TensorRT's ONNX parser, found by trying (TensorRT-RTX 1.7.1), and of ONNX where the parser passes
over an attribute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from q8trt.lint.context import Context
from q8trt.lint.graph import FLOATS, Graph, Node
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE
from q8trt.lint.reading import Dims

#: Types that DequantizeLinear takes in TensorRT; uint8 and int32 have rules of their own.
_INTEGERS = ("int8", "int4", "float8e4m3fn", "float4e2m1")
_SPOKEN_OF = ("uint8", "int32", "")


@dataclass(frozen=True)
class _Problem:
    rule: str
    level: str
    what: str


def check_counts(context: Context) -> None:
    """scale-count, scale-axis, zero-point-count, scales-unchecked, scale-type and quantized-type, on every Q and DQ."""
    graph = context.graph
    for node in graph.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        for problem in (_of_zero_points(graph, node) or _of_scales(graph, node), _of_types(graph, node)):
            if problem is not None:
                context.report(problem.rule, problem.level, problem.what, node)


def _of_types(graph: Graph, node: Node) -> _Problem | None:
    kind = graph.inferred_type(node.inputs[1])
    if kind and kind not in FLOATS:
        return _Problem("scale-type", "error", f"the scale is {kind.upper()}")
    if node.op == QUANTIZE:
        asked, zero = _output_type(node), graph.inferred_type(node.input(2))
        if asked and zero and asked != zero:
            return _Problem(
                "quantized-type", "error", f"output_dtype {asked.upper()}, but a zero point of {zero.upper()}"
            )
        return None
    kind = graph.inferred_type(node.inputs[0])
    if kind in (*_INTEGERS, *_SPOKEN_OF):
        return None
    return _Problem("quantized-type", "error", f"DequantizeLinear of {kind.upper()}")


def _output_type(node: Node) -> str:
    from q8trt.lint.reading import dtype_name

    return dtype_name(node.attribute("output_dtype", 0))


def _of_zero_points(graph: Graph, node: Node) -> _Problem | None:
    scales, points = graph.shape(node.inputs[1]), graph.shape(node.input(2))
    if scales is None or points is None or None in (*scales, *points):
        return None
    count, other = graph.size(node.inputs[1]), graph.size(node.input(2))
    if count == other:
        return None
    return _Problem("zero-point-count", "error", f"{_plural(count, 'scale')}, {_plural(other, 'zero point')}")


def _of_scales(graph: Graph, node: Node) -> _Problem | None:
    scales, data = graph.shape(node.inputs[1]), graph.shape(node.inputs[0])
    if scales is None or None in scales:
        return _unchecked("the number of scales is not known")
    if 0 in scales:
        return _Problem("scale-count", "error", "no scale at all")
    if len(scales) > 1:
        return _of_blocks(node, scales, data)
    if scales in ((), (1,)):
        return None
    count = scales[0]
    if data is None:
        return _unchecked(f"{_plural(count, 'scale')} for a tensor of unknown rank")
    axis = node.attribute("axis", 1)
    place = axis + len(data) if axis < 0 else axis
    if not 0 <= place < len(data):
        return _Problem("scale-axis", "error", f"axis {axis} of a tensor with {_plural(len(data), 'dimension')}")
    if node.attribute("block_size", 0):
        return _Problem("scale-count", "error", "a block_size, but scales of one dimension")
    if data[place] is None:
        return _unchecked(f"{_plural(count, 'scale')} along dimension {place}, whose size is not known")
    if data[place] != count:
        return _Problem(
            "scale-count", "error", f"{_plural(count, 'scale')} along dimension {place} of size {data[place]}"
        )
    return None


def _of_blocks(node: Node, scales: Dims, data: Dims | None) -> _Problem | None:
    """Scales of as many dimensions as the tensor: one for each block along the axis."""
    shape = "x".join(map(str, scales))
    if data is None:
        return _unchecked(f"scales of shape {shape} for a tensor of unknown rank")
    axis = node.attribute("axis", 1)
    place = axis + len(data) if axis < 0 else axis
    if len(scales) != len(data):
        return _Problem(
            "scale-count", "error", f"scales of shape {shape} for a tensor of {_plural(len(data), 'dimension')}"
        )
    if not 0 <= place < len(data):
        return _Problem("scale-axis", "error", f"axis {axis} of a tensor with {_plural(len(data), 'dimension')}")
    text = (
        f"scales of shape {shape} for a tensor of shape {'x'.join('?' if size is None else str(size) for size in data)}"
    )
    unequal = [size for number, size in enumerate(data) if number != place and size not in (None, scales[number])]
    size, blocks = data[place], scales[place]
    assert blocks is not None  # the caller knows all
    if unequal or math.prod(size or 0 for size in scales) == 1 or scales == data:
        return _Problem("scale-count", "error", text)
    wanted = node.attribute("block_size", 0)
    if size is not None and (size % blocks or (wanted and wanted != size // blocks)):
        return _Problem("scale-count", "error", f"{text}, block size {wanted or 'not given'}")
    return _unchecked(text) if None in data else None


def _unchecked(what: str) -> _Problem:
    return _Problem("scales-unchecked", "info", f"not checked: {what}")


def _plural(count: int | None, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
