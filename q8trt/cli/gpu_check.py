"""Check q8trt on an NVIDIA GPU. The command builds FP32, FP16 and INT8 engines of MiniLM, BERT-base and BERT-large. It compares
their logits with torch, scores them, times them with and without CUDA graphs beside torch and ONNX Runtime, shares one engine
among threads, and loads one repeatedly. For a GPU that is available for minutes only, --prepare makes all files on another
machine, and --prepared runs them within --budget. The exit code is 0 if all checks passed, 1 if a check failed or was not
reached, and 2 without a GPU or a backend, or for bad input.

example: q8trt gpu-check --quick
         q8trt gpu-check --run runs/NAME --data_dir glue --backend tensorrt_rtx
         q8trt gpu-check --prepare kit --run runs/NAME --data_dir glue
         q8trt gpu-check --prepared kit --budget 420
         q8trt gpu-check --prepared kit --budget 240 --output_dir results --resume
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console
from q8trt.console.commands import command
from q8trt.console.options import check_options, more_than, option, same_option
from q8trt.engine.config import BuildConfig
from q8trt.engine.driver import driver_cuda
from q8trt.errors import BackendError, ConfigError
from q8trt.files import check_folder

RESULTS = Path("benchmarks") / "results"
#: The `Machine` of --prepared, "module:class"; None for the GPU. Tests set another one.
MACHINE: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    run: str | None = option(
        None, "a finished run of MiniLM", metavar="DIR", unset="makes one, finetune.py --demo --recipe full"
    )
    data_dir: str | None = option(None, "GLUE folder", metavar="DIR", unset="the built-in sample, not GLUE")
    backend: str | None = same_option(BuildConfig, "backend")
    sm: tuple[str, ...] = same_option(BuildConfig, "sm")
    quick: bool = option(
        False, "check only MiniLM at two shapes, in a few minutes; with --prepare: leave out only BERT-large"
    )
    prepare: str | None = option(
        None, "make all files of a check in this folder, on any machine, for --prepared", metavar="DIR", unset="no"
    )
    prepared: str | None = option(
        None,
        "run the check that --prepare made in this folder, on the GPU machine; needs no torch",
        metavar="DIR",
        unset="no",
    )
    budget: float = option(
        420.0,
        "with --prepared: seconds for all steps; the most valuable steps come first",
        metavar="SECONDS",
        values=more_than(0),
    )
    resume: bool = option(
        False,
        "with --prepared: keep the finished steps of an earlier call with the same --output_dir, and run the others",
    )
    output_dir: str | None = option(
        None,
        "folder of the results",
        metavar="DIR",
        unset=f"{RESULTS.as_posix()}/<gpu>-<date>, or prepared-<date> with --prepared",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ConfigError(f"--data_dir {self.data_dir} is not a folder; expected the GLUE folder")
        if self.output_dir is not None:
            check_folder(self.output_dir)
        if self.prepare is not None and self.prepared is not None:
            raise ConfigError("--prepare and --prepared are two halves of a check; pass one of them")
        if self.resume and (self.prepared is None or self.output_dir is None):
            raise ConfigError("--resume needs --prepared and the --output_dir of the call that it continues")


PARSER = Parser(Options, "q8trt gpu-check", __doc__)


def run(argv: list[str], bench: Any = None, config: Any = None) -> int:
    """Run the command and return the exit code.

    Args:
        argv: its arguments.
        bench: the machine that builds and runs engines; None for the GPU (see `q8trt.gpu_check.bench.Bench`).
        config: the parts of the check; None for the full check, or the short one with --quick.
    """
    options: Options = PARSER.read(argv)
    if options.prepare is not None:
        return _prepare(options, argv)
    if options.prepared is not None:
        return _run_prepared(options, argv)
    from q8trt.gpu_check.bench import GpuBench
    from q8trt.gpu_check.config import QUICK, CheckConfig
    from q8trt.gpu_check.page import STEM, print_checks
    from q8trt.gpu_check.run import check_gpu, slug
    from q8trt.hardware.provenance import provenance

    config = config or (QUICK if options.quick else CheckConfig())
    _check_run(options)
    try:
        bench = bench or GpuBench(options.backend, options.sm)
    except BackendError as error:
        raise BackendError(f"{error}; nothing was run; the check is: {config}") from error
    origin = provenance(["q8trt", "gpu-check", *argv])
    folder = Path(options.output_dir or RESULTS / f"{slug(bench.device)}-{origin['date_utc'][:10]}")
    journal = check_gpu(bench, config, lambda: _run(options.run), options.data_dir, folder, origin, say)
    say()
    print_checks(journal, table_console())
    say(f"report: {folder / STEM}.html and {STEM}.json")
    return 1 if journal.failed else 0


def _prepare(options: Options, argv: list[str]) -> int:
    from q8trt.gpu_check.prepared.prepare import KitConfig, prepare
    from q8trt.hardware.provenance import provenance

    _check_run(options)
    folder = Path(str(options.prepare))
    config = KitConfig(large=not options.quick)
    kit = prepare(_run(options.run), options.data_dir, folder, provenance(["q8trt", "gpu-check", *argv]), say, config)
    seconds = sum(step.estimate_s for step in kit.steps)
    say(f"{folder}: {len(kit.engines)} engines, {len(kit.steps)} steps, {seconds:.0f} s on the GPU as estimated")
    say(f"next, on the GPU machine: {command('gpu-check', '--prepared', folder)}")
    return 0


def _run_prepared(options: Options, argv: list[str]) -> int:
    from q8trt.gpu_check.page import STEM
    from q8trt.gpu_check.prepared.kit import read_kit
    from q8trt.gpu_check.prepared.machine import GPU
    from q8trt.gpu_check.prepared.page import summary
    from q8trt.gpu_check.prepared.schedule import run_kit
    from q8trt.hardware.provenance import provenance

    folder = Path(str(options.prepared))
    kit = read_kit(folder)
    if MACHINE is None and driver_cuda() is None:
        raise BackendError("no NVIDIA driver here; nothing was run")
    origin = provenance(["q8trt", "gpu-check", *argv])
    results = Path(options.output_dir or RESULTS / f"prepared-{origin['date_utc'][:10]}")
    progress = run_kit(kit, folder, results, options.budget, origin, say, MACHINE or GPU, resume=options.resume)
    say(summary(progress))
    say(f"report: {results / STEM}.json")
    return 1 if progress.failed or progress.counts["not reached"] else 0


def _check_run(options: Options) -> None:
    """Raise ConfigError if the run of --run cannot be checked, before the work of minutes begins."""
    if options.run is not None:
        from q8trt.gpu_check.models import dev_data, finished_checkpoints
        from q8trt.runs.run import open_run

        the_run = open_run(options.run)
        finished_checkpoints(the_run)
        dev_data(the_run, options.data_dir)


def _run(path: str | None) -> Any:
    """Return the run in `path`; for None, make the run of the demo with recipe "full" and return it."""
    from q8trt import api
    from q8trt.cli.finetune import DEMO
    from q8trt.runs.run import RUNS_DIR, new_folder, open_run

    if path is None:
        path = new_folder(RUNS_DIR, "gpu-check", "minilm")
        words = ["finetune.py", "--demo", "--recipe", "full", "--output_dir", path]
        api.finetune(**DEMO, recipe="full", output_dir=path, progress=True, on_message=say, command=words)
    return open_run(path)
