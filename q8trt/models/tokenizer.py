"""The tokenizer of a checkpoint; `load_tokenizer` sets the inputs and the number of positions of its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.console.names import one_line
from q8trt.errors import CheckpointError
from q8trt.hardware.packages import install_command, installed_version
from q8trt.models.config import load_config, positions, takes_token_types
from q8trt.models.config_file import CONFIG_FILE, read_object
from q8trt.models.locate import is_folder, only_local, resolve_model
from q8trt.models.sentence_transformers import lowers_texts
from q8trt.models.whole import check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Files that a fast tokenizer can be made from.
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model"
)  # fmt: skip
#: Ending of the files of sentencepiece, which transformers converts if that package is installed.
_SENTENCEPIECE = ".model"
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: Integers have up to 128 bits, because transformers writes 10^30 as model_max_length for "no limit".
_LIMITS = files.Limits(size=2**24, values=200_000, bits=128)
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer of a checkpoint, with the inputs and the maximum length of its model.

    An engine folder has no config.json; its tokenizer was saved with both.

    Raises:
        CheckpointError: the tokenizer is missing, damaged or slow, or does not fit the model's token table.
    """
    name = resolve_model(name_or_path)
    check_whole(name, weights=False)
    if is_folder(name):
        _check_files(Path(name), name_or_path)
    config = None if is_folder(name) and not (Path(name) / CONFIG_FILE).exists() else load_config(name)
    tokenizer = _load(name, name_or_path, config)
    _check_usable(tokenizer, name_or_path)
    if is_folder(name) and lowers_texts(name):
        _check_case(tokenizer, name_or_path)
    if config is not None:
        _fit(tokenizer, config, name_or_path)
    return tokenizer


def model_inputs(tokenizer: Any) -> tuple[str, ...]:
    """Return the names of the arrays that the tokenizer makes, in BERT's order."""
    return tuple(name for name in _INPUTS if name in tokenizer.model_input_names)


def _check_files(folder: Path, where: str) -> None:
    """Raise if the folder has no tokenizer, or one of its files is damaged or needs foreign code."""
    first = next((file for file in TOKENIZER_FILES if (folder / file).is_file()), None)
    if first is None:
        # transformers would make a tokenizer with an empty vocabulary, for which every word is unknown
        raise CheckpointError(f"{folder} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES[:3])}")
    if first.endswith(_SENTENCEPIECE) and not _has_sentencepiece():
        raise CheckpointError(
            f"{where} has {first} and no tokenizer.json; to read it, install sentencepiece: {install_command('sentencepiece')}"
        )
    for name in _CONFIG_FILES:
        path = folder / name
        if not path.exists():
            continue
        data = read_object(path, _LIMITS)
        if data.get("auto_map"):
            raise CheckpointError(
                f"{where} has a tokenizer that needs its own Python code (auto_map in {name}), which q8trt never runs; "
                "save it as tokenizer.json"
            )


def _has_sentencepiece() -> bool:
    return installed_version("sentencepiece") is not None


def _load(name: str, where: str, config: Any) -> Any:
    """Return transformers' tokenizer; on a damaged file, its libraries raise a dozen types, or panic."""
    from transformers import AutoTokenizer

    options = {} if config is None else {"config": config}  # without it, transformers reads config.json without limits
    try:
        with files.no_panic():
            return AutoTokenizer.from_pretrained(
                name, local_files_only=only_local(name), trust_remote_code=False, **options
            )
    except ImportError as error:
        raise CheckpointError(
            f"{where} has no fast tokenizer (tokenizer.json), and converting its slow one needs more packages: "
            f"{one_line(error)[:200]}"
        ) from None
    except Exception as error:
        advice = ""
        if not is_folder(name) and not _has_sentencepiece():  # transformers asks for tiktoken, which does not help here
            advice = f"; if it has no tokenizer.json, install sentencepiece: {install_command('sentencepiece')}"
        raise CheckpointError(f"{where}: the tokenizer cannot be read: {one_line(error)[:300]}{advice}") from None


def _check_usable(tokenizer: Any, where: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{where} has a {type(tokenizer).__name__}, a slow tokenizer; expected a fast one, with a tokenizer.json, which "
            "the engine folder needs"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{where}: the tokenizer has no padding token; set pad_token in tokenizer_config.json")
    if not isinstance(tokenizer.model_max_length, int | float) or tokenizer.model_max_length < 1:
        raise CheckpointError(
            f"{where}: model_max_length is {tokenizer.model_max_length!r} in tokenizer_config.json; expected the number of "
            "tokens that the model reads"
        )
    if tokenizer.split_special_tokens:
        raise CheckpointError(
            f"{where}: the tokenizer splits special tokens in texts, such as {tokenizer.all_special_tokens[0]} "
            "(split_special_tokens in tokenizer_config.json), and an engine does not; set it to false"
        )
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 1:
        raise CheckpointError(f"{where}: the tokenizer has no words; the file of its vocabulary is missing or damaged")
    try:
        with files.no_panic():
            single, pair = tokenizer("a")["input_ids"], tokenizer("a", "b")["input_ids"]
    except Exception as error:
        raise CheckpointError(f"{where}: the tokenizer cannot encode a text: {one_line(error)[:300]}") from None
    if not 0 < len(single) < len(pair):
        raise CheckpointError(f"{where}: the tokenizer makes no tokens of a text; its files are damaged")


def _check_case(tokenizer: Any, where: str) -> None:
    """Raise CheckpointError if the tokenizer of a model for lowercase texts does not lowercase texts itself."""
    text = "The Quick Brown FOX"
    if tokenizer(text)["input_ids"] != tokenizer(text.lower())["input_ids"]:
        raise CheckpointError(
            f"{where} lowercases texts before its tokenizer (do_lower_case in sentence_bert_config.json), and an engine "
            "does not; save it with a tokenizer that lowercases texts itself"
        )


def _fit(tokenizer: Any, config: Any, where: str) -> None:
    """Set the model's inputs and positions in `tokenizer`; raise if it has ids beyond the model's token table."""
    rows = config.vocab_size
    ids = {*tokenizer.get_vocab().values(), *tokenizer("a", "b")["input_ids"]}
    if beyond := sum(each >= rows for each in ids):
        raise CheckpointError(
            f"{where}: {beyond} tokens of the tokenizer have ids beyond the model's token table of {rows} rows (the highest "
            f"is {max(ids)}); use the model's tokenizer, or save the model after resize_token_embeddings"
        )
    names = [name for name in tokenizer.model_input_names if name in _INPUTS]
    tokenizer.model_input_names = [name for name in names if name != "token_type_ids" or takes_token_types(config)]
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), positions(config))
