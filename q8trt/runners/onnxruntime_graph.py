"""What ONNX Runtime's CPU kernels want of a Q/DQ graph that TensorRT does not.

On x86, ONNX Runtime runs a GEMM in INT8 only when its activation is unsigned. It turns a signed QuantizeLinear into an
unsigned one by itself, but not where several DequantizeLinear read it, as Q, K and V read the encoder's hidden states; those
GEMMs then stay in float and dequantize their weights in every call. This does the same rewrite for all of them: uint8
with zero_point 128 in place of int8 with zero_point 0, which holds exactly the same values.
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
