"""The search for the recipe with the fewest sites in floating point whose metric is within a bound."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import nn

from q8trt.console.progress import progress
from q8trt.errors import QuantizationError
from q8trt.evaluation.sensitivity.probe import Probe, probe_of
from q8trt.evaluation.sensitivity.scoring import Sensitivity
from q8trt.quantization.recipe import QuantizerSpec, Recipe
from q8trt.quantization.sites import Site
from q8trt.runs.config import FinetuneConfig
from q8trt.training.calibrating import quantize
from q8trt.training.finetuning import Inputs

_NO_SPEC = QuantizerSpec()


@dataclass(frozen=True)
class Placement:
    """A recipe within a bound.

    Attributes:
        recipe: the recipe.
        off: keys of the sites that it leaves in floating point, the most harmful first.
        quantized: number of quantized sites.
        drop_x100: the task's main metric of the float model minus that of the model quantized and calibrated by this
            recipe, x100, on the development set; the larger one of two development sets.
    """

    recipe: Recipe
    off: tuple[str, ...]
    quantized: int
    drop_x100: float

    def to_dict(self, max_drop_x100: float) -> dict[str, Any]:
        """Return the placement and its bound as JSON-ready data."""
        figures = {"max_drop_x100": max_drop_x100, "drop_x100": self.drop_x100, "quantized_sites": self.quantized}
        return {**figures, "in_float": list(self.off), "recipe": self.recipe.to_dict()}


def fewest_off(sites: int, drop: Callable[[int], float], bound: float) -> int | None:
    """Return the number of ranked sites to switch off, by bisection: drop(count) <= bound < drop(count - 1).

    Args:
        sites: number of sites.
        drop: function from the number of the most harmful sites that are off to the loss. It need not be monotonic.
        bound: maximum loss.

    Returns:
        the count, from 0 to sites - 1, or None if the least harmful site alone loses more than `bound`.
    """
    if drop(0) <= bound:
        return 0
    low, high = 0, sites - 1
    if drop(high) > bound:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop(middle) <= bound else (middle, high)
    return high


def recipe_without(recipe: Recipe, sites: Sequence[Site], off: Collection[str], max_drop_x100: float) -> Recipe:
    """Return `recipe` with the sites `off` in floating point; `recipe` itself if there are none.

    Args:
        recipe: a recipe that quantizes all of `off`.
        sites: the sites of the model.
        off: keys of sites.
        max_drop_x100: the bound, for the name and the description.
    """
    if not off:
        return recipe
    return replace(
        recipe.without([site for site in sites if site.key in off]),
        name=f"{recipe.name}-max-drop-{max_drop_x100:g}",
        description=f"{recipe.name} less the {len(off)} sites that cost most, to lose no more than {max_drop_x100:g}",
    )


def recipe_text(recipe: Recipe) -> str:
    """Return `recipe` as YAML with a line for each site, from which `load_recipe` reads the same recipe."""
    data = {key: value for key, value in recipe.to_dict().items() if value is not None}
    data["sites"] = {key: _file_spec(key, spec, recipe.sites) for key, spec in data["sites"].items()}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    if Recipe.from_dict(yaml.safe_load(text)) != recipe:
        raise AssertionError(f"recipe {recipe.name!r} does not survive being written; report this")
    return text


def _file_spec(key: str, spec: dict[str, Any], sites: Mapping[str, QuantizerSpec]) -> dict[str, Any]:
    """Return the entry of a site in a recipe file, without values that are inherited or defaults."""
    named = re.fullmatch(r"layer\.\d+\.(.+)", key)
    if named:
        inherited = sites.get(named.group(1))
        off = inherited and replace(inherited, enabled=False, layers=None) == sites[key]
        return {"enabled": False} if off else spec
    always = ("calibrator", "enabled") if not spec["enabled"] else ("calibrator",)
    return {name: value for name, value in spec.items() if name in always or value != getattr(_NO_SPEC, name)}


def meet(
    model: nn.Module,
    quantized: nn.Module,
    config: FinetuneConfig,
    inputs: Inputs,
    measured: Sensitivity,
    max_drop: float,
) -> Placement:
    """Return the recipe of `config` with the fewest sites in floating point that keep the drop within `max_drop`.

    The drop is measured on the whole development set: first with quantizers of `quantized` switched off, then with the float
    model quantized and calibrated again by the resulting recipe.

    Args:
        model: the float model.
        quantized: a quantized and calibrated copy of `model`, as in `measure`.
        config: the configuration with the recipe.
        inputs: tokenized rows.
        measured: the result of `measure`, which ranks the sites.
        max_drop: maximum drop of the task's main metric, x100.

    Raises:
        QuantizationError: the least harmful site alone loses more.
        DataError: a logit is not finite.
    """
    ranking, splits, metric = measured.ranking, list(inputs.dev.values()), config.data.resolved_task.main_metric
    probes = [probe_of(quantized, rows, config, inputs) for rows in splits]
    lost = functools.cache(lambda off: _drop(probes, ranking[off:]))
    first = fewest_off(len(ranking), lost, max_drop)
    if first is None:
        raise QuantizationError(
            f"quantizing {ranking[-1]} alone already loses {lost(len(ranking) - 1):.2f} {metric} x100, more than "
            f"--max_drop {max_drop:g}; allow more"
        )
    for off in range(first, len(ranking)):
        recipe = recipe_without(config.recipe, probes[0].sites, ranking[:off], max_drop)
        fresh, _ = quantize(model, replace(config, recipe=recipe), inputs)  # type: ignore[arg-type]
        drop = _drop([probe_of(fresh, rows, config, inputs) for rows in splits], ranking[off:])
        if drop <= max_drop:  # usually at the first try, because the range of a site does not depend on other sites
            return Placement(recipe, ranking[:off], len(ranking) - off, drop)
    raise QuantizationError(
        f"calibrated again, even {ranking[-1]} alone loses more than --max_drop {max_drop:g}; allow more"
    )


def _drop(probes: Sequence[Probe], on: Collection[str]) -> float:
    """Return the largest drop over the splits with the sites `on` quantized, x100."""
    drops = []
    for probe in probes:
        with progress(f"Trying {len(on)} of {len(probe.sites)} sites", len(probe.rows)) as advance:
            drops.append(probe.cost(on, advance).drop_x100)
    return max(drops)
