"""The texts of the linter for operands, products, tables and attentions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from q8trt.lint.attention import Obstacle, Verdict, is_key_transposed_early
from q8trt.lint.context import Context
from q8trt.lint.graph import Graph, Value, op_of
from q8trt.lint.quantizers import Feed, feed, quantizer_of
from q8trt.lint.report import Block, Item, Part, Place
from q8trt.lint.structure import ACTIVATIONS, Attention, Embedding, Product, Residual, Structure, Table

_UNKNOWN = "an unknown type"
#: Rule -> the words for an `Obstacle`.
_OBSTACLES = {
    "not-recognized": "no pair of BMMs around Softmax",
    "attention-float-type": "the BMMs are in {}",
    "attention-head-size": "head size {}",
    "attention-sequence": "up to {} tokens",
    "attention-scale": "the scale comes after {}",
    "attention-qkv-qdq": "no INT8 on {}",
    "attention-softmax-qdq": "no INT8 after Softmax",
    "attention-output-qdq": "no Q/DQ after the second BMM",
    "attention-mask-qdq": "Q/DQ between the first BMM and Softmax",
}


def feed_text(way: Feed) -> str:
    """Return the type of an operand in words: "INT8", "FP16", "UINT8" or "FP32 (Cast after DequantizeLinear)"."""
    dtype = way.dtype.upper() or _UNKNOWN
    if way.scheme is None:
        return dtype
    if way.between is not None:
        return f"{dtype} ({way.between} after DequantizeLinear)"
    if way.int8:
        return "INT8"
    return "asymmetric INT8" if way.scheme.dtype == "int8" else way.scheme.dtype.upper()


def product_text(product: Product) -> str:
    """Return the types of both sides, such as "INT8 x INT8", and what else keeps it from INT8."""
    if not product.is_supported:
        return f"{op_of(product.node)}, which TensorRT lacks"
    note = " (scales along the summed dimension)" if product.wrong_axis else ""
    note = " (activation scaled by channel)" if product.scaled_by_channel else note
    return f"{feed_text(product.left)} x {feed_text(product.right)}{note}"


def residual_text(residual: Residual) -> str:
    """Return the types of both inputs, such as "INT8 + FP16"."""
    return f"{feed_text(residual.left)} + {feed_text(residual.right)}"


def table_text(graph: Graph, embedding: Embedding, several: bool = False) -> str:
    """Return the form of an embedding table, such as "INT8 table". If `several`, return its plural if there is one."""
    if embedding.kind is Table.GATHERED:
        return "INT8 rows gathered before DequantizeLinear: refused"
    if embedding.kind is Table.QUANTIZED:
        return "float table behind a QuantizeLinear"
    dtype = graph.dtype(embedding.table).upper() if embedding.kind is Table.FLOAT else feed_text(embedding.feed)
    return f"{dtype} table{'s' if several else ''}"


def obstacle_text(obstacle: Obstacle) -> str:
    """Return a reason against a fused attention, such as "head size 24"."""
    subject = obstacle.subject
    if obstacle.rule == "attention-float-type":
        subject = subject.upper() or _UNKNOWN
    return _OBSTACLES[obstacle.rule].format(subject)


def verdict_text(verdict: Verdict) -> str:
    """Return "fusable in INT8", or "not fusable: " with the reasons."""
    if not verdict.obstacles:
        return f"fusable in {verdict.dtype.upper() or '?'}"
    return "not fusable: " + "; ".join(map(obstacle_text, verdict.obstacles))


def float_type(graph: Graph, node: ir.Node) -> str:
    """Return the float type that a node computes in, such as "FP16"."""
    return (graph.dtype(node.outputs[0]) or graph.dtype(node.inputs[0]) or _UNKNOWN).upper()


def is_norm_quantized(graph: Graph, value: Value) -> bool:
    """Return whether a LayerNorm's input comes from a Q/DQ pair, directly or behind moves, a Cast or a constant factor."""
    dequantize = feed(graph, value).dequantize
    return dequantize is not None and quantizer_of(graph, dequantize) is not None


def describe(context: Context, places: list[Place]) -> list[Block]:
    """Return the blocks in order, each with its parts in the order of the graph."""
    items = sorted(_items(context), key=lambda pair: context.graph.index[pair[0]])
    blocks: dict[Place, list[Item]] = {place: [] for place in places}
    for node, item in items:
        blocks[context.block_of[node]].append(item)
    return [Block(place, parts) for place, parts in blocks.items() if parts]


