"""The forecast in numbers; `q8trt.lint.report.Forecast` says what each one counts."""

from __future__ import annotations

from q8trt.lint.attention import Verdict
from q8trt.lint.graph import FLOATS, QUANTIZED, Graph, Node
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE
from q8trt.lint.report import Forecast
from q8trt.lint.structure import Structure

#: Ops that do no arithmetic: they move, pick, join or cast, or carry a subgraph.
_NO_COMPUTE = (
    *MOVES, QUANTIZE, DEQUANTIZE, "Cast", "CastLike", "Gather", "GatherElements", "GatherND", "Concat", "Tile", "Pad",
    "ScatterElements", "ScatterND", "DynamicQuantizeLinear", "If", "Loop", "Scan", "SequenceConstruct",
)  # fmt: skip


def compute_ops(graph: Graph, found: Structure) -> dict[Node, str]:
    """Compute op -> the type that it runs in; see `Forecast` for what is one."""
    int8 = {product.node for product in (*found.gemms, *found.bmms) if product.int8}
    int8 |= {residual.node for residual in found.residuals if residual.int8}
    types = {}
    for node in graph.nodes:
        if node.op in _NO_COMPUTE or not graph.streams_in(node) or not any(n in graph.stream for n in node.outputs):
            continue
        floats = [kind for name in (*node.outputs, *node.inputs) if (kind := graph.dtype(name)) in FLOATS]
        plain = floats[0] if floats else graph.dtype(node.outputs[0]) or "unknown"
        types[node] = "int8" if node in int8 else plain
    return types


def is_half(types: dict[Node, str]) -> bool:
    """Whether the graph's floating-point arithmetic is mostly in FP16 or BF16."""
    kinds = list(types.values())
    half = kinds.count("fp16") + kinds.count("bf16")
    return half > 0 and half >= kinds.count("fp32")


def weights_behind_quantizer(graph: Graph) -> list[Node]:
    """QuantizeLinear nodes that read a float constant of two dimensions or more."""
    return [
        node
        for node in graph.nodes
        if node.op == QUANTIZE and graph.is_constant(node.inputs[0]) and len(graph.shape(node.inputs[0]) or ()) > 1
    ]


def make_forecast(
    graph: Graph, found: Structure, types: dict[Node, str], verdicts: dict[Node, Verdict], purposeless: set[Node]
) -> Forecast:
    """Count."""
    kinds = list(types.values())
    stored = {graph.source(name) for name in graph.readers if graph.is_stored(name)}
    return Forecast(
        layers=len(found.attentions),
        gemms=len(found.gemms),
        int8_gemms=sum(gemm.int8 for gemm in found.gemms),
        bmms=len(found.bmms),
        int8_bmms=sum(bmm.int8 for bmm in found.bmms),
        residual_adds=len(found.residuals),
        int8_residual_adds=sum(residual.int8 for residual in found.residuals),
        fusable_attentions=sum(not verdict.reasons for verdict in verdicts.values()),
        embeddings=len(found.embeddings),
        int8_embeddings=sum(embedding.how == "int8" for embedding in found.embeddings),
        fp32_compute_ops=[node.name for node, kind in types.items() if kind == "fp32"],
        compute_ops_by_type={
            kind: kinds.count(kind) for kind in ("int8", "fp16", "fp32", *sorted(set(kinds) - {"int8", "fp16", "fp32"}))
        },
        qdq_nodes=sum(node.op in (QUANTIZE, DEQUANTIZE) for node in graph.nodes),
        dangling_qdq=len(purposeless),
        int8_weight_bytes=sum(
            graph.tensor_bytes(name)
            for name in stored
            if graph.dtype(name) in QUANTIZED and len(graph.shape(name) or ()) > 1
        ),
        float_weight_bytes=sum(graph.tensor_bytes(name) for name in stored if graph.dtype(name) in FLOATS),
        float_weights_behind_quantizer=len(weights_behind_quantizer(graph)),
    )
