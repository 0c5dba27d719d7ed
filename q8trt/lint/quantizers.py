"""The scheme of a QuantizeLinear or DequantizeLinear, and the path of an operand to an op, in INT8 or in floating point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from q8trt.lint.graph import FORMAT_TYPES, Graph, Value, attribute, op_of, operand

#: Ops that move data: Q/DQ commute with them (TensorRT documentation, "Explicit Quantization", Q/DQ propagation).
MOVES = (
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Slice", "Split", "Expand"
)  # fmt: skip
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
SCALES = ("Mul", "Div")


@dataclass(frozen=True)
class Scheme:
    """The quantization that one Q or DQ node applies.

    Attributes:
        dtype: type of the integers, such as "int8", "uint8" or "int32".
        scale: the scales, float; None if the graph computes them.
        zero_point: the zero points, one 0 if the node has none; None if the graph computes them.
        axis: dimension that several scales run along; None for one scale.
    """

    dtype: str
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None

    @property
    def is_supported(self) -> bool:
        """Return whether the type is one of `FORMATS` and every zero point is known to be 0, as TensorRT requires.

        Source: TensorRT documentation, "Working with Quantized Types"; its ONNX parser.
        """
        return self.dtype in FORMAT_TYPES and self.zero_point is not None and not self.zero_point.any()


def scheme(graph: Graph, node: ir.Node) -> Scheme:
    """Read the integer type, scales, zero points and axis of a Q or DQ node."""
    data, scales, zero = node.inputs[0], node.inputs[1], operand(node, 2)
    if op_of(node) == QUANTIZE:
        dtype = graph.dtype(node.outputs[0]) or (graph.dtype(zero) if zero else "uint8")
    else:
        dtype = graph.dtype(data)
    points = graph.numbers(zero) if zero else np.zeros(1, np.int8)
    shape = graph.shape(scales)
    axis = None
    if shape is None or any(size != 1 for size in shape):
        axis = attribute(node, "axis", 1)
        axis = axis + len(graph.shape(data) or ()) if axis < 0 else axis
    return Scheme(dtype, graph.numbers(scales) if graph.is_stored(scales) else None, points, axis)


@dataclass(frozen=True)
class Feed:
    """The path of one operand to an op.

    Attributes:
        dtype: type of the operand that the op reads, such as "fp16"; "" if it is not known.
        dequantize: the DequantizeLinear on the path; None without one.
        scheme: the quantization of that node; None without one.
        between: op after that node that makes the operand float: "Cast", or "Mul" or "Div" for a scale after DequantizeLinear.
        axis: dimension of the operand, as the op reads it, that several scales run along; None for one scale.
        float_weights: the operand is a float constant behind a QuantizeLinear.
    """

    dtype: str
    dequantize: ir.Node | None = None
    scheme: Scheme | None = None
    between: str | None = None
    axis: int | None = None
    float_weights: bool = False

    @property
    def int8(self) -> bool:
        """Return whether TensorRT can read the operand in INT8."""
        return self.scheme is not None and self.between is None and self.scheme.is_supported

    @property
    def is_scaled_late(self) -> bool:
        """Return whether a Mul or Div is between the DequantizeLinear and the op."""
        return self.between in SCALES


def feed(graph: Graph, value: Value) -> Feed:
    """Follow `value` back to a DequantizeLinear, over ops that only move data, Casts and products with a constant.

    An operand with a Cast or product after DequantizeLinear counts as float. TensorRT reads a float operand there that no
    DequantizeLinear makes, and no document says that it fuses across the Cast.
    """
    dtype, between = graph.dtype(value), None
    moves: list[ir.Node] = []
    while (node := graph.producer(value)) is not None and op_of(node) != DEQUANTIZE:
        op = op_of(node)
        if op not in (*MOVES, "Cast", *SCALES) or operand(node, 0) is None:
            return Feed(dtype)
        value = node.inputs[0]
        if op in SCALES:
            if len(node.inputs) != 2 or not any(graph.is_constant(each) for each in node.inputs):
                return Feed(dtype)
            value = next((each for each in node.inputs if not graph.is_constant(each)), None)
        if op not in MOVES:
            between = op
        moves.append(node)
    if node is None:
        return Feed(dtype)
    dequantized = scheme(graph, node)
    if between is not None:
        return Feed(dtype, node, dequantized, between)
    quantize = quantizer_of(graph, node)
    axis = dequantized.axis
    for move in reversed(moves):  # from the DequantizeLinear toward the op
        if axis is not None and op_of(move) == "Transpose":
            order = attribute(move, "perm", ()) or (1, 0)
            axis = order.index(axis) if axis in order else axis
    return Feed(dtype, node, dequantized, None, axis, quantize is not None and graph.is_constant(quantize.inputs[0]))


def quantizer_of(graph: Graph, dequantize: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that feeds a DequantizeLinear, also over ops that only move data; None if there is none."""
    node = behind_moves(graph, dequantize.inputs[0])
    return node if node is not None and op_of(node) == QUANTIZE else None


def behind_moves(graph: Graph, value: Value) -> ir.Node | None:
    """Return the node that `value` comes from, over ops that only move data; None for inputs and constants."""
    node = graph.producer(value)
    while node is not None and op_of(node) in MOVES:
        node = graph.producer(node.inputs[0])
    return node


def users(graph: Graph, value: ir.Value, passing: tuple[str, ...] = MOVES) -> list[ir.Node]:
    """Return the nodes that read `value`. An op of `passing` is replaced by the nodes that read its outputs."""
    seen: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        for node in graph.readers.get(waiting.pop(), []):
            if op_of(node) in passing and node not in seen:
                waiting += node.outputs
            seen[node] = None
    return [node for node in seen if op_of(node) not in passing]


def same_quantization(graph: Graph, first: ir.Node, second: ir.Node) -> bool:
    """Return whether two Q or DQ nodes have equal types, axes, scales and zero points.

    Scales or zero points that are not stored are equal if both nodes read the same values.
    """
    one, two = scheme(graph, first), scheme(graph, second)
    if one.scale is None or two.scale is None or one.zero_point is None or two.zero_point is None:
        return list(first.inputs[1:]) == list(second.inputs[1:])
    return (
        one.axis == two.axis
        and one.dtype == two.dtype
        and np.array_equal(one.scale, two.scale)
        and np.array_equal(one.zero_point.reshape(-1)[:1], two.zero_point.reshape(-1)[:1])
    )
