"""Load and save float and quantized models.

A checkpoint is a Hugging Face folder with config.json, model.safetensors and tokenizer files. A quantized one also has
`quantization.json` with the recipe. Its amax values are in model.safetensors beside the weights, under
`<module>.input_quantizer._amax` or `<module>.weight_quantizer._amax`. Nothing is pickled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.errors import CheckpointError, ConfigError, Q8TRTError, QuantizationError
from q8trt.models.activation import activation_of, adopt_activation, forget_activation, set_activation
from q8trt.models.config import load_config
from q8trt.models.dropout import configure_dropout
from q8trt.models.heads import check_head, class_ending, kind_of, problem_type
from q8trt.models.labels import reorder_head
from q8trt.models.locate import only_local, resolve_model, unavailable
from q8trt.models.sentence_transformers import has_modules, read_embedding, read_max_length
from q8trt.models.whole import check_shards, check_whole
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.libraries import Library, made_by
from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from q8trt.models.embedding import EmbeddingModel
    from q8trt.tasks.glue import Task
    from q8trt.tasks.heads import Embedding, Head

    Model = PreTrainedModel | EmbeddingModel

QUANTIZATION_FILE = "quantization.json"
_FORMAT = 1
_LIMITS = files.Limits(size=2**22, depth=16, values=200_000)
_log = logging.getLogger(__name__)


def is_quantized(folder: str | Path) -> bool:
    """Return whether the checkpoint in `folder` is quantized."""
    return (Path(folder) / QUANTIZATION_FILE).is_file()


def _quiet_transformers() -> None:
    """Suppress transformers' warnings, such as those about a new head's weights, and its progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_pretrained(
    name_or_path: str,
    task: Task,
    *,
    dropout: float | None = None,
    allow_pickle: bool = False,
    new_head: bool = True,
) -> PreTrainedModel:
    """Return a floating-point model with the head of `task`, float32, on the CPU.

    Args:
        name_or_path: folder, hub name or short name.
        task: sets the kind of the head, and the number and names of its labels.
        dropout: probability of every dropout in the model; None keeps the checkpoint's probabilities.
        allow_pickle: also read pytorch_model.bin. Loading a pickle can run code, so use this only with files you trust.
        new_head: initialize a head (and pooler) that is missing in the checkpoint or has another size.

    Raises:
        CheckpointError: the checkpoint does not exist, is not BERT-like, is already quantized, holds only a pickle, or its
            weights do not fit config.json.
    """
    name = _float_checkpoint(str(name_or_path))
    config = load_config(name)
    config.num_labels = task.num_labels
    config.problem_type = problem_type(task)
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    if new_head:
        forget_activation(config)
    if dropout is not None:
        configure_dropout(config, dropout)
    model, info = _from_pretrained(_auto_class(task.head.kind), name, config, allow_pickle)
    _check_loaded(model, info, name, new_head)
    return _with_logits(model, task.head.kind)


def _auto_class(kind: HeadKind) -> Any:
    """Return transformers' Auto class of models with a head of this kind."""
    import transformers

    return getattr(transformers, f"AutoModel{class_ending(kind)}")


def _with_logits(model: Any, kind: HeadKind) -> Any:
    """Return `model`, whose output then has `logits` also for question answering; see `q8trt.models.token_heads`."""
    if kind is not HeadKind.QUESTION_ANSWERING:
        return model
    from q8trt.models.token_heads import with_span_logits

    return with_span_logits(model)


def load_embedding(
    name_or_path: str | Path, embedding: Embedding, max_length: int | None = None, allow_pickle: bool = False
) -> EmbeddingModel:
    """Return a floating-point embedding model, float32, on the CPU, in evaluation mode.

    Args:
        name_or_path: folder, hub name or short name.
        embedding: the steps from hidden states to the embedding; the weights of Dense layers are read from the folder.
        max_length: maximum number of tokens of a text, which saving the model writes to its folder.
        allow_pickle: see `load_pretrained`; Dense layers are read from safetensors only.

    Raises:
        CheckpointError: see `load_pretrained`; also, the weights of a Dense layer are missing or do not fit.
    """
    from transformers import AutoModel

    from q8trt.models.embedding import EmbeddingModel

    name = _float_checkpoint(str(name_or_path))
    encoder, info = _from_pretrained(AutoModel, name, load_config(name), allow_pickle)
    model = EmbeddingModel(encoder, embedding, max_length)
    _check_loaded(
        model, {**info, "missing_keys": [key for key in info["missing_keys"] if "pooler." not in key]}, name, False
    )
    model.read_dense(name)
    return model.eval()


