"""The parts of a transformer, recognized by the structure of the graph and not by the names of its nodes.

A GEMM has one constant operand, a BMM none. Attention is a Softmax between two BMMs. A residual Add joins two activations and
feeds a LayerNorm. The layers follow from their order (`q8trt.lint.blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from q8trt.lint.graph import Graph, Value, attribute, is_table_lookup, op_of, operand
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE, SCALES, Feed, feed

#: Products that TensorRT has.
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
#: Op -> positions of its two operands.
OPERANDS = {
    **dict.fromkeys(PRODUCTS, (0, 1)), "MatMulInteger": (0, 1), "ConvInteger": (0, 1), "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3), "com.microsoft.QGemm": (0, 3), "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.MatMulIntegerToFloat": (0, 1), "com.microsoft.DynamicQuantizeMatMul": (0, 1),
    "com.microsoft.MatMulNBits": (0, 1),
}  # fmt: skip
GELUS = ("Gelu", "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.BiasGelu", "com.microsoft.QuickGelu")
ACTIVATIONS = (
    *GELUS, "Erf", "Tanh", "Relu", "Sigmoid", "Elu", "LeakyRelu", "HardSwish", "HardSigmoid", "Softplus", "Mish", "Celu", "Selu",
    "PRelu",
)  # fmt: skip
#: Ops that may be between a BMM, Softmax and the next BMM of an attention.
_PASS = (*MOVES, "Cast", QUANTIZE, DEQUANTIZE)


@dataclass(frozen=True)
class Product:
    """A GEMM (one constant operand, `weight`; Conv counts as one) or BMM (none), with the paths of its operands.

    `left` is the activation of a GEMM, and `right` its weight, in whichever order the op reads them.
    """

    node: ir.Node
    left: Feed
    right: Feed
    weight: Value = None

    @property
    def int8(self) -> bool:
        """Return whether both sides are INT8, with scales that can be factored out of the sum."""
        return self.left.int8 and self.right.int8 and not self.wrong_axis and not self.scaled_by_channel

    @property
    def is_supported(self) -> bool:
        """Return whether TensorRT has the op."""
        return op_of(self.node) in PRODUCTS

    @property
    def wrong_axis(self) -> bool:
        """Return whether the weight has its scales along the dimension of the sum."""
        return self.weight is not None and self.right.axis is not None and self.right.axis != self.output_axis

    @property
    def scaled_by_channel(self) -> bool:
        """Return whether an activation has several scales. TensorRT supports that only for weights."""
        return self.left.axis is not None or (self.weight is None and self.right.axis is not None)

    @property
    def output_axis(self) -> int:
        """Return the dimension of the weight, as stored for this op, that becomes the output's channels."""
        op = op_of(self.node)
        if op == "Gemm":
            return 0 if attribute(self.node, "transB", 0) else 1
        return 1 if op in ("MatMul", "ConvTranspose") else 0


