"""Batches -> amax.

Activations are watched on calibration batches while the model computes in floating point; weights are looked at as they
are. What a calibrator keeps is a number or a histogram, so memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.calibrators import CALIBRATORS, Calibrator, HistogramCalibrator
from q8trt.quantization.insertion import model_quantizers, set_quantization
from q8trt.quantization.libraries import MODELOPT, Library
from q8trt.quantization.observation import Batch, check_finite, observe
from q8trt.quantization.percentile_search import RowSample, search_percentiles
from q8trt.quantization.recipe import QuantizerSpec, Recipe
from q8trt.quantization.sites import ACTIVATION, WEIGHT, Site, encoder_sites
from q8trt.quantization.smoothquant import smooth, smooth_residuals

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        amax: site key -> its largest amax, in the order of computation.
        percentiles: site key -> the percentile that the search chose; empty where no site asks for one.
    """

    amax: Mapping[str, float]
    percentiles: Mapping[str, float] = field(default_factory=dict)


def check_amax(quantizers: Mapping[str, TensorQuantizer]) -> None:
    """Check that every quantizer has a finite amax above zero.

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


def searched_sites(model: nn.Module, recipe: Recipe) -> tuple[Site, ...]:
    """Return the sites of `model` whose percentile `recipe` searches for, in the order of computation."""
    specs = ((site, recipe.spec(site)) for site in encoder_sites(model))
    return tuple(site for site, spec in specs if spec is not None and spec.calibrator == "search")


def _specs(recipe: Recipe, sites: Mapping[str, Site]) -> dict[str, QuantizerSpec]:
    specs = {}
    for key, site in sites.items():
        spec = recipe.spec(site)
        if spec is None:
            raise QuantizationError(
                f"{key} has a quantizer, but the recipe {recipe.name!r} leaves it in floating point; calibrate with the "
                "recipe that the model was quantized with"
            )
        specs[key] = spec
    return specs


def _calibrators(specs: Mapping[str, QuantizerSpec], library: Library) -> dict[str, Calibrator]:
    """Return a new calibrator for each site whose range is not fixed."""
    return {
        # The search reads q8trt's histogram, whatever calibrators the library has.
        key: (MODELOPT if spec.calibrator == "search" else library).new_calibrator(spec)
        for key, spec in specs.items()
        if CALIBRATORS[spec.calibrator].new is not None
    }


def _amax(site: Site, spec: QuantizerSpec, calibrator: Calibrator | None) -> torch.Tensor:
    """Return the range of a site, float32: () per tensor, (n, 1) per index of axis 0."""
    if calibrator is None:
        return torch.tensor(spec.amax, dtype=torch.float32)
    amax = calibrator.compute_amax()
    if amax is None:
        raise QuantizationError(f"{site.key} was not calibrated: no batch reached it; give more calibration data")
    if site.name.startswith("embeddings.") and amax.ndim and (amax > 0).any():
        # Rows of zeros, such as the padding token's in a checkpoint that was never trained on it, have no scale of their
        # own. Any will do, zero being zero at each; the smallest leaves the file's range of scales as it is.
        amax = torch.where(amax == 0, amax[amax > 0].min(), amax)
    return amax.float()


@torch.no_grad()
def calibrate(
    model: nn.Module,
    recipe: Recipe,
    batches: Iterable[Batch],
    on_progress: Callable[[int], None] | None = None,
    library: Library | None = None,
    on_search: Callable[[int], None] | None = None,
) -> Calibration:
    """Set the amax of every quantizer of `model` from its weights and from `batches`.

    With `recipe.smoothquant`, the linears behind a LayerNorm are smoothed first, with `recipe.smooth_residuals` the residual
    Adds; each takes a pass of its own.

    Args:
        model: quantized by `insert_quantizers(model, recipe)`; left in evaluation mode, its quantizers on.
        recipe: the recipe it was quantized with.
        batches: keyword arguments of the model: input_ids, attention_mask (and token_type_ids), int64 (batch, sequence).
            What is computed at positions of padding is not looked at. An iterator that can be read only once is kept as
            a list where SmoothQuant needs it twice.
        on_progress: called with the number of rows after each batch of each pass.
        library: where the calibrators come from; None: ModelOpt, which takes q8trt's own.
        on_search: called with 1 after each of `searched_sites(model, recipe)`, whose search follows the batches.

    Raises:
        ConfigError: the library has no such calibrator.
        QuantizationError: a site saw no data, or only zeros, or values that are not finite.
    """
    quantizers = model_quantizers(model)
    sites = {site.key: site for site in encoder_sites(model) if site.key in quantizers}
    specs = _specs(recipe, sites)
    calibrators = _calibrators(specs, library or MODELOPT)
    for key, site in sites.items():
        if site.kind == WEIGHT:
            check_finite(key, model.get_parameter(site.parameter))
    model.eval()
    set_quantization(model, True)
    for smoothing, alpha in ((smooth, recipe.smoothquant), (smooth_residuals, recipe.smooth_residuals)):
        if alpha is not None:
            batches = batches if isinstance(batches, (list, tuple)) else list(batches)
            smoothing(model, batches, alpha, lambda batch: _advance(on_progress, batch))
    sample = RowSample()

    def after(batch: Batch) -> None:
        sample.add(batch)
        _advance(on_progress, batch)

    watched = [key for key in calibrators if sites[key].kind == ACTIVATION]
    observe(model, quantizers, watched, batches, lambda key, seen: calibrators[key].collect(seen), after)
    device = next(model.parameters()).device
    for key, quantizer in quantizers.items():
        if sites[key].kind == WEIGHT:
            calibrators[key].collect(model.get_parameter(sites[key].parameter))
        quantizer.amax = _amax(sites[key], specs[key], calibrators.get(key)).to(device)
    check_amax(quantizers)
    histograms = {
        key: calibrator.histogram
        for key, calibrator in calibrators.items()
        if specs[key].calibrator == "search" and isinstance(calibrator, HistogramCalibrator)
    }
    percentiles = {}
    if histograms:
        pad_token_id = getattr(model.config, "pad_token_id", None) or 0
        percentiles = search_percentiles(model, histograms, sample.batches(pad_token_id), on_search)
    return Calibration({key: float(quantizer.amax.max()) for key, quantizer in quantizers.items()}, percentiles)


def _advance(on_progress: Callable[[int], None] | None, batch: Batch) -> None:
    if on_progress:
        on_progress(len(batch["input_ids"]))
