"""The forecast for each part of a graph, for the comparison with a plan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from q8trt.lint.context import Context
from q8trt.lint.describe import float_type
from q8trt.lint.report import FUSED, NOT_FUSED, Site, SiteKind
from q8trt.lint.structure import Table


def forecast_of_sites(context: Context) -> Iterator[Site]:
    """Yield each embedding, product, attention and residual Add of a graph with the forecast for it."""
    graph, parts = context.graph, context.parts

    def site(kind: SiteKind, node: ir.Node, label: str, forecast: str, *others: ir.Node) -> Site:
        nodes = tuple(each.name or "" for each in (node, *others))
        return Site(kind, f"{context.block_of[node].name}: {label}", nodes, forecast)

    def type_of(node: ir.Node, is_int8: bool) -> str:
        return "INT8" if is_int8 else float_type(graph, node)

    for embedding in parts.embeddings:
        node = embedding.node
        label = "table " + "x".join(str(size) for size in graph.shape(embedding.table) or ())
        yield site(SiteKind.EMBEDDING, node, label, type_of(node, embedding.kind is Table.INT8))
    for kind, products in ((SiteKind.GEMM, parts.gemms), (SiteKind.BMM, parts.bmms)):
        for product in products:
            is_int8 = product.int8 and product.is_supported
            yield site(kind, product.node, context.roles.get(product.node, "BMM"), type_of(product.node, is_int8))
    for attention in parts.attentions:
        if attention.scores is not None and attention.context is not None:
            forecast = NOT_FUSED if context.verdicts[attention.softmax].obstacles else FUSED
            nodes = attention.scores.node, attention.context.node
            yield site(SiteKind.ATTENTION, nodes[0], "attention", forecast, nodes[1])
    for residual in parts.residuals:
        yield site(SiteKind.RESIDUAL, residual.node, "residual Add", type_of(residual.node, residual.int8))
