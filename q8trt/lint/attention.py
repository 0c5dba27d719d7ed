"""Whether TensorRT can run an attention as one kernel, and what stands against it.

The conditions are those of the TensorRT 10 developer guide, "MHA Fusion", as quoted in issues 2981 and 4167: inputs of both
BMMs in FP16, BF16 or INT8; for INT8 head size 16, 32 or 64, at most 512 tokens, and Q/DQ before the first BMM, after Softmax and
after the second BMM; for FP16 and BF16 head size 16 to 256 in steps of 8. "Fused Attention" of the newer documentation adds:
the scale on Q or K before the first BMM. TensorRT may still decide otherwise by its own timing.
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.lint.graph import Graph, Node
from q8trt.lint.quantizers import DEQUANTIZE, MOVES, QUANTIZE, users
from q8trt.lint.structure import Attention, Product

INT8_HEAD_SIZES = (16, 32, 64)
INT8_SEQUENCE = 512


@dataclass(frozen=True)
class Verdict:
    """On one attention.

    Attributes:
        type: "INT8" where any of its inputs is quantized, else the float type: "FP16", "BF16" or "FP32".
        reasons: rule -> what stands against one fused kernel.
    """

    type: str
    reasons: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """ "fusable in INT8", or why not."""
        if not self.reasons:
            return f"fusable in {self.type}"
        return "not fusable: " + "; ".join(what for _, what in self.reasons)


def judge(graph: Graph, attention: Attention, sequence: int | None) -> Verdict:
    """Hold one attention against the documented conditions, for sequences of up to `sequence` tokens (None: not known)."""
    scores, context = attention.scores, attention.context
    if scores is None or context is None:
        return Verdict("?", (("not-recognised", "no pair of BMMs around Softmax"),))
    feeds = (scores.left, scores.right, context.left, context.right)
    size = head_size(graph, scores.node.inputs[0])
    if any(feed.dequantize is not None for feed in feeds):
        return Verdict("INT8", tuple(_int8_reasons(graph, attention, scores, context, size, sequence)))
    dtype = graph.dtype(scores.node.outputs[0])
    reasons = []
    if dtype not in ("fp16", "bf16"):
        reasons.append(("attention-float-type", f"the BMMs are in {dtype.upper() or 'an unknown type'}"))
    if size is not None and (not 16 <= size <= 256 or size % 8):
        reasons.append(("attention-head-size", f"head size {size}"))
    return Verdict(dtype.upper() or "?", (*reasons, *_scale_reasons(attention, scores)))


def _int8_reasons(
    graph: Graph, attention: Attention, scores: Product, context: Product, size: int | None, sequence: int | None
) -> list[tuple[str, str]]:
    reasons = []
    if size is not None and size not in INT8_HEAD_SIZES:
        reasons.append(("attention-head-size", f"head size {size}"))
    if sequence is not None and sequence > INT8_SEQUENCE:
        reasons.append(("attention-sequence", f"up to {sequence} tokens"))
    reasons += _scale_reasons(attention, scores)
    missing = [
        name
        for name, feed in (("Q", scores.left), ("K", scores.right), ("V", context.right))
        if not feed.int8 and "Mul after" not in feed.text and "Div after" not in feed.text
    ]
    if missing:
        reasons.append(("attention-qkv-qdq", f"no INT8 on {' and '.join(missing)}"))
    if not context.left.int8:
        reasons.append(("attention-softmax-qdq", "no INT8 after Softmax"))
    if not _is_quantized_after(graph, context.node):
        reasons.append(("attention-output-qdq", "no Q/DQ after the second BMM"))
    if attention.quantized_scores:
        reasons.append(("attention-mask-qdq", "Q/DQ between the first BMM and Softmax"))
    return reasons


def _scale_reasons(attention: Attention, scores: Product) -> list[tuple[str, str]]:
    if attention.scales:
        return [("attention-scale", "the scale comes after the first BMM")]
    late = [feed for feed in (scores.left, scores.right) if "Mul after" in feed.text or "Div after" in feed.text]
    return [("attention-scale", "the scale comes after the quantizer")] if late else []


def _is_quantized_after(graph: Graph, bmm: Node) -> bool:
    readers = users(graph, bmm.outputs[0])
    return bool(readers) and all(node.op == QUANTIZE for node in readers)


def head_size(graph: Graph, tensor: str) -> int | None:
    """The size of the last dimension of Q, from shape inference or from the Reshape that splits the heads."""
    axis = -1
    while (node := graph.producers.get(tensor)) is not None:
        shape = graph.shape(tensor)
        if shape and -axis <= len(shape) and shape[axis]:
            return shape[axis]
        if node.op == "Transpose":
            order = list(node.attribute("perm", []))
            if order and (sorted(order) != list(range(len(order))) or -axis > len(order)):
                return None
            axis = order[axis] - len(order) if order else axis
        elif node.op == "Reshape":
            return _reshaped_to(graph, node, axis)
        elif node.op not in (*MOVES, QUANTIZE, DEQUANTIZE, "Cast", "Mul", "Div"):
            return None
        tensor = next((name for name in node.inputs if name in graph.stream), "")
    return None


def _reshaped_to(graph: Graph, node: Node, axis: int) -> int | None:
    """A size of a Reshape's target: a constant, or one put together by Concat whose end is constant."""
    target = node.input(1)
    value = graph.value(target)
    maker = graph.producers.get(target)
    if value is None and maker is not None and maker.op == "Concat" and axis >= -len(maker.inputs):
        value = graph.value(maker.inputs[axis])
        axis = -1
    if value is None or value.size < -axis or value.dtype.kind not in "iu":
        return None
    size = int(value.reshape(-1)[axis])
    return size if size > 0 else None


def is_key_transposed_early(graph: Graph, scores: Product) -> bool:
    """Whether the Transpose that turns K's rows into columns comes before K's quantizer.

    TensorRT builds both orders; no source says which one fusion prefers, so no rule speaks of it.
    """
    tensor, seen = scores.node.inputs[1], False
    while (node := graph.producers.get(tensor)) is not None and node.op in (*MOVES, QUANTIZE, DEQUANTIZE):
        seen = seen or node.op == QUANTIZE
        order = list(node.attribute("perm", []))
        if node.op == "Transpose" and order and order[-1] != len(order) - 1:
            return seen
        tensor = node.inputs[0]
    return False
