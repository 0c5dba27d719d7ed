"""Tiny random models whose heads answer each token, and their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import WITH_TOKEN_TYPES, make_model_of, make_tokenizer

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagger_labels() -> dict[str, Any]:
    """The entries of config.json that name the tags."""
    return {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}


def make_tagger(architecture: str = "bert", seed: int = 0) -> Any:
    """A random model for token classification with `TAGS`."""
    model = make_model_of("TokenClassification", architecture, len(TAGS), seed)
    model.config.update(tagger_labels())
    return model


def make_reader(architecture: str = "bert", seed: int = 0) -> Any:
    """A random model for question answering."""
    return make_model_of("QuestionAnswering", architecture, 2, seed)


MAKERS = {"token-classification": make_tagger, "question-answering": make_reader}


def write_token_folder(folder: Path, kind: str = "token-classification", architecture: str = "bert") -> Path:
    """Write the folder of a tiny model of that kind of head, as transformers does, without hashes."""
    MAKERS[kind](architecture).save_pretrained(folder)
    make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES).save_pretrained(folder)
    return folder