def _float_checkpoint(name_or_path: str) -> str:
    """Return the folder or hub name of a checkpoint; raise CheckpointError if it is damaged or quantized."""
    name = resolve_model(name_or_path)
    check_whole(name)
    check_shards(name)
    if is_quantized(name):
        raise CheckpointError(f"{name} is already quantized; give the floating-point checkpoint it was made from")
    return name


def _from_pretrained(auto_class: Any, name: str, config: Any, allow_pickle: bool) -> tuple[Any, dict[str, Any]]:
    """Return a model of one of transformers' Auto classes, and the loading info: missing, unexpected, mismatched keys."""
    folder = Path(name)
    if folder.is_dir() and not allow_pickle and not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no model.safetensors; pickled weights (pytorch_model.bin) are read only with --allow_pickle"
        )
    _quiet_transformers()
    try:
        model, info = auto_class.from_pretrained(
            name,
            config=config,
            local_files_only=only_local(name),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            dtype="float32",
            output_loading_info=True,
        )
    except Q8TRTError:
        raise
    except Exception as error:  # transformers and safetensors raise a dozen types for an unusable checkpoint
        raise unavailable(name, error) from None
    return model, info


def _check_loaded(model: Model, info: dict[str, Any], name: str, new_head: bool) -> None:
    """Raise if a weight was initialized, except in a head that may be new; transformers only warns."""
    encoder = f"{model.base_model_prefix}."
    wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if new_head:
        wrong = [key for key in wrong if key.startswith(encoder) and not key.startswith(f"{encoder}pooler.")]
    wrong += [key for key in info["unexpected_keys"] if architecture_of(model.config).layers in key]
    _check_foreign_quantizers(info["unexpected_keys"], name)
    if wrong:
        raise CheckpointError(
            f"{name}: the weights do not fit config.json: {sorted(wrong)[0]} is missing, has another size or is not used "
            f"({len(wrong)} such); check that both files belong to the same model"
        )


def _check_foreign_quantizers(unexpected: Iterable[str], name: str) -> None:
    """Raise if the weights include quantizers of another library, which transformers would drop."""
    if keys := sorted(key for key in unexpected if "_quantizer." in key):
        raise CheckpointError(
            f"{name} has quantizers of another library ({keys[0]}, {len(keys)} such); give the floating-point checkpoint "
            "that it was made from, and read the ranges of pytorch-quantization with calibrate.py "
            "--from_pytorch_quantization"
        )


def load_finetuned(folder: str | Path, task: Task, allow_pickle: bool = False) -> Model:
    """Return a floating-point model with the trained head of a checkpoint; an `EmbeddingModel` for a task of embeddings.

    The outputs of the head are put into the order of the task's labels.

    Raises:
        CheckpointError: see `load_pretrained`; also, the checkpoint has no head for `task`.
    """
    name = resolve_model(str(folder))
    if task.embedding:
        return load_embedding(str(folder), task.embedding, read_max_length(name), allow_pickle)
    config = load_config(name)
    order = check_head(config, task, str(folder))
    model = load_pretrained(name, task, allow_pickle=allow_pickle, new_head=False)
    adopt_activation(model.config, name)
    activation_of(model.config, task, str(folder))
    if task.head.kind is HeadKind.RERANKER:
        set_activation(model.config, task.head.activation)
    if order is not None:
        reorder_head(model, order)
        names = [config.id2label[number] for number in range(task.num_labels)]
        _log.info("%s: the outputs %s are reordered to %s", folder, ", ".join(names), ", ".join(task.labels))
    return model


def save_checkpoint(
    folder: str | Path, model: Model, tokenizer: PreTrainedTokenizerFast, recipe: Recipe | None = None
) -> None:
    """Write a checkpoint folder and its hashes atomically; with `recipe`, the model is quantized and the recipe is stored."""
    from q8trt.quantization.insertion import model_quantizers

    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    _quiet_transformers()
    with files.atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if recipe is not None:
            source = made_by(next(iter(model_quantizers(model).values())))
            quantizer = {"library": source.name, "version": source.version()}
            data = {"format": _FORMAT, "quantizer": quantizer, "recipe": recipe.to_dict()}
            files.write_json(temporary / QUANTIZATION_FILE, data)
        files.write_seal(temporary)


