"""Fine-tune a model in FP32, calibrate it, and fine-tune it with quantizers (QAT). The run is runs/<name>/.

example: python finetune.py --task STS-B
         python finetune.py --demo      (no hub, no GPU)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say
from q8trt.console.commands import command
from q8trt.console.options import from_values, group, option, options_in
from q8trt.errors import ConfigError
from q8trt.hardware.gpu import gpus
from q8trt.quantization.trial import trial_lines
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import RUNS_DIR, Run, runs_dir

#: The options that --demo sets: the model of a pip package and the built-in sample. The demo takes a few minutes on two cores.
DEMO: dict[str, Any] = {
    "task": "STS-B",
    "sample": True,
    "model_name_or_path": "minilm",
    "max_seq_length": 64,
    "eval_steps": 100,
    "save_steps": 100,
}
#: A remark on the demo's figures on a machine without a GPU.
_NO_GPU = (
    "no GPU here: the benchmark runs the graphs in ONNX Runtime on the CPU, which widens FP16 to FP32; its figures are not "
    "TensorRT's"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    demo: bool = option(False, "fine-tune MiniLM from a pip package on the built-in sample (not GLUE)")
    resume: str | None = option(
        None, "continue a run; without RUN, the newest unfinished one", metavar="RUN", bare="newest"
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


PARSER = Parser(Options, "finetune.py", __doc__)


def summary(run: Any, task: Any, is_sample: bool) -> str:
    """Return the scores of the finished stages, a line for each stage and split, and the trial of calibrations if any."""
    from q8trt.reporting.scores import score_text

    names = {"fp32": "FP32", "ptq": "PTQ INT8 (calibrated)", "int8": "QAT INT8"}
    label = f"{task.name} shape, built-in sample, not GLUE" if is_sample else task.name
    lines = [f"torch scores, {label}:"]
    for stage, entry in run.record.stages.items():
        for split, metrics in entry.scores.items():
            figures = "  ".join(f"{name} {score_text(name, value)}" for name, value in metrics.items())
            lines.append(f"  {names[stage]:22} {split}: {figures}")
    lines += trial_lines(run.trials, run.in_float)
    return "\n".join(lines)


def build_command(run: Run, config: FinetuneConfig) -> str:
    """Return the command that builds the engine of a finished run, or that resumes a run of `q8trt quantize`."""
    if run.lacks_engines:
        return run.resume_command
    return command("build-engine", "--int8" if config.precision.is_quantized else "--fp32", "--checkpoint", run.path)


def resume_arguments(parser: Parser, typed: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of the API's function that continues a run.

    Raises:
        ConfigError: --resume is not the only option.
    """
    parser.check_alone(typed, ("resume", "runs_dir"), "--resume continues a run with its own options")
    say("loading PyTorch and the run")
    runs_dir = typed.get("runs_dir", RUNS_DIR)
    return {"resume": typed["resume"], "runs_dir": runs_dir, "progress": True, "on_message": say, "command": words}


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    typed = PARSER.typed_options(argv)
    words = ["finetune.py", *argv]
    if "resume" in typed:
        arguments = resume_arguments(PARSER, typed, words)
        from q8trt import api

        run = api.finetune(**arguments)
    else:
        values = {**(DEMO if "demo" in typed else {}), **typed}
        options = from_values(Options, values)
        chosen = {each.name: values[each.name] for each in options_in(FinetuneConfig) if each.name in values}
        config = options.config
        config.data.check_places()  # before PyTorch is loaded
        say(f"fine-tuning {config.model_name_or_path} on {config.data.task}: loading PyTorch, the model and the rows")
        from q8trt import api

        run = api.finetune(
            output_dir=options.output_dir,
            runs_dir=options.runs_dir,
            progress=True,
            on_message=say,
            command=words,
            **chosen,
        )
    config = config_of_run(run)
    say(summary(run, config.data.resolved_task, config.data.sample))
    if "demo" in typed and not gpus():
        say(_NO_GPU)
    say(f"next: {build_command(run, config)}")
    return 0
