"""`calibrate.py`, `q8trt calibrate`: a fine-tuned FP32 checkpoint -> a post-training-quantized one.

With --sensitivity nothing is made of the checkpoint: each site is quantized alone, to see what it costs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from q8trt.cli.finetune import build_command, recipe_lines, summary
from q8trt.cli.fresh import fresh_run
from q8trt.cli.options import Parser, add_data, add_quantizer, add_runs_dir, chosen_data, read_data, say
from q8trt.cli.sensitivity import add_sensitivity, check_sensitivity, run_sensitivity
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.runs.training_config import TrainingConfig


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="calibrate.py",
        description="Quantize a fine-tuned FP32 checkpoint by calibration alone (PTQ) -> runs/<name>/",
        epilog="example: python calibrate.py                                  (the newest run's FP32 checkpoint)\n"
        "         python calibrate.py --model_name_or_path DIR --task STS-B\n"
        "         python calibrate.py --sensitivity --max_drop 1.0 --write_recipe mine.yaml",
    )
    made.add_argument(
        "--model_name_or_path",
        metavar="DIR",
        help="fine-tuned FP32 checkpoint (default: the newest run's, with its data)",
    )
    made.add_argument("--output_dir", metavar="DIR", help="the new run's folder (default: runs/<task>-<model>-<time>)")
    add_runs_dir(made)
    made.add_argument(
        "--recipe", metavar="NAME|PATH", help="what to quantize (default: linear; with --sensitivity: full)"
    )
    add_quantizer(made)
    made.add_argument(
        "--calibration_samples", type=int, default=512, metavar="N", help="rows to calibrate on (default: 512)"
    )
    made.add_argument(
        "--per_device_eval_batch_size", type=int, default=32, metavar="N", help="evaluation rows a batch (default: 32)"
    )
    made.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the choice of rows (default: 42)")
    made.add_argument(
        "--allow_pickle", action="store_true", help="read pytorch_model.bin; only for files that you trust"
    )
    made.add_argument(
        "--from_pytorch_quantization",
        metavar="PATH",
        help="take weights and ranges from a pytorch-quantization or QDQBERT checkpoint instead of calibrating; "
        "--model_name_or_path is then the FP32 model that it was made from",
    )
    add_sensitivity(made)
    add_data(made, "the newest run's; others need --task")
    return made


def read_config(args: Any) -> Any:
    """The configuration that the options say: a fine-tuning without training.

    Raises:
        ConfigError: no run to calibrate, or options that do not go together.
    """
    from q8trt.quantization.recipe import load_recipe
    from q8trt.runs.config import FinetuneConfig, config_of_run
    from q8trt.runs.search import newest_run

    training = TrainingConfig(seed=args.seed, per_device_eval_batch_size=args.per_device_eval_batch_size)
    common = {
        "training": training,
        "qat": False,
        "recipe": load_recipe(args.recipe or ("full" if args.sensitivity else "linear")),
        "calibration_samples": args.calibration_samples,
        "quantizer": args.quantizer,
        "allow_pickle": args.allow_pickle,
        "from_pytorch_quantization": None,  # not what the newest run may have been made from
    }
    if args.from_pytorch_quantization:
        _check_import(args)
        common |= {"from_pytorch_quantization": args.from_pytorch_quantization, "recipe": _imported_recipe(args)}
    if args.model_name_or_path:
        return FinetuneConfig(
            data=read_data(args),
            model_name_or_path=args.model_name_or_path,
            from_fp32=args.model_name_or_path,
            **common,
        )
    newest = newest_run(args.runs_dir, ("fp32",))
    config = config_of_run(newest, "give --task and the options of other data to calibrate on those")
    data = chosen_data(args) or config.data
    return replace(config, data=data, from_fp32=str(newest.checkpoint("fp32")), precision=Precision.INT8, **common)


def _check_import(args: Any) -> None:
    """Options that go with --from_pytorch_quantization.

    Raises:
        ConfigError: the float model is not named, or an option would have nothing to do.
    """
    if not args.model_name_or_path:
        raise ConfigError(
            "--from_pytorch_quantization needs --model_name_or_path DIR, the FP32 checkpoint that it was made from "
            "(for its configuration, tokenizer and scores)"
        )
    for option in ("recipe", "sensitivity"):
        if getattr(args, option):
            raise ConfigError(f"--{option} and --from_pytorch_quantization exclude each other; give one")


def _imported_recipe(args: Any) -> Any:
    """The recipe that a pytorch-quantization checkpoint amounts to; says what was noticed on the way."""
    from q8trt.models.checkpoints import load_finetuned
    from q8trt.quantization.libraries import library
    from q8trt.quantization.migration import import_checkpoint

    model = load_finetuned(args.model_name_or_path, read_data(args).resolved_task, args.allow_pickle)
    _, recipe, notes = import_checkpoint(
        args.from_pytorch_quantization,
        model,
        name=Path(args.from_pytorch_quantization).stem,
        library=library(args.quantizer),
        allow_pickle=args.allow_pickle,
    )
    say("\n".join(notes))
    return recipe


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    check_sensitivity(args)
    config = read_config(args)
    from q8trt.models.checkpoints import short_name
    from q8trt.runs.run import check_new_run, run_name
    from q8trt.training.finetuning import Finetuning, load_inputs

    if args.output_dir and not args.sensitivity:
        check_new_run(args.output_dir)
    inputs = load_inputs(config)
    say("\n".join(recipe_lines(config)))
    if args.sensitivity:
        return run_sensitivity(args, argv, config, inputs)
    task = config.data.resolved_task.name
    name = run_name(f"ptq-{'sample' if config.data.sample else task}", short_name(config.model_name_or_path))
    path = args.output_dir or Path(args.runs_dir) / name
    with fresh_run(path, ["calibrate.py", *argv], config, inputs.data) as new:
        say(f"run: {new.path}")
        if config.data.has_files and inputs.data.text_columns:
            say(inputs.data.columns_line())
        Finetuning(config, new, inputs).execute()
    say(summary(new, config.data.resolved_task, config.data.sample))
    say(f"next: {build_command(new, config)}")
    return 0
