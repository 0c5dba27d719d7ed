"""The choice between a recipe and its alternatives by measurement, which needs no labels.

Each candidate calibrates the model from the same statistics. The one is kept whose answers to held-out rows drift least from
those in floating point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from q8trt.quantization.calibration import Calibration, Statistics
from q8trt.quantization.insertion import set_quantization, weights_quantized_once
from q8trt.quantization.observation import Batch, answers
from q8trt.quantization.recipe import SMOOTHINGS, Recipe
from q8trt.quantization.sites import ACTIVATION
from q8trt.quantization.smoothquant import remedy
from q8trt.quantization.trial import Trial

#: The largest drift that is recorded.
WORST = 1e6


#: A site whose widest channel is beyond so many times the median one is named.
WIDE = 100


def wide_sites(calibration: Calibration) -> list[str]:
    """Return a line for each smoothing that a recipe lacks: the sites where one channel leaves the others little of the scale."""
    wide: dict[str, list[str]] = {}
    for key, spread in sorted(calibration.spreads.items(), key=lambda item: -item[1]):
        if spread > WIDE:
            wide.setdefault(remedy(key.split(".", 2)[-1]), []).append(f"{key} ({spread:,.0f} times)")
    return [
        f"{len(sites)} sites have a channel beyond {WIDE} times the median one's range, and one scale leaves little for the "
        f"others; the widest is {sites[0]}; set or raise {option} in the recipe"
        for option, sites in wide.items()
    ]


@dataclass(frozen=True)
class Choice:
    """A calibrated model's recipe, without alternatives; its calibration; and all candidates, in order, if there were several."""

    recipe: Recipe
    calibration: Calibration
    trials: tuple[Trial, ...] = ()


def choose(
    statistics: Statistics,
    candidates: Sequence[Recipe],
    batches: Sequence[Batch],
    on_progress: Callable[[int], None] | None = None,
) -> Choice:
    """Calibrate the model of `statistics` by the candidate whose answers drift least; the earliest of equals.

    Args:
        statistics: made for `candidates`.
        candidates: recipes of the same sites; one alone is taken as it is.
        batches: held-out rows, keyword arguments of the model.
        on_progress: called with 1 after each site whose percentile is searched, and with the number of rows after each of
            several candidates.

    Raises:
        QuantizationError: a site could not be calibrated.
    """
    if len(candidates) == 1:
        return Choice(candidates[0], statistics.calibrate(candidates[0], on_progress))
    model = statistics.model
    set_quantization(model, False)
    reference = _answers(model, batches)
    set_quantization(model, True)
    drifts = []
    for candidate in candidates:
        statistics.calibrate(candidate, on_progress)
        with weights_quantized_once(model):
            drifts.append(drift(_answers(model, batches), reference))
        if on_progress:
            on_progress(sum(len(batch["input_ids"]) for batch in batches))
    best = candidates[drifts.index(min(drifts))]
    trials = tuple(Trial(_settings(statistics, each), value) for each, value in zip(candidates, drifts, strict=True))
    return Choice(best, statistics.calibrate(best), trials)


@torch.no_grad()
def _answers(model: Any, batches: Sequence[Batch]) -> torch.Tensor:
    """Return the logits, or embeddings: float64 (rows, size), or (tokens, size) of a head that answers each token."""
    device = next(model.parameters()).device
    inputs = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
    return torch.cat([answers(model, batch) for batch in inputs]).double()


def drift(answers: torch.Tensor, reference: torch.Tensor) -> float:
    """Return `Trial.drift` of answers (rows, size), at most WORST, which also stands for answers that are not finite."""
    difference = float((answers - reference).square().sum(1).mean())
    spread = float((reference - reference.mean(0)).square().sum(1).mean())
    value = difference / max(spread, 1e-12)
    return value if value < WORST else WORST


def _settings(statistics: Statistics, recipe: Recipe) -> str:
    sites = [site for site in statistics.sites.values() if site.kind == ACTIVATION]
    specs = [spec for site in sites if (spec := recipe.spec(site)) is not None and spec.calibrator != "fixed"]
    names = Counter(
        f"percentile {spec.percentile:g}" if spec.calibrator == "percentile" else spec.calibrator for spec in specs
    )
    smoothed = [f"{option} {alpha:g}" for option in SMOOTHINGS if (alpha := getattr(recipe, option)) is not None]
    return ", ".join([*(name for name, _ in names.most_common(1)), *smoothed])
