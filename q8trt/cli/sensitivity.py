"""`calibrate.py --sensitivity`: the cost of quantizing each site alone, and the recipe that keeps a bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.cli.fresh import sole_writer
from q8trt.cli.terminal import say, table_console
from q8trt.console.commands import command
from q8trt.console.options import options_of
from q8trt.evaluation.config import SensitivityConfig
from q8trt.files import check_report, writable_file
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import RUN_FILE, Run, open_run, runs_dir_option

if TYPE_CHECKING:
    from q8trt.cli.calibrate import Options
    from q8trt.training.finetuning import Inputs


def _check_results(folder: Path) -> None:
    """Raise ConfigError where the results would replace what this command did not write."""
    from q8trt.evaluation.sensitivity import PARTIAL_FILE, RESULT_FILE
    from q8trt.evaluation.sensitivity.result import PLOT_FILE

    option, keys = "--output_dir", ("fingerprint", "scores")
    check_report(folder / RESULT_FILE, [folder / PLOT_FILE], keys=keys, option=option)
    check_report(folder / PARTIAL_FILE, keys=keys, option=option)


def _run_of(config: FinetuneConfig) -> Run | None:
    """Return the run of the FP32 checkpoint, or None."""
    folder = Path(str(config.from_fp32)).parent
    return open_run(folder) if (folder / RUN_FILE).is_file() else None


def _model_name(config: FinetuneConfig) -> str:
    """Return a word for the model: in a run, the model that the run began with, because the folder's name is "fp32"."""
    from q8trt.models.checkpoints import short_name

    run = _run_of(config)
    return short_name(config_of_run(run).model_name_or_path if run else str(config.from_fp32))


def _sensitivity_folder(options: Options, config: FinetuneConfig) -> Path:
    """Return the folder of the results: the checkpoint's run; for a checkpoint that is in no run, a folder of its own.

    The folder's name holds no time, so that the same command finds the scores of one that was stopped.
    """
    if options.output_dir:
        return Path(options.output_dir)
    run = _run_of(config)
    if run:
        return Path(run.path)
    task = "sample" if config.data.sample else config.data.resolved_task.name
    return Path(options.runs_dir) / f"sensitivity-{task}-{_model_name(config)}".casefold()


def run_sensitivity(options: Options, argv: list[str], config: FinetuneConfig, inputs: Inputs) -> int:
    """Score the sites and, with a bound, write the recipe that keeps it; returns the exit code."""
    import matplotlib  # noqa: F401 - so that its absence is noticed before the work, not after it

    folder = _sensitivity_folder(options, config)
    _check_results(folder)  # before the lock, which makes folders, and once more when nobody else writes
    with sole_writer(folder):
        _check_results(folder)
        return _measure(folder, options, argv, config, inputs)


def _measure(folder: Path, options: Options, argv: list[str], config: FinetuneConfig, inputs: Inputs) -> int:
    from q8trt.evaluation.sensitivity import (
        measure,
        meet,
        placement_lines,
        print_sensitivity,
        recipe_text,
        write_result,
    )
    from q8trt.files import write_text
    from q8trt.hardware.provenance import provenance
    from q8trt.models.checkpoints import load_finetuned
    from q8trt.training.finetuning import quantize

    bound = options.bound or SensitivityConfig()
    model = load_finetuned(str(config.from_fp32), config.data.resolved_task, config.allow_pickle)
    quantized, _ = quantize(model, config, inputs)
    costs = measure(model, quantized, config, inputs, folder, bound.samples)
    more: dict[str, Any] = {"provenance": provenance(["calibrate.py", *argv])}
    name = _model_name(config)
    paths = write_result(folder, costs, name, more)
    print_sensitivity(costs, table_console())
    say(f"scores: {paths[0]}\nplot:   {paths[1]}")
    if bound.max_drop is None or bound.write_recipe is None:
        return 0
    placement = meet(model, quantized, config, inputs, costs, bound.max_drop)
    recipe = writable_file(bound.write_recipe, "--write_recipe", overwrite=bound.overwrite)
    write_text(recipe, recipe_text(placement.recipe))
    write_result(folder, costs, name, {**more, "max_drop": placement.to_dict(bound.max_drop)})
    say("\n".join(placement_lines(placement, costs.setup.metric)))
    model_words = ["--model_name_or_path", str(config.from_fp32), *options_of(config.data)]
    words = ["--recipe", bound.write_recipe, *model_words, *runs_dir_option(options.runs_dir)]
    say(f"recipe: {bound.write_recipe}\nnext: {command('calibrate', *words)}")
    return 0
