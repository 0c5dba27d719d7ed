"""The parts of a transformer found in a graph by its structure, whatever its nodes are called.

A GEMM has one constant operand, a BMM none. Attention is a Softmax between two BMMs. A residual Add joins two activations and
feeds a LayerNorm. From their order follow the layers (`q8trt.lint.blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from q8trt.lint.graph import Graph, Node, is_table_lookup
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE, Feed, feed

#: Op -> positions of its two operands.
OPERANDS = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Conv": (0, 1), "ConvTranspose": (0, 1), "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1), "QLinearMatMul": (0, 3), "QLinearConv": (0, 3), "com.microsoft.QGemm": (0, 3),
    "com.microsoft.FusedMatMul": (0, 1), "com.microsoft.MatMulIntegerToFloat": (0, 1),
    "com.microsoft.DynamicQuantizeMatMul": (0, 1), "com.microsoft.MatMulNBits": (0, 1),
}  # fmt: skip
ACTIVATIONS = (
    "Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Elu", "LeakyRelu", "HardSwish", "HardSigmoid", "Softplus", "Mish", "Celu",
    "Selu", "PRelu", "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.BiasGelu", "com.microsoft.QuickGelu",
)  # fmt: skip
GELUS = ("Gelu", "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.BiasGelu", "com.microsoft.QuickGelu")
#: What may lie on the way from a BMM to Softmax and on to the next BMM without changing what it is.
_PASS = (*MOVES, "Cast", QUANTIZE, DEQUANTIZE)


@dataclass(frozen=True)
class Product:
    """A GEMM (one constant operand; Conv counts as one) or BMM (none), and how its operands reach it."""

    node: Node
    left: Feed
    right: Feed
    weight: str = ""

    @property
    def int8(self) -> bool:
        """Whether both sides are fed INT8, with scales that can be taken out of the sum."""
        return self.left.int8 and self.right.int8 and not self.wrong_axis and not self.scaled_by_channel

    @property
    def wrong_axis(self) -> bool:
        """Whether the weight's scales run along the dimension that is summed over."""
        return bool(self.weight) and self.right.axis is not None and self.right.axis != self.output_axis

    @property
    def scaled_by_channel(self) -> bool:
        """Whether an activation has several scales, which TensorRT offers for weights alone."""
        return self.left.axis is not None or (not self.weight and self.right.axis is not None)

    @property
    def output_axis(self) -> int:
        """The dimension of the weight, as stored for this op, that becomes the output's channels."""
        if self.node.op == "MatMul":
            return 1
        if self.node.op == "Gemm":
            return 0 if self.node.attribute("transB", 0) else 1
        return 1 if self.node.op == "ConvTranspose" else 0

    @property
    def text(self) -> str:
        """Such as "INT8 x INT8"."""
        if self.node.op not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            return f"{self.node.op}, which TensorRT lacks"
        note = " (scales along the summed dimension)" if self.wrong_axis else ""
        note = " (activation scaled by channel)" if self.scaled_by_channel else note
        return f"{self.left.text} x {self.right.text}{note}"


