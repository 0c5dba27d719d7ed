"""Quantize a fine-tuned FP32 checkpoint by calibration alone (PTQ) -> runs/<name>/. With --sensitivity, quantize each
site alone to see what it costs; no run is made.

example: python calibrate.py                                  (the newest run's FP32 checkpoint)
         python calibrate.py --model_name_or_path DIR --task STS-B
         python calibrate.py --sensitivity --max_drop 1.0 --write_recipe mine.yaml
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.finetune import build_command, summary
from q8trt.cli.parser import Parser
from q8trt.cli.sensitivity import show_sensitivity
from q8trt.cli.terminal import say
from q8trt.console.options import group, option
from q8trt.errors import ConfigError
from q8trt.evaluation.config import SensitivityConfig
from q8trt.runs.config import CalibrationConfig, config_of_run
from q8trt.runs.run import runs_dir
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
        if self.sensitivity and self.calibration.from_pytorch_quantization:
            raise ConfigError("--sensitivity and --from_pytorch_quantization exclude each other; give one")


def parser() -> Parser:
    """Return the parser of the command."""
    return Parser(Options, "calibrate.py", __doc__)


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options: Options = parser().read(argv)
    from q8trt import api

    words = ["calibrate.py", *argv]
    if options.sensitivity:
        return show_sensitivity(
            api.sensitivity(
                options.model_name_or_path, config=options.bound, calibration=options.calibration, data=options.data,
                output_dir=options.output_dir, runs_dir=options.runs_dir, progress=True, on_message=say, command=words,
            ),
            options,
        )  # fmt: skip
    run = api.calibrate(
        options.model_name_or_path, config=options.calibration, data=options.data, output_dir=options.output_dir,
        runs_dir=options.runs_dir, progress=True, on_message=say, command=words,
    )  # fmt: skip
    config = config_of_run(run)
    say(summary(run, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(run, config)}")
    return 0
