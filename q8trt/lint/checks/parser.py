"""Checks for ops, types and shapes that TensorRT's ONNX parser refuses in any graph, and for subgraphs."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.graph import FLOATS, Graph, attribute, dtype_name, inner_nodes, op_of, operand
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE
from q8trt.lint.soundness import ANY_OPSET, ONNX_DOMAINS, schema, show

#: The ops of ONNX, as of onnx 1.23, that the parser has no importer for.
_UNSUPPORTED = (
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv",
    "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
)  # fmt: skip
#: Before this opset, ONNX infers FP32 for every DequantizeLinear, while TensorRT uses the type of its scale.
_TYPED_SCALES = 19
#: Domains other than ONNX's whose ops the parser supports.
_KNOWN_DOMAINS = ("trt",)
#: The parser looks up an op by its name only, so these ops of other domains pass.
_NAMED_LIKE_ONNX = ("com.microsoft.Gelu", "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear")
#: Types of tensors that TensorRT supports. The parser accepts UINT8 only for constants.
_TYPES = (*FLOATS, "int8", "int32", "int64", "bool", "int4", "float8e4m3fn", "float4e2m1")


def check_ops(context: Context) -> None:
    """Check unsupported-op, also in subgraphs, and subgraph-not-read."""
    for node in context.graph.nodes:
        if reason := _refusal(node):
            context.report("unsupported-op", f"{op_of(node)} {reason}", node)
        inner = list(inner_nodes(node))
        for each in inner:
            if reason := _refusal(each):
                context.report("unsupported-op", f"{show(each.op_type)} in a subgraph {reason}", node)
        if inner:
            quantizers = sum(each.op_type in (QUANTIZE, DEQUANTIZE) for each in inner)
            text = f"{op_of(node)}: {len(inner)} nodes in its subgraphs were not read, {quantizers} of them Q/DQ"
            context.report("subgraph-not-read", text, node, None if quantizers else "info")


def _refusal(node: ir.Node) -> str:
    if node.domain in _KNOWN_DOMAINS:
        return ""
    if node.domain not in ONNX_DOMAINS:
        return "" if f"{node.domain}.{node.op_type}" in _NAMED_LIKE_ONNX else "is not in TensorRT"
    if node.op_type in _UNSUPPORTED:
        return "is not in TensorRT"
    return "" if schema(node.op_type, ANY_OPSET) else "is not an op of ONNX, and needs a plugin of that name"


def check_soundness(context: Context) -> None:
    """Check contradiction, invalid-onnx, and opset-too-low for opsets that the parser refuses."""
    source = context.graph.source
    if source.opset < 7:
        context.report("opset-too-low", f"opset {source.opset}: the parser refuses what broadcasts before 7")
    if source.contradiction:
        context.report("contradiction", source.contradiction)
    elif source.invalid:
        context.report("invalid-onnx", source.invalid)
    for node in context.graph.nodes:
        if text := _impossible(context.graph, node):
            context.report("contradiction", text, node)


def _impossible(graph: Graph, node: ir.Node) -> str:
    """Return an error that shape inference ignores (an axis out of range, a Reshape to another size); "" if there is none."""
    data = operand(node, 0)
    shape = graph.shape(data)
    if shape is None:
        return ""
    axis = attribute(node, "axis", -1)
    if op_of(node) == "LayerNormalization" and not -len(shape) <= axis < len(shape):
        return f"axis {axis} of a tensor with {len(shape)} dimensions"
    if op_of(node) == "Reshape" and None not in shape and _is_whole(target := graph.numbers(operand(node, 1))):
        sizes = [int(size) for size in target.reshape(-1)]
        if all(size > 0 for size in sizes) and math.prod(sizes) != graph.size(data):
            return f"{graph.size(data):,} elements reshaped to {math.prod(sizes):,}"
    return ""


def _is_whole(array: np.ndarray | None) -> TypeGuard[np.ndarray]:
    return array is not None and array.dtype.kind in "iu"


def check_tensor_types(context: Context) -> None:
    """Check unsupported-type and mixed-types."""
    graph = context.graph
    for value in graph.constants:
        kind = graph.dtype(value)
        if kind not in (*_TYPES, "uint8"):
            _report_type(
                context, kind, f"constant {show(value.name or '')}", next(iter(graph.readers.get(value, [])), None)
            )
    for direction, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            kind = graph.declared_type(value)
            if kind not in _TYPES:
                _report_type(context, kind, f"{direction} {show(value.name or '')}", None)
    for node in graph.nodes:
        if op_of(node) == "Cast" and (kind := dtype_name(attribute(node, "to", 0))) not in _TYPES:
            _report_type(context, kind, "a Cast", node)
        if kinds := _mixed(graph, node):
            context.report("mixed-types", f"{op_of(node)} of {' and '.join(kind.upper() for kind in kinds)}", node)


def _report_type(context: Context, kind: str, owner: str, node: ir.Node | None) -> None:
    context.report("unsupported-type", f"{owner} is {kind.upper() or 'of an unknown type'}", node)


def _mixed(graph: Graph, node: ir.Node) -> list[str]:
    """Return the types of inputs that must have one type according to ONNX, if they have several; else [].

    INT64 counts as INT32, and FP64 as FP32, because TensorRT converts them.
    """
    opset = graph.source.opset
    definition = schema(node.op_type, opset) if node.domain in ONNX_DOMAINS else None
    if definition is None or op_of(node) in (QUANTIZE, DEQUANTIZE) or opset < _TYPED_SCALES:
        return []
    kinds: dict[str, dict[str, None]] = {}
    for position, value in enumerate(node.inputs):
        parameter = definition.inputs[min(position, len(definition.inputs) - 1)]
        if parameter.is_homogeneous and (kind := graph.inferred_type(value)):
            kinds.setdefault(parameter.type_str, {})[kind.replace("64", "32")] = None
    return next((list(each) for each in kinds.values() if len(each) > 1), [])
