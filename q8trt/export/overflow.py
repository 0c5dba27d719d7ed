"""The parts of a graph that FP16 cannot represent: tensors beyond its range, measured on data, and scales below it.

A residual stream or feed-forward output may exceed 65504 for some tokens, and one infinity turns the logits into NaN. So ONNX
Runtime runs the FP32 graph on calibration rows, and the range of every float tensor is recorded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from q8trt.export.graph import constant, nodes, producer, readers
from q8trt.export.passes.half import LARGEST, SMALLEST_NORMAL
from q8trt.export.report import KeptOp

#: Tensors that exceed FP16's largest number divided by this stay in FP32, because other rows may have larger values.
MARGIN = 2.0


def tensor_ranges(model: ir.Model, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Run an FP32 graph on ONNX Runtime and record the ranges of its tensors.

    Args:
        model: float32, its tensors named and typed; it is not changed.
        batches: input name -> int32 (batch, sequence).

    Returns:
        tensor -> the largest magnitude in all batches, for each float tensor that a node computes; NaN if it contains one.
    """
    import onnx
    import onnxruntime

    watched = [output for node in model.graph for output in node.outputs if output.dtype is ir.DataType.FLOAT]
    names = [str(value.name) for value in watched]
    proto = ir.to_proto(model)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    largest = dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(proto, Path(folder) / "watched.onnx")
        del proto
        session = onnxruntime.InferenceSession(
            Path(folder) / "watched.onnx", options, providers=["CPUExecutionProvider"]
        )
        for batch in batches:
            for name, array in zip(names, session.run(names, dict(batch)), strict=True):
                if array.size:
                    largest[name] = float(np.maximum(largest[name], np.max(np.abs(array))))  # unlike max, keeps NaN
    return largest


def ops_to_keep(model: ir.Model, ranges: Mapping[str, float]) -> list[KeptOp]:
    """Return the nodes that must stay in FP32, in order: they compute or read values that FP16 cannot represent.

    A QuantizeLinear that reads such a value is not listed, because it takes the type of its input.

    Args:
        model: the graph, in FP32.
        ranges: from `tensor_ranges`. If it is empty, only constants and scales are checked.
    """
    ops: dict[str, KeptOp] = {}

    def keep(node: ir.Node, reason: str) -> None:
        ops.setdefault(str(node.name), KeptOp(str(node.name), node.op_type, reason))

    for node in nodes(model.graph):
        for value in node.inputs:
            array = constant(value)
            if array is not None and array.dtype == np.float32 and np.abs(array).max(initial=0.0) > LARGEST:
                keep(node, f"its constant {value.name} reaches {np.abs(array).max():.3g}")
        for output in node.outputs:
            # `not <=` also catches NaN
            if not ranges.get(str(output.name), 0.0) <= LARGEST / MARGIN:
                reason = f"{output.name} reaches {ranges[str(output.name)]:.3g}; FP16 ends at {LARGEST:.0f}"
                for each in (node, *readers(output)):
                    if each.op_type != "QuantizeLinear":
                        keep(each, reason)
        _keep_tiny_scale(node, keep)
    _keep_weights(model, ops)
    return [ops[str(node.name)] for node in model.graph if node.name in ops]


def _keep_tiny_scale(node: ir.Node, keep: Callable[[ir.Node, str], None]) -> None:
    """Keep the Q/DQ pair of an activation and its readers in FP32 if a scale is below FP16's normal numbers."""
    scale = constant(node.inputs[1]) if node.op_type == "DequantizeLinear" else None
    if scale is None or constant(node.inputs[0]) is not None or (scale >= SMALLEST_NORMAL).all():
        return
    reason = f"the scale {float(scale.min()):.3g} of {node.name} is below FP16's smallest normal number"
    quantize = producer(node.inputs[0], "QuantizeLinear")
    for each in (*([] if quantize is None else [quantize]), node, *readers(node.outputs[0])):
        keep(each, reason)


def _keep_weights(model: ir.Model, ops: dict[str, KeptOp]) -> None:
    """Keep the DequantizeLinear of a weight in FP32 if all of its readers are: a Cast between them would prevent the fusion."""
    for node in nodes(model.graph):
        if node.op_type != "DequantizeLinear" or constant(node.inputs[0]) is None:
            continue
        uses = readers(node.outputs[0])
        if uses and all(use.name in ops for use in uses):
            ops.setdefault(str(node.name), KeptOp(str(node.name), node.op_type, ops[str(uses[0].name)].reason))
