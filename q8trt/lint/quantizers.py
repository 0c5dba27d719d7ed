"""What a QuantizeLinear or DequantizeLinear does, and how a tensor reaches an op: in INT8 or in float, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from q8trt.lint.graph import Graph, Node

#: Ops that move data: Q/DQ commute with them (TensorRT documentation, "Explicit Quantization", Q/DQ propagation).
MOVES = (
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Slice", "Split", "Expand"
)  # fmt: skip
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class Scheme:
    """What one Q or DQ node does.

    Attributes:
        dtype: of the integers: "int8", "uint8", "int32" ...
        scale: the scales, float; None where the graph computes them.
        zero_point: the zero points; None where the graph computes them.
        axis: dimension that several scales run along; None for one scale.
    """

    dtype: str
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point is known to be 0."""
        return self.zero_point is not None and not self.zero_point.any()

    @property
    def problem(self) -> str:
        """Why TensorRT cannot run an op in INT8 on this; "" where nothing stands against it.

        Source: TensorRT documentation, "Working with Quantized Types": symmetric, signed 8 bits; its ONNX parser.
        """
        if self.dtype != "int8":
            return self.dtype.upper()
        return "" if self.is_symmetric else "asymmetric INT8"


def scheme(graph: Graph, node: Node) -> Scheme:
    """Read the integer type, scales, zero points and axis of a Q or DQ node."""
    zero, scale = node.input(2), graph.value(node.inputs[1]) if graph.is_stored(node.inputs[1]) else None
    if node.op == QUANTIZE:
        dtype = graph.dtype(node.outputs[0]) or (graph.dtype(zero) if zero else "uint8")
    else:
        dtype = graph.dtype(node.inputs[0])
    points = graph.value(zero) if zero else np.zeros(1, np.int8)
    shape = graph.shape(node.inputs[1])
    many = shape is None or any(size != 1 for size in shape)
    axis = None
    if many:
        rank = len(graph.shape(node.inputs[0]) or ())
        axis = node.attribute("axis", 1)
        axis = axis + rank if axis < 0 else axis
    return Scheme(dtype, scale, points, axis)


@dataclass(frozen=True)
class Feed:
    """How one operand reaches an op.

    Attributes:
        int8: whether TensorRT can take it in INT8.
        text: "INT8", "FP16", or what stands between, such as "UINT8" or "FP32 (Cast after DequantizeLinear)".
        dequantize: the DequantizeLinear that it comes through, if any.
        axis: dimension of the operand, as the op sees it, that several scales run along; None for one scale.
        float_weights: the operand is a float constant behind a QuantizeLinear.
    """

    int8: bool
    text: str
    dequantize: Node | None = None
    axis: int | None = None
    float_weights: bool = False


def feed(graph: Graph, tensor: str) -> Feed:
    """Follow `tensor` back, over ops that only move data, to a DequantizeLinear.

    A Cast between DequantizeLinear and the op counts as float: the op that TensorRT sees has a float operand that no
    DequantizeLinear makes, and whether it fuses across the Cast is not documented.
    """
    dtype = graph.dtype(tensor)
    plain = dtype.upper() or "an unknown type"
    axis_moves: list[Node] = []
    between: list[str] = []
    while (node := graph.producers.get(tensor)) is not None and node.op != DEQUANTIZE:
        if node.op not in (*MOVES, "Cast", "Mul", "Div") or not node.inputs or not node.inputs[0]:
            return Feed(False, plain)
        if node.op in ("Mul", "Div"):
            if len(node.inputs) != 2 or not any(graph.is_constant(name) for name in node.inputs):
                return Feed(False, plain)
            tensor = next((name for name in node.inputs if not graph.is_constant(name)), "")
        else:
            tensor = node.inputs[0]
        if node.op in ("Cast", "Mul", "Div"):
            between.append(node.op)
        axis_moves.append(node)
    if node is None:
        return Feed(False, plain)
    if between:
        return Feed(False, f"{plain} ({between[-1]} after DequantizeLinear)", node)
    return _through(graph, node, axis_moves)


def _through(graph: Graph, dequantize: Node, moves: list[Node]) -> Feed:
    found = scheme(graph, dequantize)
    quantize = quantizer_of(graph, dequantize)
    stored = quantize is not None and graph.is_constant(quantize.inputs[0])
    axis = found.axis
    for node in reversed(moves):  # from the DequantizeLinear towards the op
        axis = _moved(node, axis)
    if found.problem:
        return Feed(False, found.problem, dequantize, axis, stored)
    return Feed(True, "INT8", dequantize, axis, stored)


def _moved(node: Node, axis: int | None) -> int | None:
    """Where a Transpose leaves dimension `axis`; other ops are taken to leave it where it is."""
    if axis is None or node.op != "Transpose":
        return axis
    order = list(node.attribute("perm", [])) or [1, 0]
    return order.index(axis) if axis in order else axis


def quantizer_of(graph: Graph, dequantize: Node) -> Node | None:
    """The QuantizeLinear behind a DequantizeLinear, over ops that only move data; None where there is none."""
    node = graph.producers.get(dequantize.inputs[0])
    while node is not None and node.op in MOVES:
        node = graph.producers.get(node.inputs[0])
    return node if node is not None and node.op == QUANTIZE else None


def users(graph: Graph, tensor: str, passing: tuple[str, ...] = MOVES) -> list[Node]:
    """The nodes that read `tensor`, those behind ops of `passing` in place of these."""
    seen: dict[Node, None] = {}
    waiting = [tensor]
    while waiting:
        for node in graph.readers.get(waiting.pop(), []):
            if node.op in passing and node not in seen:
                waiting += [name for name in node.outputs if name]
            seen[node] = None
    return [node for node in seen if node.op not in passing]


def same_quantization(graph: Graph, first: Node, second: Node) -> bool:
    """Whether two Q or DQ nodes have equal, stored scales and zero points."""
    one, two = scheme(graph, first), scheme(graph, second)
    if one.scale is None or two.scale is None or one.zero_point is None or two.zero_point is None:
        return first.inputs[1:] == second.inputs[1:]
    return (
        one.axis == two.axis
        and one.dtype == two.dtype
        and np.array_equal(one.scale, two.scale)
        and np.array_equal(one.zero_point.reshape(-1)[:1], two.zero_point.reshape(-1)[:1])
    )
