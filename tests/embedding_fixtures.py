"""Tiny embedding models and their folders, as sentence-transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import WITH_TOKEN_TYPES, make_config, make_tokenizer

#: Texts of the tiny tokenizer's words, of different lengths.
TEXTS = (
    "a man walks in the park", "the young woman runs on a street", "a dog", "two birds sing above the big house",
    "snow falls on the old road to town", "she reads a long book by the window of the train", "the cat eats fish",
    "children play with a ball on the green grass", "a boat on the sea", "he has no time to look at the moon",
)  # fmt: skip


def make_embedding_model(architecture: str = "bert", seed: int = 0, max_length: int | None = 32, **steps: Any) -> Any:
    """A random embedding model in evaluation mode; `steps` are fields of `Embedding`, the dimension follows from them."""
    import torch
    from transformers import AutoModel

    from q8trt.models.embedding import EmbeddingModel
    from q8trt.tasks.heads import Embedding

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = AutoModel.from_config(make_config(architecture))
        modes, dense = steps.get("pooling", ("mean",)), steps.get("dense", ())
        dimension = dense[-1].out_features if dense else len(modes) * 32
        model = EmbeddingModel(encoder, Embedding(dimension, **{"normalize": True, **steps}), max_length)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def write_embedding_folder(folder: Path, architecture: str = "bert", **steps: Any) -> Path:
    """Write the folder of a tiny embedding model, without hashes, as one from elsewhere."""
    from q8trt.models.checkpoints import save_checkpoint

    tokenizer = make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES)
    save_checkpoint(folder, make_embedding_model(architecture, **steps), tokenizer)
    (folder / "hashes.json").unlink()
    return folder


def embedding_engine(folder: Path, **steps: Any) -> Path:
    """An engine folder of a tiny embedding model, without a plan."""
    from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
    from q8trt.engine.manifest_file import write_manifest
    from q8trt.export.onnx import ExportOptions, export_onnx
    from q8trt.quantization.precision import Precision
    from q8trt.tasks.heads import Head, HeadKind

    folder.mkdir(parents=True)
    tokenizer, model = make_tokenizer(), make_embedding_model(**steps)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    export_onnx(model, folder / "model.onnx", "fp32", names, ExportOptions("torchscript"))
    tokenizer.save_pretrained(folder)
    task = TaskInfo("embedding", [], False, False, "cosine_mean")
    info = ModelInfo("tiny", "bert", model.embedding.dimension, 64, tokenizer.pad_token_id, 32)
    head = Head(HeadKind.EMBEDDING, max_length=32, embedding=model.embedding)
    write_manifest(folder, Manifest(task, info, Precision.FP32, None, names, 20, head=head))
    return folder
