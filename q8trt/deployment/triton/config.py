"""The options of serving, and the config.pbtxt of each model, which follow from them and the manifest.

Fields and their meaning: ``model_config.proto`` of triton-inference-server/common. With max_batch_size, ``dims`` leave the
batch out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from q8trt.console.options import at_least, check_options, option
from q8trt.deployment.triton.pbtxt import Message, Symbol, entries
from q8trt.engine.manifest import Manifest
from q8trt.engine.shapes import ShapeProfile, covering
from q8trt.errors import ConfigError, nearest
from q8trt.inference.batching import BatchLimits
from q8trt.runtime import RUNTIMES, EngineRuntime
from q8trt.runtime.tensorrt import TENSORRT

#: Triton's backend that runs the encoder in the model that tokenizes.
PYTHON = "python"
#: Triton's backends that run the encoder as a model of its own -> the runtimes that they share a model file with.
ENCODERS = {runtime.name: runtime for runtime in RUNTIMES if runtime.triton}
BACKENDS = (*ENCODERS, PYTHON)
DEVICES = ("cuda", "cpu")
WARMUP_TEXT = "text"
"""File of a model's warmup folder that holds a text: 4 bytes of length, then UTF-8."""


@dataclass(frozen=True)
class TritonConfig:
    """Options of serving an engine.

    Raises:
        ConfigError: a value is out of its range, unknown, or does not go with the others.
    """

    backend: str = option(
        TENSORRT.name,
        "what runs the encoder: tensorrt (model.plan), onnxruntime (model.onnx), or python (model.onnx in the model that "
        "tokenizes, for a server that has the Python backend alone)",
        metavar="NAME",
    )
    device: str | None = option(
        None, "cuda or cpu", metavar="NAME", unset="cuda for tensorrt, cpu for the others; onnxruntime takes either"
    )
    model_name: str | None = option(
        None, "name of the model for clients", metavar="NAME", unset="from the task, such as sts_b"
    )
    max_batch_size: int | None = option(
        None, "most rows of a batch", values=at_least(1), unset="the plan's; without a plan 32"
    )
    instances: int = option(
        1, "encoders that run at the same time: on each GPU, or on the CPU in all", values=at_least(1)
    )
    text_instances: int | None = option(
        None,
        "processes that tokenize and wait for the encoder; not for python, whose encoder is in them",
        values=at_least(1),
        unset="one more than the encoders of the --gpus",
    )
    gpus: tuple[int, ...] | None = option(None, "numbers of the GPUs to serve on", unset="every GPU")
    max_queue_delay_microseconds: int = option(
        100, "longest wait of a request for others to share a batch with, microseconds", values=at_least(0)
    )
    cuda_graphs: bool = option(True, "capture a CUDA graph for each length and the usual batch sizes (tensorrt)")
    threads: int | None = option(
        None,
        "threads of an encoder on the CPU",
        values=at_least(1),
        unset="python shares the cores among its instances, onnxruntime takes them all for each",
    )
    vnni: bool = option(
        False, "the serving CPU has VNNI: keep INT8 weights signed, which is faster there and wrong on any other CPU"
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
            raise ConfigError("--text_instances is not for --backend python, whose encoder is in them: use --instances")

    @property
    def runtime(self) -> EngineRuntime | None:
        """The runtime of the encoder; None if the model that tokenizes runs it."""
        return ENCODERS.get(self.backend)

    @property
    def runs_plan(self) -> bool:
        """Return whether the encoder is a plan, which takes the shapes of its profiles alone."""
        return self.runtime is not None and self.runtime.capabilities.fixed_shapes

    @property
    def runs_on(self) -> str:
        """The device of the encoder: "cuda" or "cpu"."""
        return self.device or self._devices[0]

    @property
    def _devices(self) -> tuple[str, ...]:
        triton = self.runtime.triton if self.runtime else None
        return triton.devices if triton else ("cpu",)


@dataclass(frozen=True)
class Tensors:
    """The encoder's tensors, as its graph has them.

    Attributes:
        inputs: names, each (batch, sequence).
        input_type: their type, "TYPE_INT32" or "TYPE_INT64".
        output_type: the type of ``logits`` (batch, labels), such as "TYPE_FP32".
        labels: the last dimension of ``logits``.
    """

    inputs: tuple[str, ...]
    input_type: str
    output_type: str
    labels: int


def default_name(manifest: Manifest) -> str:
    """Return the model's name: the task ``"STS-B"`` -> ``"sts_b"``."""
    return re.sub(r"[^a-z0-9]+", "_", manifest.task.name.casefold()).strip("_") or "model"


def encoder_name(model_name: str) -> str:
    """Return the encoder's name where it is a separate model."""
    return f"{model_name}_encoder"


def encoder_config(
    name: str, config: TritonConfig, manifest: Manifest, tensors: Tensors, limits: BatchLimits
) -> Message:
    """Return the config.pbtxt of the encoder as a model of its own: token arrays in, logits out."""
    runtime = ENCODERS[config.backend]
    assert runtime.triton is not None
    profiles = manifest.profiles if config.runs_plan else []
    group: dict[str, Any] = {"count": config.instances, "kind": Symbol("KIND_CPU")}
    if config.runs_on == "cuda":
        # Triton takes, of the profiles that an instance has, the one whose best shape is nearest to the batch's.
        group |= {"kind": Symbol("KIND_GPU"), "gpus": list(config.gpus or ())}
        group |= {"profile": [str(index) for index in range(len(profiles))]}
    return {
        "name": name,
        "platform": runtime.triton.platform,
        "backend": runtime.name,
        "default_model_filename": runtime.model_file,
        "max_batch_size": limits.batch_size,
        "input": [_tensor(each, tensors.input_type, -1) for each in tensors.inputs],
        "output": [_tensor("logits", tensors.output_type, tensors.labels)],
        "instance_group": [group],
        # Texts have waited for others before their tokens come here.
        **_batching(0, profiles, limits),
        "optimization": _optimization(config, profiles, tensors, limits),
        "parameters": [] if config.threads is None else _parameters({"intra_op_thread_count": config.threads}),
        "model_warmup": [
            _warmup(f"{batch}x{length}", batch, {
                each: {"data_type": Symbol(tensors.input_type), "dims": length, "zero_data": True}
                for each in tensors.inputs
            })
            # Only a plan has kernels, and a CUDA graph, of each length.
            for length in (limits.buckets if profiles else limits.buckets[-1:])
            for batch in sorted({1, limits.batch_size})
        ],
    }  # fmt: skip


def text_config(
    name: str, config: TritonConfig, manifest: Manifest, tensors: Tensors, limits: BatchLimits, side: str = "right"
) -> Message:
    """Return the config.pbtxt of the model that clients call: texts in, ``score`` or ``label`` and ``probabilities`` out.

    Its parameters are the settings of model.py, each as JSON; ``engine`` names the engine for a reader. Texts are
    cut on `side`.
    """
    task, has_encoder = manifest.task, config.runtime is None
    profiles = manifest.profiles if config.runs_plan else []
    texts = ("text", "text_pair") if task.is_pair else ("text",)
    count = config.text_instances or config.instances * max(1, len(config.gpus or ())) + 1
    outputs = [_tensor("score", "TYPE_FP32", 1)]
    if not task.is_regression:
        outputs = [_tensor("label", "TYPE_STRING", 1), _tensor("probabilities", "TYPE_FP32", tensors.labels)]
    settings = {
        "encoder": None if has_encoder else encoder_name(name),
        "inputs": tensors.inputs,
        "input_type": tensors.input_type,
        "buckets": limits.buckets,
        "apart": config.runs_on == "cpu",
        "pad_token_id": manifest.model.pad_token_id,
        "labels": task.labels,
        "activation": task.activation,
        "max_length": limits.max_length,
        "truncation_side": side,
        "threads": config.threads,
        "needs_vnni": config.vnni and manifest.precision.is_quantized,
        "engine": _engine(manifest),
    }
    environment = {"EXECUTION_ENV_PATH": config.execution_env_path} if config.execution_env_path else {}
    warmup = {each: {"data_type": Symbol("TYPE_STRING"), "dims": 1, "input_data_file": WARMUP_TEXT} for each in texts}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": limits.batch_size,
        "input": [_tensor(each, "TYPE_STRING", 1) for each in texts],
        "output": outputs,
        "instance_group": [{"count": config.instances if has_encoder else count, "kind": Symbol("KIND_CPU")}],
        **_batching(config.max_queue_delay_microseconds, profiles, limits),
        "parameters": [*_parameters(settings), *entries({k: {"string_value": v} for k, v in environment.items()})],
        # Another model of the server may not be ready when this one is warmed up.
        "model_warmup": [_warmup(str(batch), batch, warmup) for batch in sorted({1, limits.batch_size})]
        if has_encoder
        else [],
    }


