"""Quantize a fine-tuned FP32 checkpoint by calibration alone (PTQ) -> runs/<name>/. With --sensitivity, quantize each
site alone to see what it costs; no run is made.

example: python calibrate.py                                  (the newest run's FP32 checkpoint)
         python calibrate.py --model_name_or_path DIR --task STS-B
         python calibrate.py --sensitivity --max_drop 1.0 --write_recipe mine.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.cli.finetune import build_command, recipe_lines, summary
from q8trt.cli.fresh import fresh_run
from q8trt.cli.parser import Parser
from q8trt.cli.sensitivity import run_sensitivity
from q8trt.cli.terminal import say
from q8trt.console.options import from_values, group, option
from q8trt.errors import ConfigError
from q8trt.evaluation.config import SensitivityConfig
from q8trt.files import writable_file
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run
from q8trt.runs.run import check_new_run, run_name, runs_dir
from q8trt.tasks.data import DataConfig

_SENSITIVITY = "sensitivity, in place of a new run"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model_name_or_path: str | None = option(
        None, "fine-tuned FP32 checkpoint", metavar="DIR", unset="the newest run's, with its data"
    )
    output_dir: str | None = option(None, "folder of the new run", metavar="DIR", unset="runs/<task>-<model>-<time>")
    runs_dir: str = runs_dir()
    sensitivity: bool = option(
        False,
        "score what quantizing each site, and each layer, alone costs -> sensitivity.json and .png in the run's folder, or "
        "--output_dir",
        group=_SENSITIVITY,
    )
    calibration: CalibrationConfig = group("calibration")
    bound: SensitivityConfig | None = group(_SENSITIVITY, needs="sensitivity")
    data: DataConfig | None = group("data (default: the newest run's; others need --task)", unset="the data of the run")

    def __post_init__(self) -> None:
        if not self.calibration.from_pytorch_quantization:
            return
        if not self.model_name_or_path:
            raise ConfigError(
                "--from_pytorch_quantization needs --model_name_or_path DIR, the FP32 checkpoint that it was made from "
                "(for its configuration, tokenizer and scores)"
            )
        for name, value in (("recipe", self.calibration.recipe), ("sensitivity", self.sensitivity)):
            if value:
                raise ConfigError(f"--{name} and --from_pytorch_quantization exclude each other; give one")


def parser() -> Parser:
    """Return the parser of the command."""
    return Parser(Options, "calibrate.py", __doc__)


def read_config(options: Options) -> FinetuneConfig:
    """Return the configuration of the options: a fine-tuning without training.

    Raises:
        ConfigError: no run to calibrate.
    """
    from q8trt.runs.search import newest_run

    model, calibration = options.model_name_or_path, options.calibration
    recipe = calibration.recipe or load_recipe("full" if options.sensitivity else "linear")
    if model:
        data = options.data or from_values(DataConfig, {})
        if calibration.from_pytorch_quantization:
            recipe = _imported_recipe(model, data, calibration)
        return FinetuneConfig(data, model_name_or_path=model, from_fp32=model, **calibration.apply(recipe))
    newest = newest_run(options.runs_dir, ("fp32",))
    config = config_of_run(newest, "give --task and the options of other data to calibrate on those")
    changes: dict[str, Any] = {"data": options.data or config.data, "from_fp32": str(newest.checkpoint("fp32"))}
    return replace(config, **changes, **calibration.apply(recipe))


def _imported_recipe(model_name: str, data: DataConfig, calibration: CalibrationConfig) -> Recipe:
    """Return the recipe of a pytorch-quantization checkpoint; prints the notes on it."""
    from q8trt.models.checkpoints import load_finetuned
    from q8trt.quantization.libraries import library
    from q8trt.quantization.migration import import_checkpoint

    path = str(calibration.from_pytorch_quantization)
    _, recipe, notes = import_checkpoint(
        path,
        load_finetuned(model_name, data.resolved_task, calibration.allow_pickle),
        name=Path(path).stem,
        library=library(calibration.quantizer),
        allow_pickle=calibration.allow_pickle,
    )
    say("\n".join(notes))
    return recipe


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options: Options = parser().read(argv)
    if options.bound and options.bound.write_recipe:
        writable_file(options.bound.write_recipe, "--write_recipe", overwrite=options.bound.overwrite)
    config = read_config(options)
    from q8trt.models.checkpoints import short_name
    from q8trt.training.finetuning import Finetuning, load_inputs

    if options.output_dir and not options.sensitivity:
        check_new_run(options.output_dir)
    inputs = load_inputs(config)
    say("\n".join(recipe_lines(config)))
    if options.sensitivity:
        return run_sensitivity(options, argv, config, inputs)
    task = config.data.resolved_task.name
    name = run_name(f"ptq-{'sample' if config.data.sample else task}", short_name(config.model_name_or_path))
    path = options.output_dir or Path(options.runs_dir) / name
    with fresh_run(path, ["calibrate.py", *argv], config, inputs.data) as new:
        say(f"run: {new.path}")
        if config.data.has_files and inputs.data.text_columns:
            say(inputs.data.columns_line())
        Finetuning(config, new, inputs).execute()
    say(summary(new, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(new, config)}")
    return 0
