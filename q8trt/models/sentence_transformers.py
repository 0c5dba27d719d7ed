"""Folders of sentence-transformers, read into an `Embedding` and written so that the library opens them.

modules.json                      the modules in order: Transformer, Pooling, Dense (any number), Normalize
1_Pooling/config.json             the pooling modes and the width of the hidden states
2_Dense/config.json               a linear layer; its weights are in model.safetensors beside it
sentence_bert_config.json         the maximum number of tokens of a text
config_sentence_transformers.json prompts and the name of the default prompt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.errors import CheckpointError, ConfigError
from q8trt.models.config_file import read_object
from q8trt.tasks.heads import POOLING_MODES, DenseLayer, Embedding

MODULES_FILE = "modules.json"
_SETTINGS_FILE, _LENGTH_FILE = "config_sentence_transformers.json", "sentence_bert_config.json"
#: The names of `_LENGTH_FILE` in folders of early versions, in the library's order; the first file that exists counts.
_LENGTH_FILES = (
    _LENGTH_FILE, "sentence_roberta_config.json", "sentence_distilbert_config.json", "sentence_camembert_config.json",
    "sentence_albert_config.json", "sentence_xlm-roberta_config.json", "sentence_xlnet_config.json",
)  # fmt: skip
#: Keys of `_LENGTH_FILE` that change the tokens of a text. Only `max_seq_length` and `do_lower_case` are read.
_TOKEN_SETTINGS = (
    "processing_kwargs", "processor_kwargs", "tokenizer_args", "query_length", "document_length", "query_expansion"
)  # fmt: skip
_LIMITS = files.Limits(size=2**20, depth=16, values=10_000)
#: Switch in the Pooling of versions before 5.7 -> mode, in the order of concatenation.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Supported activations of a Dense layer, all in torch.nn.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
_ACTIVATION_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.linear", "torch.nn.modules", "torch.nn")
#: Largest accepted width of a Dense layer.
_LARGEST_WIDTH = 65_536


def has_modules(folder: str | Path) -> bool:
    """Return whether `folder` is a model of sentence-transformers."""
    return (Path(folder) / MODULES_FILE).is_file()


def read_embedding(folder: str | Path, width: int) -> tuple[Embedding, int | None]:
    """Return the steps from hidden states to the embedding, and the maximum number of tokens of a text or None.

    Args:
        folder: a folder of sentence-transformers.
        width: features of the encoder's hidden states.

    Raises:
        CheckpointError: a file is missing or damaged; or a module, a pooling or an activation is not supported.
    """
    folder = Path(folder)
    dense: list[DenseLayer] = []
    pooling: tuple[str, ...] = ()
    normalize = False
    for kind, path in _modules(folder):
        if kind == "Pooling" and not pooling:
            pooling = _pooling(path, width)
        elif kind == "Dense" and pooling and not normalize:
            dense.append(_dense(path))
        elif kind == "Normalize" and pooling and not normalize:
            normalize = True
        else:
            raise CheckpointError(
                f"{folder / MODULES_FILE} has the module {kind}; expected Transformer, Pooling, Dense and Normalize in "
                "this order; give another model"
            )
    settings = _optional(folder / _SETTINGS_FILE)
    _check_settings(folder, settings)
    first = len(pooling) * width
    try:
        if dense and dense[0].in_features != first:
            raise ConfigError(
                f"a Dense layer has {dense[0].in_features} inputs, and the pooling gives {first} features"
            )
        dimension = dense[-1].out_features if dense else first
        prompts, default = _prompts(settings)
        embedding = Embedding(dimension, pooling, tuple(dense), normalize, prompts, default)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}; copy the model again") from None
    return embedding, read_max_length(folder)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the class and the folder of each module after the Transformer, which must be first."""
    path = folder / MODULES_FILE
    try:
        entries = files.read_json(path, _LIMITS)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except files.MalformedError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy the model again") from None
    modules = []
    for entry in entries if isinstance(entries, list) else [None]:
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if (
            not isinstance(kind, str)
            or not isinstance(place, str)
            or Path(place).is_absolute()
            or ".." in Path(place).parts
        ):
            raise CheckpointError(
                f"{path} is damaged: expected a list of modules, each with 'type' and 'path' in the folder"
            )
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise CheckpointError(
                f"{path} names {kind[:80]!r}, Python code that q8trt does not run; give another model"
            )
        modules.append((name, folder / place))
    if not modules or modules[0][0] != "Transformer":
        raise CheckpointError(f"{path} does not begin with a Transformer, the module that q8trt quantizes")
    if modules[0][1] != folder:
        raise CheckpointError(
            f"{path} has its Transformer in {modules[0][1].name}/; expected it beside modules.json; load and save the "
            "model with sentence-transformers 2 or later"
        )
    if len(modules) == 1:
        raise CheckpointError(f"{path} has no Pooling; give it, as in --head embedding --pooling mean")
    return modules[1:]


