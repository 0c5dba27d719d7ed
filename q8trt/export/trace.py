"""The conversion of a torch model, float or fake-quantized, to a raw ONNX graph by either of torch's exporters.

During the export, a module replaces each quantizer and makes one node, ``q8trt.QuantizeDequantize(x, scale)``, because
torch.export does not use ModelOpt's symbolic function. `q8trt.export.passes` turns the node into QuantizeLinear and
DequantizeLinear. After the passes, both exporters produce the same graph.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from q8trt.errors import ConfigError
from q8trt.export.options import EXPORTERS
from q8trt.export.passes.normal import TORCH_SCOPES
from q8trt.export.positions import (
    additive_mask,
    makes_own_masks,
    position_bias,
    tabulate_positions,
    take_position_biases,
)
from q8trt.models import kind_of
from q8trt.models.embedding import EmbeddingModel
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.modules import ATTENTION
from q8trt.quantization.precision import format_of
from q8trt.quantization.sites import encoder_sites

if TYPE_CHECKING:
    import onnx_ir as ir

    from q8trt.models.checkpoints import Model

#: LayerNormalization exists since opset 17, FP16 scales since 19, Gelu since 20.
OPSET = 20
#: Domain and name of the node of a quantizer. Its attributes are `axis` (-1 for one scale), `site` (its key) and `format`.
DOMAIN, QUANTIZE_DEQUANTIZE = "q8trt", "QuantizeDequantize"


class _Emitter(torch.autograd.Function):
    """The node of a quantizer, for the TorchScript exporter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, axis: int, site: str, format: str) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, axis: int, site: str, format: str) -> Any:
        node = g.op(f"{DOMAIN}::{QUANTIZE_DEQUANTIZE}", x, scale, axis_i=axis, site_s=site, format_s=format)
        return node.setType(x.type())


def _emit_dynamo(x: torch.Tensor, scale: torch.Tensor, axis: int, site: str, format: str) -> torch.Tensor:
    """Make the node of a quantizer, for torch.export."""
    attributes: dict[str, Any] = {"axis": axis, "site": site, "format": format}
    name = f"{DOMAIN}::{QUANTIZE_DEQUANTIZE}"
    return torch.onnx.ops.symbolic(name, (x, scale), attributes, dtype=x.dtype, shape=x.shape, version=1)


_EMITTERS: dict[str, Callable[..., torch.Tensor]] = {"dynamo": _emit_dynamo, "torchscript": _Emitter.apply}


class _ExportQuantizer(nn.Module):
    """A module that replaces a quantizer during the export. It applies SmoothQuant's factors but does not quantize."""

    _disabled = False
    pre_quant_scale: torch.Tensor | None

    def __init__(self, quantizer: Any, site: str, emit: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        amax = quantizer.amax.detach().float()
        # Weights are quantized per output channel, tables per row: axis 0 in both cases.
        self.axis = 0 if amax.numel() > 1 else -1
        self.site, self.emit, self.format = site, emit, format_of(quantizer.num_bits)
        self.register_buffer("scale", (amax / self.format.largest).reshape(-1 if amax.numel() > 1 else ()))
        pre = getattr(quantizer, "pre_quant_scale", None)
        self.register_buffer("pre_quant_scale", None if pre is None else pre.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale
        return self.emit(x, self.scale, self.axis, self.site, self.format.name)


class _Logits(nn.Module):
    """The model with positional inputs and one output, as the exporters need it.

    This module makes the mask (B, 1, 1, S) that is added to the scores. transformers' own conversion of a 2D mask depends on its
    version, and adds forty nodes of shape arithmetic to the file. This module also makes positions that count from the padding
    index, and a bias of relative positions (A, S, S), which is added to the mask once.

    Args:
        model: of `_prepared`.
        names: its inputs, in order.
    """

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self.architecture = architecture_of(model.config)
        self.model = model
        self.names = tuple(names)
        self.padding_index = self.architecture.padding_index(model.config.pad_token_id)
        self.biases: torch.Tensor | None
        self.register_buffer("biases", None)
        if self.architecture.position_bias is not None:
            encoder = model.base_model.get_submodule(self.architecture.position_bias)
            self.biases = take_position_biases(encoder, model.config.max_position_embeddings)
        self.makes_own_masks = makes_own_masks(self.architecture)
        self.pools = isinstance(model, EmbeddingModel)
        kind = kind_of([type(model).__name__])
        self.per_token = kind is not None and kind.per_token

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, arrays, strict=True))
        ids = inputs["input_ids"]
        if (mask := inputs.get("attention_mask")) is not None:
            if self.pools:
                inputs["tokens"] = mask
            if not self.makes_own_masks:
                inputs["attention_mask"] = additive_mask(mask)
        if self.biases is not None:
            inputs["attention_mask"] = inputs.get("attention_mask", 0.0) + position_bias(ids, self.biases)
        if self.architecture.positions_after_padding:
            text = ids.ne(torch.tensor(self.padding_index, dtype=ids.dtype)).int()
            inputs["position_ids"] = torch.cumsum(text, 1, dtype=torch.int32) * text + self.padding_index
            if self.architecture.token_type_embeddings is not None:
                inputs.setdefault("token_type_ids", ids * 0)
        return self.model(**inputs).logits


