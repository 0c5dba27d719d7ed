"""The numbers of the forecast. `q8trt.lint.report.Forecast` defines each of them."""

from __future__ import annotations

import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.graph import FLOATS, QUANTIZED, Graph, op_of
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE
from q8trt.lint.report import Forecast
from q8trt.lint.structure import Structure, Table

#: Ops without arithmetic. They move, select, join or cast data, or contain a subgraph.
_NO_COMPUTE = (
    *MOVES, QUANTIZE, DEQUANTIZE, "Cast", "CastLike", "Gather", "GatherElements", "GatherND", "Concat", "Tile", "Pad",
    "ScatterElements", "ScatterND", "DynamicQuantizeLinear", "If", "Loop", "Scan", "SequenceConstruct",
)  # fmt: skip


def compute_ops(graph: Graph, parts: Structure) -> dict[ir.Node, str]:
    """Return compute op -> the type that it runs in. `Forecast` defines the compute ops."""
    int8 = {product.node for product in (*parts.gemms, *parts.bmms) if product.int8}
    int8 |= {residual.node for residual in parts.residuals if residual.int8}
    types = {}
    for node in graph.nodes:
        if op_of(node) in _NO_COMPUTE or not graph.streams_in(node) or graph.stream.isdisjoint(node.outputs):
            continue
        floats = [kind for value in (*node.outputs, *node.inputs) if (kind := graph.dtype(value)) in FLOATS]
        plain = floats[0] if floats else graph.dtype(node.outputs[0]) or "unknown"
        types[node] = "int8" if node in int8 else plain
    return types


def is_half(types: dict[ir.Node, str]) -> bool:
    """Return whether at least as many compute ops run in FP16 or BF16 as in FP32, and at least one."""
    kinds = list(types.values())
    half = kinds.count("fp16") + kinds.count("bf16")
    return half > 0 and half >= kinds.count("fp32")


def weights_behind_quantizer(graph: Graph) -> list[ir.Node]:
    """Return the QuantizeLinear nodes that read a constant of two dimensions or more."""
    return [
        node
        for node in graph.nodes_of(QUANTIZE)
        if graph.is_constant(node.inputs[0]) and len(graph.shape(node.inputs[0]) or ()) > 1
    ]


def make_forecast(context: Context) -> Forecast:
    """Return the counts that `Forecast` defines."""
    graph, parts, types = context.graph, context.parts, context.types
    kinds = list(types.values())
    stored = {graph.origin(value) for value in graph.readers if graph.is_stored(value)}
    integers = [value for value in stored if graph.dtype(value) in QUANTIZED and len(graph.shape(value) or ()) > 1]
    others = sorted(set(kinds) - {"int8", "fp16", "fp32"})
    return Forecast(
        layers=len(parts.attentions),
        gemms=len(parts.gemms),
        int8_gemms=sum(gemm.int8 for gemm in parts.gemms),
        bmms=len(parts.bmms),
        int8_bmms=sum(bmm.int8 for bmm in parts.bmms),
        residual_adds=len(parts.residuals),
        int8_residual_adds=sum(residual.int8 for residual in parts.residuals),
        fusable_attentions=sum(not verdict.obstacles for verdict in context.verdicts.values()),
        embeddings=len(parts.embeddings),
        int8_embeddings=sum(embedding.kind is Table.INT8 for embedding in parts.embeddings),
        fp32_compute_ops=[node.name or "" for node, kind in types.items() if kind == "fp32"],
        compute_ops_by_type={kind: kinds.count(kind) for kind in ("int8", "fp16", "fp32", *others)},
        qdq_nodes=len(graph.nodes_of(QUANTIZE, DEQUANTIZE)),
        dangling_qdq=len(context.purposeless),
        int8_weight_bytes=sum(graph.stored_bytes(value) for value in integers),
        float_weight_bytes=sum(graph.stored_bytes(value) for value in stored if graph.dtype(value) in FLOATS),
        float_weights_behind_quantizer=len(weights_behind_quantizer(graph)),
    )
