"""Checks of the model's parts: products, attention, residual Adds, LayerNorm, GELU, embeddings, types, inputs."""

from __future__ import annotations

from collections import Counter

import numpy as np

from q8trt.lint.blocks import EMBEDDINGS, HEAD
from q8trt.lint.context import Context
from q8trt.lint.describe import is_norm_quantized, table_text
from q8trt.lint.graph import FLOATS, Node
from q8trt.lint.quantizers import DEQUANTIZE, QUANTIZE
from q8trt.lint.structure import Feed, Product

FP16_MAX = 65504.0


def check_products(context: Context) -> None:
    """gemm-not-int8, bmm-not-int8, weight-axis, weights-per-tensor and activation-per-channel; not-quantized for all."""
    if not context.quantized:
        context.report("not-quantized", "info", "no Q/DQ in the graph")
        return
    for gemm in context.found.gemms:
        if gemm.node.op not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            continue  # unsupported-op speaks of it
        minor = context.where[gemm.node] in (HEAD, EMBEDDINGS)
        if not gemm.int8 and not _report_axes(context, gemm):
            sides = [
                _side(name, feed) for name, feed in (("input", gemm.left), ("weight", gemm.right)) if not feed.int8
            ]
            level = "info" if minor else "warning"
            context.report("gemm-not-int8", level, f"{context.roles[gemm.node]}: {' and '.join(sides)}", gemm.node)
        elif gemm.right.int8 and gemm.right.axis is None:
            context.report(
                "weights-per-tensor", "info", f"{context.roles[gemm.node]}: one scale for the weight", gemm.node
            )
    for bmm in context.found.bmms:
        if not bmm.int8 and not _report_axes(context, bmm):
            left, right = ("the probabilities", "V") if context.roles.get(bmm.node) == "second BMM" else ("Q", "K")
            sides = [_side(name, feed) for name, feed in ((left, bmm.left), (right, bmm.right)) if not feed.int8]
            context.report(
                "bmm-not-int8", "warning", f"{context.roles.get(bmm.node, 'BMM')}: {' and '.join(sides)}", bmm.node
            )


def _side(name: str, feed: Feed) -> str:
    return f"{name} in {feed.text}"


def _report_axes(context: Context, product: Product) -> bool:
    if not (product.left.int8 and product.right.int8):
        return False
    if product.wrong_axis:
        what = f"scales along dimension {product.right.axis}, the output's is {product.output_axis}"
        context.report("weight-axis", "warning", what, product.node)
    if product.scaled_by_channel:
        context.report("activation-per-channel", "warning", "an activation with several scales", product.node)
    return True


def check_attention(context: Context) -> None:
    """The attention-* rules: one finding for each reason."""
    for attention in context.found.attentions:
        softmax = attention.softmax
        for rule, what in context.verdicts[softmax].reasons:
            level = "info" if rule in ("attention-float-type", "not-recognised") else "warning"
            context.report(rule, level, what, softmax)


def check_residuals(context: Context) -> None:
    """residual-not-int8, layernorm-input-quantized, decomposed-layernorm and decomposed-gelu."""
    graph = context.graph
    for residual in context.found.residuals if context.quantized else ():
        if not residual.int8:
            what = f"{residual.left.text} + {residual.right.text}"
            context.report("residual-not-int8", "warning", what, residual.node)
    for norm in context.found.norms:
        if is_norm_quantized(graph, norm.input):
            context.report(
                "layernorm-input-quantized", "warning", "its input comes from DequantizeLinear", norm.nodes[-1]
            )
        if norm.decomposed:
            level = "warning" if context.half else "info"
            context.report("decomposed-layernorm", level, f"{len(norm.nodes)} ops", norm.nodes[-1])
            if graph.opset < 17:
                context.report("opset-too-low", level, f"opset {graph.opset} has no LayerNormalization", norm.nodes[-1])
    for group in context.found.gelus:
        if len(group) > 1:
            context.report("decomposed-gelu", "info", f"around {group[0].op}", group[0])


def check_embeddings(context: Context) -> None:
    """gather-before-dequantize and embedding-float."""
    for embedding in context.found.embeddings:
        megabytes = context.graph.tensor_bytes(embedding.table) / 1e6
        if embedding.how == "gathered":
            context.report("gather-before-dequantize", "error", "Gather -> DequantizeLinear", embedding.node)
        elif context.quantized and embedding.how == "float":
            text = f"{table_text(context.graph, embedding)} of {megabytes:.1f} MB"
            context.report("embedding-float", "info", text, embedding.node)


def check_types(context: Context) -> None:
    """fp32-leftover, mask-constant and constant-overflow."""
    graph = context.graph
    if context.half:
        for node, kind in context.types.items():
            if kind in ("fp32", "fp64"):
                reason = graph.kept_fp32.get(node.name)
                text = f"{node.op} in {kind.upper()}" + (f", on purpose: {reason}" if reason else "")
                context.report("fp32-leftover", "info" if reason else "warning", text, node)
    masks = {node for attention in context.found.attentions for node in attention.masks}
    for node in graph.nodes:
        if node.op in ("Where", "Mul", "Add", "Sub") and (node in masks or node.outputs[0] not in graph.stream):
            _check_mask(context, node)
    for name in graph.stored_tensors:
        readers = [node for node in graph.readers.get(name, []) if name not in _scales(node)]
        if graph.dtype(name) == "fp16" and graph.size(name) > 1 and readers:
            value = graph.value(name)
            if value is not None and not np.isfinite(value).all():
                context.report("constant-overflow", "warning", f"{name} holds infinity or NaN", readers[0])


def _scales(node: Node) -> tuple[str, ...]:
    """The scale of a Q/DQ node, which scale-not-positive looks at."""
    return node.inputs[1:2] if node.op in (QUANTIZE, DEQUANTIZE) else ()


def _check_mask(context: Context, node: Node) -> None:
    for name in node.inputs:
        value = context.graph.scalar(name) if context.graph.dtype(name) in FLOATS else None
        if value is None or abs(value) <= FP16_MAX:
            continue
        multiplies = node.op == "Mul" and not np.isfinite(value)
        level = "error" if multiplies else "warning" if context.half else "info"
        context.report("mask-constant", level, f"{value:.3g} in {context.graph.dtype(name).upper()}", node)


def check_inputs(context: Context) -> None:
    """int64-input and dynamic-shapes."""
    graph = context.graph
    for name in graph.inputs:
        if graph.dtype(name) == "int64":
            context.report("int64-input", "info", f"input {name} is INT64")
    dynamic = [name for name in graph.inputs if None in (graph.shape(name) or ())]
    if dynamic and context.config.max_shapes is None:
        context.report("dynamic-shapes", "info", f"{', '.join(dynamic)}: dynamic, and no profile is known")


def check_recognition(context: Context) -> None:
    """not-recognised, where the graph does not look like a transformer encoder."""
    found = context.found
    missing = [
        text
        for text, parts in (
            ("no attention (Softmax between two BMMs)", found.attentions),
            ("no residual Add that a LayerNorm reads", found.residuals),
            ("no embedding table", found.embeddings),
        )
        if not parts
    ]
    if missing:
        ops = Counter(node.op for node in context.types)
        listed = ", ".join(f"{op} x{count}" for op, count in ops.most_common(6)) or "none"
        context.report("not-recognised", "info", f"{'; '.join(missing)}. Compute ops: {listed}")
