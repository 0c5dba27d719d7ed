"""FP16 and BF16 graphs in FP32, for a CPU whose 16-bit kernels are slow or missing.

FP32 represents every FP16 and BF16 number, so all constants keep their values: limits such as -65504 in a mask, integers of
quantized weights, and their scales. Answers differ because FP32 rounds less, and a sum that would overflow in FP16 is finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from q8trt.files.onnx import graphs_of
from q8trt.files.onnx.messages import BFLOAT16, FLOAT, FLOAT16, set_array

_HALVES = (FLOAT16, BFLOAT16)
#: Attributes that name a tensor type: of Cast, of operators that fill a tensor, of quantizers and of attention.
_TYPE_ATTRIBUTES = frozenset({
    "to", "dtype", "output_dtype", "output_datatype", "stash_type", "precision", "softmax_precision"
})  # fmt: skip


def widen(model: Any) -> int:
    """Change, in place, every 16-bit float type of a ModelProto to FP32, in constants, casts, inputs and outputs.

    Returns:
        number of tensors, attributes and declared types changed.
    """
    changed = 0
    for graph in graphs_of(model.graph, *model.functions):
        tensors = [
            *getattr(graph, "initializer", ()),
            *(each.values for each in getattr(graph, "sparse_initializer", ())),
        ]
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [attribute.t] if attribute.HasField("t") else []
                tensors += [*attribute.tensors, *(each.values for each in attribute.sparse_tensors)]
                tensors += [attribute.sparse_tensor.values] if attribute.HasField("sparse_tensor") else []
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALVES:
                    attribute.i = FLOAT
                    changed += 1
        for tensor in tensors:
            if tensor.data_type in _HALVES:
                set_array(tensor, _in_fp32(tensor))
                changed += 1
        for value in (each for field in ("input", "output", "value_info") for each in getattr(graph, field, ())):
            if hasattr(value, "type") and value.type.tensor_type.elem_type in _HALVES:
                value.type.tensor_type.elem_type = FLOAT
                changed += 1
    return changed


def _in_fp32(tensor: Any) -> np.ndarray:
    """Return the values of an FP16 or BF16 TensorProto, which stores 16 bits a value, raw or each in an int32."""
    stored = tensor.raw_data
    bits = np.frombuffer(stored, "<u2") if stored else np.array(tensor.int32_data, np.int32).astype(np.uint16)
    if tensor.data_type == FLOAT16:
        values = bits.view(np.float16).astype(np.float32)
    else:  # BF16 is the upper half of FP32
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(tuple(tensor.dims))
