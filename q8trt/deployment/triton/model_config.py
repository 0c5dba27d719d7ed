"""The config.pbtxt of each model of a repository, from the options, the manifest and the encoder's graph.

``model_config.proto`` of triton-inference-server/common defines the fields. With max_batch_size, ``dims`` do not include the
batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from q8trt.deployment.triton.config import ENCODERS, TritonConfig
from q8trt.deployment.triton.pbtxt import Message, Symbol, entries
from q8trt.engine.manifest import Manifest
from q8trt.engine.shapes import ShapeProfile, covering
from q8trt.inference import THRESHOLD
from q8trt.inference.batching import BatchLimits
from q8trt.tasks.heads import HeadKind

WARMUP_TEXT = "text"
"""File with a text in a model's warmup folder: its length in 4 bytes, then UTF-8."""


@dataclass(frozen=True)
class Tensors:
    """The inputs and the output of the encoder's graph.

    Attributes:
        inputs: names of the inputs, each (batch, sequence).
        input_type: type of the inputs, "TYPE_INT32" or "TYPE_INT64".
        output_type: type of ``logits`` (batch, labels), such as "TYPE_FP32".
        labels: the last dimension of ``logits``.
    """

    inputs: tuple[str, ...]
    input_type: str
    output_type: str
    labels: int