def _widen_weights(model: Model) -> None:
    """Change weights of 4 or 2 bits in place, so that they are exported as INT8 constants with the same few values.

    TensorRT has no INT4 GEMM with per-channel scales. Such weights are not faster; they are exported to measure their accuracy.
    """
    quantizers = model_quantizers(model)
    for site in encoder_sites(model):
        quantizer = quantizers.get(site.key)
        if quantizer is None or quantizer.num_bits not in (4, 2):
            continue
        with torch.no_grad():
            weight = model.get_parameter(site.parameter)
            weight.copy_(quantizer(weight))
        quantizer.amax = quantizer.amax / (2 ** (quantizer.num_bits - 1) - 1) * 127
        quantizer.num_bits = 8


def _use_gelu_op(model: Model) -> None:
    """Replace, in place, the modules that compute GELU's tanh approximation step by step by torch's own GELU.

    Torch's GELU is one op in ONNX. Computed step by step, the third power overflows FP16 for inputs beyond 40.3.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _prepared(model: Model, exporter: str) -> Model:
    """Return a copy in FP32 on the CPU, in evaluation mode, with quantizers ready to be traced.

    Its attention is eager, unless the recipe has sites in it and so uses q8trt's.
    """
    prepared = copy.deepcopy(model).cpu().eval().float()
    if prepared.config._attn_implementation != ATTENTION:
        prepared.set_attn_implementation("eager")
    _widen_weights(prepared)
    _use_gelu_op(prepared)
    tabulate_positions(prepared)
    quantizers = model_quantizers(prepared)
    for site in encoder_sites(prepared):
        if site.key in quantizers:
            stand_in = _ExportQuantizer(quantizers[site.key], site.key, _EMITTERS[exporter])
            setattr(prepared.get_submodule(site.module), site.attribute, stand_in)
    return prepared


def _examples(names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Return two rows of different lengths, so the exporter cannot treat a size as a constant."""
    ids = torch.full((2, 8), 5, dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    known = {"attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(known.get(name, ids) for name in names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings and logs."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, ("torch.onnx", "onnxscript", "onnx_ir")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


def _trace_dynamo(module: _Logits, names: Sequence[str]) -> ir.Model:
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=2)}
    program = torch.onnx.export(
        module,
        _examples(names),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=["logits"],
        dynamic_shapes=((axes,) * len(names),),
        verbose=False,
    )
    if program is None:
        raise ConfigError("torch's exporter made no program; try --exporter torchscript")
    return program.model


def _trace_torchscript(module: _Logits, names: Sequence[str]) -> ir.Model:
    import onnx_ir as ir

    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    if module.per_token:
        axes["logits"][1] = "sequence"
    is_quantized = any(isinstance(each, _ExportQuantizer) for each in module.modules())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.onnx"
        torch.onnx.export(
            module,
            _examples(names),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes=axes,
            custom_opsets={DOMAIN: 1} if is_quantized else None,
        )
        traced = ir.load(path)
    _name_by_modules(traced, {name for name, _ in module.named_modules()})
    return traced


def _name_by_modules(traced: ir.Model, modules: set[str]) -> None:
    """Record the module of nodes that are named after a later call of it: "dense_1" is the second call of "dense"."""
    for node in traced.graph:
        scope = (node.name or "").rpartition("/")[0].strip("/").replace("/", ".")
        module = re.sub(r"_\d+$", "", scope)
        if scope not in modules and module in modules:
            node.metadata_props[TORCH_SCOPES] = repr([module, node.name])


_TRACERS = {"dynamo": _trace_dynamo, "torchscript": _trace_torchscript}


def trace(model: Model, names: Sequence[str], exporter: str) -> ir.Model:
    """Return the raw FP32 graph of `model`, with `QuantizeDequantize` nodes for quantizers and dynamic batch and sequence.

    Args:
        model: a transformers model with a head, or an embedding model; it is not changed.
        names: its inputs, in order: int32 (batch, sequence).
        exporter: one of EXPORTERS.

    Raises:
        ConfigError: the exporter is unknown, or torch's exporter gives no graph.
    """
    if exporter not in EXPORTERS:
        raise ConfigError(f"unknown exporter {exporter!r}; known: {', '.join(EXPORTERS)}")
    module = _Logits(_prepared(model, exporter), names).eval()
    with torch.no_grad(), _quiet():
        return _TRACERS[exporter](module, names)
