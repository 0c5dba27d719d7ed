"""transformers' configuration of a checkpoint of the BERT family, and the check of rows against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.console.names import one_line
from q8trt.errors import CheckpointError, DataError
from q8trt.models.config_file import check_config, for_transformers, read_config_file
from q8trt.models.locate import is_folder, resolve_model
from q8trt.quantization.architectures import ARCHITECTURES, architecture_of

if TYPE_CHECKING:
    from q8trt.tasks.data import Features

#: Parameters that config.json may describe beyond the bytes of the weight files; their memory is small.
_SPARE = 10_000_000


def load_config(name_or_path: str) -> Any:
    """Return the transformers configuration of a BERT-like checkpoint.

    Settings that only choose what a forward pass returns, such as output_attentions, are reset to transformers' defaults.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, or is a model that q8trt cannot run.
    """
    from transformers import AutoConfig

    name = resolve_model(name_or_path)
    data = read_config_file(name)
    shape = check_config(data, name_or_path)
    _check_weights_size(name, shape.parameters(ARCHITECTURES[data["model_type"]]))
    try:
        return AutoConfig.for_model(data["model_type"], **for_transformers(data, shape))
    except Exception as error:  # transformers raises a dozen types for a field that it refuses
        raise CheckpointError(
            f"{name_or_path}: config.json is not a configuration of transformers: {one_line(error)[:300]}"
        ) from None


def _check_weights_size(name: str, parameters: int) -> None:
    """Raise if config.json describes more weights than the folder has bytes, because loading allocates all of them."""
    if not is_folder(name):
        return
    weights = [path for pattern in ("*.safetensors", "*.bin") for path in Path(name).glob(pattern)]
    held = sum(path.stat().st_size for path in weights if path.is_file())
    if held and parameters > held + _SPARE:
        raise CheckpointError(
            f"{name}: the weights do not fit config.json: it describes {parameters / 1e6:,.0f} million parameters, and the "
            f"weights are {held / 2**20:,.0f} MiB; check that both files belong to the same model"
        )


def positions(config: Any) -> int:
    """Return the maximum number of tokens of a text, by the position table; rows up to the padding's do not count."""
    table: int = config.max_position_embeddings
    architecture = architecture_of(config)
    if not architecture.positions_after_padding:
        return table
    first: int = architecture.padding_index(config.pad_token_id) + 1
    return table - first


def takes_token_types(config: Any) -> bool:
    """Return whether token types are an input of the model: it has two or more of them."""
    return architecture_of(config).token_type_embeddings is not None and config.type_vocab_size > 1


def check_rows(rows: Features, config: Any) -> None:
    """Check that the model's tables have a row for every id and position of `rows`.

    Raises:
        DataError: a token id, a token type or a length is beyond its table.
    """
    tables = [("token id", rows.input_ids, config.vocab_size)]
    if rows.token_type_ids is not None and takes_token_types(config):
        tables.append(("token type", rows.token_type_ids, config.type_vocab_size))
    for kind, lists, size in tables:
        lowest, highest = _range(lists)
        if lowest < 0 or highest >= size:
            raise DataError(
                f"{rows.source}: {kind} {lowest if lowest < 0 else highest}, but the model's table has {size} rows (0 to "
                f"{size - 1}); the rows were made for another model"
            )
    longest = max((len(row) for row in rows.input_ids), default=0)
    if longest > positions(config):
        raise DataError(
            f"{rows.source}: {longest} tokens in a row, but the model has {positions(config)} positions; lower "
            "--max_seq_length"
        )


def _range(lists: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the lowest and the highest number of all lists; 0 and 0 if all are empty."""
    filled = [each for each in lists if len(each)]
    return min(map(min, filled), default=0), max(map(max, filled), default=0)
