"""Engine folders of tiny models, without a plan, and what transformers answers in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from conftest import WITH_TOKEN_TYPES, make_batch, make_model, make_tokenizer

from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.quantization.precision import Precision

MAX_LENGTH = 16
REGRESSION = TaskInfo("STS-B", [], True, True, "pearson")
PAIRS = TaskInfo("MNLI", ["entailment", "neutral", "contradiction"], False, True, "accuracy")
SINGLE = TaskInfo("SST-2", ["negative", "positive"], False, False, "accuracy")
TASKS = {"regression": REGRESSION, "pairs": PAIRS, "single": SINGLE}
LONG = "the quick brown horse sees a small bird over the river and " * 3

ITEMS: dict[str, list[Any]] = {
    "regression": [
        ("a plane", "an air plane"), ("the girl sings", "a dog"), (LONG, "short"), ("short", LONG), (LONG, LONG),
        ("A Big, RED ball!", "über-naïve 東京"), ("x", "y"), ["a pair may", "be a list"],
    ],
    "single": ["a good day", "A bad, bad day!", LONG, "x", "naïve 東京 café"],
}  # fmt: skip
ITEMS["pairs"] = ITEMS["regression"]


def model_of(task: TaskInfo, architecture: str = "bert") -> Any:
    """The random torch model behind `engine_folder`."""
    return make_model(architecture, len(task.labels) or 1)


def engine_folder(folder: Path, task: TaskInfo, architecture: str = "bert", precision: str = "fp32") -> Path:
    """An engine folder of a random model for `task`, fine-tuned, so to say, at `MAX_LENGTH` tokens."""
    from q8trt.export.onnx import ExportOptions, export_onnx

    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    model = model_of(task, architecture)
    if precision == "int8":
        _quantize(model, architecture)
    export_onnx(model, folder / "model.onnx", precision, names, ExportOptions("torchscript"))
    tokenizer.save_pretrained(folder)
    config = model.config
    info = ModelInfo("tiny", config.model_type, len(task.labels) or 1, 64, tokenizer.pad_token_id, MAX_LENGTH)
    write_manifest(folder, Manifest(task, info, Precision(precision), None, names, 20))
    return folder


def _quantize(model: Any, architecture: str) -> None:
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    recipe = load_recipe("linear")
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [make_batch(architecture, seed=seed) for seed in range(3)])


def changed(folder: Path, **fields: Any) -> Path:
    """The folder with other fields in its manifest; a task brings its head."""
    if "task" in fields:
        fields.setdefault("head", None)
    write_manifest(folder, replace(load_manifest(folder, verify=False), **fields))
    return folder


def reference(task: TaskInfo, items: Sequence[Any], architecture: str = "bert") -> np.ndarray:
    """Logits of transformers' own model and tokenizer, one item at a time, without padding."""
    import torch

    tokenizer = make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES)
    model, rows = model_of(task, architecture), []
    for item in items:
        texts = (item,) if isinstance(item, str) else tuple(item)
        encoded = tokenizer(*texts, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**encoded).logits[0].numpy())
    return np.stack(rows)