def _tensor(name: str, data_type: str, dims: int) -> Message:
    return {"name": name, "data_type": Symbol(data_type), "dims": dims}


def _parameters(values: dict[str, Any]) -> list[Message]:
    return entries({name: {"string_value": json.dumps(value)} for name, value in values.items()})


def _warmup(name: str, batch_size: int, inputs: Mapping[str, Message]) -> Message:
    return {"name": name, "batch_size": batch_size, "inputs": entries(inputs)}


def _batching(delay: int, profiles: Sequence[ShapeProfile], limits: BatchLimits) -> Message:
    """Return the batcher, which waits `delay` microseconds; a plan prefers the batches that it is tuned for."""
    if limits.batch_size == 1:
        return {}
    tuned = {profile.opt[0] for profile in profiles if profile.opt[0] <= limits.batch_size}
    preferred = sorted({*tuned, limits.batch_size}) if profiles else []
    return {"dynamic_batching": {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay}}


def _optimization(
    config: TritonConfig, profiles: Sequence[ShapeProfile], tensors: Tensors, limits: BatchLimits
) -> Message | None:
    """Return the CUDA graphs of the shapes that are run: every length, with batches of powers of two and the plan's own.

    A graph for a range of shapes (``graph_lower_bound``) would leave the rest of its input as it was, which as token ids may
    be outside the table: each graph is for one shape.
    """
    if not (config.cuda_graphs and config.runtime and config.runtime.capabilities.cuda_graphs):
        return None
    powers = [2**n for n in range(limits.batch_size.bit_length())]
    batches = sorted({size for size in (*powers, *(p.opt[0] for p in profiles)) if size <= limits.batch_size}
                     | {limits.batch_size})  # fmt: skip
    specs = [
        {"batch_size": batch, "input": entries({name: {"dim": length} for name in tensors.inputs})}
        for length in limits.buckets
        for batch in batches
        if covering(profiles, (batch, length)) is not None
    ]
    return {"cuda": {"graphs": True, "graph_spec": specs}}


def _engine(manifest: Manifest) -> dict[str, Any]:
    """Return the facts that identify the engine."""
    keys = ("precision", "stage", "created", "q8trt_version")
    hashes = {name: info.sha256 for name, info in manifest.files.items()}
    facts = {key: getattr(manifest, key) for key in keys}
    return {"task": manifest.task.name, "model": manifest.model.name, **facts, "sha256": hashes}
