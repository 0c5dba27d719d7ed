"""Rewrites of a graph for ONNX Runtime's CPU kernels. Values change only by the rounding of a bias and of FP16.

FP16 becomes FP32 first, see `q8trt.runtime.onnxruntime.widening`.

Activations. On x86, ONNX Runtime runs a GEMM in INT8 only when its activation is unsigned. It makes a signed QuantizeLinear
unsigned, except if several DequantizeLinear read it, as for Q, K and V. Those GEMMs then stay in floating point and dequantize
their weights in every call. The rewrite makes all activations unsigned: uint8 with zero_point 128 instead of int8 with
zero_point 0, which represents exactly the same values.

Embeddings. TensorRT accepts an INT8 table only directly before a DequantizeLinear, which Gather then reads. ONNX Runtime would
dequantize all rows in every call. The rewrite gathers the rows first and dequantizes only these.

Biases. ONNX Runtime fuses the two DequantizeLinear and the MatMul of a linear, but not the Add of the bias. The rewrite adds the
bias in the fused node, because each node costs a noticeable share of the time for short texts.

Weights. A CPU without VNNI multiplies unsigned and signed bytes in pairs, whose sum saturates at 16 bits. The products are then
wrong (in a small model the logits were off by half their range). For such a CPU the weights also become unsigned: uint8 with
zero_point 128, the same values. This costs some speed. (ONNX Runtime's mode for this, session.x64quantprecision, refuses weights
with a scale for each column, and zero points that several nodes share.)

The messages are those of the onnx package or of `q8trt.files.onnx.messages`, which needs only protobuf.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.files import MalformedError
from q8trt.files.onnx import check_model, messages
from q8trt.files.onnx.messages import add_initializer, integer_attribute, new_node, set_array
from q8trt.runtime.onnxruntime.widening import widen

Model = Any  # onnx.ModelProto, or the same message of `q8trt.files.onnx`
Node = Any
ZERO_POINT = "q8trt.zero_point_128"
#: The largest file, in bytes, whose FP16 becomes FP32: half the limit of protobuf.
_WIDENED = 2**30


def for_the_cpu(data: bytes, unsigned_weights: bool | None = None, in_fp32: bool = True) -> bytes:
    """Return a model after all rewrites that apply.

    Args:
        data: the ONNX file.
        unsigned_weights: whether the CPU that will run the model needs unsigned weights; None checks this CPU.
        in_fp32: whether FP16 tensors become FP32; a file over 1 GiB keeps them.

    Raises:
        MalformedError: `data` is not an ONNX model, or stores its weights in another file.
    """
    model = messages.parse(data)
    check_model(model, None)
    _check_nodes(model.graph)
    try:
        if in_fp32 and len(data) <= _WIDENED:
            widen(model)
        use_unsigned_activations(model)
        dequantize_gathered_rows(model)
        if saturates() if unsigned_weights is None else unsigned_weights:
            use_unsigned_weights(model)
        fuse_linears(model)
    except LookupError:
        raise MalformedError("a node of its graph lacks an input, an output or a constant") from None
    return bytes(model.SerializeToString())


#: Op -> the number of inputs that the rewrites rely on.
_ARITY = {"QuantizeLinear": 2, "DequantizeLinear": 2, "Gather": 2, "MatMul": 2, "Add": 2}


def _check_nodes(graph: Any) -> None:
    """Raise MalformedError if a node lacks an input or output that the rewrites rely on."""
    for node in graph.node:
        missing = not node.output or len(node.input) < _ARITY.get(node.op_type, 0)
        if missing or (node.op_type == "Constant" and not node.attribute):
            raise MalformedError(
                f"its node {ascii(node.name)[:80]} ({ascii(node.op_type)[:80]}) lacks an input or an output"
            )


class _Constants:
    """The constants of a graph by name, read when they are needed: initializers and the values of Constant nodes."""

    def __init__(self, graph: Any) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.tensors[node.output[0]] = node.attribute[0].t

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> np.ndarray | None:
        """Return the values of `name`; None if it is not a constant, or if no rewrite reads its type."""
        tensor = self.tensors.get(name)
        return None if tensor is None else messages.to_array(tensor)


def _is_int8_zero(name: str, constants: _Constants) -> bool:
    tensor = constants.tensors.get(name)
    if tensor is None or tensor.data_type != messages.INT8 or tensor.dims:
        return False
    value = constants.get(name)
    return value is not None and not value.any()


def _readers(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def use_unsigned_activations(model: Model) -> int:
    """Rewrite, in place, each per-tensor int8 QuantizeLinear that only DequantizeLinear nodes read.

    Outputs are the same to the bit, because saturate(round(x / scale)) + 128 is stored, and (q - 128) * scale is read back.

    Returns:
        number of QuantizeLinear nodes rewritten.
    """
    graph = model.graph
    constants = _Constants(graph)
    readers, rewritten = _readers(graph.node), 0
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or len(quantize.input) < 3:
            continue
        pair = [quantize, *readers.get(quantize.output[0], [])]
        if all(
            node.op_type in ("QuantizeLinear", "DequantizeLinear")
            and len(node.input) > 2
            and _is_int8_zero(node.input[2], constants)
            for node in pair
        ):
            for node in pair:
                node.input[2] = ZERO_POINT
            rewritten += 1
    if rewritten:
        add_initializer(graph, ZERO_POINT, np.array(128, np.uint8))
    return rewritten


def saturates(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether products of unsigned and signed bytes may saturate: on x86 without VNNI, or if its flags are unknown."""
    if platform.machine().casefold() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def use_unsigned_weights(model: Model) -> int:
    """Rewrite, in place, each dequantized int8 matrix that is the right side of products with unsigned activations.

    Outputs are the same to the bit. Call `use_unsigned_activations` first.

    Returns:
        number of weights rewritten.
    """
    graph = model.graph
    initializers, constants = {tensor.name: tensor for tensor in graph.initializer}, _Constants(graph)
    producers = {name: node for node in graph.node for name in node.output}
    readers, rewritten = _readers(graph.node), 0

    def multiplies_unsigned(reader: Node, weight: str) -> bool:
        data = producers.get(reader.input[0])
        if reader.op_type != "MatMul" or reader.input[1] != weight or data is None or len(data.input) < 3:
            return False
        zero_point = constants.tensors.get(data.input[2])
        return zero_point is not None and zero_point.data_type == messages.UINT8

    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in initializers or node.input[1] not in initializers:
            continue
        weight, scale = initializers[node.input[0]], initializers[node.input[1]]
        if weight.data_type != messages.INT8 or len(weight.dims) != 2 or len(readers[weight.name]) != 1:
            continue
        matmuls = readers.get(node.output[0], [])
        products = matmuls and all(multiplies_unsigned(reader, node.output[0]) for reader in matmuls)
        if products and _is_symmetric(node, constants):
            integers = messages.to_array(weight)
            assert integers is not None  # INT8, see above
            set_array(weight, (integers.astype(np.int16) + 128).astype(np.uint8))
            name = f"{weight.name}.zero_point"
            add_initializer(graph, name, np.full(tuple(scale.dims), 128, np.uint8))
            del node.input[2:]
            node.input.append(name)
            rewritten += 1
    return rewritten


