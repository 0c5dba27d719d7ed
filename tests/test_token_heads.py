"""Heads that answer each token, token classification and question answering: from a folder to an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model_of
from embedding_fixtures import TEXTS
from token_fixtures import MAKERS, TAGS, make_reader, write_token_folder

import q8trt
from q8trt.deployment.triton import write_repository
from q8trt.errors import CheckpointError, ConfigError, DataError
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.models import read_head
from q8trt.models.checkpoints import load_finetuned, load_quantized, save_checkpoint
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, model_quantizers, set_quantization
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.runs.config import config_of_run
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.tasks.data import Features
from q8trt.tasks.data.batches import restore_tokens
from q8trt.tasks.glue import task_of_head
from q8trt.tasks.heads import Head, HeadKind
from q8trt.tasks.scoring import score

KINDS = ("token-classification", "question-answering")
OPTIONS: dict[str, Any] = {"recipe": "linear", "calibration_samples": 16, "max_seq_length": 16}


def task_of(kind: str) -> Any:
    head = Head(HeadKind(kind), TAGS if kind == "token-classification" else ())
    return task_of_head(head, is_pair=kind == "question-answering", has_labels=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read_quantized_saved_and_exported(
    kind: str, architecture: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Quantizers off equal transformers to the bit, also after a reload; the file's logits are those of fake quantization."""
    folder, task, batch = (
        write_token_folder(tmp_path / "model", kind, architecture),
        task_of(kind),
        make_batch(architecture),
    )
    assert read_head(str(folder)) == task.head
    model = load_finetuned(folder, task)
    theirs = MAKERS[kind](architecture)(**batch)
    expected = (
        theirs.logits if kind == "token-classification" else torch.stack([theirs.start_logits, theirs.end_logits], -1)
    )
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=0)
    recipe = load_recipe("full").candidates[0]
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [make_batch(architecture, seed=seed) for seed in range(3)])
    save_checkpoint(tmp_path / "ptq", model, tiny_tokenizer, recipe)
    classes = json.loads((tmp_path / "ptq" / "config.json").read_text())["architectures"]
    assert classes == [type(MAKERS[kind](architecture)).__name__]
    loaded, _ = load_quantized(tmp_path / "ptq")
    quantized = loaded(**batch).logits.detach().numpy()
    np.testing.assert_array_equal(quantized, model(**batch).logits.detach().numpy())
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    export_onnx(loaded, tmp_path / "model.onnx", "int8", names, ExportOptions("torchscript"))
    set_quantization(loaded, False)
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=0, atol=0)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    with OnnxRuntimeRunner(tmp_path / "model.onnx", "int8") as runner:
        logits = runner.infer(arrays)
        assert runner.infer({name: array[:1, :5] for name, array in arrays.items()}).shape == (1, 5, task.num_labels)
    mask = arrays["attention_mask"] == 1
    assert logits.shape == (3, 17, task.num_labels)
    assert np.abs(logits - quantized)[mask].mean() < 0.02 * np.abs(quantized[mask]).mean()


def test_exporters_give_one_file(tmp_path: Path) -> None:
    from q8trt.models.token_heads import with_span_logits

    model, names = with_span_logits(make_reader()), ["input_ids", "attention_mask", "token_type_ids"]
    for exporter in ("dynamo", "torchscript"):
        export_onnx(model, tmp_path / exporter, "fp16", names, ExportOptions(exporter))
    assert (tmp_path / "dynamo").read_bytes() == (tmp_path / "torchscript").read_bytes()