def _pooling(folder: Path, width: int) -> tuple[str, ...]:
    """Return the modes of a Pooling, in the order of concatenation."""
    path = folder / "config.json"
    settings = read_object(path, _LIMITS)
    if "pooling_mode" in settings:
        modes = settings["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else modes
    else:
        modes = [mode for switch, mode in _SWITCHES.items() if settings.get(switch) is True] or ["mean"]
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes) or not modes:
        raise CheckpointError(f"{path} is damaged: expected 'pooling_mode', a name or a list of names")
    if others := [mode for mode in modes if mode not in POOLING_MODES]:
        raise CheckpointError(f"{path} has the pooling {others[0][:40]!r}; q8trt supports {', '.join(POOLING_MODES)}")
    if settings.get("include_prompt") is False:
        raise CheckpointError(
            f"{path} excludes prompts from the pooling (include_prompt), which q8trt does not support"
        )
    for name in ("embedding_dimension", "word_embedding_dimension"):
        if settings.get(name, width) != width:
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}, but the encoder's hidden states have {width}")
    return tuple(modes)


def _dense(folder: Path) -> DenseLayer:
    path = folder / "config.json"
    settings = read_object(path, _LIMITS)
    widths = [settings.get(name) for name in ("in_features", "out_features")]
    if not all(type(value) is int and 1 <= value <= _LARGEST_WIDTH for value in widths):
        raise CheckpointError(f"{path}: in_features and out_features are {widths}, expected 1 to {_LARGEST_WIDTH:,}")
    package, _, activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(
        "."
    )
    if package not in _ACTIVATION_MODULES or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{path} has the activation {activation[:40]!r}; q8trt supports torch.nn's {', '.join(ACTIVATIONS)}"
        )
    names = {settings.get(name) for name in ("module_input_name", "module_output_name")} - {None, "sentence_embedding"}
    if names or settings.get("use_residual"):
        raise CheckpointError(
            f"{path} has a Dense layer with a residual or for tokens; q8trt supports Dense layers of the embedding only"
        )
    return DenseLayer(int(str(widths[0])), int(str(widths[1])), settings.get("bias", True) is not False, activation)


def _prompts(settings: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError("prompts is not an object of texts")
    if not isinstance(default, str | None):
        raise ConfigError("default_prompt_name is not a name")
    return prompts, default


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError for settings that change the tokens of a text or the length of its embedding."""
    if (length := settings.get("truncate_dim")) is not None:
        raise CheckpointError(
            f"{folder / _SETTINGS_FILE} cuts embeddings to {str(length)[:20]} features (truncate_dim), and an engine returns "
            "all; remove truncate_dim from the file and cut the embeddings in your application"
        )
    path, transformer = _transformer_settings(folder)
    if name := next((name for name in _TOKEN_SETTINGS if transformer.get(name)), None):
        raise CheckpointError(
            f"{path} has {name}, which changes the tokens of a text and which q8trt does not support; remove it if the model "
            "works without it, or give another model"
        )


def read_max_length(folder: str | Path) -> int | None:
    """Return the maximum number of tokens of a text; None if the folder does not state it. Raises CheckpointError."""
    path, settings = _transformer_settings(Path(folder))
    length = settings.get("max_seq_length")
    if length is None:
        return None
    if type(length) is not int or not 1 <= length <= 2**20:
        raise CheckpointError(f"{path}: max_seq_length is {str(length)[:40]}, expected the number of tokens")
    return length


def lowers_texts(folder: str | Path) -> bool:
    """Return whether texts are lowercased before the tokenizer reads them. Raises CheckpointError."""
    return _transformer_settings(Path(folder))[1].get("do_lower_case") is True


def _transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file with the settings of the Transformer, under its name or an earlier one, and the settings; {} if missing."""
    path = next((folder / name for name in _LENGTH_FILES if (folder / name).is_file()), folder / _LENGTH_FILE)
    return path, _optional(path)


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path, _LIMITS) if path.is_file() else {}


def dense_paths(folder: str | Path) -> list[Path]:
    """Return the folders of the Dense layers, in order. Raises CheckpointError, see `read_embedding`."""
    return [path for kind, path in _modules(Path(folder)) if kind == "Dense"]


def dense_folder(number: int) -> str:
    """Return the folder name of the Dense layer `number`, counted from 0."""
    return f"{2 + number}_Dense"


def write_modules(folder: Path, embedding: Embedding, width: int, max_length: int | None) -> None:
    """Write all files of sentence-transformers except the weights and the tokenizer."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [(dense_folder(number), "Dense") for number in range(len(embedding.dense))]
    modules += [(f"{len(modules)}_Normalize", "Normalize")] * embedding.normalize
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    files.write_json(folder / MODULES_FILE, entries)
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    switches = {switch: mode in embedding.pooling for switch, mode in _SWITCHES.items()}
    in_order = tuple(mode for mode in POOLING_MODES if mode in embedding.pooling) == embedding.pooling
    pooling = switches if in_order else {"pooling_mode": list(embedding.pooling)}
    files.write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    for number, layer in enumerate(embedding.dense):
        settings = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias,
            "activation_function": f"torch.nn.modules.{_home(layer.activation)}.{layer.activation}",
        }
        files.write_json(folder / dense_folder(number) / "config.json", settings)
    files.write_json(
        folder / _SETTINGS_FILE, {"prompts": embedding.prompts, "default_prompt_name": embedding.default_prompt_name}
    )
    if max_length is not None:
        files.write_json(folder / _LENGTH_FILE, {"max_seq_length": max_length, "do_lower_case": False})


def _home(activation: str) -> str:
    return "linear" if activation == "Identity" else "activation"
