"""Sites with massive channels, whose range leaves few integer levels for all other channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.observation import Batch
from q8trt.quantization.sites import encoder_sites
from q8trt.quantization.smoothquant import channel_maxima, is_smoothable, remedy

if TYPE_CHECKING:
    import torch

#: A site is reported if its widest channel exceeds the median one by this factor.
WIDE = 100


def spread_of(maxima: torch.Tensor) -> float:
    """Return the range of the widest channel divided by that of the median one; 1 if the median channel is always zero.

    Args:
        maxima: float (H,), the largest magnitude of each channel.
    """
    typical = float(maxima.median())
    return float(maxima.max()) / typical if typical > 0 else 1.0


def measure_spreads(model: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Return site key -> `spread_of` its channels with the current smoothing, for sites that a recipe can smooth.

    Args:
        model: quantized, in evaluation mode, with its quantizers on.
        batches: keyword arguments of the model.
    """
    quantizers = model_quantizers(model)
    watched = [site.key for site in encoder_sites(model) if site.key in quantizers and is_smoothable(site.name)]
    return {key: spread_of(each) for key, each in channel_maxima(model, quantizers, watched, batches).items()}


def wide_sites(spreads: Mapping[str, float]) -> list[str]:
    """Return a line for each smoothing option that would help, with the number of sites that have massive channels."""
    wide: dict[str, list[str]] = {}
    for key, spread in sorted(spreads.items(), key=lambda item: -item[1]):
        if spread > WIDE:
            wide.setdefault(remedy(key.split(".", 2)[-1]), []).append(f"{key} ({spread:,.0f} times)")
    return [
        f"{len(sites)} sites have a channel beyond {WIDE} times the median channel's range, so one scale leaves few levels for "
        f"the others; the widest is {sites[0]}; set or raise {option} in the recipe"
        for option, sites in wide.items()
    ]
