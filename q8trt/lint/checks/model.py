"""Checks of the model's parts: products, attention, residual Adds, LayerNorm, GELU, embeddings, types, inputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.describe import feed_text, is_norm_quantized, obstacle_text, residual_text, table_text
from q8trt.lint.graph import FLOATS, op_of
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE, Feed
from q8trt.lint.report import EMBEDDINGS, HEAD
from q8trt.lint.rules import Level
from q8trt.lint.structure import Product, Table

FP16_MAX = 65504.0


def check_products(context: Context) -> None:
    """Check not-quantized, or else gemm-not-int8, bmm-not-int8, weight-axis, weights-per-tensor and activation-per-channel."""
    if not context.quantized:
        context.report("not-quantized", "no Q/DQ in the graph")
        return
    for gemm in context.parts.gemms:
        role = context.roles[gemm.node]
        if not gemm.is_supported:
            continue  # unsupported-op reports it
        if not gemm.int8 and not _report_axes(context, gemm):
            minor = context.block_of[gemm.node].kind in (HEAD, EMBEDDINGS)
            text = f"{role}: {_float_sides(('input', gemm.left), ('weight', gemm.right))}"
            context.report("gemm-not-int8", text, gemm.node, "info" if minor else None)
        elif gemm.right.int8 and gemm.right.axis is None:
            context.report("weights-per-tensor", f"{role}: one scale for the weight", gemm.node)
    for bmm in context.parts.bmms:
        if not bmm.int8 and not _report_axes(context, bmm):
            role = context.roles.get(bmm.node, "BMM")
            left, right = ("the probabilities", "V") if role == "second BMM" else ("Q", "K")
            context.report("bmm-not-int8", f"{role}: {_float_sides((left, bmm.left), (right, bmm.right))}", bmm.node)


def _float_sides(*sides: tuple[str, Feed]) -> str:
    return " and ".join(f"{name} in {feed_text(feed)}" for name, feed in sides if not feed.int8)


def _report_axes(context: Context, product: Product) -> bool:
    if not (product.left.int8 and product.right.int8):
        return False
    if product.wrong_axis:
        text = f"scales along dimension {product.right.axis}, the output's is {product.output_axis}"
        context.report("weight-axis", text, product.node)
    if product.scaled_by_channel:
        context.report("activation-per-channel", "an activation with several scales", product.node)
    return True


def check_attention(context: Context) -> None:
    """Check the attention-* rules, and not-recognized for an attention. Each obstacle is one finding."""
    for attention in context.parts.attentions:
        for obstacle in context.verdicts[attention.softmax].obstacles:
            context.report(obstacle.rule, obstacle_text(obstacle), attention.softmax)


def check_residuals(context: Context) -> None:
    """Check residual-not-int8, layernorm-input-quantized, decomposed-layernorm, opset-too-low and decomposed-gelu."""
    opset = context.graph.source.opset
    for residual in context.parts.residuals if context.quantized else ():
        if not residual.int8:
            context.report("residual-not-int8", residual_text(residual), residual.node)
    for norm in context.parts.norms:
        last = norm.nodes[-1]
        if is_norm_quantized(context.graph, norm.input):
            context.report("layernorm-input-quantized", "its input comes from DequantizeLinear", last)
        if norm.decomposed:
            level: Level | None = None if context.half else "info"
            context.report("decomposed-layernorm", f"{len(norm.nodes)} ops", last, level)
            if opset < 17:
                context.report("opset-too-low", f"opset {opset} has no LayerNormalization", last, level)
    for group in context.parts.gelus:
        if len(group) > 1:
            context.report("decomposed-gelu", f"around {op_of(group[0])}", group[0])


def check_embeddings(context: Context) -> None:
    """Check gather-before-dequantize and embedding-float."""
    for embedding in context.parts.embeddings:
        if embedding.kind is Table.GATHERED:
            context.report("gather-before-dequantize", "Gather -> DequantizeLinear", embedding.node)
        elif context.quantized and embedding.kind is Table.FLOAT:
            megabytes = context.graph.stored_bytes(embedding.table) / 1e6
            text = f"{table_text(context.graph, embedding)} of {megabytes:.1f} MB"
            context.report("embedding-float", text, embedding.node)


def check_types(context: Context) -> None:
    """Check fp32-leftover, mask-constant and constant-overflow."""
    graph = context.graph
    for node, kind in context.types.items() if context.half else ():
        if kind in ("fp32", "fp64"):
            reason = graph.source.kept_fp32.get(node.name or "")
            text = f"{op_of(node)} in {kind.upper()}" + (f", on purpose: {reason}" if reason else "")
            context.report("fp32-leftover", text, node, "info" if reason else None)
    masks = {node for attention in context.parts.attentions for node in attention.masks}
    for node in graph.nodes_of("Where", "Mul", "Add", "Sub"):
        if node in masks or node.outputs[0] not in graph.stream:
            _check_mask(context, node)
    for value in graph.constants:
        if graph.dtype(value) != "fp16" or graph.size(value) <= 1:
            continue
        readers = [node for node in graph.readers.get(value, []) if not _is_scale(node, value)]
        array = graph.numbers(value) if readers else None
        if array is not None and not np.isfinite(array).all():
            context.report("constant-overflow", f"{value.name} contains infinity or NaN", readers[0])


def _is_scale(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a Q/DQ node reads `value` as its scale, which scale-not-positive checks."""
    return op_of(node) in (QUANTIZE, DEQUANTIZE) and node.inputs[1] is value


def _check_mask(context: Context, node: ir.Node) -> None:
    for value in node.inputs:
        dtype = context.graph.dtype(value)
        number = context.graph.scalar(value) if dtype in FLOATS else None
        if number is None or abs(number) <= FP16_MAX:
            continue
        multiplies = op_of(node) == "Mul" and not np.isfinite(number)
        level: Level = "error" if multiplies else "warning" if context.half else "info"
        context.report("mask-constant", f"{number:.3g} in {dtype.upper()}", node, level)


def check_inputs(context: Context) -> None:
    """Check int64-input and dynamic-shapes."""
    graph = context.graph
    for value in graph.inputs:
        if graph.dtype(value) == "int64":
            context.report("int64-input", f"input {value.name} is INT64")
    dynamic = [value.name or "" for value in graph.inputs if None in (graph.shape(value) or ())]
    if dynamic and context.config.max_shapes is None:
        context.report("dynamic-shapes", f"{', '.join(dynamic)}: dynamic, and no profile is known")


def check_recognition(context: Context) -> None:
    """Check not-recognized: the graph does not look like a transformer encoder."""
    parts = context.parts
    expected = (
        ("no attention (Softmax between two BMMs)", parts.attentions),
        ("no residual Add that a LayerNorm reads", parts.residuals),
        ("no embedding table", parts.embeddings),
    )
    if missing := [text for text, members in expected if not members]:
        ops = Counter(op_of(node) for node in context.types)
        listed = ", ".join(f"{op} x{count}" for op, count in ops.most_common(6)) or "none"
        context.report("not-recognized", f"{'; '.join(missing)}. Compute ops: {listed}")
