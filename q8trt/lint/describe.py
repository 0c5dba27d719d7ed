"""The blocks of a model, and what TensorRT does with each part of them, in a few words."""

from __future__ import annotations

from q8trt.lint.attention import Verdict, is_key_transposed_early
from q8trt.lint.blocks import kind_of
from q8trt.lint.graph import Graph, Node
from q8trt.lint.quantizers import feed, quantizer_of
from q8trt.lint.report import Block, Item
from q8trt.lint.structure import ACTIVATIONS, Attention, Embedding, Product, Structure

_TABLES = {
    "int8": "INT8 table",
    "gathered": "INT8 rows gathered before DequantizeLinear: refused",
    "quantized": "float table behind a QuantizeLinear",
}


def describe(
    graph: Graph, found: Structure, names: list[str], where: dict[Node, str], verdicts: dict[Node, Verdict]
) -> list[Block]:
    """Blocks in order, each with its parts in the order of the graph. `verdicts` goes by the Softmax."""
    items: dict[str, list[tuple[int, Item]]] = {name: [] for name in names}

    def add(node: Node, label: str, what: str) -> None:
        items[where[node]].append((node.index, Item(label, node.name, what)))

    for embedding in found.embeddings:
        add(embedding.node, f"table {_size(graph, embedding)}", table_text(graph, embedding))
    roles = gemm_roles(graph, found, where)
    for gemm in found.gemms:
        add(gemm.node, roles[gemm.node], gemm.text)
    bmms = bmm_roles(found)
    for bmm in found.bmms:
        add(bmm.node, bmms.get(bmm.node, "BMM"), bmm.text)
    for attention in found.attentions:
        if attention.scores is not None and attention.scores.right.int8:
            early = is_key_transposed_early(graph, attention.scores)
            add(attention.scores.node, "K's Transpose", f"{'before' if early else 'after'} its Q/DQ")
        add(attention.softmax, "Softmax", type_of(graph, attention.softmax))
        add(attention.softmax, "attention", verdicts[attention.softmax].text)
    for residual in found.residuals:
        add(residual.node, "residual Add", f"{residual.left.text} + {residual.right.text}")
    for norm in found.norms:
        steps = f", in {len(norm.nodes)} ops" if norm.decomposed else ""
        source = " from an INT8 input" if is_norm_quantized(graph, norm.input) else ""
        add(norm.nodes[-1], "LayerNorm", type_of(graph, norm.nodes[-1]) + steps + source)
    gelus = {node for group in found.gelus for node in group}
    for group in found.gelus:
        steps = f", in {len(group)} ops or more" if len(group) > 1 else ""
        add(group[0], "GELU", type_of(graph, group[0]) + steps)
    for node in graph.nodes:
        if node.op in ACTIVATIONS and node not in gelus and graph.streams_in(node):
            add(node, node.op, type_of(graph, node))
    return [
        Block(name, kind_of(name), [item for _, item in sorted(items[name], key=lambda pair: pair[0])])
        for name in names
        if items[name]
    ]


def type_of(graph: Graph, node: Node) -> str:
    """The float type that a node computes in, as "FP16"."""
    return (graph.dtype(node.outputs[0]) or graph.dtype(node.inputs[0]) or "an unknown type").upper()


def table_text(graph: Graph, embedding: Embedding) -> str:
    """What an embedding table is, as "INT8 table"."""
    if embedding.how == "float":
        return f"{graph.dtype(embedding.table).upper()} table"
    return _TABLES.get(embedding.how, f"{embedding.how} table")


def _size(graph: Graph, embedding: Embedding) -> str:
    return "x".join(str(size) for size in graph.shape(embedding.table) or ())


def is_norm_quantized(graph: Graph, tensor: str) -> bool:
    """Whether a LayerNorm's input comes straight from a Q/DQ pair, also behind a factor per channel."""
    dequantize = feed(graph, tensor).dequantize
    return dequantize is not None and quantizer_of(graph, dequantize) is not None


def bmm_roles(found: Structure) -> dict[Node, str]:
    """BMM -> "first BMM" (Q and K) or "second BMM" (probabilities and V)."""
    roles = {}
    for attention in found.attentions:
        for product, role in ((attention.scores, "first BMM"), (attention.context, "second BMM")):
            if product is not None:
                roles[product.node] = role
    return roles


def gemm_roles(graph: Graph, found: Structure, where: dict[Node, str]) -> dict[Node, str]:
    """GEMM -> "query GEMM", "key GEMM", "fused QKV GEMM" (one for all three), "output GEMM" ... by its place."""
    gemms = {gemm.node for gemm in found.gemms}
    roles: dict[Node, str] = {}
    for attention in found.attentions:
        for role, source in _projections(graph, attention, gemms).items():
            roles[source] = f"{roles[source]}-{role}" if source in roles and role not in roles[source] else role
    roles = {node: f"{'fused QKV' if role == 'query-key-value' else role} GEMM" for node, role in roles.items()}
    blocks: dict[str, list[Product]] = {}
    for gemm in found.gemms:
        if gemm.node not in roles:
            blocks.setdefault(where[gemm.node], []).append(gemm)
    for block, members in blocks.items():
        known = {"attention": ["output"], "feed-forward": ["intermediate", "output"]}.get(kind_of(block), [])
        for number, gemm in enumerate(members):
            roles[gemm.node] = f"{known[number]} GEMM" if len(known) == len(members) else f"GEMM {number + 1}"
    return roles


def _projections(graph: Graph, attention: Attention, gemms: set[Node]) -> dict[str, Node]:
    """The GEMMs that Q, K and V come from."""
    found = {}
    starts: dict[str, str] = {}
    if attention.scores is not None:
        starts |= {"query": attention.scores.node.inputs[0], "key": attention.scores.node.inputs[1]}
    if attention.context is not None:
        starts["value"] = attention.context.node.inputs[1]
    for role, tensor in starts.items():
        while (node := graph.producers.get(tensor)) is not None and node not in gemms:
            following = [name for name in node.inputs if name in graph.stream]
            tensor = following[0] if following else ""
        if node is not None:
            found[role] = node
    return found
