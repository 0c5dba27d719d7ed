"""The conversion from FP32 to FP16, except for values that FP16 cannot represent.

TensorRT networks are strongly typed, so the types of the graph decide. The scale of a quantizer becomes FP16 together with its
tensor (opset 19). Operations that overflow stay in FP32, between Cast nodes: see `q8trt.export.overflow`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from q8trt.export.graph import SCOPE, constant, make, new_constant, nodes

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
#: The largest number of FP16, and the smallest one with all eleven bits.
LARGEST, SMALLEST_NORMAL = 65504.0, 2.0**-14


def to_fp16(model: ir.Model, in_fp32: Iterable[str] = ()) -> int:
    """Convert every float32 tensor to float16 in place, except for nodes of `in_fp32` and the outputs of the graph.

    A QuantizeLinear takes the type of its input. A scale of weights that is too small for FP16 becomes the smallest scale with
    all bits, and its integers are rounded again. The error of such a weight is at most 2^-15.

    Args:
        model: the graph, with the types of all tensors (`passes.normal.infer_shapes`).
        in_fp32: names of the nodes that stay in FP32.

    Returns:
        the number of Cast nodes that were added.
    """
    converter = _Converter(model.graph, frozenset(in_fp32))
    for node in nodes(model.graph):
        converter.convert(node)
    converter.restore_outputs()
    return converter.casts


class _Converter:
    """A conversion with the values that are already converted."""

    def __init__(self, graph: ir.Graph, in_fp32: frozenset[str]) -> None:
        self.graph, self.in_fp32 = graph, in_fp32
        self.casts = 0
        self._converted_values: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self, node: Any) -> None:
        """Convert the float inputs of `node` to its type, and set the type of its float outputs."""
        wanted = self._type_of(node)
        if node.op_type == "Cast" and wanted is HALF and node.attributes["to"].value == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(HALF))
        if node.op_type == "DequantizeLinear" and wanted is HALF and constant(node.inputs[0]) is not None:
            self._raise_scale(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, HALF):
                node.replace_input_with(index, self._as(value, wanted, node))
        for output in node.outputs:
            if output.dtype is FLOAT:
                output.dtype = wanted

    def _type_of(self, node: Any) -> ir.DataType:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype is FLOAT:
            return FLOAT  # a value in FP32 need not become FP16 before it becomes INT8
        return FLOAT if node.name in self.in_fp32 else HALF

    def _as(self, value: ir.Value, wanted: Any, node: ir.Node) -> ir.Value:
        """Return `value` in the type `wanted`: itself, a converted constant, or the output of a Cast before `node`."""
        if value.dtype is wanted:
            return value
        if (value, wanted) not in self._converted_values:
            self._converted_values[value, wanted] = self._converted(value, wanted, node)
        return self._converted_values[value, wanted]

    def _converted(self, value: ir.Value, wanted: Any, node: ir.Node) -> ir.Value:
        array = constant(value)
        if array is not None:
            converted = new_constant(self.graph, f"{value.name}.{wanted.name.lower()}", array.astype(wanted.numpy()))
            converted.dtype = wanted
            return converted
        cast = make("Cast", [value], node, to=int(wanted))
        cast.metadata_props[SCOPE] = str(node.name).rpartition("/")[0]
        cast.outputs[0].dtype = wanted
        self.casts += 1
        return cast.outputs[0]

    def _raise_scale(self, node: Any) -> None:
        """Requantize a constant whose scale is below the smallest FP16 number with all bits."""
        integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
        if integers is None or scale is None or (scale >= SMALLEST_NORMAL).all():
            return
        raised = np.maximum(scale, np.float32(SMALLEST_NORMAL))
        ratio = scale / raised
        if scale.ndim:
            axis = node.attributes["axis"].value
            ratio = ratio.reshape([-1 if dim == axis else 1 for dim in range(integers.ndim)])
        name = node.inputs[0].name
        integers = np.rint(integers * ratio).astype(np.int8)
        node.replace_input_with(0, new_constant(self.graph, f"{name}.raised", integers))
        node.replace_input_with(1, new_constant(self.graph, f"{name}.scale", raised.astype(np.float32)))

    def restore_outputs(self) -> None:
        """Cast the graph's outputs to FP32."""
        for index, output in enumerate(self.graph.outputs):
            if output.dtype is not HALF:
                continue
            node = output.producer()
            name, shape = output.name, output.shape
            output.name = f"{name}.float16"
            cast = ir.node("Cast", [output], {"to": int(FLOAT)})
            cast.metadata_props[SCOPE] = "" if node is None else str(node.name).rpartition("/")[0]
            cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, FLOAT, shape
            self.graph.append(cast)
            self.graph.outputs[index] = cast.outputs[0]
            self.casts += 1
