"""Batches -> amax.

Weights take the largest magnitude of each output channel. Activations are observed on calibration batches: "max"
keeps the largest magnitude, "percentile" the magnitude below which the given share of a histogram lies, which keeps the
outliers of BERT's residual stream from stretching the scale. Memory does not grow with the number of batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.recipe import QuantizerSpec, Recipe
from q8trt.quantization.sites import ACTIVATION, encoder_sites

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer

#: A histogram starts with 2048 bins; with this many it takes 8 MB.
MOST_BINS = 1 << 20


def _load_amax(quantizer: TensorQuantizer, spec: QuantizerSpec, key: str) -> None:
    """Turn what the quantizer's calibrator saw into its amax."""
    calibrator = quantizer._calibrator
    if spec.calibrator == "percentile":
        amax = calibrator.compute_amax("percentile", percentile=spec.percentile)
    else:
        amax = calibrator.compute_amax()
    if amax is None:
        raise QuantizationError(f"{key} was not calibrated: no batch reached it; give more calibration data")
    quantizer.amax = torch.as_tensor(amax, dtype=torch.float32)
    calibrator.reset()


def check_amax(quantizers: Mapping[str, TensorQuantizer]) -> None:
    """Every quantizer has a finite amax above zero.

    Raises:
        QuantizationError: names the first site that has none, or a zero, infinite or NaN one.
    """
    for key, quantizer in quantizers.items():
        amax = quantizer.amax
        if amax is None:
            raise QuantizationError(f"{key} is not calibrated; run calibrate.py on the floating-point checkpoint")
        if not torch.isfinite(amax).all():
            raise QuantizationError(
                f"{key}: amax is not finite: the activations or weights overflow; check the checkpoint"
            )
        if not (amax > 0).all():
            raise QuantizationError(
                f"{key}: amax is zero for {int((amax <= 0).sum())} of {amax.numel()} channels, so no scale exists; "
                "leave the site out of the recipe"
            )


def _check_finite(key: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise QuantizationError(f"{key} carries NaN or infinity; check the checkpoint that is being quantized")


def _check_histogram(key: str, quantizer: TensorQuantizer, tensor: torch.Tensor) -> None:
    """ModelOpt's histogram takes its bin width from the first batch and grows to hold the largest value: not without end."""
    edges = getattr(quantizer._calibrator, "_calib_bin_edges", None)
    if edges is None:
        return
    width, largest = float(edges[1] - edges[0]), float(tensor.abs().max())
    if largest > width * MOST_BINS:
        raise QuantizationError(
            f"{key}: a batch reaches {largest:.3g}, the first one only {float(edges[-1]):.3g}: too far apart for one "
            "histogram; check the checkpoint, or use the calibrator 'max'"
        )


@contextlib.contextmanager
def _observing(activations: Mapping[str, TensorQuantizer], quantizers: Iterable[TensorQuantizer]) -> Iterator[None]:
    """The model computes in float while its activation quantizers watch; restored whatever happens."""
    quantizers = list(quantizers)

    def check(key: str, quantizer: TensorQuantizer, tensor: torch.Tensor) -> None:
        _check_finite(key, tensor)
        _check_histogram(key, quantizer, tensor)

    guards = [
        quantizer.register_forward_pre_hook(lambda module, args, key=key: check(key, module, args[0]))
        for key, quantizer in activations.items()
    ]
    for quantizer in quantizers:
        # A fresh one: reset() keeps the number of bins that an earlier calibration has grown to.
        used = quantizer._calibrator
        quantizer._calibrator = type(used)(used._num_bits, used._axis, used._unsigned)
        quantizer.disable_quant()
    for quantizer in activations.values():
        quantizer.enable_calib()
    try:
        yield
    finally:
        for guard in guards:
            guard.remove()
        for quantizer in quantizers:
            quantizer.disable_calib()
            quantizer.enable_quant()


@torch.no_grad()
def calibrate(
    model: nn.Module,
    recipe: Recipe,
    batches: Iterable[Mapping[str, torch.Tensor]],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Set the amax of every quantizer of `model` from its weights and from `batches`.

    Args:
        model: quantized by `insert_quantizers(model, recipe)`; left in evaluation mode.
        recipe: the recipe it was quantized with.
        batches: keyword arguments of the model: input_ids, attention_mask (and token_type_ids), int64 (batch, sequence).
        on_progress: called with the number of rows after each batch.

    Returns:
        site key -> largest amax of the site.

    Raises:
        QuantizationError: a site saw no data, or only zeros, or values that are not finite.
    """
    quantizers = model_quantizers(model)
    sites = {site.key: site for site in encoder_sites(model) if site.key in quantizers}
    activations = {key: quantizer for key, quantizer in quantizers.items() if sites[key].kind == ACTIVATION}
    model.eval()
    device = next(model.parameters()).device
    weights = {key: model.get_parameter(f"{sites[key].module}.weight") for key in quantizers if key not in activations}
    for key, weight in weights.items():
        _check_finite(key, weight)
    with _observing(activations, quantizers.values()):
        for batch in batches:
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
            if on_progress:
                on_progress(len(batch["input_ids"]))
    for key, quantizer in quantizers.items():
        if key in weights:
            quantizer._calibrator.collect(weights[key])
        _load_amax(quantizer, recipe.sites[sites[key].name], key)
    model.to(device)
    check_amax(quantizers)
    return {key: float(quantizer.amax.max()) for key, quantizer in quantizers.items()}
