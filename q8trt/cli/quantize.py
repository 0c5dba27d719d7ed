"""Quantize your own fine-tuned model: a folder of Hugging Face or sentence-transformers with a classifier of one or several
labels, a regression, an embedding model, a reranker, a tagger, or question answering. The command needs no labels. It makes a
run with an INT8 engine, its baseline engines, and a report.

example: q8trt quantize my-model --texts texts.txt
         q8trt quantize my-model --texts texts.parquet --validation_file dev.csv --distill 1
         q8trt quantize minilm
         q8trt quantize --resume runs/NAME
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from q8trt.cli.finetune import build_command, resume_arguments, summary
from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console
from q8trt.console.commands import command
from q8trt.console.options import from_values, group, option
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeOptions
from q8trt.runs.quantize_config import QuantizeConfig, check_paths
from q8trt.runs.run import runs_dir
from q8trt.tasks.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model: str | None = option(
        None,
        "folder, hub name, or minilm (from a pip package)",
        metavar="MODEL",
        positional=True,
        unset="the run's, with --resume",
    )
    resume: str | None = option(
        None,
        "finish a run of this command, its engines and its report; without RUN, the newest unfinished one",
        metavar="RUN",
        bare="newest",
    )
    output_dir: str | None = option(None, "folder of the new run", metavar="DIR", unset="runs/<head>-<model>-<time>")
    runs_dir: str = runs_dir()
    build_engines: bool = option(True, "build the engines and compare them")
    baseline: bool = option(True, "also build the engines to compare with: FP32 and, for the target gpu, FP16")
    config: QuantizeConfig = group("model and texts")
    shapes: ShapeOptions = group("shapes (batch x sequence)")
    build: BuildConfig = group("build")


PARSER = Parser(Options, "q8trt quantize", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    typed, words = PARSER.typed_options(argv), ["q8trt", "quantize", *argv]
    if "resume" in typed:
        arguments = resume_arguments(PARSER, typed, words)
        from q8trt import api

        quantized = api.quantize(**arguments)
    else:
        options: Options = from_values(Options, typed)
        if options.model is None:
            PARSER.error("MODEL is missing; give a folder, a hub name or minilm, or --resume RUN")
        check_paths(options.model, options.config)
        say(f"quantizing {options.model}: loading PyTorch, the model and the texts")
        from q8trt import api

        quantized = api.quantize(
            options.model, config=options.config, build=options.build, shapes=options.shapes,
            build_engines=options.build_engines, baseline=options.baseline, output_dir=options.output_dir,
            runs_dir=options.runs_dir, progress=True, on_message=say, command=words,
        )  # fmt: skip
    from q8trt.runs.config import config_of_run

    config = config_of_run(quantized.run)
    say(summary(quantized.run, config.data.resolved_task, config.data.sample))
    if quantized.report is None:
        say(f"next: {build_command(quantized.run, config)}")
        return 0
    from q8trt.reporting.report import print_report

    print_report(quantized.report, table_console())
    engine = quantized.engines[-1]
    say(f"run: {quantized.run.path}")
    say(f"engine: {engine}")
    say(f"report: {quantized.run.path / 'benchmark.html'}, benchmark.md and benchmark.json")
    say(f"next: {predict_command(engine, config.data)}")
    return 0


def predict_command(engine: Path, data: DataConfig) -> str:
    """Return the command that scores a file by an engine: the texts of its calibration if they suit, else a name to replace."""
    task, texts = data.resolved_task, Path(data.texts or "")
    if texts.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".txt"):
        texts = Path("pairs.csv" if task.is_pair and not task.embedding else "texts.txt")
    output = "embeddings.npy" if task.embedding else "answers.csv"
    return command("predict", "--engine", engine, "--input", texts, "--output", output)
