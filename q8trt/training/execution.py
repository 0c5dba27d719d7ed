"""Execution of runs from their options: new runs, unfinished runs, and runs that only calibrate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.console.commands import command as command_line
from q8trt.console.options import from_values
from q8trt.console.progress import is_main_process
from q8trt.errors import ConfigError
from q8trt.models import checkpoints, load_config, short_name
from q8trt.quantization.recipe import load_recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run, last_stage
from q8trt.runs.fresh import fresh_run, sole_writer
from q8trt.runs.run import RUN_FILE, Run, check_new_run, make_a_run, new_folder, open_run
from q8trt.runs.search import newest_run, sound_runs
from q8trt.tasks.data import DataConfig, counted
from q8trt.training.calibrating import import_ranges
from q8trt.training.finetuning import Finetuning, Inputs, load_inputs


def unfinished_run(run: Run | str | Path, runs_dir: str | Path, of_quantize: bool = False) -> Run:
    """Return the run `run`; for "newest", the newest unfinished run in `runs_dir`.

    Args:
        run: a run, its folder, its name in `runs_dir`, or "newest".
        runs_dir: folder of the runs.
        of_quantize: whether only runs of `q8trt quantize` count, which are finished when their report is written.

    Raises:
        ConfigError: there is no such run.
    """
    if run != "newest":
        if isinstance(run, Run):
            return run
        named = Path(runs_dir) / run
        return open_run(named if named.is_dir() and not Path(run).exists() else run)
    for each in sound_runs(runs_dir):
        is_candidate = not of_quantize or each.record.engines is not None
        if is_candidate and (
            each.stage(last_stage(config_of_run(each))) is None or (of_quantize and each.lacks_engines)
        ):
            return each
    if of_quantize:
        raise ConfigError(
            f"no unfinished run of q8trt quantize under {runs_dir}/; start one: {command_line('quantize', 'minilm')}"
        )
    raise ConfigError(f"no unfinished run under {runs_dir}/; start one: {make_a_run(runs_dir)}")


def calibration_of(
    model: str | Path | None,
    calibration: CalibrationConfig,
    rows: DataConfig | None,
    runs_dir: str | Path,
    say: Callable[[str], object],
    recipe_of_run: bool = False,
) -> FinetuneConfig:
    """Return a configuration that calibrates an FP32 checkpoint and does not train.

    Args:
        model: the checkpoint, or its run; None for the newest run in `runs_dir`.
        calibration: options of the calibration.
        rows: the rows to calibrate and score on; None for those of the checkpoint's run.
        runs_dir: folder of the runs.
        say: function that prints the notes on an imported checkpoint.
        recipe_of_run: whether the run's recipe replaces the target's if `calibration` has none.

    Raises:
        ConfigError: there is no run to calibrate, or `model` is missing beside a checkpoint of pytorch-quantization.
    """
    if calibration.from_pytorch_quantization and not model:
        raise ConfigError(
            "--from_pytorch_quantization needs --model_name_or_path DIR, the FP32 checkpoint that it was made from "
            "(for its configuration, tokenizer and scores)"
        )
    recipe = calibration.recipe or load_recipe(calibration.target.recipe)
    run = None if model is None or rows or calibration.from_pytorch_quantization else _run_of_fp32(Path(model))
    if model and run is None:
        model = os.fspath(model)
        rows = rows or from_values(DataConfig, {})
        if source := calibration.from_pytorch_quantization:
            loaded = checkpoints.load_finetuned(model, rows.resolved_task, calibration.allow_pickle)
            _, recipe, notes = import_ranges(calibration, loaded, Path(source).stem)
            say("\n".join(notes))
        return FinetuneConfig(rows, model_name_or_path=model, from_fp32=model, **calibration.apply(recipe))
    run = run or newest_run(runs_dir, ("fp32",))
    of_run = config_of_run(run, "give --task and the options of other data to calibrate on those")
    changes: dict[str, Any] = {"data": rows or of_run.data, "from_fp32": str(run.checkpoint("fp32"))}
    if recipe_of_run and calibration.recipe is None:
        recipe = of_run.recipe
    return replace(of_run, **changes, **calibration.apply(recipe))


def _run_of_fp32(folder: Path) -> Run | None:
    """Return the run whose folder or FP32 checkpoint is `folder`; None if there is no such run or it cannot be read."""
    run = Run(folder if (folder / RUN_FILE).is_file() else folder.parent)
    try:
        checkpoint = run.checkpoint("fp32")
    except ConfigError:
        return None
    return run if checkpoint and folder.resolve() in (run.path.resolve(), checkpoint.resolve()) else None


def recipe_lines(config: FinetuneConfig) -> list[str]:
    """Return lines about the sites that the recipe quantizes and those that it does not. No weights are read.

    Raises:
        CheckpointError: the model is not found, or is not of the BERT family.
        ConfigError: the recipe names a layer that the model does not have.
    """
    import torch

    from q8trt.quantization.summary import summary_lines

    name = config.from_fp32 or config.model_name_or_path
    with torch.device("meta"):
        model = checkpoints.new_model(load_config(name), name, config.data.resolved_task.head)
    config.recipe.check_layers(encoder_sites(model))
    return summary_lines(model, config.recipe)


def execute(
    config: FinetuneConfig,
    say: Callable[[str], object],
    command: Sequence[str],
    output_dir: str | Path | None = None,
    runs_dir: str | Path = "",
    prefix: str = "",
    unfinished: Run | None = None,
    engines: dict[str, Any] | None = None,
) -> Run:
    """Run the unfinished stages of a run. A new run folder is made after its rows are read and its recipe fits the model.

    Args:
        config: configuration of the run.
        say: function that prints one line of progress.
        command: words of the command line, for the record of a new run.
        output_dir: folder of a new run; None for a new folder in `runs_dir`.
        runs_dir: folder of the runs.
        prefix: prefix of the name of a new run.
        unfinished: the run to continue; None for a new run.
        engines: the engines that the command builds from a new run, JSON-ready, for its record.

    Raises:
        Q8TRTError: bad input, or Ctrl-C or SIGTERM (InterruptedRunError).
    """
    config.training.check_machine()
    with contextlib.ExitStack() as stack:
        if unfinished:
            stack.enter_context(sole_writer(unfinished.path))
        elif is_main_process():
            _check_place(config, output_dir, runs_dir)
        source = _source(config, unfinished)
        inputs = load_inputs(source)
        lines = recipe_lines(source) if config.precision.is_quantized else []
        run = unfinished
        if run is None:
            folder = output_dir or _new_folder(config, runs_dir, prefix)
            run = stack.enter_context(fresh_run(folder, command, config, inputs.data, engines))
        for line in (f"run: {run.path}", *lines):
            say(line)
        rows = ", ".join(
            f"{counted(len(part), part.question_count, ',')} of {name}"
            for name, part in (("train", inputs.train), *inputs.dev.items())
        )
        say(f"device: {'CPU' if config.training.on_cpu() else 'GPU'}; data: {config.data.resolved_task.name}, {rows}")
        if config.precision.is_quantized and config.data.is_unlabeled("dev"):
            train, dev = len(inputs.train), sum(map(len, inputs.dev.values()))
            chosen = min(config.calibration_samples, train)
            say(f"{train + dev:,} texts: {chosen:,} to calibrate on, {dev:,} to compare answers on")
        if cut := _cut_line(config, inputs):
            say(cut)
        if config.data.sample:
            say("data: the project's built-in sample of sentence pairs, not GLUE")
        if (config.data.has_files or config.data.texts) and inputs.data.text_columns:
            say(inputs.data.columns_line())
        Finetuning(config, run, inputs, say, resume=unfinished is not None).execute()
    return run


def _source(config: FinetuneConfig, unfinished: Run | None) -> FinetuneConfig:
    """Return `config` with the run's FP32 checkpoint if it is finished, because the original model may have changed."""
    checkpoint = unfinished.checkpoint("fp32") if unfinished else None
    return config if checkpoint is None else replace(config, from_fp32=str(checkpoint))


