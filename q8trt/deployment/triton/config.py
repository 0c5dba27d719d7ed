"""The options of serving an engine with Triton."""

from __future__ import annotations

import re
from dataclasses import dataclass

from q8trt.console.options import at_least, between, check_options, option
from q8trt.errors import ConfigError, nearest
from q8trt.runtime import RUNTIMES, EngineRuntime
from q8trt.runtime.tensorrt import TENSORRT

#: Triton's Python backend, in which the model that tokenizes also runs the encoder.
PYTHON = "python"
#: Triton's backends that run the encoder as a separate model -> the runtime with the same model file.
ENCODERS = {runtime.name: runtime for runtime in RUNTIMES if runtime.triton}
BACKENDS = (*ENCODERS, PYTHON)
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class TritonConfig:
    """Options of serving an engine with Triton.

    Raises:
        ConfigError: a value is unknown or out of range, or options exclude each other.
    """

    backend: str = option(
        TENSORRT.name,
        "backend of the encoder: tensorrt (model.plan), onnxruntime (model.onnx), or python (model.onnx in the model that "
        "tokenizes, for a server with only the Python backend)",
        metavar="NAME",
    )
    device: str | None = option(
        None, "cuda or cpu", metavar="NAME", unset="cuda for tensorrt, cpu for the others; onnxruntime runs on both"
    )
    model_name: str | None = option(
        None, "name of the model for clients", metavar="NAME", unset="from the task, such as sts_b"
    )
    max_batch_size: int | None = option(
        None, "maximum rows of a batch", values=at_least(1), unset="the plan's; without a plan 32"
    )
    instances: int = option(
        1, "encoders that run at the same time on each GPU, or in total on the CPU", values=at_least(1)
    )
    text_instances: int | None = option(
        None,
        "processes that tokenize and wait for the encoder; not for --backend python, which runs the encoder in the same process",
        values=at_least(1),
        unset="one more than the encoders on the --gpus",
    )
    gpus: tuple[int, ...] | None = option(None, "numbers of the GPUs to serve on", unset="every GPU")
    threshold: float | None = option(
        None,
        "probability above which a text has a label (multi-label classification)",
        unset="0.5",
        values=between(0, 1),
    )
    max_queue_delay_microseconds: int = option(
        100, "maximum microseconds that a request waits for others to share a batch", values=at_least(0)
    )
    cuda_graphs: bool = option(True, "capture a CUDA graph for each length and the usual batch sizes (tensorrt)")
    threads: int | None = option(
        None,
        "threads of an encoder on the CPU",
        values=at_least(1),
        unset="with python the instances share the cores, with onnxruntime each uses all",
    )
    vnni: bool = option(
        False, "keep INT8 weights signed for a serving CPU with VNNI: faster there, and wrong on any other CPU"
    )
    execution_env_path: str | None = option(
        None,
        "environment of the Python models, a folder or a conda-pack archive on the server",
        metavar="PATH",
        unset="the server's own Python",
    )

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            hint = nearest(self.backend, BACKENDS)
            raise ConfigError(f"unknown --backend {self.backend!r}{hint}; choose one of {', '.join(BACKENDS)}")
        if self.device not in (None, *DEVICES):
            raise ConfigError(f"unknown --device {self.device!r}; choose one of {', '.join(DEVICES)}")
        if self.device is not None and self.device not in self._devices:
            raise ConfigError(
                f"--backend {self.backend} runs on {self._devices[0]} only; leave --device {self.device} out"
            )
        if self.model_name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.model_name):
            raise ConfigError(
                f"--model_name {self.model_name!r} cannot name a folder and a URL: use letters, digits, '_', '-' and '.'"
            )
        check_options(self)
        gpus = self.gpus or ()
        if any(gpu < 0 for gpu in gpus) or len(set(gpus)) < len(gpus):
            raise ConfigError(f"--gpus must be different numbers from 0 on; got {' '.join(map(str, gpus))}")
        if gpus and self.runs_on == "cpu":
            raise ConfigError("--gpus is for an encoder on the GPU; leave it out, or serve on --device cuda")
        for name in ("threads", "vnni"):
            if getattr(self, name) and self.runs_on == "cuda":
                raise ConfigError(f"--{name} is for an encoder on the CPU; leave it out, or serve on --device cpu")
        if self.text_instances is not None and self.backend == PYTHON:
            raise ConfigError(
                "--text_instances is not for --backend python, which has no other instances; use --instances"
            )

    @property
    def runtime(self) -> EngineRuntime | None:
        """The runtime of the encoder; None if the model that tokenizes runs the encoder."""
        return ENCODERS.get(self.backend)

    @property
    def runs_plan(self) -> bool:
        """True if the encoder is a plan, which accepts only the shapes of its profiles."""
        return self.runtime is not None and self.runtime.capabilities.fixed_shapes

    @property
    def runs_on(self) -> str:
        """The device of the encoder: "cuda" or "cpu"."""
        return self.device or self._devices[0]

    @property
    def _devices(self) -> tuple[str, ...]:
        triton = self.runtime.triton if self.runtime else None
        return triton.devices if triton else ("cpu",)
