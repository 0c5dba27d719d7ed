"""The export of a torch model, float or fake-quantized, to an ONNX file.

TensorRT networks are strongly typed, so only the graph decides the precision. Tensors are FP32 or FP16, and INT8 behind a
QuantizeLinear/DequantizeLinear pair (TensorRT documentation, "Working with Quantized Types").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from q8trt import __version__, files
from q8trt.errors import ConfigError
from q8trt.export.graph import SCOPE, attribute, nodes
from q8trt.export.options import ExportOptions
from q8trt.export.overflow import ops_to_keep, tensor_ranges
from q8trt.export.passes import normal, run_passes
from q8trt.export.passes.half import to_fp16
from q8trt.export.report import KeptOp, PassReport
from q8trt.export.trace import QUANTIZE_DEQUANTIZE, trace
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.modules import ATTENTION
from q8trt.quantization.precision import Precision, format_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from q8trt.models.checkpoints import Model

#: The oldest IR version with opset 20.
IR_VERSION = 9
#: The size limit of protobuf, in bytes.
LARGEST_FILE = 2**31 - 1


@dataclass(frozen=True)
class ExportedModel:
    """The result of an export.

    Attributes:
        path: the ONNX file.
        input_names: its inputs, int32 (batch, sequence), both dynamic.
        folded_weights: quantizers of weights that became INT8 constants. One weight of several layers counts once per layer.
        quantize_nodes: quantizers of activations that became QuantizeLinear, before those with equal scales are shared.
        passes: the number of changes of each graph pass, in order.
        kept_fp32: with FP16, the nodes that stay in FP32, and the reasons.
    """

    path: Path
    input_names: tuple[str, ...]
    folded_weights: int
    quantize_nodes: int
    passes: tuple[PassReport, ...] = ()
    kept_fp32: tuple[KeptOp, ...] = ()


def export_onnx(
    model: Model,
    path: str | Path,
    precision: Precision | str,
    input_names: Sequence[str],
    options: ExportOptions | None = None,
    batches: Iterable[Mapping[str, np.ndarray]] = (),
) -> ExportedModel:
    """Export `model` with dynamic batch and sequence. Weights behind a quantizer are stored as INT8.

    Args:
        model: a transformers model with a head, or an embedding model; it is not changed. The file has one output, `logits`,
            float32: (batch, outputs), or (batch, sequence, outputs) for a head that answers each token.
        path: the ONNX file to write. It is written completely or not at all.
        precision: the precision, or its name. A quantized one needs a calibrated model, the others a model without quantizers.
        input_names: the inputs that the tokenizer makes, such as input_ids, attention_mask, token_type_ids.
        options: exporter and optional passes; default: `ExportOptions()`.
        batches: with FP16, the rows that are searched for overflow: input name -> int32 (batch, sequence). Without rows, only
            constants are checked.

    Raises:
        ConfigError: the precision is unknown or does not fit the model, some of the model's quantizers do not take part when it
            computes, torch's exporter gives no graph, or the file would exceed 2 GiB.
        OSError: the file cannot be written.
    """
    precision = Precision.parse(precision)
    _check_precision(model, precision)
    options = options or ExportOptions()
    graph = trace(model, input_names, options.exporter)
    _check_quantizers(model, graph)
    reports = run_passes(graph, options.passes)
    in_fp32: list[KeptOp] = []
    if precision.is_half:
        in_fp32, report = _halve(graph, batches, getattr(model, "in_fp32", ()))
        reports.append(report)
    reports.append(PassReport("note_modules", normal.note_modules(graph)))
    counts = {report.name: report.changed for report in reports}
    if in_fp32:
        graph.metadata_props["kept_fp32"] = json.dumps({op.name: op.reason for op in in_fp32})
    _write(graph, Path(path), precision)
    return ExportedModel(
        Path(path), tuple(input_names), counts["fold_weights"], counts["insert_qdq"], tuple(reports), tuple(in_fp32)
    )


def _check_precision(model: Model, precision: Precision) -> None:
    formats = {format_of(quantizer.num_bits).name for quantizer in model_quantizers(model).values()}
    if formats != ({precision.quantized.name} if precision.quantized else set()):
        needs = "a quantized" if precision.quantized else "a floating-point"
        has = f"is quantized{f' in {min(formats)}' if precision.quantized else ''}" if formats else "is not quantized"
        raise ConfigError(f"{precision.options[0]} needs {needs} checkpoint; this one {has}")


def _check_quantizers(model: Model, graph: ir.Model) -> None:
    """Check that each quantizer of the model has a node. Without some, the file would look like that of a smaller recipe."""
    traced = {attribute(node, "site", "") for node in nodes(graph.graph, QUANTIZE_DEQUANTIZE)}
    missing = [key for key in model_quantizers(model) if key not in traced]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ConfigError(
            f"the quantizer {missing[0]}{others} took no part when the model was traced; if its attention implementation was "
            f"changed, call set_attn_implementation({ATTENTION!r}), or load the checkpoint again"
        )


def _halve(
    graph: ir.Model, batches: Iterable[Mapping[str, np.ndarray]], modules: Sequence[str]
) -> tuple[list[KeptOp], PassReport]:
    """Convert FP32 to FP16, except operations that overflow on `batches`, and `modules`, which always compute in FP32."""
    normal.infer_shapes(graph)
    batches = list(batches)
    of_modules = {
        str(node.name): KeptOp(str(node.name), node.op_type, f"{scope} computes in FP32")
        for node in nodes(graph.graph)
        if (scope := node.metadata_props.get(SCOPE, "").partition(".")[0]) in modules
    }
    overflowing = ops_to_keep(graph, tensor_ranges(graph, batches) if batches else {})
    in_fp32 = list({**of_modules, **{op.name: op for op in overflowing}}.values())
    report = PassReport("to_fp16", to_fp16(graph, [op.name for op in in_fp32]))
    normal.order_and_name(graph)
    return in_fp32, report


def _write(graph: ir.Model, path: Path, precision: Precision) -> None:
    import onnx
    import onnx_ir as ir

    graph.producer_name, graph.producer_version = "q8trt", __version__
    graph.graph.name, graph.ir_version = "q8trt", IR_VERSION
    graph.metadata_props["precision"] = precision.value
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > LARGEST_FILE:
        raise ConfigError(
            f"the {precision} graph has {size / 2**30:.1f} GiB of weights, more than the 2 GiB of an ONNX file; "
            "export it with --int8 or --fp16"
        )
    proto = ir.to_proto(graph)
    del proto.graph.value_info[:]  # only types of constants, which the constants repeat
    with files.atomic_file(path) as temporary:
        onnx.save(proto, temporary)
        del proto
        onnx.checker.check_model(temporary, full_check=True)
