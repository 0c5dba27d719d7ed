"""`finetune.py`, `q8trt finetune`: FP32 fine-tuning, calibration, QAT -> runs/<name>/."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.cli.fresh import fresh_run, sole_writer
from q8trt.cli.options import (
    Parser,
    add_data,
    add_dataclass,
    add_quantizer,
    add_runs_dir,
    read_data,
    read_dataclass,
    say,
)
from q8trt.console.commands import command
from q8trt.console.progress import is_main_process
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.runs.run import Run, check_new_run
from q8trt.runs.training_config import TrainingConfig

if TYPE_CHECKING:
    from q8trt.runs.config import FinetuneConfig

#: What --demo stands for: the model of a pip package and the built-in sample; no hub, a few minutes on two cores.
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


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="finetune.py",
        description="Fine-tune BERT in FP32, calibrate it, and fine-tune it with quantizers in (QAT) -> runs/<name>/",
        epilog="example: python finetune.py --task STS-B\n         python finetune.py --demo      (no hub, no GPU)",
    )
    made.add_argument("--demo", action="store_true", help="MiniLM from a pip package on the built-in sample (not GLUE)")
    made.add_argument(
        "--resume", nargs="?", const="newest", metavar="RUN", help="continue a run, by default the newest unfinished"
    )
    made.add_argument("--output_dir", metavar="DIR", help="the run's folder (default: runs/<task>-<model>-<time>)")
    add_runs_dir(made)
    stages = made.add_argument_group("model and stages")
    stages.add_argument(
        "--model_name_or_path", default="bert-base-uncased", metavar="MODEL",
        help="folder, hub name, or minilm (a pip package's model); default: bert-base-uncased",
    )  # fmt: skip
    stages.add_argument("--from_fp32", metavar="DIR", help="a fine-tuned FP32 checkpoint; skips FP32 fine-tuning")
    stages.add_argument("--precision", default="int8", choices=("fp32", "int8"), help="fp32 stops before quantization")
    stages.add_argument(
        "--no_distillation", action="store_true", help="QAT learns from labels alone, without the FP32 teacher"
    )
    stages.add_argument(
        "--teacher_model_name_or_path", metavar="DIR",
        help="teacher of QAT: a fine-tuned FP32 checkpoint, larger if you like, of the same task and vocabulary "
        "(default: the run's own FP32 model)",
    )  # fmt: skip
    stages.add_argument("--no_qat", action="store_true", help="stop after calibration")
    stages.add_argument("--recipe", default="linear", metavar="NAME|PATH", help="what to quantize (default: linear)")
    add_quantizer(stages)
    stages.add_argument(
        "--calibration_samples", type=int, default=512, metavar="N", help="rows to calibrate on (default: 512)"
    )
    stages.add_argument(
        "--allow_pickle", action="store_true", help="read pytorch_model.bin; only for files that you trust"
    )
    add_data(made)
    add_dataclass(made, TrainingConfig, "training")
    return made


def read_config(args: Any) -> Any:
    """The configuration that the options say.

    Raises:
        ConfigError: options out of range or excluding each other.
    """
    from q8trt.quantization.recipe import load_recipe
    from q8trt.runs.config import FinetuneConfig

    if args.teacher_model_name_or_path and (args.precision == Precision.FP32 or args.no_qat or args.no_distillation):
        raise ConfigError(
            "--teacher_model_name_or_path is the teacher of QAT, which --precision fp32, --no_qat and --no_distillation "
            "leave out; drop one of them"
        )
    return FinetuneConfig(
        data=read_data(args),
        training=read_dataclass(TrainingConfig, args),
        model_name_or_path=args.model_name_or_path,
        from_fp32=args.from_fp32,
        precision=args.precision,
        distillation=not args.no_distillation,
        teacher_model_name_or_path=args.teacher_model_name_or_path,
        qat=not args.no_qat,
        recipe=load_recipe(args.recipe),
        quantizer=args.quantizer,
        calibration_samples=args.calibration_samples,
        allow_pickle=args.allow_pickle,
    )


def _unfinished(runs_dir: str) -> Any:
    from q8trt.runs.config import config_of_run, last_stage
    from q8trt.runs.run import make_a_run
    from q8trt.runs.search import sound_runs

    for run in sound_runs(runs_dir):
        if run.stage(last_stage(config_of_run(run))) is None:
            return run
    raise ConfigError(f"no unfinished run under {runs_dir}/; start one: {make_a_run(runs_dir)}")


def _resumed(args: Any, given: set[str]) -> tuple[Any, Any]:
    from q8trt.runs.config import config_of_run
    from q8trt.runs.run import open_run

    extra = given - {"resume", "runs_dir"}
    if extra:
        raise ConfigError(f"--resume continues a run as it was configured; drop --{sorted(extra)[0]}")
    run = _unfinished(args.runs_dir) if args.resume == "newest" else open_run(args.resume)
    return config_of_run(run, "restore them to go on with this run, or start a new one"), run


def _folder(args: Any, config: Any) -> str:
    """The new run's folder. Under torchrun every process takes the first one's: names hold the time, and clocks differ."""
    from q8trt.models.checkpoints import short_name
    from q8trt.runs.run import run_name

    kind = "sample" if config.data.sample else config.data.resolved_task.name
    name = run_name(kind, short_name(config.from_fp32 or config.model_name_or_path))
    path = args.output_dir or str(Path(args.runs_dir) / name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return path
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=config.training.use_cpu or not torch.cuda.is_available())
    return str(broadcast_object_list([path])[0])


def _fresh(args: Any, argv: list[str], config: Any, inputs: Any) -> Any:
    return fresh_run(_folder(args, config), ["finetune.py", *argv], config, inputs.data)


def summary(run: Any, task: Any, is_sample: bool) -> str:
    """The scores of the finished stages, a line each."""
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
    """How many sites of the model the recipe quantizes, and which it does not, and why; no weight is read.

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
    made = parser()
    if "--demo" in argv:
        made.set_defaults(**DEMO)
    args = made.parse_args(argv)
    if args.resume:
        config, the_run = _resumed(args, made.given(argv))
    else:
        config, the_run = read_config(args), None
    from q8trt.training.finetuning import Finetuning, load_inputs

    config.training.check_machine()
    with contextlib.ExitStack() as stack:
        if the_run:
            stack.enter_context(sole_writer(the_run.path))
        elif args.output_dir and is_main_process():
            check_new_run(args.output_dir)
        inputs = load_inputs(config)
        lines = recipe_lines(config) if config.precision.is_quantized else []
        the_run = the_run or stack.enter_context(_fresh(args, argv, config, inputs))
        say(f"run: {the_run.path}")
        if lines:
            say("\n".join(lines))
        if config.data.sample:
            say("data: the project's built-in sample of sentence pairs, not GLUE")
        if config.data.has_files and inputs.data.text_columns:
            say(inputs.data.columns_line())
        Finetuning(config, the_run, inputs, resume=bool(args.resume)).execute()
    say(summary(the_run, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(the_run, config)}")
    return 0
