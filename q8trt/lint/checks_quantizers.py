"""Checks of the Q/DQ nodes themselves: integer types, zero points, scales, weights, and pairs without purpose."""

from __future__ import annotations

import numpy as np

from q8trt.lint.context import Context
from q8trt.lint.forecast import weights_behind_quantizer
from q8trt.lint.graph import Graph, Node
from q8trt.lint.quantizers import (
    DEQUANTIZE,
    MOVES,
    QUANTIZE,
    Scheme,
    quantizer_of,
    same_quantization,
    scheme,
    users,
)
from q8trt.lint.structure import OPERANDS

#: Beside products and Adds of two activations: ops that TensorRT can run on INT8.
_RUNS_INT8 = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Resize")


def check_schemes(context: Context) -> None:
    """zero-point, unsigned-integers, int32-dequantize and the scale-* rules: on the Q, or the DQ of a constant."""
    graph = context.graph
    for node in graph.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        if node.op == DEQUANTIZE and quantizer_of(graph, node) is not None:
            continue  # its QuantizeLinear has been looked at
        found = scheme(graph, node)
        _check_integers(context, node, found)
        _check_scale(context, node, found)
    if context.half and graph.opset < 19 and any(node.op == QUANTIZE for node in graph.nodes):
        context.report("opset-too-low", "warning", f"opset {graph.opset} has no FP16 scales for Q/DQ")


def _check_integers(context: Context, node: Node, found: Scheme) -> None:
    if found.dtype == "int32":
        context.report("int32-dequantize", "error", "DequantizeLinear of INT32", node)
    elif found.zero_point is not None and found.zero_point.any():
        point = f"{found.zero_point.reshape(-1)[0]:g}" if found.zero_point.size == 1 else "by channel"
        context.report("zero-point", "error", f"{found.dtype.upper()} with zero point {point}", node)
    elif found.dtype == "uint8":
        context.report("unsigned-integers", "error", "UINT8", node)


def _check_scale(context: Context, node: Node, found: Scheme) -> None:
    graph, name = context.graph, node.inputs[1]
    if found.scale is None:
        made = graph.producers.get(name)
        how = f"computed by {made.op}" if made is not None else "an input of the graph"
        context.report("scale-not-constant", "warning", f"the scale is {how}", node)
    elif not (np.isfinite(found.scale).all() and (found.scale > 0).all()):
        bad = found.scale[~(found.scale > 0) | ~np.isfinite(found.scale)].reshape(-1)
        context.report("scale-not-positive", "error", f"{bad.size} scale(s) not positive, such as {bad[0]}", node)
    if context.half and graph.dtype(name) == "fp32" and found.dtype != "int32":
        context.report("scale-fp32", "warning", "FP32 scale", node)


def check_weights(context: Context) -> None:
    """float-weights."""
    graph = context.graph
    for node in weights_behind_quantizer(graph):
        source = graph.source(node.inputs[0])
        megabytes = graph.tensor_bytes(source) / 1e6
        dtype = graph.dtype(source).upper()
        context.report("float-weights", "warning", f"{dtype} constant of {megabytes:.1f} MB", node)


def check_purpose(context: Context) -> None:
    """dangling-qdq, quantize-alone, requantized and duplicate-qdq; fills `context.purposeless`."""
    graph = context.graph
    runs_int8 = {residual.node for residual in context.found.residuals}
    for node in graph.nodes:
        if node.op != QUANTIZE or graph.is_constant(node.inputs[0]):
            continue
        pairs = [user for user in users(graph, node.outputs[0]) if user.op == DEQUANTIZE]
        others = [user for user in users(graph, node.outputs[0]) if user.op != DEQUANTIZE]
        if not pairs:
            reader = f"read by {others[0].op}" if others else "read by nothing"
            context.report("quantize-alone", "warning", f"no DequantizeLinear; {reader}", node)
            context.purposeless.add(node)
            continue
        readers = [user for pair in pairs for user in users(graph, pair.outputs[0], (*MOVES, "Gather", "Cast"))]
        if not any(_runs_int8(graph, user, runs_int8) for user in readers):
            context.purposeless.update([node, *pairs])
            if not _has_own_rule(context, readers):
                kinds = ", ".join(sorted({user.op for user in readers})) or "nothing"
                context.report("dangling-qdq", "warning", f"feeds {kinds}", node)
    _check_requantized(context)
    _check_duplicates(context)


def _runs_int8(graph: Graph, user: Node, residuals: set[Node]) -> bool:
    if user.op in OPERANDS or user.op in _RUNS_INT8 or user.op == QUANTIZE or user in residuals:
        return True
    return user.op == "Add" and all(name in graph.stream for name in user.inputs)


def _has_own_rule(context: Context, readers: list[Node]) -> bool:
    """Whether what reads the pair is a LayerNorm, the way to a Softmax or Q's late scale, which other rules speak of."""
    norms = {node for norm in context.found.norms for node in norm.nodes}
    scores = {node for attention in context.found.attentions for node in (*attention.masks, attention.softmax)}
    scores |= {
        node
        for node in readers
        if node.op in ("Mul", "Div") and any(user.op in OPERANDS for user in users(context.graph, node.outputs[0]))
    }
    return bool(readers) and all(user in norms or user in scores for user in readers)


def _check_requantized(context: Context) -> None:
    graph = context.graph
    for node in graph.nodes:
        if node.op != QUANTIZE:
            continue
        source = graph.producers.get(node.inputs[0])
        while source is not None and source.op in MOVES:
            source = graph.producers.get(source.inputs[0])
        if source is None or source.op != DEQUANTIZE or graph.is_constant(source.inputs[0]):
            continue
        if same_quantization(graph, source, node):
            context.purposeless.update([source, node])
            context.report("requantized", "warning", "quantized again with the same scale", node)
        else:
            context.report("requantized", "warning", "quantized again with another scale: rounded twice", node)


def _check_duplicates(context: Context) -> None:
    graph = context.graph
    for tensor, readers in graph.readers.items():
        quantizers = [node for node in readers if node.op == QUANTIZE and node.inputs[0] == tensor]
        for number, node in enumerate(quantizers):
            first = next((other for other in quantizers[:number] if same_quantization(graph, other, node)), None)
            if first is not None:
                context.purposeless.update([node, *(u for u in users(graph, node.outputs[0]) if u.op == DEQUANTIZE)])
                context.report("duplicate-qdq", "warning", f"the same as {first.name}", node)