def _is_symmetric(node: Node, constants: _Constants) -> bool:
    """Return whether the zero point of a DequantizeLinear is left out or a constant 0."""
    if len(node.input) < 3:
        return True
    value = constants.get(node.input[2])
    return value is not None and not value.any()


def dequantize_gathered_rows(model: Model) -> int:
    """Rewrite, in place, DequantizeLinear(table) -> Gather to Gather(table) -> Cast -> Mul by the gathered rows' scale.

    A row is read as float(integer) * scale, which is what DequantizeLinear with zero_point 0 computes.

    Returns:
        number of tables rewritten.
    """
    graph = model.graph
    constants, readers = _Constants(graph), _readers(graph.node)
    nodes: list[Node] = []
    rewritten: set[str] = set()
    tables = {node.output[0]: node for node in graph.node if _is_table(node, constants, readers)}
    for node in graph.node:
        if node.output[0] in tables:
            continue
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        table, name = tables[node.input[0]], node.output[0]
        rows, scale = constants.tensors[table.input[0]].dims[0], constants.tensors[table.input[1]]
        rewritten.add(table.output[0])
        column = f"{table.input[0]}.scale_column"
        if column not in constants:
            values = constants.get(table.input[1])
            assert values is not None  # `_is_table` has read it
            spread = np.broadcast_to(values.reshape(-1, 1), (rows, 1))
            constants.tensors[column] = add_initializer(graph, column, spread)
        element = scale.data_type
        nodes += [
            new_node(graph, "Gather", [table.input[0], node.input[1]], f"{name}.int8", f"{node.name}.int8", axis=0),
            new_node(graph, "Gather", [column, node.input[1]], f"{name}.scale", f"{node.name}.scale", axis=0),
            new_node(graph, "Cast", [f"{name}.int8"], f"{name}.integers", f"{node.name}.integers", to=element),
            new_node(graph, "Mul", [f"{name}.integers", f"{name}.scale"], name, f"{node.name}.rows"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(rewritten)


def _is_table(node: Node, constants: _Constants, readers: dict[str, list[Node]]) -> bool:
    """Return whether `node` dequantizes a constant (rows, columns) int8 table, by rows or as a whole, only for Gather."""
    if node.op_type != "DequantizeLinear" or node.input[0] not in constants or node.input[1] not in constants:
        return False
    table, scale = constants.tensors[node.input[0]], constants.get(node.input[1])
    if scale is None or not scale.size or len(table.dims) != 2 or not _size(table):
        return False
    by_rows = scale.size == 1 or integer_attribute(node, "axis", 1) == 0
    gathers = readers.get(node.output[0], [])
    return (
        by_rows
        and _is_symmetric(node, constants)
        and bool(gathers)
        and all(reader.op_type == "Gather" and reader.input[0] == node.output[0] for reader in gathers)
        and all(integer_attribute(reader, "axis", 0) == 0 for reader in gathers)
    )


def fuse_linears(model: Model) -> int:
    """Rewrite, in place, MatMul(DequantizeLinear(x), DequantizeLinear(W)) + b to one MatMulIntegerToFloat.

    x is quantized per tensor, W is a constant of bytes (in, out), and b is a constant (out,). ONNX Runtime computes the same
    integer sums in both cases; only the rounding of the last float operation may differ.

    Returns:
        number of linears rewritten.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph.node)
    fused: dict[str, Node] = {}
    gone: set[str] = set()
    for add in graph.node:
        matmul = producers.get(add.input[0]) if add.op_type == "Add" and add.input[1] in constants else None
        if matmul is None or matmul.op_type != "MatMul" or len(readers[matmul.output[0]]) != 1:
            continue
        sides = [producers.get(name) for name in matmul.input]
        if not all(side is not None and side.op_type == "DequantizeLinear" for side in sides):
            continue
        data, weight = (side for side in sides if side is not None)
        if not _is_linear(data, weight, constants) or len(constants[add.input[1]].dims) != 1:
            continue
        zero_points = [side.input[2] if len(side.input) > 2 else "" for side in (data, weight)]
        inputs = [data.input[0], weight.input[0], data.input[1], weight.input[1], *zero_points]
        fused[add.output[0]] = new_node(
            graph, "MatMulIntegerToFloat", [*inputs, add.input[1]], add.output[0], matmul.name, domain="com.microsoft"
        )
        gone.add(matmul.output[0])
    if not fused:
        return 0
    nodes = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read)
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    return len(fused)


def _is_linear(data: Node, weight: Node, constants: dict[str, Any]) -> bool:
    """Return whether `data` has one scale, and `weight` is a matrix of bytes with one float32 scale, or one per column."""
    scale, integers = constants.get(weight.input[1]), constants.get(weight.input[0])
    per_tensor = constants.get(data.input[1])
    if integers is None or scale is None or per_tensor is None or _size(per_tensor) != 1:
        return False
    if len(integers.dims) != 2 or integers.data_type not in (messages.INT8, messages.UINT8):
        return False
    return scale.data_type == messages.FLOAT and (_size(scale) == 1 or integer_attribute(weight, "axis", 1) == 1)


def _size(tensor: Any) -> int:
    return math.prod(tensor.dims)
