"""Passes over attention: the pattern of TensorRT's fused INT8 attention.

NVIDIA describes the pattern (TensorRT documentation, "Working with Quantized Types"; NVIDIA/TensorRT issues 3243 and
2981): Q/DQ directly before BMM1 on Q and K, the scale on Q before its quantizer and not on the scores, and Q/DQ after softmax,
on V, and on the output of BMM2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from q8trt.export.graph import (
    FACTOR,
    MODULES,
    SCOPE,
    above_qdq,
    attribute,
    constant,
    make,
    new_constant,
    nodes,
    note_factor,
    only_reader,
    operands,
    producer,
    replace,
)


@dataclass(frozen=True)
class Attention:
    """The nodes of one attention: softmax, the product that it reads, and the scale between them (None without one)."""

    softmax: Any
    scores_scale: Any
    bmm1: Any


def find_attentions(graph: ir.Graph) -> list[Attention]:
    """Return each Softmax <- [Add of the mask] <- [Mul or Div with a constant] <- MatMul of two computed tensors."""
    attentions = []
    for softmax in nodes(graph, "Softmax"):
        add = producer(softmax.inputs[0], "Add")
        for value in add.inputs if add is not None else softmax.inputs:
            scale = producer(value, "Mul", "Div")
            scaled = operands(scale)
            bmm1 = producer(value if scaled is None else scaled[0], "MatMul")
            if bmm1 is not None and all(constant(each) is None for each in bmm1.inputs):
                attentions.append(Attention(softmax, scale if scaled is not None else None, bmm1))
                break
    return attentions


def _projection_of(value: ir.Value, is_shared: bool = False) -> Any:
    """Return the bias Add of the linear whose rearranged output is `value`; None if other nodes read its output.

    `is_shared`: other nodes may read the rearrangement, as DeBERTa's products with positions do.
    """
    while (node := producer(value, "Transpose", "Reshape")) is not None:
        if not is_shared and only_reader(value, *_READERS) is None:
            return None
        value, is_shared = node.inputs[0], False
    add = producer(value, "Add")
    return None if operands(add) is None or only_reader(value, *_READERS) is None else add


#: (batch, sequence, heads, size) -> (batch, heads, sequence, size), or with the last two exchanged, as in K.
_ROWS, _COLUMNS, _ROWS_TO_COLUMNS = [0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 3, 2]

_READERS = ("Transpose", "Reshape", "Mul", "QuantizeLinear", "MatMul", "Div")


def scale_linear(add: Any, factor: np.ndarray, scaled_weights: dict[ir.Value, ir.Value] | None = None) -> bool:
    """Multiply the output of the linear MatMul(x, W) + b by `factor`, in its constants.

    Return False, without a change, if `add` is not such an Add or other nodes read what would change.

    Args:
        add: the Add of the bias.
        factor: float32, () or (out_features,).
        scaled_weights: float weight -> the weight times `factor`. Linears that share a weight share its product, too.
    """
    graph, summands = add.graph, operands(add)
    matmul = producer(summands[0], "MatMul") if summands is not None else None
    if graph is None or summands is None or matmul is None or only_reader(matmul.outputs[0], "Add") is None:
        return False
    weight, dequantize = matmul.inputs[1], producer(matmul.inputs[1], "DequantizeLinear")
    if constant(weight) is None and (dequantize is None or constant(dequantize.inputs[0]) is None):
        return False
    if dequantize is not None:
        if only_reader(dequantize.outputs[0], "MatMul") is None:
            return False
        _scale_dequantized(graph, dequantize, factor)
    else:
        shared = {} if scaled_weights is None else scaled_weights
        if weight not in shared:
            scaled = (constant(weight) * factor).astype(np.float32)
            shared[weight] = new_constant(graph, f"{weight.name}.scaled", scaled)
        matmul.replace_input_with(1, shared[weight])
    bias = next(index for index, value in enumerate(add.inputs) if constant(value) is not None)
    scaled = (summands[1] * factor).astype(np.float32)
    add.replace_input_with(bias, new_constant(graph, f"{add.inputs[bias].name}.scaled", scaled))
    note_factor(add, factor)
    return True


def _scale_dequantized(graph: ir.Graph, dequantize: Any, factor: np.ndarray) -> None:
    scale = (constant(dequantize.inputs[1]) * factor).astype(np.float32)
    if scale.ndim and not constant(dequantize.inputs[1]).ndim:  # one scale becomes one per column
        dequantize.attributes["axis"] = ir.AttrInt64("axis", 1)
    dequantize.replace_input_with(1, new_constant(graph, "scale", scale))


def fold_attention_scale(model: ir.Model) -> int:
    """Fold 1 / sqrt(head size), applied to Q or to the scores, into the Q projection.

    It goes into the bias and the weight, or into the scales of a quantized weight. The result differs by the rounding of one
    product. It is the same to the bit if the head size is a power of four, such as BERT's 64.
    """
    folded, scaled_weights = 0, dict[ir.Value, ir.Value]()
    for attention in find_attentions(model.graph):
        query = above_qdq(attention.bmm1.inputs[0])
        scale = attention.scores_scale or producer(query, "Mul", "Div")
        factors = operands(scale)
        if factors is None or factors[1].size != 1:
            continue
        if scale.op_type == "Div" and constant(scale.inputs[0]) is not None:
            continue  # a constant divided by Q
        if attention.scores_scale is not None and query is not attention.bmm1.inputs[0]:
            continue  # scores scaled after a quantized product: Q's range would change with it
        add = _projection_of(query if attention.scores_scale is not None else factors[0])
        factor = factors[1].reshape(()) if scale.op_type == "Mul" else 1 / factors[1].reshape(())
        if add is not None and scale_linear(add, factor.astype(np.float32), scaled_weights):
            replace(scale.outputs[0], factors[0])
            folded += 1
    return folded


def merge_key_transposes(model: ir.Model) -> int:
    """Merge the second Transpose of K's Transpose -> [Q -> DQ ->] Transpose -> BMM1 into the first.

    DequantizeLinear then feeds the product directly, and TensorRT need not move it over a Transpose. This is exact.
    """
    merged = 0
    for attention in find_attentions(model.graph):
        last = producer(attention.bmm1.inputs[1], "Transpose")
        dequantize = producer(last.inputs[0], "DequantizeLinear") if last is not None else None
        quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
        first = producer((quantize or last).inputs[0], "Transpose") if last is not None else None
        if last is None or first is None:
            continue
        chain = [first, last] if quantize is None else [first, quantize, dequantize, last]
        if any(only_reader(node.outputs[0], *_CHAIN) is None for node in chain[:-1]):
            continue
        inner, outer = attribute(first, "perm", ()), attribute(last, "perm", ())
        transpose = make("Transpose", [first.inputs[0]], first, perm=[inner[axis] for axis in outer])
        replace(first.outputs[0], transpose.outputs[0])
        replace(last.outputs[0], last.inputs[0])
        merged += 1
    return merged


_CHAIN = ("Transpose", "QuantizeLinear", "DequantizeLinear", "MatMul")


def fuse_qkv(model: ir.Model) -> int:
    """Fuse the projections of Q, K and V into one GEMM of three times the width, split after the Transpose of its heads.

    Integers and their scales, one per output channel, are concatenated, which is exact. If Q, K and V are split before the
    heads, TensorRT-RTX 1.7 runs the wide GEMM in floating point. If they are split after the heads, the GEMM runs in INT8, and
    one kernel computes everything that follows (built: MiniLM with `full` has 61 layers instead of 73).
    """
    fused = 0
    for attention in find_attentions(model.graph):
        adds = _projections(attention)
        if adds is not None and _fuse(model.graph, adds):
            fused += 1
    common.RemoveUnusedNodesPass()(model)
    return fused


def _projections(attention: Attention) -> list[Any] | None:
    """Return the bias Adds of Q, K and V; None if one of them is not recognized."""
    after = attention.softmax.outputs[0]
    while (node := only_reader(after, "QuantizeLinear", "DequantizeLinear")) is not None:
        after = node.outputs[0]
    bmm2 = only_reader(after, "MatMul")
    if bmm2 is None:
        return None
    values = [above_qdq(value) for value in (*attention.bmm1.inputs, bmm2.inputs[1])]
    adds = [_projection_of(_unscaled(value), is_shared=True) for value in values]
    return None if None in adds else adds


def _unscaled(value: ir.Value) -> ir.Value:
    """Return the input of a Mul by a constant (a scale that could not be folded); `value` for any other node."""
    factors = operands(producer(value, "Mul"))
    return value if factors is None else factors[0]


def _fuse(graph: ir.Graph, adds: list[Any]) -> bool:
    matmuls = [producer(operands(add)[0], "MatMul") for add in adds]
    if any(matmul is None or matmul.inputs[0] is not matmuls[0].inputs[0] for matmul in matmuls):
        return False
    heads = [nodes_of for add in adds if (nodes_of := _heads_of(add)) is not None]
    if len(heads) < len(adds):
        return False
    weights = [matmul.inputs[1] for matmul in matmuls]
    biases = [operands(add)[1] for add in adds]
    like = min(matmuls, key=list(graph).index)
    scope = like.metadata_props[SCOPE].rpartition(".")[0]
    weight = _side_by_side(graph, weights, like)
    if weight is None:
        return False
    product = make("MatMul", [matmuls[0].inputs[0], weight], like)
    total = make("Add", [product.outputs[0], new_constant(graph, "bias", np.concatenate(biases))], like)
    count, size = constant(heads[0][0].inputs[1])[2:]
    shape = new_constant(graph, "shape", np.array([0, 0, 3 * count, size], np.int64))
    reshape = make("Reshape", [total.outputs[0], shape], like)
    transpose = make("Transpose", [reshape.outputs[0]], like, perm=_ROWS)
    sizes = new_constant(graph, "sizes", np.array([count] * 3, np.int64))
    split = ir.node("Split", [transpose.outputs[0], sizes], {"axis": 1}, num_outputs=3)
    graph.insert_before(like, split)
    for node in (product, total, reshape, transpose, split):
        node.metadata_props[SCOPE] = f"{scope}.qkv"
    split.metadata_props[MODULES] = json.dumps([add.metadata_props[SCOPE] for add in adds])
    split.metadata_props[FACTOR] = json.dumps([json.loads(add.metadata_props.get(FACTOR, "[1.0]")) for add in adds])
    for (_, old), output in zip(heads, split.outputs, strict=True):
        if list(attribute(old, "perm", ())) == _COLUMNS:
            output = make("Transpose", [output], old, perm=_ROWS_TO_COLUMNS).outputs[0]
        replace(old.outputs[0], output)
    return True


def _heads_of(add: Any) -> tuple[Any, Any] | None:
    """Return the Reshape and the Transpose that split the output of `add` into heads; None for any other split."""
    reshape = only_reader(add.outputs[0], "Reshape")
    transpose = only_reader(reshape.outputs[0], "Transpose") if reshape is not None else None
    shape = constant(reshape.inputs[1]) if reshape is not None else None
    if transpose is None or shape is None or shape.size != 4 or shape[:2].any() or shape[2:].min() < 1:
        return None
    return (reshape, transpose) if list(attribute(transpose, "perm", ())) in (_ROWS, _COLUMNS) else None


def _side_by_side(graph: ir.Graph, weights: list[ir.Value], like: ir.Node) -> ir.Value | None:
    """Return the three weights as one constant, or as one DequantizeLinear with a scale for each column; None if they differ."""
    arrays = [constant(weight) for weight in weights]
    if all(array is not None for array in arrays):
        return new_constant(graph, "qkv.weight", np.concatenate(arrays, axis=1))
    dequantized = [producer(weight, "DequantizeLinear") for weight in weights]
    if any(node is None or constant(node.inputs[0]) is None for node in dequantized):
        return None
    integers = [constant(node.inputs[0]) for node in dequantized]
    scales = [
        np.broadcast_to(constant(node.inputs[1]), each.shape[1:])
        for node, each in zip(dequantized, integers, strict=True)
    ]
    scale = np.concatenate(scales)
    inputs = [
        new_constant(graph, "qkv.weight.int8", np.concatenate(integers, axis=1)),
        new_constant(graph, "qkv.scale", scale),
    ]
    dequantize = make("DequantizeLinear", inputs, like, axis=1)
    dequantize.metadata_props[SCOPE] = dequantized[0].metadata_props[SCOPE].replace("query", "qkv")
    return dequantize.outputs[0]
