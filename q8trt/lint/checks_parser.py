"""Checks of what TensorRT's ONNX parser refuses whatever a graph computes: ops, types, shapes that cannot be, and subgraphs."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

from q8trt.lint.context import Context
from q8trt.lint.graph import FLOATS, Graph, Node
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE
from q8trt.lint.reading import dtype_name
from q8trt.lint.soundness import ONNX_DOMAINS, schema, show

#: ONNX's own ops that the parser has no importer for, of all that onnx 1.23 defines.
_UNSUPPORTED = (
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv",
    "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
)  # fmt: skip
_ANY_OPSET = 2**31 - 1
#: Before this opset DequantizeLinear gives FP32 to ONNX's inference whatever its scale, and the scale's type in TensorRT.
_TYPED_SCALES = 19
#: Domains whose ops the parser knows: TensorRT's own, and ONNX's.
_KNOWN_DOMAINS = ("trt",)
#: The parser looks an op up by its name alone, so these pass although they are of another domain.
_NAMED_LIKE_ONNX = ("com.microsoft.Gelu", "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear")
#: Types of tensors that TensorRT knows. UINT8 is one for constants only, as far as the parser goes.
_TYPES = (*FLOATS, "int8", "int32", "int64", "bool", "int4", "float8e4m3fn", "float4e2m1")


def check_ops(context: Context) -> None:
    """unsupported-op, in subgraphs, too; subgraph-not-read."""
    for node in context.graph.nodes:
        if reason := _refusal(node.proto.op_type, node.proto.domain):
            context.report("unsupported-op", "error", f"{node.op} {reason}", node)
        held = node.bodies
        for inner in held.nodes:
            if reason := _refusal(inner.op_type, inner.domain):
                context.report("unsupported-op", "error", f"{show(inner.op_type)} in a subgraph {reason}", node)
        if held.nodes:
            level = "warning" if held.qdq_nodes else "info"
            text = f"{node.op}: {len(held.nodes)} nodes in its subgraphs were not read, {held.qdq_nodes} of them Q/DQ"
            context.report("subgraph-not-read", level, text, node)


def _refusal(op: str, domain: str) -> str:
    if domain in _KNOWN_DOMAINS:
        return ""
    if domain not in ONNX_DOMAINS:
        return "" if f"{domain}.{op}" in _NAMED_LIKE_ONNX else "is not in TensorRT"
    if op in _UNSUPPORTED:
        return "is not in TensorRT"
    return "" if schema(op, _ANY_OPSET) else "is no op of ONNX, and needs a plugin of that name"


def check_soundness(context: Context) -> None:
    """contradiction, invalid-onnx, and opset-too-low for what the parser refuses."""
    graph = context.graph
    if graph.opset < 7:
        context.report("opset-too-low", "warning", f"opset {graph.opset}: the parser refuses what broadcasts before 7")
    if graph.contradiction:
        context.report("contradiction", "error", graph.contradiction)
    elif graph.invalid:
        context.report("invalid-onnx", "warning", graph.invalid)
    for node in graph.nodes:
        if text := _impossible(graph, node):
            context.report("contradiction", "error", text, node)


def _impossible(graph: Graph, node: Node) -> str:
    """Return a fault that shape inference passes over (an axis out of range, a Reshape to another size), or ""."""
    shape = graph.shape(node.input(0))
    if shape is None or node.proto.domain not in ONNX_DOMAINS:
        return ""
    if node.op == "LayerNormalization" and not -len(shape) <= node.attribute("axis", -1) < len(shape):
        return f"axis {node.attribute('axis')} of a tensor with {len(shape)} dimensions"
    if node.op == "Reshape" and None not in shape and _is_whole(target := graph.value(node.input(1))):
        sizes = [int(size) for size in target.reshape(-1)]
        if all(size > 0 for size in sizes) and math.prod(sizes) != graph.size(node.input(0)):
            return f"{graph.size(node.input(0)):,} elements reshaped to {math.prod(sizes):,}"
    return ""


def _is_whole(array: np.ndarray | None) -> TypeGuard[np.ndarray]:
    return array is not None and array.dtype.kind in "iu"


def check_tensor_types(context: Context) -> None:
    """unsupported-type and mixed-types."""
    graph = context.graph
    for name in graph.stored_tensors:
        if graph.stored_type(name) not in (*_TYPES, "uint8"):
            _report_type(
                context,
                graph.stored_type(name),
                f"constant {show(name)}",
                next(iter(graph.readers.get(name, [])), None),
            )
    for what, names in (("input", graph.inputs), ("output", graph.outputs)):
        for name in names:
            kind = graph.declared_type(name)
            if kind not in _TYPES:
                _report_type(context, kind, f"{what} {show(name)}", None)
    for node in graph.nodes:
        if node.op == "Cast" and (kind := dtype_name(node.attribute("to", 0))) not in _TYPES:
            _report_type(context, kind, "a Cast", node)
        if kinds := _mixed(graph, node):
            context.report("mixed-types", "error", f"{node.op} of {' and '.join(kind.upper() for kind in kinds)}", node)


def _report_type(context: Context, kind: str, what: str, node: Node | None) -> None:
    context.report("unsupported-type", "error", f"{what} is {kind.upper() or 'of an unknown type'}", node)


def _mixed(graph: Graph, node: Node) -> list[str]:
    """The types of inputs that ONNX defines to have one type, where they have several; TensorRT converts 64 bits to 32."""
    definition = schema(node.op, graph.opset) if node.proto.domain in ONNX_DOMAINS else None
    if definition is None or node.op in (QUANTIZE, DEQUANTIZE) or graph.opset < _TYPED_SCALES:
        return []
    kinds: dict[str, dict[str, None]] = {}
    for position, name in enumerate(node.inputs):
        parameter = definition.inputs[min(position, len(definition.inputs) - 1)]
        if name and parameter.is_homogeneous and (kind := graph.inferred_type(name)):
            kinds.setdefault(parameter.type_str, {})[kind.replace("64", "32")] = None
    return next((list(each) for each in kinds.values() if len(each) > 1), [])
