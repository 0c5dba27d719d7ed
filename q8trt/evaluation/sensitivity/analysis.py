"""Sensitivity analyses: from the options to the files of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.evaluation.config import SensitivityConfig
from q8trt.evaluation.sensitivity.result import PLOT_FILE, write_result
from q8trt.evaluation.sensitivity.scoring import PARTIAL_FILE, RESULT_FILE, Sensitivity, measure
from q8trt.evaluation.sensitivity.search import Placement, meet, recipe_text
from q8trt.files import check_apart, check_report, writable_file, write_text
from q8trt.hardware.provenance import provenance
from q8trt.models.checkpoints import load_finetuned
from q8trt.reporting.head import device_of
from q8trt.runs.config import FinetuneConfig, model_name, run_of_checkpoint
from q8trt.runs.fresh import sole_writer
from q8trt.training.calibrating import quantize
from q8trt.training.execution import recipe_lines
from q8trt.training.finetuning import load_inputs


@dataclass(frozen=True)
class Analysis:
    """A sensitivity analysis.

    Attributes:
        costs: the costs of quantizing each site alone and each layer alone.
        files: sensitivity.json and sensitivity.png.
        placement: the sites that stay in floating point to keep `max_drop`; None without that bound.
        config: the configuration of the quantized model.
        model: name of the model.
        device: the CPU with its number of cores, or "cuda".
    """

    costs: Sensitivity
    files: tuple[Path, Path]
    placement: Placement | None
    config: FinetuneConfig
    model: str
    device: str


def analyze(
    config: FinetuneConfig,
    bound: SensitivityConfig,
    output_dir: str | Path | None,
    runs_dir: str | Path,
    command: Sequence[str],
    say: Callable[[str], object],
) -> Analysis:
    """Score the sites, write the results and, with a bound, write a recipe that keeps it.

    Args:
        config: checkpoint, rows and recipe.
        bound: options of the analysis.
        output_dir: folder of the results; None for the run of the checkpoint.
        runs_dir: folder in which a checkpoint that is in no run gets a folder of results.
        command: words of the command line, for the record.
        say: function that prints lines about the recipe.

    Raises:
        Q8TRTError: bad input, an output that may not be replaced, or no recipe within the bound.
    """
    if bound.write_recipe:
        writable_file(bound.write_recipe, "--write_recipe", overwrite=bound.overwrite)
    folder = _folder(config, output_dir, runs_dir)
    check_apart(folder, config.models, "--output_dir" if output_dir else "--runs_dir", holds=True)
    inputs = load_inputs(config)
    say("\n".join(recipe_lines(config)))
    _check_files(folder)  # before the lock, which makes folders, and again under the lock
    with sole_writer(folder):
        _check_files(folder)
        model = load_finetuned(str(config.from_fp32), config.data.resolved_task, config.allow_pickle)
        quantized, choice = quantize(model, config, inputs)
        config = replace(config, recipe=choice.recipe)
        costs = measure(model, quantized, config, inputs, folder, bound.samples)
        name, origin = model_name(config), provenance(command)
        device = device_of(next(model.parameters()).device.type, origin["hardware"])
        more: dict[str, Any] = {"device": device, "provenance": origin}
        paths = write_result(folder, costs, name, more)
        if bound.max_drop is None or bound.write_recipe is None:
            return Analysis(costs, paths, None, config, name, device)
        placement = meet(model, quantized, config, inputs, costs, bound.max_drop)
        recipe = writable_file(bound.write_recipe, "--write_recipe", overwrite=bound.overwrite)
        write_text(recipe, recipe_text(placement.recipe))
        write_result(folder, costs, name, {**more, "max_drop": placement.to_dict(bound.max_drop)})
        return Analysis(costs, paths, placement, config, name, device)


def _check_files(folder: Path) -> None:
    """Raise ConfigError if the results would replace files that this command did not write."""
    option, keys = "--output_dir", ("fingerprint", "scores")
    check_report(folder / RESULT_FILE, [folder / PLOT_FILE], keys=keys, option=option)
    check_report(folder / PARTIAL_FILE, keys=keys, option=option)


def _folder(config: FinetuneConfig, output_dir: str | Path | None, runs_dir: str | Path) -> Path:
    """Return the folder of the results: `output_dir`, else the checkpoint's run, else a folder in `runs_dir`.

    The folder's name contains no time, so the same command finds the scores of an interrupted one.
    """
    if output_dir:
        return Path(output_dir)
    run = run_of_checkpoint(config)
    if run:
        return Path(run.path)
    task = "sample" if config.data.sample else config.data.resolved_task.name
    return Path(runs_dir) / f"sensitivity-{task}-{model_name(config)}".casefold()