def test_the_classifier_is_a_site() -> None:
    recipe = Recipe.from_dict({"name": "head", "sites": {"classifier.input": {}, "classifier.weight": {}}})
    for kind, architecture, path in (
        ("token-classification", "roberta", "classifier"),
        ("question-answering", "bert", "qa_outputs"),
    ):
        model = MAKERS[kind](architecture)
        insert_quantizers(model, recipe)
        assert model_quantizers(model)["classifier.input"] is model.get_submodule(path).input_quantizer


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("kind", KINDS)
def test_quantize_without_labels(kind: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"sentence1": text, "sentence2": text, "text": text}) + "\n" for text in TEXTS * 5)
    )
    folder = write_token_folder(tmp_path / "model", kind)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = q8trt.quantize(folder, texts=texts, distill=0.5, target="cpu", output_dir=tmp_path / "run", **OPTIONS)
    task = config_of_run(model.run).data.resolved_task
    assert (task.head.kind, task.labels, task.is_pair) == (kind, task_of(kind).labels, kind == "question-answering")
    main = "agreement" if kind == "token-classification" else "span_agreement"
    scores = model.run.scores
    words = {} if kind == "token-classification" else {"span_f1": 1.0}
    assert scores["fp32"]["dev"] == {main: 1.0, **words, "logit_mean": 0, "logit_p99": 0, "logit_worst": 0}
    assert 0 < scores["int8"]["dev"]["logit_mean"] < scores["int8"]["dev"]["logit_worst"]
    assert model.report is not None
    for row in model.report.rows:
        assert row.metrics["logit_mean"] == pytest.approx(
            {"fp32": 0, "int8": scores["int8"]["dev"]["logit_mean"]}[row.precision.value], rel=0.2, abs=1e-4
        )
    parity = q8trt.parity(model.engines[-1], batch_sizes=(1, 4))
    assert all(pair.logits_error < 1 for each in parity for pair in each.pairs)
    with q8trt.Engine.load(model.engines[-1], device="cpu") as engine:
        assert engine.manifest.head.kind == kind
        ids = np.full((2, 7), 5, np.int32)
        assert engine.run(dict.fromkeys(engine.manifest.inputs, ids % 2) | {"input_ids": ids}).shape == (
            2,
            7,
            task.num_labels,
        )
        for call in (engine.predict, engine.embed, engine.logits):
            with pytest.raises(ConfigError, match=f"has a head for {kind}, not for {call.__name__}; call (tag|answer)"):
                call(["a dog"])
    with pytest.raises(ConfigError, match=f"has a head for {kind}, and q8trt writes no Triton repository"):
        write_repository(model.engines[-1], tmp_path / "triton")


def test_outputs_of_tokens_come_back_in_order() -> None:
    """Padding is left out, and rows stand in the order of the split."""
    masks = [np.array([[1, 0, 0]]), np.array([[1, 1, 0, 0], [1, 1, 1, 1]])]
    chunks = [np.array([[[7.0], [0], [0]]]), np.array([[[1.0], [2], [0], [0]], [[3], [4], [5], [6]]])]
    indices = [np.array([2]), np.array([0, 1])]
    assert restore_tokens(chunks, masks, indices).ravel().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_drift_of_tokens() -> None:
    rows = Features(
        task=task_of("token-classification"),
        split="dev",
        source="here",
        input_ids=[[1, 2, 3], [1, 2]],
        token_type_ids=None,
        labels=None,
    )
    reference = 9 * np.eye(5, dtype=np.float32)
    moved = reference.copy()
    moved[4] = (0, 0, 0, 0, -1)  # the tag of one token of five changes, its logit by 10
    assert score(rows, moved, reference) == {
        "agreement": 0.8, "logit_mean": 2.0, "logit_p99": pytest.approx(9.6), "logit_worst": 10.0,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"shape \(4, 5\), expected \(5, 5\) for 2 rows"):
        score(rows, moved[:4], reference)


def test_heads_that_are_not_there(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_token_folder(tmp_path / "model")
    with pytest.raises(CheckpointError, match="has no question-answering head"):
        read_head(str(folder), HeadKind.QUESTION_ANSWERING)
    with pytest.raises(CheckpointError, match="has no token-classification head"):
        read_head(str(tiny_checkpoint), HeadKind.TOKEN_CLASSIFICATION)
    make_model_of("QuestionAnswering", num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(CheckpointError, match="has 3 outputs, and question answering has two"):
        read_head(str(tmp_path / "three"))


def test_distillation_of_tokens_leaves_padding_out() -> None:
    from q8trt.training.distillation import logit_distance, token_distance

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    tokens = [torch.cat([each[0, :3], each[1]]) for each in (student, teacher)]
    tags = token_distance(student, teacher, mask, HeadKind.TOKEN_CLASSIFICATION, 1.0)
    torch.testing.assert_close(tags, logit_distance(*tokens, False, 1.0))
    spans = token_distance(student[..., :2], teacher[..., :2], mask, HeadKind.QUESTION_ANSWERING, 1.0)
    rows = [
        logit_distance(student[row, :size, end][None], teacher[row, :size, end][None], False, 1.0)
        for row, size in ((0, 3), (1, 5))
        for end in (0, 1)
    ]
    torch.testing.assert_close(spans, torch.stack(rows).mean(), rtol=1e-4, atol=1e-5)


def test_labels_of_tokens_are_padded() -> None:
    from q8trt.tasks.data import Collator

    rows = [{"input_ids": [5] * size, "attention_mask": [1] * size, "labels": [2] * size} for size in (3, 8)]
    labels = Collator(0, (8, 16), tags_tokens=True)(rows)["labels"]
    assert labels.tolist() == [[2, 2, 2, -100, -100, -100, -100, -100], [2] * 8]
