"""The conditions under which TensorRT can run an attention as one kernel, and those that an attention does not meet.

The conditions come from the TensorRT 10 developer guide, "MHA Fusion", as quoted in issues 2981 and 4167: inputs of both
BMMs in FP16, BF16 or INT8; for INT8 head size 16, 32 or 64, at most 512 tokens, and Q/DQ before the first BMM, after Softmax and
after the second BMM; for FP16 and BF16 head size 16 to 256 in steps of 8. "Fused Attention" of the newer documentation adds:
the scale on Q or K before the first BMM. TensorRT may still decide otherwise by its own timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from q8trt.lint.graph import Graph, Value, attribute, op_of, operand
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE, SCALES, users
from q8trt.lint.structure import Attention, Product

INT8_HEAD_SIZES = (16, 32, 64)
INT8_SEQUENCE = 512


@dataclass(frozen=True)
class Obstacle:
    """One reason against a fused kernel: a rule, and the size, type, place or operands that break it."""

    rule: str
    subject: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one attention.

    Attributes:
        dtype: "int8" if any input is quantized, else the float type; "" if the type or the attention is not known.
        obstacles: the reasons against one fused kernel; () if TensorRT can fuse it.
    """

    dtype: str
    obstacles: tuple[Obstacle, ...]


def judge(graph: Graph, attention: Attention, sequence: int | None) -> Verdict:
    """Compare one attention with the documented conditions, for sequences of up to `sequence` tokens (None: not known)."""
    scores, context = attention.scores, attention.context
    if scores is None or context is None:
        return Verdict("", (Obstacle("not-recognized"),))
    size = head_size(graph, scores.node.inputs[0])
    feeds = (scores.left, scores.right, context.left, context.right)
    if any(feed.dequantize is not None for feed in feeds):
        return Verdict("int8", tuple(_int8_obstacles(graph, attention, scores, context, size, sequence)))
    dtype = graph.dtype(scores.node.outputs[0])
    obstacles = []
    if dtype not in ("fp16", "bf16"):
        obstacles.append(Obstacle("attention-float-type", dtype))
    if size is not None and (not 16 <= size <= 256 or size % 8):
        obstacles.append(Obstacle("attention-head-size", str(size)))
    return Verdict(dtype, (*obstacles, *_scale_obstacles(attention, scores)))


def _int8_obstacles(
    graph: Graph, attention: Attention, scores: Product, context: Product, size: int | None, sequence: int | None
) -> list[Obstacle]:
    obstacles = []
    if size is not None and size not in INT8_HEAD_SIZES:
        obstacles.append(Obstacle("attention-head-size", str(size)))
    if sequence is not None and sequence > INT8_SEQUENCE:
        obstacles.append(Obstacle("attention-sequence", str(sequence)))
    obstacles += _scale_obstacles(attention, scores)
    operands = (("Q", scores.left), ("K", scores.right), ("V", context.right))
    if missing := [name for name, feed in operands if not feed.int8 and not feed.is_scaled_late]:
        obstacles.append(Obstacle("attention-qkv-qdq", " and ".join(missing)))
    if not context.left.int8:
        obstacles.append(Obstacle("attention-softmax-qdq"))
    readers = users(graph, context.node.outputs[0])
    if not readers or any(op_of(node) != QUANTIZE for node in readers):
        obstacles.append(Obstacle("attention-output-qdq"))
    if attention.quantized_scores:
        obstacles.append(Obstacle("attention-mask-qdq"))
    return obstacles


def _scale_obstacles(attention: Attention, scores: Product) -> list[Obstacle]:
    if attention.scales:
        return [Obstacle("attention-scale", "the first BMM")]
    late = scores.left.is_scaled_late or scores.right.is_scaled_late
    return [Obstacle("attention-scale", "the quantizer")] if late else []


def head_size(graph: Graph, value: Value) -> int | None:
    """Return the size of Q's last dimension, from shape inference or from the Reshape that splits heads; None if not known."""
    axis = -1
    while (node := graph.producer(value)) is not None:
        shape = graph.shape(value)
        if shape and -axis <= len(shape) and shape[axis]:
            return shape[axis]
        if op_of(node) == "Transpose":
            order = attribute(node, "perm", ())
            if order and (sorted(order) != list(range(len(order))) or -axis > len(order)):
                return None
            axis = order[axis] - len(order) if order else axis
        elif op_of(node) == "Reshape":
            return _reshaped_to(graph, node, axis)
        elif op_of(node) not in (*MOVES, QUANTIZE, DEQUANTIZE, "Cast", *SCALES):
            return None
        value = next(iter(graph.streams_in(node)), None)
    return None


def _reshaped_to(graph: Graph, node: ir.Node, axis: int) -> int | None:
    """Return the size at `axis` of a Reshape's target, which is a constant or a Concat; None if it is not a known constant."""
    target = operand(node, 1)
    sizes, producer = graph.numbers(target), graph.producer(target)
    if sizes is None and producer is not None and op_of(producer) == "Concat" and axis >= -len(producer.inputs):
        sizes, axis = graph.numbers(producer.inputs[axis]), -1
    if sizes is None or sizes.size < -axis or sizes.dtype.kind not in "iu":
        return None
    size = int(sizes.reshape(-1)[axis])
    return size if size > 0 else None


def is_key_transposed_early(graph: Graph, scores: Product) -> bool:
    """Return whether the Transpose that exchanges K's rows and columns comes before K's quantizer.

    TensorRT builds both orders. No source documents which one fusion prefers, so there is no rule for it.
    """
    value, quantized = scores.node.inputs[1], False
    while (node := graph.producer(value)) is not None and op_of(node) in (*MOVES, QUANTIZE, DEQUANTIZE):
        quantized = quantized or op_of(node) == QUANTIZE
        order = attribute(node, "perm", ())
        if op_of(node) == "Transpose" and order and order[-1] != len(order) - 1:
            return quantized
        value = node.inputs[0]
    return False
