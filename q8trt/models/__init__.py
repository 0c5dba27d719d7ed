"""Checkpoints: find and check them, read their heads and tokenizers, load and save them (`checkpoints`).

Heads, labels, configurations and tokenizers are checked without weights, before training starts.
"""

from q8trt.models.config import check_rows, load_config, positions, takes_token_types
from q8trt.models.dropout import set_dropout
from q8trt.models.heads import check_head, kind_of, read_head
from q8trt.models.labels import label_order
from q8trt.models.locate import local_folder, resolve_model, short_name
from q8trt.models.tokenizer import load_tokenizer, model_inputs

__all__ = [
    "activation",
    "check_head",
    "check_rows",
    "checkpoints",
    "embedding",
    "kind_of",
    "label_order",
    "load_config",
    "load_tokenizer",
    "local_folder",
    "model_inputs",
    "positions",
    "read_head",
    "resolve_model",
    "set_dropout",
    "short_name",
    "takes_token_types",
]
