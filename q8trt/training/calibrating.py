"""Calibration: the choice of the rows, and a calibrated copy of a floating-point model."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from q8trt.console.progress import phases, progress
from q8trt.quantization.libraries import library
from q8trt.quantization.recipe import Recipe
from q8trt.runs.config import CalibrationConfig, FinetuneConfig
from q8trt.tasks.data import Features, pad

if TYPE_CHECKING:
    from q8trt.models.checkpoints import Model
    from q8trt.quantization.choice import Choice
    from q8trt.training.finetuning import Inputs

log = logging.getLogger("q8trt")

#: Rows on which a recipe's alternatives are compared.
HELD_OUT_ROWS = 128


def calibration_rows(rows: Features, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of `count` random rows to calibrate on, and of at most `HELD_OUT_ROWS` other random rows.

    If there are no other rows, the second list is drawn from the first.
    """
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    others = sorted(set(range(len(rows))) - set(chosen)) or sorted(chosen)
    return chosen, random.Random(seed).sample(others, min(HELD_OUT_ROWS, len(others)))


def calibration_batches(
    rows: Features, chosen: Sequence[int], pad_token_id: int, max_length: int, batch_size: int = 16
) -> Iterator[Any]:
    """Yield the rows with the indices `chosen` as batches: input name -> int64 torch tensor (batch, sequence).

    The rows are sorted by length, the longest last, so that the batches contain little padding.
    """
    import torch

    chosen = sorted(chosen, key=lambda index: int(rows.lengths[index]))
    for start in range(0, len(chosen), batch_size):
        arrays = pad([rows[index] for index in chosen[start : start + batch_size]], pad_token_id, max_length=max_length)
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


def quantize(model: Model, config: FinetuneConfig, inputs: Inputs) -> tuple[Model, Choice]:
    """Return a calibrated, quantized copy of the floating-point `model`, and the choice among the recipe's candidates.

    Raises:
        ConfigError: the recipe does not fit the model or the library.
        QuantizationError: a site could not be calibrated.
    """
    from q8trt.quantization.calibration import Calibration
    from q8trt.quantization.choice import Choice
    from q8trt.quantization.insertion import insert_quantizers, model_quantizers
    from q8trt.quantization.spreads import wide_sites

    with phases("Inserting quantizers"):
        quantized = copy.deepcopy(model)
        if not config.from_pytorch_quantization:
            insert_quantizers(quantized, config.recipe, library(config.quantizer))
    if config.from_pytorch_quantization:
        quantized, _, _ = import_ranges(config, quantized, config.recipe.name)
        amax = {key: float(quantizer.amax.max()) for key, quantizer in model_quantizers(quantized).items()}
        return quantized, Choice(config.recipe, Calibration(amax))
    choice = measure_ranges(quantized, config, inputs)
    if choice.in_float:  # the sites in floating point still have quantizers, which are switched off
        del quantized
        quantized = copy.deepcopy(model)
        insert_quantizers(quantized, choice.recipe, library(config.quantizer))
        again = measure_ranges(quantized, replace(config, recipe=choice.recipe), inputs)
        choice = replace(choice, calibration=again.calibration)
    for line in wide_sites(choice.calibration.spreads):
        log.warning("%s", line)
    return quantized, choice


def import_ranges(
    options: FinetuneConfig | CalibrationConfig, model: Any, name: str
) -> tuple[Any, Recipe, tuple[str, ...]]:
    """Return `model` with the weights and ranges of a pytorch-quantization checkpoint, a recipe called `name`, and notes."""
    from q8trt.quantization.migration import import_checkpoint

    path, source = str(options.from_pytorch_quantization), library(options.quantizer)
    return import_checkpoint(path, model, name=name, library=source, allow_pickle=options.allow_pickle)


def measure_ranges(quantized: Model, config: FinetuneConfig, inputs: Inputs) -> Choice:
    """Calibrate a quantized model in place, and return the choice among the recipe's candidates.

    Raises:
        QuantizationError: a site could not be calibrated.
    """
    from q8trt.quantization.calibration import Statistics, passes, searched_sites
    from q8trt.quantization.choice import choose
    from q8trt.quantization.float_sites import leave_in_float, steps

    rows, source = inputs.train, library(config.quantizer)
    layout = inputs.tokenizer.pad_token_id, config.data.max_seq_length
    chosen, others = calibration_rows(rows, config.calibration_samples, config.training.seed)
    batches, held_out = (list(calibration_batches(rows, numbers, *layout)) for numbers in (chosen, others))
    candidates = [each for each in config.recipe.candidates if source.smooths or not each.smooths]
    candidates = candidates or [config.recipe.candidates[0]]  # it raises the error that the library cannot smooth
    searches = sum(len(searched_sites(quantized, candidate)) for candidate in candidates)
    bound = config.recipe.float_sites
    trials = len(others) * len(candidates) if len(candidates) > 1 or bound else 0
    settings = "1 setting" if len(candidates) == 1 else f"{len(candidates)} settings"
    with progress(
        f"Calibrating on {len(chosen):,} rows ({settings}), step", passes(candidates) * len(chosen) + trials + searches
    ) as advance:
        statistics = Statistics(quantized, candidates, batches, advance, source)
        choice = choose(statistics, candidates, held_out, advance, measured=bound is not None)
    if bound is None or min(trial.drift for trial in choice.trials) <= bound.drift:
        return choice
    with progress("Looking for sites to leave in floating point", steps(quantized, bound)) as advance:
        return leave_in_float(quantized, choice, bound, held_out, advance)
