"""The tokenizer of a checkpoint, which `load_tokenizer` gives the inputs and the number of positions of its model."""

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
#: Ending of the files of sentencepiece, which transformers converts where that package is installed.
_SENTENCEPIECE = ".model"
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: transformers writes 10^30 for "no limit of tokens".
_LIMITS = files.Limits(size=2**24, values=200_000, bits=128)
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer of a checkpoint, with the inputs and the length of its model.

    An engine folder has no config.json; its tokenizer was saved with both.

    Raises:
        CheckpointError: not found, damaged, only a slow tokenizer exists, or one that does not fit the model's tables.
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
    """Return the arrays that the tokenizer makes, in BERT's order."""
    return tuple(name for name in _INPUTS if name in tokenizer.model_input_names)


def _check_files(folder: Path, where: str) -> None:
    """Raise where the folder has no tokenizer, or where a file about it is damaged or asks for foreign code."""
    first = next((file for file in TOKENIZER_FILES if (folder / file).is_file()), None)
    if first is None:
        # transformers would make a tokenizer of an empty vocabulary, to which every word is unknown
        raise CheckpointError(f"{folder} holds no tokenizer; expected one of {', '.join(TOKENIZER_FILES[:3])}")
    if first.endswith(_SENTENCEPIECE) and not _has_sentencepiece():
        raise CheckpointError(
            f"{where} has {first} and no tokenizer.json, and reading it needs sentencepiece: {install_command('sentencepiece')}"
        )
    for name in _CONFIG_FILES:
        path = folder / name
        if not path.exists():
            continue
        data = read_object(path, _LIMITS)
        if data.get("auto_map"):
            raise CheckpointError(
                f"{where} has a tokenizer that needs Python code of its own (auto_map in {name}), which q8trt never runs; "
                "save it as tokenizer.json"
            )


def _has_sentencepiece() -> bool:
    return installed_version("sentencepiece") is not None


def _load(name: str, where: str, config: Any) -> Any:
    """Return transformers' tokenizer; its libraries raise a dozen types, and panic, on a damaged file."""
    from transformers import AutoTokenizer

    options = {} if config is None else {"config": config}  # else it reads config.json by itself, without limits
    try:
        with files.no_panic():
            return AutoTokenizer.from_pretrained(
                name, local_files_only=only_local(name), trust_remote_code=False, **options
            )
    except ImportError as error:
        raise CheckpointError(
            f"{where} has no fast tokenizer (tokenizer.json), and its slow one needs more packages: "
            f"{one_line(error)[:200]}"
        ) from None
    except Exception as error:
        advice = ""
        if not is_folder(name) and not _has_sentencepiece():  # transformers asks for tiktoken, which is of no use here
            advice = f"; if it has no tokenizer.json, install what reads its model: {install_command('sentencepiece')}"
        raise CheckpointError(f"{where}: the tokenizer cannot be read: {one_line(error)[:300]}{advice}") from None


def _check_usable(tokenizer: Any, where: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{where} has a {type(tokenizer).__name__}, which exists as a slow tokenizer only; the engine folder needs a "
            "tokenizer.json, as fast tokenizers have it"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{where}: the tokenizer has no padding token; set pad_token in tokenizer_config.json")
    if not isinstance(tokenizer.model_max_length, int | float) or tokenizer.model_max_length < 1:
        raise CheckpointError(
            f"{where}: model_max_length is {tokenizer.model_max_length!r} in tokenizer_config.json; expected the number of "
            "tokens that the model reads"
        )
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 1:
        raise CheckpointError(
            f"{where}: the tokenizer knows no words; the file of its vocabulary is missing or damaged"
        )
    try:
        with files.no_panic():
            single, pair = tokenizer("a")["input_ids"], tokenizer("a", "b")["input_ids"]
    except Exception as error:
        raise CheckpointError(f"{where}: the tokenizer cannot encode a text: {one_line(error)[:300]}") from None
    if not 0 < len(single) < len(pair):
        raise CheckpointError(f"{where}: the tokenizer makes no tokens of a text; its files are damaged")


def _check_case(tokenizer: Any, where: str) -> None:
    """Raise CheckpointError if the tokenizer of a model that reads lower case has other tokens for capitals."""
    text = "The Quick Brown FOX"
    if tokenizer(text)["input_ids"] != tokenizer(text.lower())["input_ids"]:
        raise CheckpointError(
            f"{where} puts texts into lower case before its tokenizer (do_lower_case in sentence_bert_config.json), and an "
            "engine does not; save it with a tokenizer that does so itself"
        )


def _fit(tokenizer: Any, config: Any, where: str) -> None:
    """Give `tokenizer` the model's inputs and positions; raise where it has ids beyond the model's token table."""
    rows = config.vocab_size
    ids = {*tokenizer.get_vocab().values(), *tokenizer("a", "b")["input_ids"]}
    if beyond := sum(each >= rows for each in ids):
        raise CheckpointError(
            f"{where}: {beyond} tokens of the tokenizer have ids beyond the model's token table of {rows} rows (the highest "
            f"is {max(ids)}); take the model's own tokenizer, or save the model after resize_token_embeddings"
        )
    names = [name for name in tokenizer.model_input_names if name in _INPUTS]
    tokenizer.model_input_names = [name for name in names if name != "token_type_ids" or takes_token_types(config)]
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), positions(config))