@dataclass(frozen=True)
class Attention:
    """One Softmax and what surrounds it.

    Attributes:
        softmax: the node.
        scores: the BMM of Q and K; None where the way back from Softmax leads to none.
        context: the BMM of the probabilities and V; None likewise.
        scales: Mul and Div nodes between the first BMM and Softmax.
        masks: Add, Sub and Where nodes there.
        quantized_scores: Q/DQ nodes there.
    """

    softmax: Node
    scores: Product | None
    context: Product | None
    scales: tuple[Node, ...] = ()
    masks: tuple[Node, ...] = ()
    quantized_scores: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: one op, or `nodes` that compute it step by step. `input` is the normalized tensor."""

    nodes: tuple[Node, ...]
    input: str
    output: str

    @property
    def decomposed(self) -> bool:
        """Whether it is spelled out in several ops."""
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Residual:
    """An Add of two activations that a LayerNorm reads."""

    node: Node
    left: Feed
    right: Feed

    @property
    def int8(self) -> bool:
        """Whether both inputs are INT8."""
        return self.left.int8 and self.right.int8


@dataclass(frozen=True)
class Embedding:
    """Rows gathered from a constant table.

    Attributes:
        node: the Gather.
        table: the stored table.
        how: "int8" (DequantizeLinear -> Gather), "gathered" (Gather -> DequantizeLinear), "quantized" (a float table behind
            a QuantizeLinear), "float" or what stands against INT8, such as "UINT8".
    """

    node: Node
    table: str
    how: str


@dataclass
class Structure:
    """What was found, each kind in the order of the graph."""

    gemms: list[Product] = field(default_factory=list)
    bmms: list[Product] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    gelus: list[tuple[Node, ...]] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    embeddings: list[Embedding] = field(default_factory=list)


def find_structure(graph: Graph) -> Structure:
    """Recognize the parts of `graph`; what is not recognized is left out."""
    found = Structure()
    for node in graph.nodes:
        if node.op in OPERANDS and graph.streams_in(node):
            product = _product(graph, node)
            (found.gemms if product.weight else found.bmms).append(product)
        elif is_table_lookup(graph, node):
            found.embeddings.append(_embedding(graph, node))
    bmms = {bmm.node: bmm for bmm in found.bmms}
    found.attentions = [
        _attention(graph, node, bmms) for node in graph.nodes if node.op == "Softmax" and graph.streams_in(node)
    ]
    found.norms = _norms(graph)
    found.gelus = _gelus(graph)
    found.residuals = _residuals(graph, found)
    return found


def _product(graph: Graph, node: Node) -> Product:
    left, right = (node.input(position) for position in OPERANDS[node.op])
    if graph.is_constant(left) and not graph.is_constant(right):
        left, right = right, left
    weight = right if graph.is_constant(right) else ""
    return Product(node, feed(graph, left), feed(graph, right), weight)


def _attention(graph: Graph, softmax: Node, bmms: dict[Node, Product]) -> Attention:
    way = _back_to_product(graph, softmax.inputs[0], bmms)
    context = _forward_to_product(graph, softmax.outputs[0], bmms)
    if way is None:
        return Attention(softmax, None, context)
    first, *between = way
    return Attention(
        softmax,
        bmms[first],
        context,
        tuple(node for node in between if node.op in ("Mul", "Div")),
        tuple(node for node in between if node.op in ("Add", "Sub", "Where")),
        tuple(node for node in between if node.op in (QUANTIZE, DEQUANTIZE)),
    )


def _back_to_product(graph: Graph, tensor: str, bmms: dict[Node, Product]) -> list[Node] | None:
    """The BMM that `tensor` comes from and the nodes after it; None where the way leads elsewhere."""
    reader_of: dict[Node, Node | None] = {}
    waiting: list[tuple[str, Node | None]] = [(tensor, None)]
    while waiting:
        name, reader = waiting.pop()
        node = graph.producers.get(name)
        if node is None or node in reader_of or name not in graph.stream:
            continue
        reader_of[node] = reader
        if node in bmms:
            way = [node]
            while (following := reader_of[way[-1]]) is not None:
                way.append(following)
            return way
        if node.op in _PASS:
            waiting.append((node.inputs[0], node))
        elif node.op in ("Mul", "Div", "Add", "Sub", "Where", "Clip", "Max", "Min"):
            waiting += [(each, node) for each in reversed(graph.streams_in(node))]
    return None


def _forward_to_product(graph: Graph, tensor: str, bmms: dict[Node, Product]) -> Product | None:
    """The first BMM that reads `tensor`, also behind casts, Q/DQ and the Where that clears NaN."""
    waiting, seen = [tensor], set()
    while waiting:
        for node in graph.readers.get(waiting.pop(0), []):
            if node in bmms:
                return bmms[node]
            if node.op in (*_PASS, "Where", "Mul") and node not in seen:
                seen.add(node)
                waiting += [name for name in node.outputs if name]
    return None


def _norms(graph: Graph) -> list[Norm]:
    found = []
    for node in graph.nodes:
        if node.op == "LayerNormalization" and graph.streams_in(node):
            found.append(Norm((node,), node.inputs[0], node.outputs[0]))
        elif node.op == "Div" and (norm := _decomposed_norm(graph, node)) is not None:
            found.append(norm)
    return found


def _decomposed_norm(graph: Graph, divide: Node) -> Norm | None:
    """ReduceMean -> Sub -> Pow (or Mul) -> ReduceMean -> Add -> Sqrt -> Div (-> Mul -> Add), recognized at the Div."""
    center, root = (_made_by(graph, name) for name in divide.inputs)
    if center is None or root is None or (center.op, root.op) != ("Sub", "Sqrt"):
        return None
    mean, shifted = _made_by(graph, center.inputs[1]), _made_by(graph, root.inputs[0])
    if mean is None or mean.op != "ReduceMean" or shifted is None or shifted.op != "Add":
        return None
    variance = next((node for node in (_made_by(graph, name) for name in shifted.inputs) if node is not None), None)
    if variance is None or variance.op != "ReduceMean":
        return None
    square = _made_by(graph, variance.inputs[0])
    if square is None or square.op not in ("Pow", "Mul"):
        return None
    nodes = [mean, center, square, variance, shifted, root, divide]
    for op in ("Mul", "Add"):
        reader = graph.reader(nodes[-1].outputs[0])
        if reader is not None and reader.op == op and any(graph.is_constant(name) for name in reader.inputs):
            nodes.append(reader)
    return Norm(tuple(nodes), center.inputs[0], nodes[-1].outputs[0])


def _made_by(graph: Graph, tensor: str) -> Node | None:
    """The producer of a tensor, a Cast skipped."""
    node = graph.producers.get(tensor)
    return graph.producers.get(node.inputs[0]) if node is not None and node.op == "Cast" else node


def _gelus(graph: Graph) -> list[tuple[Node, ...]]:
    """GELU as one op, or the Erf or Tanh of its formula with the Add of 1 and the Mul that follow."""
    found: list[tuple[Node, ...]] = []
    for node in graph.nodes:
        if node.op in GELUS and graph.streams_in(node):
            found.append((node,))
        elif node.op in ("Erf", "Tanh") and graph.streams_in(node):
            plus = graph.reader(node.outputs[0])
            if plus is not None and plus.op == "Add" and 1.0 in [graph.scalar(name) for name in plus.inputs]:
                times = graph.reader(plus.outputs[0])
                found.append((node, plus, *([times] if times is not None and times.op == "Mul" else [])))
    return found


def _residuals(graph: Graph, found: Structure) -> list[Residual]:
    heads = {norm.nodes[0]: norm for norm in found.norms}
    products = {product.node for product in (*found.gemms, *found.bmms)}
    heavy: set[str] = set()  # tensors that come from a GEMM
    for node in graph.nodes:
        if node in products or any(name in heavy for name in node.inputs):
            heavy.update(node.outputs)
    return [
        Residual(node, *(feed(graph, name) for name in node.inputs))
        for node in graph.nodes
        if node.op == "Add"
        and all(name in graph.stream and not graph.is_constant(name) for name in node.inputs)
        and any(name in heavy for name in node.inputs)
        and _feeds_norm(graph, node, heads)
    ]


def _feeds_norm(graph: Graph, add: Node, heads: dict[Node, Norm]) -> bool:
    """Whether a LayerNorm reads the sum: at once, or behind a constant factor per channel, a cast or Q/DQ."""
    waiting, seen = [add.outputs[0]], set()
    while waiting:
        tensor = waiting.pop()
        for node in graph.readers.get(tensor, []):
            if node in heads and heads[node].input == tensor:
                return True
            scaled = node.op in ("Mul", "Div") and any(graph.is_constant(name) for name in node.inputs)
            if (node.op in _PASS or scaled) and node not in seen:
                seen.add(node)
                waiting += [name for name in node.outputs if name]
    return False


def _embedding(graph: Graph, node: Node) -> Embedding:
    table = feed(graph, node.inputs[0])
    if table.dequantize is None:
        gathered = [reader for reader in graph.readers.get(node.outputs[0], []) if reader.op == DEQUANTIZE]
        how = "gathered" if gathered else "float"
        return Embedding(node, graph.source(node.inputs[0]), how)
    origin = graph.source(table.dequantize.inputs[0])
    if table.float_weights:
        quantize = graph.producers[origin]
        return Embedding(node, graph.source(quantize.inputs[0]), "quantized" if table.int8 else table.text)
    return Embedding(node, origin, "int8" if table.int8 else table.text)
