"""The choice between a recipe and its alternatives by measurement, which needs no labels.

Each candidate calibrates the model from the same statistics. The candidate whose answers to held-out rows drift least from
floating point is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from q8trt.quantization.calibration import Calibration, Statistics
from q8trt.quantization.drift import all_answers, drift
from q8trt.quantization.insertion import set_quantization, weights_quantized_once
from q8trt.quantization.observation import Batch
from q8trt.quantization.recipe import SMOOTHINGS, Recipe
from q8trt.quantization.sites import ACTIVATION
from q8trt.quantization.trial import InFloat, Trial


@dataclass(frozen=True)
class Choice:
    """A calibrated model.

    Attributes:
        recipe: the chosen recipe, without alternatives.
        calibration: its ranges.
        trials: the candidates in order; () if they were not measured.
        in_float: the operations that stay in floating point because of the recipe's `float_sites`; None if there are none.
    """

    recipe: Recipe
    calibration: Calibration
    trials: tuple[Trial, ...] = ()
    in_float: InFloat | None = None


def choose(
    statistics: Statistics,
    candidates: Sequence[Recipe],
    batches: Sequence[Batch],
    on_progress: Callable[[int], None] | None = None,
    measured: bool = False,
) -> Choice:
    """Calibrate the model of `statistics` by the candidate whose answers drift least, the first one if several are equal.

    Args:
        statistics: the statistics of `candidates`.
        candidates: recipes with the same sites; a single one is used without a measurement.
        batches: held-out rows, keyword arguments of the model.
        on_progress: called with 1 after each searched percentile, and with the number of rows after each measured candidate.
        measured: also measure a single candidate.

    Raises:
        QuantizationError: a site could not be calibrated.
    """
    if len(candidates) == 1 and not measured:
        return Choice(candidates[0], statistics.calibrate(candidates[0], on_progress))
    model = statistics.model
    set_quantization(model, False)
    reference = all_answers(model, batches)
    set_quantization(model, True)
    drifts = []
    for candidate in candidates:
        statistics.calibrate(candidate, on_progress)
        with weights_quantized_once(model):
            drifts.append(drift(all_answers(model, batches), reference))
        if on_progress:
            on_progress(sum(len(batch["input_ids"]) for batch in batches))
    best = candidates[drifts.index(min(drifts))]
    trials = tuple(Trial(_settings(statistics, each), value) for each, value in zip(candidates, drifts, strict=True))
    return Choice(best, statistics.calibrate(best), trials)


def _settings(statistics: Statistics, recipe: Recipe) -> str:
    sites = [site for site in statistics.sites.values() if site.kind == ACTIVATION]
    specs = [spec for site in sites if (spec := recipe.spec(site)) is not None and spec.calibrator != "fixed"]
    names = Counter(
        f"percentile {spec.percentile:g}" if spec.calibrator == "percentile" else spec.calibrator for spec in specs
    )
    smoothed = [f"{option} {alpha:g}" for option in SMOOTHINGS if (alpha := getattr(recipe, option)) is not None]
    return ", ".join([*(name for name, _ in names.most_common(1)), *smoothed])
