"""Fine-tune BERT in FP32, calibrate it, and fine-tune it with quantizers in (QAT) -> runs/<name>/

example: python finetune.py --task STS-B
         python finetune.py --demo      (no hub, no GPU)
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.cli.fresh import fresh_run, sole_writer
from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say
from q8trt.console.commands import command
from q8trt.console.options import from_values, group, option
from q8trt.console.progress import is_main_process
from q8trt.errors import ConfigError
from q8trt.runs.config import FinetuneConfig, config_of_run, last_stage
from q8trt.runs.run import RUNS_DIR, Run, check_new_run, make_a_run, open_run, runs_dir
from q8trt.runs.search import sound_runs

#: The options that --demo stands for: the model of a pip package and the built-in sample; a few minutes on two cores.
DEMO = {
    "task": "STS-B",
    "sample": True,
    "model_name_or_path": "minilm",
    "max_seq_length": 64,
    # A small model regressing a score learns faster so (measured on STS-B, see the README).
    "learning_rate": 1e-4,
    "dropout": 0.0,
    "eval_steps": 100,
    "save_steps": 100,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    demo: bool = option(False, "fine-tune MiniLM from a pip package on the built-in sample (not GLUE)")
    resume: str | None = option(
        None, "continue a run; without RUN the newest that is unfinished", metavar="RUN", bare="newest"
    )
    output_dir: str | None = option(None, "folder of the run", metavar="DIR", unset="runs/<task>-<model>-<time>")
    runs_dir: str = runs_dir()
    config: FinetuneConfig = group("model and stages")

    def __post_init__(self) -> None:
        config = self.config
        if config.teacher_model_name_or_path and not (
            config.precision.is_quantized and config.qat and config.distillation
        ):
            raise ConfigError(
                "--teacher_model_name_or_path is the teacher of QAT, which --precision fp32, --no_qat and --no_distillation "
                "leave out; drop one of them"
            )


def parser() -> Parser:
    """Return the parser of the command."""
    return Parser(Options, "finetune.py", __doc__)


def _unfinished(name: str, runs_dir: str) -> Run:
    """Return the run `name`; for "newest" the newest that is not finished."""
    if name != "newest":
        return open_run(name)
    for run in sound_runs(runs_dir):
        if run.stage(last_stage(config_of_run(run))) is None:
            return run
    raise ConfigError(f"no unfinished run under {runs_dir}/; start one: {make_a_run(runs_dir)}")


def _folder(options: Options) -> str:
    """Return the folder of the new run. Under torchrun all take the first process's: names hold the time, and clocks differ."""
    from q8trt.models.checkpoints import short_name
    from q8trt.runs.run import run_name

    config = options.config
    kind = "sample" if config.data.sample else config.data.resolved_task.name
    name = run_name(kind, short_name(config.from_fp32 or config.model_name_or_path))
    path = options.output_dir or str(Path(options.runs_dir) / name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return path
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=config.training.use_cpu or not torch.cuda.is_available())
    return str(broadcast_object_list([path])[0])


def summary(run: Any, task: Any, is_sample: bool) -> str:
    """Return the scores of the finished stages, a line each."""
    names = {"fp32": "FP32", "ptq": "PTQ INT8 (calibrated)", "int8": "QAT INT8"}
    label = f"{task.name} shape, built-in sample, not GLUE" if is_sample else task.name
    lines = [f"torch scores x100, {label}:"]
    for stage, entry in run.record.stages.items():
        for split, metrics in entry.scores.items():
            figures = "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
            lines.append(f"  {names[stage]:22} {split}: {figures}")
    return "\n".join(lines)


def build_command(run: Run, config: FinetuneConfig) -> str:
    """Return the command that builds the engine of a finished run."""
    return command("build-engine", "--int8" if config.precision.is_quantized else "--fp32", "--checkpoint", run.path)


def recipe_lines(config: Any) -> list[str]:
    """Return lines on the sites of the model that the recipe quantizes, and on those that it does not; reads no weight.

    Raises:
        CheckpointError: the model is not found, or not of the BERT family.
        ConfigError: the recipe names a layer that the model does not have.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from q8trt.models.checkpoints import load_config
    from q8trt.quantization.sites import encoder_sites
    from q8trt.quantization.summary import summary_lines

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            load_config(config.from_fp32 or config.model_name_or_path), trust_remote_code=False
        )
    config.recipe.check_layers(encoder_sites(model))
    return summary_lines(model, config.recipe)


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    command_line = parser()
    typed = command_line.typed_options(argv)
    unfinished: Run | None = None
    if "resume" in typed:
        command_line.check_alone(typed, ("resume", "runs_dir"), "--resume continues a run as it was configured")
        unfinished = _unfinished(typed["resume"], typed.get("runs_dir", RUNS_DIR))
        config = config_of_run(unfinished, "restore them to go on with this run, or start a new one")
    else:
        options = from_values(Options, {**(DEMO if "demo" in typed else {}), **typed})
        config = options.config
    from q8trt.training.finetuning import Finetuning, load_inputs

    config.training.check_machine()
    with contextlib.ExitStack() as stack:
        if unfinished:
            stack.enter_context(sole_writer(unfinished.path))
        elif options.output_dir and is_main_process():
            check_new_run(options.output_dir)
        inputs = load_inputs(config)
        lines = recipe_lines(config) if config.precision.is_quantized else []
        the_run = unfinished or stack.enter_context(
            fresh_run(_folder(options), ["finetune.py", *argv], config, inputs.data)
        )
        say(f"run: {the_run.path}")
        if lines:
            say("\n".join(lines))
        if config.data.sample:
            say("data: the project's built-in sample of sentence pairs, not GLUE")
        if config.data.has_files and inputs.data.text_columns:
            say(inputs.data.columns_line())
        Finetuning(config, the_run, inputs, resume=unfinished is not None).execute()
    say(summary(the_run, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(the_run, config)}")
    return 0