@dataclass(frozen=True)
class Served:
    """A served engine.

    Attributes:
        name: name of the model that clients call.
        config: options of serving.
        manifest: the engine's manifest.
        tensors: inputs and output of the encoder.
        limits: lengths and batch sizes.
        side: the side on which texts are cut, "left" or "right".
    """

    name: str
    config: TritonConfig
    manifest: Manifest
    tensors: Tensors
    limits: BatchLimits
    side: str = "right"

    @property
    def encoder_name(self) -> str:
        """The name of the encoder if it is a separate model."""
        return f"{self.name}_encoder"

    @property
    def profiles(self) -> Sequence[ShapeProfile]:
        """The plan's profiles; [] if the encoder is not a plan."""
        return self.manifest.profiles if self.config.runs_plan else []

    @property
    def batches(self) -> list[int]:
        """The batch sizes of the warmup: 1 and the maximum."""
        return sorted({1, self.limits.batch_size})

    def encoder_config(self) -> Message:
        """Return the config.pbtxt of the encoder as a separate model: token arrays in, logits out."""
        config, tensors, limits = self.config, self.tensors, self.limits
        runtime = ENCODERS[config.backend]
        assert runtime.triton is not None
        group: dict[str, Any] = {"count": config.instances, "kind": Symbol("KIND_CPU")}
        if config.runs_on == "cuda":
            # An instance uses the profile whose optimal shape is nearest to that of the batch.
            group |= {"kind": Symbol("KIND_GPU"), "gpus": list(config.gpus or ())}
            group |= {"profile": [str(index) for index in range(len(self.profiles))]}
        return {
            "name": self.encoder_name,
            "platform": runtime.triton.platform,
            "backend": runtime.name,
            "default_model_filename": runtime.model_file,
            "max_batch_size": limits.batch_size,
            "input": [_tensor(each, tensors.input_type, -1) for each in tensors.inputs],
            "output": [_tensor("logits", tensors.output_type, tensors.labels)],
            "instance_group": [group],
            **self._batching(0),  # the texts have already waited for others
            "optimization": self._optimization(),
            "parameters": [] if config.threads is None else _parameters({"intra_op_thread_count": config.threads}),
            "model_warmup": [
                _warmup(f"{batch}x{length}", batch, {
                    each: {"data_type": Symbol(tensors.input_type), "dims": length, "zero_data": True}
                    for each in tensors.inputs
                })
                # Only a plan has kernels and CUDA graphs for each length.
                for length in (limits.buckets if self.profiles else limits.buckets[-1:])
                for batch in self.batches
            ],
        }  # fmt: skip

    def text_config(self) -> Message:
        """Return the config.pbtxt of the model that clients call.

        Its inputs are texts. Its outputs are ``score``, ``embedding``, or ``probabilities`` and ``label`` (``labels``, a JSON
        list, of a multi-label classifier). Its parameters are the settings of model.py as JSON, and ``engine`` for readers.
        """
        config, tensors, task = self.config, self.tensors, self.manifest.task
        has_encoder = config.runtime is None
        texts = ("text", "text_pair") if task.is_pair else ("text",)
        count = config.text_instances or config.instances * max(1, len(config.gpus or ())) + 1
        outputs = [_tensor("score", "TYPE_FP32", 1)]
        embedding, sets = self.manifest.head.embedding, self.manifest.head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION
        if embedding:
            outputs = [_tensor("embedding", "TYPE_FP32", tensors.labels)]
        elif not task.is_regression:
            outputs = [
                _tensor("labels" if sets else "label", "TYPE_STRING", 1),
                _tensor("probabilities", "TYPE_FP32", tensors.labels),
            ]
        settings = {
            "encoder": None if has_encoder else self.encoder_name,
            "inputs": tensors.inputs,
            "input_type": tensors.input_type,
            "buckets": self.limits.buckets,
            "apart": config.runs_on == "cpu",
            "pad_token_id": self.manifest.model.pad_token_id,
            "labels": task.labels,
            "prompt": embedding.prompt(None) if embedding else None,
            "activation": "sigmoid" if sets else task.activation,
            "threshold": (THRESHOLD if config.threshold is None else config.threshold) if sets else None,
            "max_length": self.limits.max_length,
            "truncation_side": self.side,
            "threads": config.threads,
            "needs_vnni": config.vnni and self.manifest.precision.is_quantized,
            "engine": _engine(self.manifest),
        }
        environment = {"EXECUTION_ENV_PATH": {"string_value": config.execution_env_path}}
        warmup = {
            each: {"data_type": Symbol("TYPE_STRING"), "dims": 1, "input_data_file": WARMUP_TEXT} for each in texts
        }
        return {
            "name": self.name,
            "backend": "python",
            "max_batch_size": self.limits.batch_size,
            "input": [_tensor(each, "TYPE_STRING", 1) for each in texts],
            "output": outputs,
            "instance_group": [{"count": config.instances if has_encoder else count, "kind": Symbol("KIND_CPU")}],
            **self._batching(config.max_queue_delay_microseconds),
            "parameters": [*_parameters(settings), *(entries(environment) if config.execution_env_path else [])],
            # Without the encoder in this model there is no warmup, because the encoder may not be ready yet.
            "model_warmup": [_warmup(str(batch), batch, warmup) for batch in self.batches] if has_encoder else [],
        }

    def _batching(self, delay: int) -> Message:
        """Return the dynamic batcher, which waits `delay` microseconds. A plan prefers the batches for which it is tuned."""
        largest = self.limits.batch_size
        if largest == 1:
            return {}
        tuned = {profile.opt[0] for profile in self.profiles if profile.opt[0] <= largest}
        preferred = sorted({*tuned, largest}) if self.profiles else []
        return {"dynamic_batching": {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay}}

    def _optimization(self) -> Message | None:
        """Return the CUDA graphs: one for each length, with batches of powers of two and those of the plan.

        Each graph has one shape. A graph for a range of shapes (``graph_lower_bound``) would not overwrite the rest of its
        input, whose values may be outside the embedding table.
        """
        config, largest = self.config, self.limits.batch_size
        if not (config.cuda_graphs and config.runtime and config.runtime.capabilities.cuda_graphs):
            return None
        sizes = [*(2**n for n in range(largest.bit_length())), *(profile.opt[0] for profile in self.profiles)]
        batches = sorted({size for size in sizes if size <= largest} | {largest})
        specs = [
            {"batch_size": batch, "input": entries({name: {"dim": length} for name in self.tensors.inputs})}
            for length in self.limits.buckets
            for batch in batches
            if covering(self.profiles, (batch, length)) is not None
        ]
        return {"cuda": {"graphs": True, "graph_spec": specs}}


def default_name(manifest: Manifest) -> str:
    """Return the default name of the model: ``"sts_b"`` for the task ``"STS-B"``."""
    return re.sub(r"[^a-z0-9]+", "_", manifest.task.name.casefold()).strip("_") or "model"


def _tensor(name: str, data_type: str, dims: int) -> Message:
    return {"name": name, "data_type": Symbol(data_type), "dims": dims}


def _parameters(values: dict[str, Any]) -> list[Message]:
    return entries({name: {"string_value": json.dumps(value)} for name, value in values.items()})


def _warmup(name: str, batch_size: int, inputs: Mapping[str, Message]) -> Message:
    return {"name": name, "batch_size": batch_size, "inputs": entries(inputs)}


def _engine(manifest: Manifest) -> dict[str, Any]:
    """Return the facts that identify the engine."""
    keys = ("precision", "stage", "created", "q8trt_version")
    hashes = {name: info.sha256 for name, info in manifest.files.items()}
    facts = {key: getattr(manifest, key) for key in keys}
    return {"task": manifest.task.name, "model": manifest.model.name, **facts, "sha256": hashes}
