"""`calibrate.py --sensitivity`: what quantizing each site alone costs, and the recipe that keeps to a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.cli.fresh import sole_writer
from q8trt.cli.options import Parser, say
from q8trt.cli.terminal import table_console
from q8trt.console.commands import command, options_of
from q8trt.errors import ConfigError
from q8trt.files import check_report, writable_file
from q8trt.runs.run import runs_dir_option

SAMPLES = 256


def add_sensitivity(made: Parser) -> None:
    """The options."""
    group = made.add_argument_group("sensitivity, in place of a new run")
    group.add_argument(
        "--sensitivity", action="store_true",
        help="score what quantizing each site, and each layer, alone costs -> sensitivity.json and .png in the run's "
        "folder, or --output_dir",
    )  # fmt: skip
    group.add_argument(
        "--sensitivity_samples", type=int, metavar="N",
        help=f"development rows to score on (default: {SAMPLES})",
    )  # fmt: skip
    group.add_argument(
        "--max_drop", type=float, metavar="X",
        help="leave the most harmful sites in float until the task's main metric x100 on the whole development set "
        "loses no more than X; needs --write_recipe",
    )  # fmt: skip
    group.add_argument("--write_recipe", metavar="PATH", help="YAML file for the recipe that meets --max_drop")
    group.add_argument("--overwrite", action="store_true", help="replace the file of --write_recipe where it exists")


def check_sensitivity(args: Any) -> None:
    """The options of --sensitivity go together, and what they name can be written.

    Raises:
        ConfigError: they do not, or it cannot.
    """
    for name in ("sensitivity_samples", "max_drop", "write_recipe"):
        if not args.sensitivity and getattr(args, name) is not None:
            raise ConfigError(f"--{name} needs --sensitivity")
    if args.sensitivity_samples is not None and args.sensitivity_samples < 2:
        raise ConfigError(f"--sensitivity_samples {args.sensitivity_samples}, expected 2 or more")
    if args.max_drop is not None and not 0 <= args.max_drop < float("inf"):
        raise ConfigError(f"--max_drop {args.max_drop:g}, expected 0 or more (the main metric x100), such as 1.0")
    if (args.max_drop is None) != (args.write_recipe is None):
        missing = "--write_recipe PATH" if args.write_recipe is None else "--max_drop X"
        raise ConfigError(f"--max_drop and --write_recipe go together; add {missing}")
    if args.write_recipe is not None:
        writable_file(args.write_recipe, "--write_recipe", overwrite=args.overwrite)
    elif args.overwrite:
        raise ConfigError("--overwrite replaces the file of --write_recipe, which is not given; drop it")


def _check_results(folder: Path) -> None:
    """Raise ConfigError where the results would replace what this command did not write."""
    from q8trt.evaluation.sensitivity import PARTIAL_FILE, RESULT_FILE
    from q8trt.evaluation.sensitivity.report import PLOT_FILE

    option, keys = "--output_dir", ("fingerprint", "scores")
    check_report(folder / RESULT_FILE, [folder / PLOT_FILE], keys=keys, option=option)
    check_report(folder / PARTIAL_FILE, keys=keys, option=option)


def _run_of(config: Any) -> Any:
    """The run that the FP32 checkpoint belongs to, or None."""
    from q8trt.runs.run import RUN_FILE, open_run

    folder = Path(config.from_fp32).parent
    return open_run(folder) if (folder / RUN_FILE).is_file() else None


def _model_name(config: Any) -> str:
    """A word for the model: in a run, what the run began with, for there the folder's name is "fp32"."""
    from q8trt.models.checkpoints import short_name
    from q8trt.runs.config import config_of_run

    of_run = _run_of(config)
    return short_name(config_of_run(of_run).model_name_or_path if of_run else config.from_fp32)


def _sensitivity_folder(args: Any, config: Any) -> Path:
    """Where the results go: the checkpoint's run; for a checkpoint that is in no run, a folder of its own.

    The folder's name holds no time, so that the same command finds the scores of one that was stopped.
    """
    if args.output_dir:
        return Path(args.output_dir)
    of_run = _run_of(config)
    if of_run:
        return Path(of_run.path)
    task = "sample" if config.data.sample else config.data.resolved_task.name
    return Path(args.runs_dir) / f"sensitivity-{task}-{_model_name(config)}".casefold()


def _next(args: Any, config: Any) -> str:
    """Return the command that calibrates the same model with the recipe."""
    model = ["--model_name_or_path", config.from_fp32, *options_of(config.data)]
    return command("calibrate", "--recipe", args.write_recipe, *model, *runs_dir_option(args.runs_dir))


def run_sensitivity(args: Any, argv: list[str], config: Any, inputs: Any) -> int:
    """Score the sites and, where asked, write the recipe that meets the bound; returns the exit code."""
    import matplotlib  # noqa: F401 - so that its absence is noticed before the work, not after it

    folder = _sensitivity_folder(args, config)
    _check_results(folder)  # before the lock, which makes folders, and once more when nobody else writes
    with sole_writer(folder):
        _check_results(folder)
        return _measure(folder, args, argv, config, inputs)


def _measure(folder: Path, args: Any, argv: list[str], config: Any, inputs: Any) -> int:
    from q8trt.evaluation.sensitivity import measure, meet, print_sensitivity, recipe_text, write_result
    from q8trt.files import write_text
    from q8trt.hardware.provenance import provenance
    from q8trt.models.checkpoints import load_finetuned
    from q8trt.training.finetuning import quantize

    model = load_finetuned(config.from_fp32, config.data.resolved_task, config.allow_pickle)
    quantized, _ = quantize(model, config, inputs)
    found = measure(model, quantized, config, inputs, folder, args.sensitivity_samples or SAMPLES)
    more: dict[str, Any] = {"provenance": provenance(["calibrate.py", *argv])}
    name = _model_name(config)
    paths = write_result(folder, found, name, more)
    print_sensitivity(found, table_console())
    say(f"scores: {paths[0]}\nplot:   {paths[1]}")
    if args.write_recipe is None:
        return 0
    placement = meet(model, quantized, config, inputs, found, args.max_drop)
    recipe = writable_file(args.write_recipe, "--write_recipe", overwrite=args.overwrite)
    write_text(recipe, recipe_text(placement.recipe))
    write_result(folder, found, name, {**more, "max_drop": placement.to_dict(args.max_drop)})
    say("\n".join(placement.lines(found.setup["metric"])))
    say(f"recipe: {args.write_recipe}\nnext: {_next(args, config)}")
    return 0