def _items(context: Context) -> Iterator[tuple[ir.Node, Item]]:
    graph, structure = context.graph, context.parts

    def item(
        node: ir.Node, part: Part, label: str, text: str, int8: bool = False, plural: str = ""
    ) -> tuple[ir.Node, Item]:
        return node, Item(part, label, node.name or "", text, int8, plural=plural)

    def float_item(node: ir.Node, part: Part, label: str, steps: str = "", source: str = "") -> tuple[ir.Node, Item]:
        """Describe a part that runs in floating point, in several `steps` or from an unusual `source`."""
        dtype, note = float_type(graph, node), f"{steps} {source}".strip()
        text = f"{dtype}{', ' if steps else ' ' if note else ''}{note}"
        return node, Item(part, label, node.name or "", text, dtype=dtype, note=note)

    for embedding in structure.embeddings:
        size = "x".join(str(size) for size in graph.shape(embedding.table) or ())
        text, plural = (table_text(graph, embedding, several) for several in (False, True))
        yield item(embedding.node, Part.TABLE, f"table {size}", text, plural=plural)
    for part, products in ((Part.GEMM, structure.gemms), (Part.BMM, structure.bmms)):
        for product in products:
            int8 = product.int8 and product.is_supported
            yield item(product.node, part, context.roles.get(product.node, "BMM"), product_text(product), int8)
    for attention in structure.attentions:
        if attention.scores is not None and attention.scores.right.int8:
            early = "before" if is_key_transposed_early(graph, attention.scores) else "after"
            yield item(attention.scores.node, Part.KEY_TRANSPOSE, "K's Transpose", f"{early} its Q/DQ")
        yield float_item(attention.softmax, Part.SOFTMAX, "Softmax")
        verdict = verdict_text(context.verdicts[attention.softmax])
        yield item(attention.softmax, Part.ATTENTION, "attention", verdict)
    for residual in structure.residuals:
        yield item(residual.node, Part.RESIDUAL, "residual Add", residual_text(residual), residual.int8)
    for norm in structure.norms:
        steps = f"in {len(norm.nodes)} ops" if norm.decomposed else ""
        source = "from an INT8 input" if is_norm_quantized(graph, norm.input) else ""
        yield float_item(norm.nodes[-1], Part.NORM, "LayerNorm", steps, source)
    for group in structure.gelus:
        yield float_item(group[0], Part.GELU, "GELU", f"in {len(group)} ops or more" if len(group) > 1 else "")
    gelus = {node for group in structure.gelus for node in group}
    for node in graph.nodes_of(*ACTIVATIONS):
        if node not in gelus and graph.streams_in(node):
            yield float_item(node, Part.ACTIVATION, op_of(node))


def roles_of(graph: Graph, structure: Structure, block_of: dict[ir.Node, Place]) -> dict[ir.Node, str]:
    """Return GEMM or BMM -> its name in its block: "query GEMM", "fused QKV GEMM" (one for all three), "first BMM" ..."""
    gemms = {gemm.node for gemm in structure.gemms}
    projections: dict[ir.Node, list[str]] = {}
    bmms: dict[ir.Node, str] = {}
    for attention in structure.attentions:
        for role, node in _projections(graph, attention, gemms):
            names = projections.setdefault(node, [])
            names += [role] if role not in names else []
        for product, role in ((attention.scores, "first BMM"), (attention.context, "second BMM")):
            if product is not None:
                bmms[product.node] = role
    fused = ["query", "key", "value"]
    roles = {node: f"{'fused QKV' if names == fused else '-'.join(names)} GEMM" for node, names in projections.items()}
    blocks: dict[Place, list[ir.Node]] = {}
    for gemm in structure.gemms:
        if gemm.node not in roles:
            blocks.setdefault(block_of[gemm.node], []).append(gemm.node)
    for place, nodes in blocks.items():
        known = {"attention": ["output"], "feed-forward": ["intermediate", "output"]}.get(place.kind, [])
        for number, node in enumerate(nodes):
            roles[node] = f"{known[number]} GEMM" if len(known) == len(nodes) else f"GEMM {number + 1}"
    return roles | bmms


def _projections(graph: Graph, attention: Attention, gemms: set[ir.Node]) -> list[tuple[str, ir.Node]]:
    """Return (role, GEMM) for each of Q, K and V that comes from a GEMM."""
    starts: list[tuple[str, Value]] = []
    if attention.scores is not None:
        starts += zip(("query", "key"), attention.scores.node.inputs[:2], strict=True)
    if attention.context is not None:
        starts.append(("value", attention.context.node.inputs[1]))
    projections = []
    for role, value in starts:
        while (node := graph.producer(value)) is not None and node not in gemms:
            value = next(iter(graph.streams_in(node)), None)
        if node is not None:
            projections.append((role, node))
    return projections
