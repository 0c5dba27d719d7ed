"""Checks of a checkpoint that need no weights: its configuration, its tokenizer, the names of its outputs.

`locate` finds the folder. `config_file` reads config.json and refuses what q8trt cannot run. `config` makes transformers'
configuration of it. `tokenizer` loads the tokenizer and fits it to the model. `labels` compares the names of outputs with
those of a task. `rows` checks token ids against the tables. `whole` compares the files with the
hashes that were saved. All of it is done before a training step.
"""

from q8trt.models.config import load_config, positions, takes_token_types
from q8trt.models.labels import label_order, reorder_head
from q8trt.models.locate import MINILM_PACKAGE, SHORT_NAMES, only_local, resolve_model, short_name, unavailable
from q8trt.models.rows import check_rows
from q8trt.models.tokenizer import load_tokenizer, model_inputs
from q8trt.models.whole import check_shards, check_whole

__all__ = [
    "MINILM_PACKAGE",
    "SHORT_NAMES",
    "activation",
    "check_rows",
    "check_shards",
    "check_whole",
    "checkpoints",
    "label_order",
    "load_config",
    "load_tokenizer",
    "model_inputs",
    "only_local",
    "positions",
    "reorder_head",
    "resolve_model",
    "short_name",
    "takes_token_types",
    "unavailable",
]
