"""What ONNX Runtime's CPU kernels want of a Q/DQ graph that TensorRT does not. No value changes but by rounding a bias.

Activations. On x86, ONNX Runtime runs a GEMM in INT8 only when its activation is unsigned. It turns a signed
QuantizeLinear into an unsigned one by itself, but not where several DequantizeLinear read it, as Q, K and V read the
encoder's hidden states; those GEMMs then stay in float and dequantize their weights in every call. This does the same
rewrite for all of them: uint8 with zero_point 128 in place of int8 with zero_point 0, which holds exactly the same values.

Embeddings. TensorRT takes an INT8 table only straight before a DequantizeLinear, which Gather then reads; ONNX Runtime would
dequantize all rows in every call. Here the rows are gathered first, and only they are dequantized.

Biases. ONNX Runtime makes one node of the two DequantizeLinear and the MatMul of a linear, and leaves the bias to an Add of
its own, though that node could add it. Here it does: for short texts, each node is a good part of the time.

Weights. A CPU without VNNI multiplies unsigned by signed bytes in pairs whose sum saturates at 16 bits, which falsifies the
products (logits of a small model by half their range). There the weights are made unsigned as well: uint8 with zero_point 128,
the same values. It costs some speed. (ONNX Runtime's own mode for this, session.x64quantprecision, refuses weights with a scale
for each column, and zero points that several nodes share.)
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
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


def saturates(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this CPU's products of unsigned and signed bytes may saturate: x86 without VNNI, or none can tell."""
    if platform.machine().casefold() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def use_unsigned_weights(model: onnx.ModelProto) -> int:
    """Rewrite, in place, each int8 constant that DequantizeLinear makes the right side of products with unsigned activations.

    Outputs do not change by a bit, see `use_unsigned_activations`, which comes first.

    Returns:
        number of weights rewritten.
    """
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers, rewritten = _readers(graph.node), 0

    def multiplies_unsigned(reader: onnx.NodeProto, weight: str) -> bool:
        data = producers.get(reader.input[0])
        if reader.op_type != "MatMul" or reader.input[1] != weight or data is None or len(data.input) < 3:
            return False
        zero_point = constants.get(data.input[2])
        return zero_point is not None and zero_point.data_type == TensorProto.UINT8

    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or node.input[1] not in constants:
            continue
        weight, scale, matmuls = constants[node.input[0]], constants[node.input[1]], readers.get(node.output[0], [])
        if weight.data_type != TensorProto.INT8 or len(weight.dims) != 2 or len(readers[weight.name]) != 1:
            continue
        if len(node.input) > 2 and numpy_helper.to_array(constants[node.input[2]]).any():
            continue
        if matmuls and all(multiplies_unsigned(reader, node.output[0]) for reader in matmuls):
            integers = (numpy_helper.to_array(weight).astype(np.int16) + 128).astype(np.uint8)
            weight.CopyFrom(numpy_helper.from_array(integers, weight.name))
            name = f"{weight.name}.zero_point"
            graph.initializer.append(numpy_helper.from_array(np.full(tuple(scale.dims), 128, np.uint8), name))
            del node.input[2:]
            node.input.append(name)
            rewritten += 1
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


def fuse_linears(model: onnx.ModelProto) -> int:
    """Rewrite, in place, MatMul(DequantizeLinear(x), DequantizeLinear(W)) + b to one MatMulIntegerToFloat.

    x is per tensor, W a constant of bytes (in, out), b a constant (out,). The sums are those of integers, as ONNX Runtime
    computes them anyway; only the rounding of the last float operation may differ.

    Returns:
        number of linears rewritten.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph.node)
    fused: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for add in graph.node:
        matmul = producers.get(add.input[0]) if add.op_type == "Add" and add.input[1] in constants else None
        if matmul is None or matmul.op_type != "MatMul" or len(readers[matmul.output[0]]) != 1:
            continue
        sides = [producers.get(name) for name in matmul.input]
        if not all(side is not None and side.op_type == "DequantizeLinear" for side in sides):
            continue
        data, weight = (side for side in sides if side is not None)
        if not _is_linear(data, weight, constants) or constants[add.input[1]].ndim != 1:
            continue
        zero_points = [side.input[2] if len(side.input) > 2 else "" for side in (data, weight)]
        inputs = [data.input[0], weight.input[0], data.input[1], weight.input[1], *zero_points]
        fused[add.output[0]] = helper.make_node(
            "MatMulIntegerToFloat", [*inputs, add.input[1]], [add.output[0]], matmul.name, domain="com.microsoft"
        )
        gone.add(matmul.output[0])
    if not fused:
        return 0
    nodes = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read)
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return len(fused)


def _is_linear(data: onnx.NodeProto, weight: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether `data` is per tensor and `weight` a float32-scaled matrix of bytes with one scale, or one a column."""
    scale, integers = constants.get(weight.input[1]), constants.get(weight.input[0])
    if (
        integers is None
        or scale is None
        or integers.ndim != 2
        or integers.dtype not in (np.int8, np.uint8)
        or scale.dtype != np.float32
    ):
        return False
    axis = next((attribute.i for attribute in weight.attribute if attribute.name == "axis"), 1)
    per_tensor = constants.get(data.input[1])
    return per_tensor is not None and per_tensor.size == 1 and (scale.size == 1 or axis == 1)
