"""Quantize a fine-tuned FP32 checkpoint by calibration alone (PTQ), and write the run runs/<name>/. With --sensitivity, measure
the cost of quantizing each site alone instead; this makes no run.

example: python calibrate.py                                  (the newest run's FP32 checkpoint)
         python calibrate.py --model_name_or_path DIR --task STS-B
         python calibrate.py --sensitivity --max_drop 1.0 --write_recipe mine.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from q8trt.cli.finetune import build_command, summary
from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console
from q8trt.console.commands import command
from q8trt.console.options import group, option, options_of
from q8trt.evaluation.config import SensitivityConfig
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run
from q8trt.runs.quantize_config import ROWS, QuantizeConfig
from q8trt.runs.run import runs_dir, runs_dir_option
from q8trt.tasks.data import DataConfig

if TYPE_CHECKING:
    from q8trt.evaluation.sensitivity.analysis import Analysis

_SENSITIVITY = "sensitivity, instead of a new run"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model_name_or_path: str | None = option(
        None,
        "fine-tuned FP32 checkpoint, or the run that holds it",
        metavar="DIR",
        unset="the newest run's, with its data",
    )
    output_dir: str | None = option(None, "folder of the new run", metavar="DIR", unset="runs/<task>-<model>-<time>")
    runs_dir: str = runs_dir()
    sensitivity: bool = option(
        False,
        "measure the cost of quantizing each site alone and each layer alone; writes sensitivity.json and .png to the run's "
        "folder, or to --output_dir; the default recipe is then the run's",
        group=_SENSITIVITY,
    )
    calibration: CalibrationConfig = group("calibration")
    bound: SensitivityConfig | None = group(_SENSITIVITY, needs="sensitivity")
    data: DataConfig | None = group("data (default: the run's; others need --task)", unset="the data of the run")


PARSER = Parser(Options, "calibrate.py", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    if options.data is not None:
        options.data.check_places()  # before PyTorch is loaded
    say(f"quantizing {options.model_name_or_path or 'the newest run'}: loading PyTorch, the model and the rows")
    from q8trt import api

    words = ["calibrate.py", *argv]
    if options.sensitivity:
        analysis = api.sensitivity(
            options.model_name_or_path, config=options.bound, calibration=options.calibration, data=options.data,
            output_dir=options.output_dir, runs_dir=options.runs_dir, progress=True, on_message=say, command=words,
        )  # fmt: skip
        _show_sensitivity(analysis, options)
        return 0
    run = api.calibrate(
        options.model_name_or_path, config=options.calibration, data=options.data, output_dir=options.output_dir,
        runs_dir=options.runs_dir, progress=True, on_message=say, command=words,
    )  # fmt: skip
    config = config_of_run(run)
    say(summary(run, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(run, config)}")
    return 0


def _show_sensitivity(analysis: Analysis, options: Options) -> None:
    """Print the costs, the files and the recipe."""
    from q8trt.evaluation.sensitivity import placement_lines, print_sensitivity

    print_sensitivity(analysis.costs, table_console(), analysis.model, analysis.device)
    say(f"scores: {analysis.files[0]}\nplot:   {analysis.files[1]}")
    if analysis.placement is None or options.bound is None or options.bound.write_recipe is None:
        return
    say("\n".join(placement_lines(analysis.placement, analysis.costs.setup.metric)))
    say(f"recipe: {options.bound.write_recipe}")
    say(f"next: {_calibration_command(analysis.config, options.bound.write_recipe, options.runs_dir)}")


def _calibration_command(config: FinetuneConfig, recipe: str, runs_dir: str) -> str:
    """Return the command that quantizes the model of `config` with a recipe file."""
    words = ["--recipe", recipe, *options_of(CalibrationConfig(target=config.target)), *runs_dir_option(runs_dir)]
    if config.data.head is None:
        return command("calibrate", *words, "--model_name_or_path", str(config.from_fp32), *options_of(config.data))
    rows = {name: getattr(config.data, name) for name in (*ROWS, "max_seq_length")}
    return command("quantize", str(config.from_fp32), *words, *options_of(QuantizeConfig(**rows)))
