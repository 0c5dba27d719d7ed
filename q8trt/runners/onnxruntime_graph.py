"""What ONNX Runtime's CPU kernels want of a Q/DQ graph that TensorRT does not. Outputs do not change by a bit.

Activations. On x86, ONNX Runtime runs a GEMM in INT8 only when its activation is unsigned. It turns a signed
QuantizeLinear into an unsigned one by itself, but not where several DequantizeLinear read it, as Q, K and V read the
encoder's hidden states; those GEMMs then stay in float and dequantize their weights in every call. This does the same
rewrite for all of them: uint8 with zero_point 128 in place of int8 with zero_point 0, which holds exactly the same values.

Embeddings. TensorRT takes an INT8 table only straight before a DequantizeLinear, which Gather then reads; ONNX Runtime would
dequantize all rows in every call. Here the rows are gathered first, and only they are dequantized.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

ZERO_POINT = "q8trt.zero_point_128"


def _is_int8_zero(name: str, constants: dict[str, np.ndarray]) -> bool:
    value = constants.get(name)
    return value is not None and value.dtype == np.int8 and value.size == 1 and not value.any()


def _readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def use_unsigned_activations(model: onnx.ModelProto) -> int:
    """Rewrite, in place, each per-tensor int8 QuantizeLinear that only DequantizeLinear nodes read.

    Outputs do not change by a bit: saturate(round(x / scale)) + 128 is stored and (q - 128) * scale read back.

    Returns:
        number of QuantizeLinear nodes rewritten.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.dims}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value" and not node.attribute[0].t.dims:
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    readers, rewritten = _readers(graph.node), 0
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or len(quantize.input) < 3:
            continue
        pair = [quantize, *readers.get(quantize.output[0], [])]
        if all(
            node.op_type in ("QuantizeLinear", "DequantizeLinear") and _is_int8_zero(node.input[2], constants)
            for node in pair
        ):
            for node in pair:
                node.input[2] = ZERO_POINT
            rewritten += 1
    if rewritten:
        graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), ZERO_POINT))
    return rewritten


def dequantize_gathered_rows(model: onnx.ModelProto) -> int:
    """Rewrite, in place, DequantizeLinear(table) -> Gather to Gather(table) -> Cast -> Mul by the gathered rows' scale.

    A row is read as float(integer) * scale, which is what DequantizeLinear with zero_point 0 computes.

    Returns:
        number of tables rewritten.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    readers = _readers(graph.node)
    nodes: list[onnx.NodeProto] = []
    rewritten: set[str] = set()
    tables = {node.output[0]: node for node in graph.node if _is_table(node, constants, readers)}
    for node in graph.node:
        if node.output[0] in tables:
            continue
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        table, name = tables[node.input[0]], node.output[0]
        scale = constants[table.input[1]]
        rewritten.add(table.output[0])
        column = f"{table.input[0]}.scale_column"
        if column not in constants:
            constants[column] = np.broadcast_to(scale.reshape(-1, 1), (len(constants[table.input[0]]), 1)).copy()
            graph.initializer.append(numpy_helper.from_array(constants[column], column))
        element = helper.np_dtype_to_tensor_dtype(scale.dtype)
        nodes += [
            helper.make_node("Gather", [table.input[0], node.input[1]], [f"{name}.int8"], f"{node.name}.int8", axis=0),
            helper.make_node("Gather", [column, node.input[1]], [f"{name}.scale"], f"{node.name}.scale", axis=0),
            helper.make_node("Cast", [f"{name}.int8"], [f"{name}.integers"], f"{node.name}.integers", to=element),
            helper.make_node("Mul", [f"{name}.integers", f"{name}.scale"], [name], f"{node.name}.rows"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(rewritten)


def _is_table(node: onnx.NodeProto, constants: dict[str, np.ndarray], readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether `node` dequantizes a constant (rows, columns) int8 table, by rows or as a whole, that only Gather reads."""
    if node.op_type != "DequantizeLinear" or node.input[0] not in constants or node.input[1] not in constants:
        return False
    table, scale = constants[node.input[0]], constants[node.input[1]]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if table.ndim != 2 or (scale.size > 1 and axis != 0):
        return False
    if len(node.input) > 2 and (node.input[2] not in constants or constants[node.input[2]].any()):
        return False

    def gathers_rows(reader: onnx.NodeProto) -> bool:
        gathered = next((attribute.i for attribute in reader.attribute if attribute.name == "axis"), 0)
        return reader.op_type == "Gather" and reader.input[0] == node.output[0] and gathered == 0

    return bool(readers.get(node.output[0])) and all(gathers_rows(reader) for reader in readers[node.output[0]])
