"""Checks of the Q/DQ nodes themselves: integer types, zero points, scales, weights, and pairs without purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.forecast import weights_behind_quantizer
from q8trt.lint.graph import Graph, op_of
from q8trt.lint.quantizers import (
    DEQUANTIZE,
    MOVES,
    QUANTIZE,
    SCALES,
    Scheme,
    behind_moves,
    quantizer_of,
    same_quantization,
    scheme,
    users,
)
from q8trt.lint.structure import OPERANDS

#: Ops that TensorRT can run on INT8, besides Adds of two activations, and products of any kind.
_RUNS_INT8 = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Resize", *OPERANDS, QUANTIZE)


def check_schemes(context: Context) -> None:
    """Check the integers and scales of each Q, and of each DQ without a Q.

    The rules are zero-point, unsigned-integers, int32-dequantize, scale-not-constant, scale-not-positive, scale-fp32 and, for
    FP16 scales, opset-too-low.
    """
    graph = context.graph
    for node in graph.nodes_of(QUANTIZE, DEQUANTIZE):
        if op_of(node) == QUANTIZE or quantizer_of(graph, node) is None:
            quantization = scheme(graph, node)
            _check_integers(context, node, quantization)
            _check_scale(context, node, quantization)
    if context.half and graph.source.opset < 19 and graph.nodes_of(QUANTIZE):
        context.report("opset-too-low", f"opset {graph.source.opset} has no FP16 scales for Q/DQ")


def _check_integers(context: Context, node: ir.Node, quantization: Scheme) -> None:
    dtype, points = quantization.dtype, quantization.zero_point
    if dtype == "int32":
        context.report("int32-dequantize", "DequantizeLinear of INT32", node)
    elif points is not None and points.any():
        point = f"{points.reshape(-1)[0]:g}" if points.size == 1 else "by channel"
        context.report("zero-point", f"{dtype.upper()} with zero point {point}", node)
    elif dtype == "uint8":
        context.report("unsigned-integers", "UINT8", node)


def _check_scale(context: Context, node: ir.Node, quantization: Scheme) -> None:
    graph, scale = context.graph, quantization.scale
    if scale is None:
        producer = graph.producer(node.inputs[1])
        source = f"computed by {op_of(producer)}" if producer is not None else "an input of the graph"
        context.report("scale-not-constant", f"the scale is {source}", node)
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        bad = scale[~(scale > 0) | ~np.isfinite(scale)].reshape(-1)
        context.report("scale-not-positive", f"{bad.size} scale(s) not positive, such as {bad[0]}", node)
    if context.half and graph.dtype(node.inputs[1]) == "fp32" and quantization.dtype != "int32":
        reason = graph.source.kept_fp32.get(node.name or "")
        text = f"FP32 scale, on purpose: {reason}" if reason else "FP32 scale"
        context.report("scale-fp32", text, node, "info" if reason else None)


def check_weights(context: Context) -> None:
    """Check float-weights."""
    graph = context.graph
    for node in weights_behind_quantizer(graph):
        weights = graph.origin(node.inputs[0])
        text = f"{graph.dtype(weights).upper()} constant of {graph.stored_bytes(weights) / 1e6:.1f} MB"
        context.report("float-weights", text, node)


def check_purpose(context: Context) -> None:
    """Check dangling-qdq, quantize-alone, requantized and duplicate-qdq, and fill `context.purposeless`."""
    graph = context.graph
    residuals = {residual.node for residual in context.parts.residuals}
    for node in graph.nodes_of(QUANTIZE):
        if graph.is_constant(node.inputs[0]):
            continue
        readers = users(graph, node.outputs[0])
        pairs = [reader for reader in readers if op_of(reader) == DEQUANTIZE]
        if not pairs:
            reader = f"read by {op_of(readers[0])}" if readers else "read by nothing"
            context.report("quantize-alone", f"no DequantizeLinear; {reader}", node)
            context.purposeless.add(node)
            continue
        readers = [user for pair in pairs for user in users(graph, pair.outputs[0], (*MOVES, "Gather", "Cast"))]
        if not any(_runs_int8(graph, user, residuals) for user in readers):
            context.purposeless.update([node, *pairs])
            if not _has_rule(context, readers):
                kinds = ", ".join(sorted({op_of(user) for user in readers})) or "nothing"
                context.report("dangling-qdq", f"feeds {kinds}", node)
    _check_requantized(context)
    _check_duplicates(context)


def _runs_int8(graph: Graph, user: ir.Node, residuals: set[ir.Node]) -> bool:
    if op_of(user) in _RUNS_INT8 or user in residuals:
        return True
    return op_of(user) == "Add" and all(value in graph.stream for value in user.inputs)


def _has_rule(context: Context, readers: Sequence[ir.Node]) -> bool:
    """Return whether separate rules cover all `readers`: a LayerNorm, a mask or Softmax, or a scale before a product."""
    covered = {node for norm in context.parts.norms for node in norm.nodes}
    covered |= {node for each in context.parts.attentions for node in (*each.masks, each.softmax)}
    covered |= {
        node
        for node in readers
        if op_of(node) in SCALES and any(op_of(user) in OPERANDS for user in users(context.graph, node.outputs[0]))
    }
    return bool(readers) and all(user in covered for user in readers)


def _check_requantized(context: Context) -> None:
    graph = context.graph
    for node in graph.nodes_of(QUANTIZE):
        origin = behind_moves(graph, node.inputs[0])
        if origin is None or op_of(origin) != DEQUANTIZE or graph.is_constant(origin.inputs[0]):
            continue
        if same_quantization(graph, origin, node):
            context.purposeless.update([origin, node])
            context.report("requantized", "quantized again with the same scale", node)
        else:
            context.report("requantized", "quantized again with another scale: rounded twice", node)


def _check_duplicates(context: Context) -> None:
    graph = context.graph
    for value, readers in graph.readers.items():
        quantizers = [node for node in readers if op_of(node) == QUANTIZE and node.inputs[0] is value]
        for number, node in enumerate(quantizers):
            first = next((other for other in quantizers[:number] if same_quantization(graph, other, node)), None)
            if first is not None:
                pairs = [user for user in users(graph, node.outputs[0]) if op_of(user) == DEQUANTIZE]
                context.purposeless.update([node, *pairs])
                context.report("duplicate-qdq", f"the same as {first.name}", node)