@dataclass(frozen=True)
class Attention:
    """One Softmax and the nodes around it.

    Attributes:
        softmax: the node.
        scores: the BMM of Q and K; None if the input of Softmax does not come from one.
        context: the BMM of the probabilities and V; None if the output of Softmax does not reach one.
        scales: Mul and Div nodes between the first BMM and Softmax.
        masks: Add, Sub and Where nodes between them.
        quantized_scores: Q/DQ nodes between them.
    """

    softmax: ir.Node
    scores: Product | None
    context: Product | None
    scales: tuple[ir.Node, ...] = ()
    masks: tuple[ir.Node, ...] = ()
    quantized_scores: tuple[ir.Node, ...] = ()


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: one op, or several `nodes` that compute it step by step. `input` is the value that is normalized."""

    nodes: tuple[ir.Node, ...]
    input: Value

    @property
    def decomposed(self) -> bool:
        """Return whether it is computed in several ops."""
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Residual:
    """An Add of two activations, at least one behind a product, that a LayerNorm reads."""

    node: ir.Node
    left: Feed
    right: Feed

    @property
    def int8(self) -> bool:
        """Return whether both inputs are INT8."""
        return self.left.int8 and self.right.int8


class Table(Enum):
    """The form in which an embedding table is stored."""

    INT8 = "DequantizeLinear -> Gather"
    GATHERED = "Gather -> DequantizeLinear"
    QUANTIZED = "a float table behind a QuantizeLinear"
    FLOAT = "a float table"
    OTHER = "integers that TensorRT does not run as INT8"


@dataclass(frozen=True)
class Embedding:
    """Rows that `node` gathers from the constant `table`; `feed` describes the path of the table to the node."""

    node: ir.Node
    table: Value
    kind: Table
    feed: Feed


@dataclass(frozen=True)
class Structure:
    """The recognized parts, each kind in the order of the graph. A GELU is its nodes."""

    gemms: Sequence[Product]
    bmms: Sequence[Product]
    attentions: Sequence[Attention]
    norms: Sequence[Norm]
    gelus: Sequence[tuple[ir.Node, ...]]
    residuals: Sequence[Residual]
    embeddings: Sequence[Embedding]


def find_structure(graph: Graph) -> Structure:
    """Recognize the parts of `graph`."""
    products = [_product(graph, node) for node in graph.nodes_of(*OPERANDS) if graph.streams_in(node)]
    bmms = {product.node: product for product in products if product.weight is None}
    norms = _norms(graph)
    return Structure(
        gemms=[product for product in products if product.weight is not None],
        bmms=list(bmms.values()),
        attentions=[_attention(graph, node, bmms) for node in graph.nodes_of("Softmax") if graph.streams_in(node)],
        norms=norms,
        gelus=_gelus(graph),
        residuals=_residuals(graph, {product.node for product in products}, norms),
        embeddings=[
            _embedding(graph, node)
            for node in graph.nodes_of("Gather")
            if is_table_lookup(graph, node) and not _leads_to_softmax_alone(graph, node)
        ],
    )


def _product(graph: Graph, node: ir.Node) -> Product:
    left, right = (operand(node, position) for position in OPERANDS[op_of(node)])
    if graph.is_constant(left) and not graph.is_constant(right):
        left, right = right, left
    return Product(node, feed(graph, left), feed(graph, right), right if graph.is_constant(right) else None)


def _attention(graph: Graph, softmax: ir.Node, bmms: dict[ir.Node, Product]) -> Attention:
    way = _back_to_product(graph, softmax.inputs[0], bmms)
    context = _forward_to_product(graph, softmax.outputs[0], bmms)
    if way is None:
        return Attention(softmax, None, context)
    first, *between = way

    def of(*ops: str) -> tuple[ir.Node, ...]:
        return tuple(node for node in between if op_of(node) in ops)

    return Attention(softmax, bmms[first], context, of(*SCALES), of("Add", "Sub", "Where"), of(QUANTIZE, DEQUANTIZE))


def _back_to_product(graph: Graph, value: Value, bmms: dict[ir.Node, Product]) -> list[ir.Node] | None:
    """Return the BMM that computes `value` and the nodes behind it; None if there is no such BMM."""
    reader_of: dict[ir.Node, ir.Node | None] = {}
    waiting: list[tuple[Value, ir.Node | None]] = [(value, None)]
    while waiting:
        value, reader = waiting.pop()
        node = graph.producer(value)
        if node is None or node in reader_of or value not in graph.stream:
            continue
        reader_of[node] = reader
        if node in bmms:
            way = [node]
            while (following := reader_of[way[-1]]) is not None:
                way.append(following)
            return way
        if op_of(node) in _PASS:
            waiting.append((operand(node, 0), node))
        elif op_of(node) in (*SCALES, "Add", "Sub", "Where", "Clip", "Max", "Min"):
            waiting += [(each, node) for each in reversed(graph.streams_in(node))]
    return None


def _forward_to_product(graph: Graph, value: ir.Value, bmms: dict[ir.Node, Product]) -> Product | None:
    """Return the first BMM that reads `value`, also behind moves, casts, Q/DQ, a Mul, or the Where that clears NaN."""
    waiting, seen = [value], set()
    while waiting:
        for node in graph.readers.get(waiting.pop(0), []):
            if node in bmms:
                return bmms[node]
            if op_of(node) in (*_PASS, "Where", "Mul") and node not in seen:
                seen.add(node)
                waiting += node.outputs
    return None


def _norms(graph: Graph) -> list[Norm]:
    norms = []
    for node in graph.nodes_of("LayerNormalization", "Div"):
        if op_of(node) == "Div":
            norms += [norm] if (norm := _decomposed_norm(graph, node)) else []
        elif graph.streams_in(node):
            norms.append(Norm((node,), node.inputs[0]))
    return norms


def _decomposed_norm(graph: Graph, divide: ir.Node) -> Norm | None:
    """Return ReduceMean -> Sub -> Pow (or Mul) -> ReduceMean -> Add -> Sqrt -> Div (-> Mul -> Add) for its Div.

    Return None if the Div is not the end of such a chain.
    """
    center, root = (_producer(graph, value) for value in divide.inputs)
    if center is None or root is None or (op_of(center), op_of(root)) != ("Sub", "Sqrt"):
        return None
    mean, shifted = _producer(graph, center.inputs[1]), _producer(graph, root.inputs[0])
    if mean is None or op_of(mean) != "ReduceMean" or shifted is None or op_of(shifted) != "Add":
        return None
    variance = next((node for value in shifted.inputs if (node := _producer(graph, value)) is not None), None)
    if variance is None or op_of(variance) != "ReduceMean":
        return None
    square = _producer(graph, variance.inputs[0])
    if square is None or op_of(square) not in ("Pow", "Mul"):
        return None
    nodes = [mean, center, square, variance, shifted, root, divide]
    for op in ("Mul", "Add"):
        reader = graph.reader(nodes[-1].outputs[0])
        if reader is not None and op_of(reader) == op and any(graph.is_constant(value) for value in reader.inputs):
            nodes.append(reader)
    return Norm(tuple(nodes), center.inputs[0])


def _producer(graph: Graph, value: Value) -> ir.Node | None:
    """Return the node that computes a value, or the input of the Cast that computes it."""
    node = graph.producer(value)
    return graph.producer(node.inputs[0]) if node is not None and op_of(node) == "Cast" else node


def _gelus(graph: Graph) -> list[tuple[ir.Node, ...]]:
    """Return each GELU: one op, or the Erf or Tanh of its formula with the Add of 1 and the Mul that follow."""
    gelus: list[tuple[ir.Node, ...]] = []
    for node in graph.nodes_of(*GELUS, "Erf", "Tanh"):
        if not graph.streams_in(node):
            continue
        if op_of(node) in GELUS:
            gelus.append((node,))
        else:
            plus = graph.reader(node.outputs[0])
            if plus is not None and op_of(plus) == "Add" and 1.0 in [graph.scalar(value) for value in plus.inputs]:
                times = graph.reader(plus.outputs[0])
                gelus.append((node, plus, *([times] if times is not None and op_of(times) == "Mul" else [])))
    return gelus


def _residuals(graph: Graph, products: set[ir.Node], norms: Sequence[Norm]) -> list[Residual]:
    heads = {norm.nodes[0]: norm for norm in norms}
    heavy: set[Value] = set()  # values that come from a GEMM
    for node in graph.nodes:
        if node in products or any(value in heavy for value in node.inputs):
            heavy.update(value for value in node.outputs if value.name)
    return [
        Residual(node, *(feed(graph, value) for value in node.inputs))
        for node in graph.nodes_of("Add")
        if all(value in graph.stream and not graph.is_constant(value) for value in node.inputs)
        and any(value in heavy for value in node.inputs)
        and _feeds_norm(graph, node, heads)
    ]


def _feeds_norm(graph: Graph, add: ir.Node, heads: dict[ir.Node, Norm]) -> bool:
    """Return whether a LayerNorm reads the sum, directly or behind moves, a constant factor, a cast or Q/DQ."""
    waiting, seen = [add.outputs[0]], set()
    while waiting:
        value = waiting.pop()
        for node in graph.readers.get(value, []):
            if node in heads and heads[node].input is value:
                return True
            scaled = op_of(node) in SCALES and any(graph.is_constant(each) for each in node.inputs)
            if (op_of(node) in _PASS or scaled) and node not in seen:
                seen.add(node)
                waiting += node.outputs
    return False


def _leads_to_softmax_alone(graph: Graph, lookup: ir.Node) -> bool:
    """Return whether the rows are only added to scores: a bias of relative positions, as in T5 and MPNet."""
    waiting, seen = [lookup], {lookup}
    while waiting:
        readers = [reader for value in waiting.pop().outputs for reader in graph.readers.get(value, [])]
        if not readers or any(op_of(reader) in OPERANDS for reader in readers):
            return False
        following = {reader for reader in readers if op_of(reader) != "Softmax"} - seen
        waiting += following
        seen |= following
    return True


def _embedding(graph: Graph, node: ir.Node) -> Embedding:
    way = feed(graph, node.inputs[0])
    if way.dequantize is None:
        gathered = any(op_of(reader) == DEQUANTIZE for reader in graph.readers.get(node.outputs[0], []))
        return Embedding(node, graph.origin(node.inputs[0]), Table.GATHERED if gathered else Table.FLOAT, way)
    table, kind = graph.origin(way.dequantize.inputs[0]), Table.INT8
    if way.float_weights:
        quantize = graph.producer(table)
        table, kind = graph.origin(quantize.inputs[0]) if quantize else table, Table.QUANTIZED
    return Embedding(node, table, kind if way.int8 else Table.OTHER, way)
