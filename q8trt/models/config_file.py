"""config.json of a checkpoint, read within limits and checked before transformers sees it.

Only the fields that determine the model's shape and computation are checked. Other keys are passed on unchecked.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.console.commands import command
from q8trt.errors import CheckpointError
from q8trt.models.locate import is_folder, only_local, unavailable
from q8trt.models.whole import check_whole
from q8trt.quantization.architectures import ARCHITECTURES, QUANTIZED_TYPES, Architecture, architecture_named

CONFIG_FILE = "config.json"
_LIMITS = files.Limits(size=2**24, values=200_000)

#: Highest accepted value of each size, far above that of any model of the BERT family.
_SIZES = {
    "vocab_size": 10_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "intermediate_size": 1_048_576,
    "max_position_embeddings": 1_048_576,
    "type_vocab_size": 65_536,
    "embedding_size": 65_536,
}
#: Rows of the table of relative positions that transformers reads, independent of config.json.
_BUCKETS = 32
#: Types of rotary positions whose angles do not depend on the length of a batch.
_ROTATIONS = ("default", "linear", "llama3", "yarn")
#: Parameters of the largest accepted model; BERT-large has a third of 10^9.
_MOST_PARAMETERS = 10**10
#: Keys that choose what a forward pass returns or how it runs, not what it computes. They are dropped.
_INCIDENTAL = (
    "output_attentions", "_output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript",
    "chunk_size_feed_forward", "gradient_checkpointing", "torch_dtype", "dtype", "use_bfloat16", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset", "experts_implementation",
    "_experts_implementation_internal", "task_specific_params", "use_cache", "quantization_config", "pruned_heads",
    "per_layer_config", "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "auto_map",
)  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """Fields of config.json that q8trt relies on, under BERT's names; missing fields have transformers' defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    embedding_size: int = 128
    relative_attention_num_buckets: int = 32
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    pad_token_id: int | None = 0
    is_decoder: bool = False
    add_cross_attention: bool = False
    is_encoder_decoder: bool = False
    sinusoidal_pos_embds: bool = False
    position_embedding_type: str | None = "absolute"
    problem_type: str | None = None
    num_labels: int | None = None
    id2label: dict[str, str | int | float] | None = None
    architectures: list[str] | None = None

    def parameters(self, architecture: Architecture) -> int:
        """Return the approximate number of weights of the encoder."""
        width, inner = self.hidden_size, self.intermediate_size
        rows = self.vocab_size + self.type_vocab_size
        rows += self.max_position_embeddings if architecture.position_embeddings else 0
        table: int = getattr(self, architecture.embedding_size)
        layers = 1 if architecture.shared_layers else self.num_hidden_layers
        widening = 0 if table == width else table * width
        return (
            rows * table
            + widening
            + layers * (4 * width * width + (3 if architecture.gated_ffn else 2) * width * inner)
        )


def read_config_file(name: str) -> dict[str, Any]:
    """Return the JSON object in config.json of a folder or of a model on the hub.

    Raises:
        CheckpointError: the file is missing or not a JSON object, or a file of the folder has changed since it was saved.
    """
    check_whole(name, weights=False)
    return read_object(_config_path(name), _LIMITS)


