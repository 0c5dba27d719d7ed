"""Calibration: the amax of every quantizer from the weights and from calibration batches.

Activations are observed on the batches while the model computes in floating point. Weights need no batches. A calibrator
stores a number or a histogram, so memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from q8trt.quantization.smoothquant import (
    alpha_of,
    channel_maxima,
    is_smoothable,
    smooth,
    smoothable,
    smoothing_scales,
    unsmooth,
)
from q8trt.quantization.spreads import spread_of

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        amax: site key -> its largest amax, in the order of computation of the sites.
        percentiles: site key -> the percentile that the search chose; empty if no site uses the search.
        spreads: site key -> the range of its widest channel divided by that of the median channel, after smoothing; only for
            sites that a recipe can smooth.
    """

    amax: Mapping[str, float]
    percentiles: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)


def check_amax(quantizers: Mapping[str, TensorQuantizer]) -> None:
    """Check that every quantizer has a finite amax above zero.

    Raises:
        QuantizationError: an amax is missing, zero, infinite or NaN; the message names the first such site.
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
                "recipe of the model's quantizers"
            )
        specs[key] = spec
    return specs


def _amax(site: Site, spec: QuantizerSpec, calibrator: Calibrator | None) -> torch.Tensor:
    """Return the range of a site, float32: () per tensor, (n, 1) per index of axis 0."""
    if calibrator is None:
        return torch.tensor(spec.amax, dtype=torch.float32)
    amax = calibrator.compute_amax()
    if amax is None:
        raise QuantizationError(f"{site.key} was not calibrated: no batch reached it; give more calibration data")
    if site.name.startswith("embeddings.") and amax.ndim and (amax > 0).any():
        # Rows of zeros, such as that of an untrained padding token, have no scale. Zero is exact at any scale; the
        # smallest one does not widen the range of scales in the file.
        amax = torch.where(amax == 0, amax[amax > 0].min(), amax)
    return amax.float()


def _shared(calibrators: Iterable[Calibrator]) -> list[Calibrator]:
    """Make the calibrators of one tensor share a histogram; return the calibrators that must observe the tensor."""
    collecting: list[Calibrator] = []
    first: HistogramCalibrator | None = None
    for calibrator in calibrators:
        if not isinstance(calibrator, HistogramCalibrator):
            collecting.append(calibrator)
        elif first is None:
            first = calibrator
            collecting.append(calibrator)
        else:
            calibrator.histogram = first.histogram
    return collecting


#: The key of a site, its options, and the alpha of its smoothing or None.
_Variant = tuple[str, QuantizerSpec, float | None]


class Statistics:
    """The observations of calibration, by which any of several recipes with the same sites can calibrate the model.

    If a recipe smooths, one pass over the batches measures the channels. One more pass serves all calibrators of all recipes.

    Args:
        model: quantized by `insert_quantizers`; left in evaluation mode with its quantizers on.
        recipes: the recipes that `calibrate` may use.
        batches: keyword arguments of the model: input_ids, attention_mask (and token_type_ids), int64 (batch, sequence).
            Padding is ignored. If there are two passes, an iterator is stored as a list.
        on_progress: called with the number of rows after each batch of each pass.
        library: library of the calibrators; None for ModelOpt, with q8trt's calibrators.

    Raises:
        ConfigError: the library lacks a calibrator of a recipe.
        QuantizationError: the values of a site are not finite, or a recipe leaves a quantized site in floating point.
    """

    def __init__(
        self,
        model: nn.Module,
        recipes: Sequence[Recipe],
        batches: Iterable[Batch],
        on_progress: Callable[[int], None] | None = None,
        library: Library | None = None,
    ) -> None:
        self.model = model
        self.quantizers = model_quantizers(model)
        self.sites = {site.key: site for site in encoder_sites(model) if site.key in self.quantizers}
        self._library = library or MODELOPT
        self._sample = RowSample()
        self._applied: dict[str, torch.Tensor] = {}
        self._amax: dict[_Variant, torch.Tensor] = {}
        for key, site in self.sites.items():
            if site.kind == WEIGHT:
                check_finite(key, model.get_parameter(site.parameter))
        variants = {variant: None for recipe in recipes for variant in self._variants(recipe).values()}
        self._calibrators = {each: self._new(each[1]) for each in variants if self.sites[each[0]].kind == ACTIVATION}
        model.eval()
        set_quantization(model, True)
        smoothed = {key for recipe in recipes for key in smoothable(model, recipe)}
        maxima: Mapping[str, torch.Tensor] = {}
        if smoothed:
            batches = batches if isinstance(batches, (list, tuple)) else list(batches)
            maxima = channel_maxima(
                model, self.quantizers, smoothed, batches, lambda batch: _advance(on_progress, batch)
            )
        self._maxima = dict(maxima)
        self._measured = frozenset(maxima)
        self._scales = [(recipe, smoothing_scales(model, recipe, maxima)) for recipe in recipes]
        self._observe(batches, on_progress)

    def _variants(self, recipe: Recipe) -> dict[str, _Variant]:
        """Return site key -> its options and the alpha of its smoothing in `recipe`."""
        specs = _specs(recipe, self.sites)
        return {key: (key, spec, alpha_of(recipe, self.sites[key].name)) for key, spec in specs.items()}

    def _new(self, spec: QuantizerSpec) -> Calibrator | None:
        """Return a new calibrator; None for a fixed range."""
        if CALIBRATORS[spec.calibrator].new is None:
            return None
        # The search needs q8trt's histogram with every library.
        return (MODELOPT if spec.calibrator == "search" else self._library).new_calibrator(spec)

    def _observe(self, batches: Iterable[Batch], on_progress: Callable[[int], None] | None) -> None:
        """Pass the input of each site to the calibrators of all recipes, smoothed as each recipe does."""
        groups: dict[str, dict[float | None, list[Calibrator]]] = {}
        for (key, _, alpha), calibrator in self._calibrators.items():
            if calibrator is not None:
                groups.setdefault(key, {}).setdefault(alpha, []).append(calibrator)
        collecting = {
            key: [(self._scale(key, alpha), _shared(each)) for alpha, each in by_alpha.items()]
            for key, by_alpha in groups.items()
        }

        def see(key: str, tensor: torch.Tensor) -> None:
            if key not in self._measured and is_smoothable(self.sites[key].name):
                largest = tensor.abs().flatten(0, -2).amax(0)
                self._maxima[key] = torch.maximum(self._maxima.get(key, largest), largest)
            for scale, calibrators in collecting[key]:
                smoothed = tensor if scale is None else tensor * (1 / scale)
                for calibrator in calibrators:
                    calibrator.collect(smoothed)

        def after(batch: Batch) -> None:
            self._sample.add(batch)
            _advance(on_progress, batch)

        observe(self.model, self.quantizers, groups, batches, see, after)

    def _scale(self, key: str, alpha: float | None) -> torch.Tensor | None:
        """Return s of a site for this alpha; None if the site is not smoothed."""
        name = self.sites[key].name
        return next((scales.get(key) for recipe, scales in self._scales if alpha_of(recipe, name) == alpha), None)

    @torch.no_grad()
    def calibrate(self, recipe: Recipe, on_search: Callable[[int], None] | None = None) -> Calibration:
        """Smooth the model and set the amax of every quantizer by `recipe`; this undoes an earlier call.

        Args:
            recipe: one of the recipes of these statistics.
            on_search: called with 1 after each of `searched_sites(model, recipe)`.

        Raises:
            QuantizationError: a site had no data, or only zeros.
        """
        unsmooth(self.model, self._applied)
        self._applied = next(scales for each, scales in self._scales if each == recipe)
        smooth(self.model, self._applied)
        variants, device = self._variants(recipe), next(self.model.parameters()).device
        for key, quantizer in self.quantizers.items():
            quantizer.amax = self._range(variants[key]).to(device)
        check_amax(self.quantizers)
        percentiles = self._search(variants, on_search)
        amax = {key: float(quantizer.amax.max()) for key, quantizer in self.quantizers.items()}
        return Calibration(amax, percentiles, {key: self._spread(key) for key in self._maxima})

    def _spread(self, key: str) -> float:
        """Return the range of the widest channel divided by that of the median channel, with the current smoothing."""
        return spread_of(self._maxima[key] / self._applied.get(key, 1.0))

    def _range(self, variant: _Variant) -> torch.Tensor:
        """Return the range of a site, float32: () per tensor, (n, 1) per index of axis 0."""
        key, spec, _ = variant
        site = self.sites[key]
        if site.kind == WEIGHT:  # not cached, because smoothing changes the weight
            calibrator = self._new(spec)
            if calibrator is not None:
                calibrator.collect(self.model.get_parameter(site.parameter))
            return _amax(site, spec, calibrator)
        if variant not in self._amax:
            self._amax[variant] = _amax(site, spec, self._calibrators[variant])
        return self._amax[variant]

    def _search(self, variants: Mapping[str, _Variant], on_search: Callable[[int], None] | None) -> Mapping[str, float]:
        """Search the percentiles of the sites whose calibrator is "search"."""
        calibrators = {key: self._calibrators[each] for key, each in variants.items() if each[1].calibrator == "search"}
        histograms = {key: each.histogram for key, each in calibrators.items() if isinstance(each, HistogramCalibrator)}
        if not histograms:
            return {}
        config: Any = self.model.config
        pad_token_id = getattr(config, "pad_token_id", None) or 0
        return search_percentiles(self.model, histograms, self._sample.batches(pad_token_id), on_search)


def calibrate(
    model: nn.Module,
    recipe: Recipe,
    batches: Iterable[Batch],
    on_progress: Callable[[int], None] | None = None,
    library: Library | None = None,
    on_search: Callable[[int], None] | None = None,
) -> Calibration:
    """Smooth `model` by `recipe`, and set the amax of every quantizer from the weights and from `batches`.

    Args:
        model: quantized by `insert_quantizers(model, recipe)`; left in evaluation mode with its quantizers on.
        recipe: the recipe of its quantizers; its alternatives are ignored.
        batches: see `Statistics`.
        on_progress: called with the number of rows after each batch of each pass.
        library: library of the calibrators; None for ModelOpt, with q8trt's calibrators.
        on_search: called with 1 after each of `searched_sites(model, recipe)`; the search is after the last batch.

    Raises:
        ConfigError: the library lacks a calibrator of the recipe.
        QuantizationError: a site had no data, only zeros, or values that are not finite.
    """
    return Statistics(model, [recipe], batches, on_progress, library).calibrate(recipe, on_search)


def passes(recipes: Sequence[Recipe]) -> int:
    """Return the maximum number of passes of `Statistics` over the batches for these recipes."""
    return 1 + any(recipe.smooths for recipe in recipes)


def _advance(on_progress: Callable[[int], None] | None, batch: Batch) -> None:
    if on_progress:
        on_progress(len(batch["input_ids"]))