def _cut_line(config: FinetuneConfig, inputs: Inputs) -> str | None:
    """Return a line on the texts that are cut although the user's model reads longer ones; None if there are none."""
    head, length = config.data.head, config.data.max_seq_length
    if head is None or head.kind.per_token:  # a tagger has its own warning, and questions have windows
        return None
    longest = min(inputs.tokenizer.model_max_length, head.max_length or inputs.tokenizer.model_max_length)
    parts = inputs.train, *inputs.dev.values()
    full = sum(int((part.lengths >= length).sum()) for part in parts)
    if longest <= length or not full:
        return None
    return (
        f"texts: {full:,} of {sum(map(len, parts)):,} have {length} tokens or more and are cut there; the model reads up to "
        f"{longest}: --max_seq_length {longest}"
    )


def _check_place(config: FinetuneConfig, output_dir: str | Path | None, runs_dir: str | Path) -> None:
    """Check that a new run replaces no file and is outside the folders of the models that it reads."""
    if output_dir:
        check_new_run(output_dir)
        files.check_apart(output_dir, config.models)
    else:
        files.check_apart(runs_dir, config.models, "--runs_dir", holds=True)


def _new_folder(config: FinetuneConfig, runs_dir: str | Path, prefix: str) -> str:
    """Return the folder of a new run. Under torchrun, the first process chooses it, because its name contains the time."""
    kind = "sample" if config.data.sample else config.data.resolved_task.name
    path = new_folder(runs_dir, prefix + kind, short_name(config.from_fp32 or config.model_name_or_path))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return path
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=config.training.use_cpu or not torch.cuda.is_available())
    return str(broadcast_object_list([path])[0])