def read_object(path: Path, limits: files.Limits) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or is not a JSON object.
    """
    try:
        data = files.read_json(path, limits)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except files.MalformedError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy the checkpoint again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object; copy the checkpoint again")
    return data


def _config_path(name: str) -> Path:
    if is_folder(name):
        path = Path(name) / CONFIG_FILE
        if not path.exists():
            raise CheckpointError(f"{name} has no config.json; expected a Hugging Face checkpoint folder")
        return path
    from transformers.utils import cached_file

    try:
        cached = cached_file(name, CONFIG_FILE, local_files_only=only_local(name))
    except Exception as error:  # the hub's client raises a dozen types for an invalid name or answer
        raise unavailable(name, error) from None
    if cached is None:
        raise unavailable(name, OSError("no config.json"))
    return Path(cached)


def check_config(data: dict[str, Any], where: str) -> ModelShape:
    """Return the checked fields of a config.json.

    Args:
        data: the JSON object.
        where: the name of the checkpoint in errors.

    Raises:
        CheckpointError: the model is not of the BERT family, a field has another type or is out of range, or the model needs
            what q8trt does not support: foreign code, a decoder, pruned heads, weights quantized by another library.
    """
    _check_foreign(data, where)
    architecture = architecture_named(data.get("model_type"), where)
    defaults = {**dataclasses.asdict(ModelShape()), **architecture.config_defaults}
    try:
        # A field may have the architecture's name or BERT's.
        names = {name: architecture.config_name(name) for name in defaults}
        shape = files.decode(
            ModelShape, {n: data.get(names[n], data.get(n, default)) for n, default in defaults.items()}
        )
    except files.MalformedError as error:
        raise CheckpointError(f"{where}: config.json: {error}") from None
    _check_sizes(shape, architecture, where)
    _check_numbers(shape, where)
    _check_computation(shape, data, where)
    _check_requirements(architecture, data, where)
    if architecture.rotary is not None:
        _check_rotations(data.get("rope_parameters"), where)
    _check_labels(shape, where)
    return shape


def _check_foreign(data: dict[str, Any], where: str) -> None:
    if data.get("auto_map"):
        raise CheckpointError(
            f"{where} needs its own Python code (auto_map in config.json), which q8trt never runs; give a checkpoint of "
            f"transformers' {', '.join(ARCHITECTURES)}"
        )
    if quantization := data.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{where} is already quantized{f' by {method}' if isinstance(method, str) else ''} (quantization_config in "
            "config.json); give the floating-point checkpoint that it was made from"
        )
    if (model_type := data.get("model_type")) in list(QUANTIZED_TYPES):
        calibrate = command("calibrate", "--model_name_or_path", "DIR", "--from_pytorch_quantization", where)
        raise CheckpointError(
            f"{where} is a {model_type.upper()} checkpoint of pytorch-quantization; give the floating-point model that it was "
            f"made from, and read the ranges: {calibrate} (DIR: the floating-point model; also give --task)"
        )


def _check_sizes(shape: ModelShape, architecture: Architecture, where: str) -> None:
    for name, highest in _SIZES.items():
        value, lowest = getattr(shape, name), 1
        if name == "type_vocab_size":
            lowest = min(1, architecture.config_defaults.get(name, 1))
        if not lowest <= value <= highest:
            raise CheckpointError(f"{where}: config.json: {name} is {value}, expected {lowest} to {highest:,}")
    if architecture.position_bias is not None and not _BUCKETS <= shape.relative_attention_num_buckets <= 65_536:
        raise CheckpointError(
            f"{where}: config.json: relative_attention_num_buckets is {shape.relative_attention_num_buckets}, expected "
            f"{_BUCKETS} to 65,536, because {architecture.label} has a row for each bucket of distances"
        )
    if shape.hidden_size % shape.num_attention_heads:
        raise CheckpointError(
            f"{where}: config.json: {shape.num_attention_heads} attention heads do not divide the hidden size "
            f"{shape.hidden_size}; copy the checkpoint again"
        )
    if (count := shape.parameters(architecture)) > _MOST_PARAMETERS:
        raise CheckpointError(
            f"{where}: config.json describes a model of {count / 1e9:,.0f} billion parameters; expected at most "
            f"{_MOST_PARAMETERS / 1e9:,.0f} billion"
        )
    pad, counts_from_padding = shape.pad_token_id, architecture.positions_after_padding
    if not 0 <= pad < shape.vocab_size if pad is not None else counts_from_padding:
        raise CheckpointError(
            f"{where}: config.json: pad_token_id is {pad}, expected a row of the token table, 0 to "
            f"{shape.vocab_size - 1}"
        )
    first = architecture.padding_index(pad) + 1 if counts_from_padding else 0
    if counts_from_padding and shape.max_position_embeddings <= first:
        raise CheckpointError(
            f"{where}: config.json: max_position_embeddings is {shape.max_position_embeddings}; {architecture.label}'s "
            f"positions begin after the padding's, at {first}"
        )


def _check_numbers(shape: ModelShape, where: str) -> None:
    from transformers.activations import ACT2FN

    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        value = getattr(shape, name)
        if value is not None and not 0 <= value < 1:
            raise CheckpointError(f"{where}: config.json: {name} is {value}, expected a probability from 0 to below 1")
    if not 0 < shape.layer_norm_eps < 1:
        raise CheckpointError(f"{where}: config.json: layer_norm_eps is {shape.layer_norm_eps}, expected about 1e-12")
    if not (math.isfinite(shape.initializer_range) and 0 <= shape.initializer_range <= 100):
        raise CheckpointError(
            f"{where}: config.json: initializer_range is {shape.initializer_range}, expected about 0.02"
        )
    if shape.hidden_act not in ACT2FN:
        raise CheckpointError(
            f"{where}: config.json: unknown activation {_shown(shape.hidden_act)}; expected one of transformers', "
            "such as gelu"
        )


def _check_computation(shape: ModelShape, data: dict[str, Any], where: str) -> None:
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if getattr(shape, name):
            raise CheckpointError(
                f"{where} is a decoder ({name} in config.json is true), whose tokens attend only to earlier ones; "
                f"give an encoder, or set {name} to false if it was trained as one"
            )
    if shape.position_embedding_type not in (None, "absolute"):
        raise CheckpointError(
            f"{where} has positions of type {_shown(shape.position_embedding_type)} (position_embedding_type in "
            "config.json); q8trt supports only absolute ones"
        )
    if data.get("pruned_heads"):
        raise CheckpointError(
            f"{where} has pruned attention heads (pruned_heads in config.json), so its layers differ in shape; "
            "give the model from before pruning"
        )


def _check_requirements(architecture: Architecture, data: dict[str, Any], where: str) -> None:
    for name, (default, values, reason) in architecture.requirements.items():
        value = data.get(name, default)
        numbers = isinstance(values, range)
        is_known = type(value) is int and (value in values or value == default) if numbers else value in values
        if not is_known or (isinstance(value, int) and type(value) not in {type(each) for each in values[:2]}):
            raise CheckpointError(f"{where}: config.json: {name} is {_shown(value)}: {reason}; give another checkpoint")


def _check_rotations(parameters: Any, where: str) -> None:
    """Raise if rotary positions depend on the length, or `parameters` is not an object for each kind of layer."""
    entries = parameters.values() if isinstance(parameters, dict) else [{}] if parameters is None else [parameters]
    for entry in entries:
        kind = entry.get("rope_type", entry.get("type", "default")) if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or kind not in _ROTATIONS:
            raise CheckpointError(
                f"{where}: config.json: rope_parameters has {_shown(kind)}, expected for each kind of layer a rope_type that "
                f"does not depend on the length ({', '.join(_ROTATIONS)}); give another checkpoint"
            )


def _check_labels(shape: ModelShape, where: str) -> None:
    names = shape.id2label
    if names is None:
        if shape.num_labels is not None and not 1 <= shape.num_labels <= 100_000:
            raise CheckpointError(f"{where}: config.json: num_labels is {shape.num_labels}, expected 1 to 100,000")
        return
    if not 1 <= len(names) <= 100_000 or set(names) != {str(number) for number in range(len(names))}:
        raise CheckpointError(
            f"{where}: config.json: id2label must name all outputs, 0, 1, 2 and so on; it has "
            f"{_shown(', '.join(list(names)[:5]))}"
        )


def for_transformers(data: dict[str, Any], shape: ModelShape) -> dict[str, Any]:
    """Return the arguments for transformers' configuration: the keys of the file without the incidental ones."""
    from transformers import PreTrainedConfig

    left_out = (*_INCIDENTAL, "model_type", "label2id", "position_embedding_type")
    # transformers makes an attribute of every key; a key must not replace a method.
    fields = {
        key: value
        for key, value in data.items()
        if key not in left_out and key[:1] != "_" and not callable(getattr(PreTrainedConfig, key, None))
    }
    if shape.id2label is not None:
        count = len(shape.id2label)
        labels = {number: str(shape.id2label[str(number)]) for number in range(count)}
        fields |= {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
        fields.pop("num_labels", None)
    if shape.problem_type not in ("regression", "single_label_classification", "multi_label_classification"):
        fields.pop("problem_type", None)
    return fields


def _shown(value: Any) -> str:
    """Return the repr of `value` for a message, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