def new_model(config: Any, name_or_path: str | Path, head: Head | None = None) -> Model:
    """Return a randomly initialized model with `head`; None for the head that the checkpoint `name_or_path` has."""
    from transformers import AutoModel

    from q8trt.models.embedding import EmbeddingModel

    name = resolve_model(str(name_or_path))
    kind, length = head.kind if head else kind_of(config.architectures or []), None
    embedding = head.embedding if head else None
    if kind is None and has_modules(name):
        embedding, length = read_embedding(name, config.hidden_size)
    if embedding is None:
        kind = kind or HeadKind.SEQUENCE_CLASSIFICATION
        model: Model = _auto_class(kind).from_config(config, trust_remote_code=False)
        return _with_logits(model, kind)
    return EmbeddingModel(AutoModel.from_config(config, trust_remote_code=False), embedding, length)


def load_recipe_of(folder: str | Path) -> Recipe:
    """Return the recipe of a quantized checkpoint.

    Raises:
        CheckpointError: quantization.json is missing, damaged or of another format.
    """
    path = Path(folder) / QUANTIZATION_FILE
    problem = f"{path} cannot be read as a quantization recipe"
    try:
        data = files.read_json(path, _LIMITS)
    except OSError as error:
        raise CheckpointError(f"{problem}: {error.strerror or error}") from None
    except files.MalformedError as error:
        raise CheckpointError(f"{problem}: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("recipe"), dict):
        raise CheckpointError(f"{problem}: expected an object with 'recipe'")
    if data.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {str(data.get('format'))[:20]!r}, expected {_FORMAT}; use the version of q8trt that made it"
        )
    try:
        return Recipe.from_dict(data["recipe"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{problem}: {str(error)[:500]}") from None


def load_quantized(folder: str | Path, library: Library | None = None) -> tuple[Model, Recipe]:
    """Return a calibrated, fake-quantized model and its recipe, on the CPU, in evaluation mode.

    Args:
        folder: a quantized checkpoint, made with any quantizer library.
        library: the library of the model's quantizers; None for ModelOpt.

    Raises:
        CheckpointError: the checkpoint is damaged, or its recipe and weights do not list the same sites.
    """
    from q8trt.models.embedding import EmbeddingModel
    from q8trt.quantization.calibration import check_amax
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.weights import load_weights, read_safetensors

    check_whole(str(folder))
    recipe = load_recipe_of(folder)
    config = load_config(str(folder))
    state = read_safetensors(Path(folder) / "model.safetensors", "train or calibrate again")
    _quiet_transformers()
    model = new_model(config, folder)
    if isinstance(model, EmbeddingModel):
        model.read_dense(folder)
        state = model.full_state(state)
    quantizers = insert_quantizers(model, recipe, library)
    _check_recipe_matches(model, set(quantizers), state, folder)
    for site in encoder_sites(model):
        if site.key in quantizers:
            quantizers[site.key].amax = state[f"{site.quantizer}._amax"]
            if (scale := state.get(f"{site.quantizer}._pre_quant_scale")) is not None:
                _check_smoothing(site.key, quantizers[site.key], folder)
                quantizers[site.key].pre_quant_scale = scale
    load_weights(model, state, f"{folder}: the weights do not fit config.json")
    try:
        check_amax(quantizers)
    except QuantizationError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return model.eval(), recipe


def _check_smoothing(key: str, quantizer: Any, folder: str | Path) -> None:
    if not hasattr(type(quantizer), "pre_quant_scale"):
        raise CheckpointError(
            f"{folder}: {key} is smoothed (SmoothQuant), which this library's quantizers do not support; use "
            "--quantizer modelopt"
        )


def _check_recipe_matches(model: nn.Module, expected: set[str], state: dict[str, Any], folder: str | Path) -> None:
    by_name = {f"{site.quantizer}._amax": site.key for site in encoder_sites(model)}
    present = {by_name.get(name, name) for name in state if name.endswith("_quantizer._amax")}
    for keys, problem in (
        (expected - present, "has no amax for"),
        (present - expected, "has an amax that its recipe lacks:"),
    ):
        if keys:
            raise CheckpointError(
                f"{folder}: the recipe in {QUANTIZATION_FILE} does not match the model: it {problem} {sorted(keys)[0]} "
                f"({len(keys)} such); calibrate again from the floating-point checkpoint"
            )
