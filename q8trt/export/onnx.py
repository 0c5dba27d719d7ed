"""A torch model, float or fake-quantized, to an ONNX file.

The precision is in the graph alone, for TensorRT networks are strongly typed: FP32 or FP16 tensors, and INT8 wherever a
tensor passes a QuantizeLinear/DequantizeLinear pair (TensorRT documentation, "Working with Quantized Types").
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from q8trt import __version__, files
from q8trt.errors import ConfigError, QuantizationError
from q8trt.export.passes import fold_weights, read_shapes_before_quantization
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.modules import ATTENTION
from q8trt.quantization.sites import encoder_sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: LayerNormalization is one op from 17 on, FP16 scales exist from 19 on, Gelu is one op from 20 on.
OPSET = 20
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")


@dataclass(frozen=True)
class ExportedModel:
    """What an export wrote.

    Attributes:
        path: the ONNX file.
        input_names: its inputs, int32 (batch, sequence), both dynamic.
        folded_weights: weights stored as INT8 constants.
        quantize_nodes: QuantizeLinear nodes left, all on activations.
    """

    path: Path
    input_names: tuple[str, ...]
    folded_weights: int
    quantize_nodes: int


class _Logits(nn.Module):
    """The model with positional inputs and one output, as the exporter wants it."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, arrays, strict=True))).logits.float()


def _prepared(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """A copy on the CPU, in evaluation mode, with attention spelled out op by op and in the precision's float type."""
    prepared = copy.deepcopy(model).cpu().eval()
    if prepared.config._attn_implementation != ATTENTION:
        prepared.set_attn_implementation("eager")
    _widen_weights(prepared)
    if not precision.endswith("fp16"):
        return prepared.float()
    for key, quantizer in model_quantizers(prepared).items():
        _check_fp16_scale(key, quantizer.amax)
        quantizer.trt_high_precision_dtype = "Half"  # scales in FP16: a strongly typed graph mixes no float types
    return prepared.half()


def _widen_weights(model: PreTrainedModel) -> None:
    """Let weights of 4 or 2 bits be written as INT8 constants that hold the same few values, in place.

    TensorRT has no INT4 GEMM with per-channel scales: such weights gain nothing in speed, and are exported to be measured.
    """
    quantizers = model_quantizers(model)
    for site in encoder_sites(model):
        quantizer = quantizers.get(site.key)
        if quantizer is None or quantizer.num_bits == 8:
            continue
        with torch.no_grad():
            weight = model.get_parameter(site.parameter)
            weight.copy_(quantizer(weight))
        quantizer.amax = quantizer.amax / (2 ** (quantizer.num_bits - 1) - 1) * 127
        quantizer.num_bits = 8


def _check_fp16_scale(key: str, amax: torch.Tensor) -> None:
    if not (torch.isfinite(amax.half()).all() and ((amax / 127).half() > 0).all()):
        raise QuantizationError(
            f"{key}: FP16 cannot hold the scale of amax {float(amax.min()):.3g} to {float(amax.max()):.3g}; "
            "build without --fp16"
        )


def _trace(model: nn.Module, path: Path, names: Sequence[str]) -> None:
    """Write the ONNX file of `model`. ModelOpt's quantizers know how to export themselves only by tracing."""
    # Two rows of different lengths, so that nothing in the graph can be mistaken for a constant shape.
    example = torch.ones(2, 8, dtype=torch.int32)
    mask = example.clone()
    mask[1, 5:] = 0
    arrays = tuple(mask if name == "attention_mask" else example for name in names)
    if "token_type_ids" in names:
        arrays = tuple(
            example * 0 if name == "token_type_ids" else array for name, array in zip(names, arrays, strict=True)
        )
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer remarks on every Python branch that transformers takes
        torch.onnx.export(
            _Logits(model, names).eval(),
            arrays,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes=axes,
        )


def export_onnx(model: PreTrainedModel, path: str | Path, precision: str, input_names: Sequence[str]) -> ExportedModel:
    """Export `model` with dynamic batch and sequence; weights behind a quantizer are stored as INT8.

    Args:
        model: a transformers sequence classification model; left as it was.
        path: the ONNX file to write, whole or not at all.
        precision: one of PRECISIONS. "int8" needs a calibrated quantized model, "fp32" and "fp16" one without quantizers.
        input_names: the inputs that the tokenizer makes, such as input_ids, attention_mask, token_type_ids.

    Raises:
        ConfigError: the precision is unknown or does not fit the model.
        QuantizationError: a scale lies outside FP16's range. Names the site.
    """
    import onnx

    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    quantized = bool(model_quantizers(model))
    if quantized != precision.startswith("int8"):
        needs, has = ("a quantized", "is not quantized") if not quantized else ("a floating-point", "is quantized")
        raise ConfigError(f"--{precision.split('+')[0]} needs {needs} checkpoint; this one {has}")
    names = tuple(input_names)
    with files.atomic_file(path) as temporary:
        _trace(_prepared(model, precision), temporary, names)
        graph = onnx.load(temporary)
        folded = fold_weights(graph)
        read_shapes_before_quantization(graph)
        graph.producer_name, graph.producer_version = "q8trt", __version__
        onnx.helper.set_model_props(graph, {"precision": precision})
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, temporary)
    remaining = sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    return ExportedModel(Path(path), names, folded, remaining)
