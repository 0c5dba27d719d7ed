"""Write a Triton model repository. It has a model that accepts texts and returns a score, labels with probabilities or an
embedding, and the encoder that this model calls.

example: q8trt triton runs/NAME/engine --output_dir models
         q8trt triton runs/NAME/engine --output_dir models --backend python --instances 2
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say
from q8trt.console.options import group, option
from q8trt.deployment.triton.config import TritonConfig
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from q8trt.deployment.triton.repository import Repository

_IMAGE = "nvcr.io/nvidia/tritonserver:YY.MM-py3"
_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    engine: str = option(help="engine folder that build_engine.py wrote", metavar="ENGINE_DIR", positional=True)
    output_dir: str = option(help="the repository: a new or an empty folder", metavar="MODEL_REPOSITORY")
    config: TritonConfig = group("serving")


PARSER = Parser(Options, "q8trt triton", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    config = options.config
    from q8trt.deployment.triton.repository import write_repository

    written = write_repository(options.engine, options.output_dir, config)
    task, limits = written.manifest.task, written.limits
    texts = "text and text_pair" if task.is_pair else "text"
    embeds = written.manifest.head.embedding is not None
    label = "labels" if written.manifest.head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION else "label"
    answer = "embedding" if embeds else "score" if task.is_regression else f"{label} and probabilities"
    say(f"model repository: {written.path}")
    say(
        f"  {written.models[0]}  {texts} -> {answer}; {limits.batch_size} rows a request at most, {limits.max_length} tokens"
    )
    if len(written.models) > 1:
        output = "logits, which are the embeddings" if embeds else "logits"
        say(f"  {written.models[1]}  token arrays -> {output}, {config.backend} on {config.runs_on}")
    for line in _next(written, config):
        say(line)
    return 0


def _next(written: Repository, config: TritonConfig) -> list[str]:
    """Return lines with the commands that serve the repository."""
    packages = "tokenizers onnxruntime" if config.runtime is None else "tokenizers"
    serve = "tritonserver --model-repository=/models"
    built, plan = written.manifest.backend, config.runs_plan
    if plan and written.manifest.record.build.options.version_compatible:
        serve += " --backend-config=tensorrt,version-compatible=true"
    folder = shlex.quote(str(written.path.absolute()))
    command = [
        "docker run --rm --shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002",
        *(["--gpus all"] if config.runs_on == "cuda" else []),
        f'-v {folder}:/models:ro {_IMAGE} sh -c "pip install {packages} && {serve}"',
    ]
    lines = [f"serve: {' '.join(command)}"]
    release = (
        f"with TensorRT {built.version}, which built the plan" if plan and built else "not much older than the engine"
    )
    lines.append(f"  YY.MM: a container {release}: {_MATRIX}")
    if config.runtime is None:
        lines.append(
            f"without a container: make triton && python tests/triton_local_server.py {shlex.quote(str(written.path))}"
        )
    return lines
