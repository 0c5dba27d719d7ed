"""Models that answer each label by itself: from fine-tuning to engines; torch's sigmoid is the reference."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_batch, make_model, make_tokenizer
from embedding_fixtures import TEXTS
from test_data_multi_label import LABELS
from triton_fakes import install, model_arguments, request_of

import q8trt
from q8trt.cli.main import main
from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.errors import CheckpointError, ConfigError
from q8trt.models import read_head
from q8trt.models.checkpoints import load_finetuned
from q8trt.runs.config import config_of_run
from q8trt.tasks.heads import Head, HeadKind
from q8trt.training.distillation import label_by_label, logit_distance

pytestmark = pytest.mark.usefixtures("quick_export")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX, which builds without a GPU, is not installed",
)
OPTIONS: dict[str, Any] = {"recipe": "linear", "calibration_samples": 16, "max_seq_length": 16, "target": "cpu"}


def write_model(folder: Path) -> Path:
    """Write the folder of a tiny model, as transformers does."""
    model = make_model("bert", len(LABELS))
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
    model.config.update({**names, "problem_type": "multi_label_classification"})
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def probabilities(texts: Any = TEXTS) -> np.ndarray:
    import torch

    model, tokenizer = make_model("bert", len(LABELS)), make_tokenizer()
    with torch.inference_mode():
        rows = [model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=16)).logits[0] for t in texts]
        return np.asarray(torch.sigmoid(torch.stack(rows)))


def write_rows(path: Path) -> Path:
    rows = [{"text": text, "labels": LABELS[number % 3 : number % 5]} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_head_of_a_folder(tmp_path: Path, tiny_checkpoint_of: Any) -> None:
    folder = str(write_model(tmp_path / "model"))
    assert read_head(folder) == Head(HeadKind.MULTI_LABEL_CLASSIFICATION, LABELS)
    with pytest.raises(CheckpointError, match=r"is not for sequence-classification .*leave --head out"):
        read_head(folder, HeadKind.SEQUENCE_CLASSIFICATION)
    with pytest.raises(CheckpointError, match=r"is not for multi-label-classification \(problem_type regression"):
        read_head(str(tiny_checkpoint_of(num_labels=1)), HeadKind.MULTI_LABEL_CLASSIFICATION)


def test_the_loss_is_binary_cross_entropy(tmp_path: Path) -> None:
    import torch

    from q8trt.tasks.glue import custom_task

    folder = write_model(tmp_path / "model")
    model = load_finetuned(folder, custom_task("custom", LABELS, is_pair=False, multi_label=True))
    batch = make_batch()
    labels = torch.tensor([[1.0, 0, 0, 1]] * len(batch["input_ids"]))
    output = model(**batch, labels=labels)
    p = 1 / (1 + np.exp(-output.logits.detach().double().numpy()))
    expected = -np.mean(labels.numpy() * np.log(p) + (1 - labels.numpy()) * np.log(1 - p))
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_each_label_is_distilled_by_itself() -> None:
    """The mean over rows and labels of the KL divergence of two coins."""
    import torch

    student, teacher = (
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
        torch.linspace(-2, 2, 12).view(3, 4),
    )
    p, q = (torch.sigmoid(each.double()).numpy() for each in (student, teacher))
    expected = np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
    ours, theirs = label_by_label(student, teacher)
    assert float(logit_distance(ours, theirs, False, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_fine_tuning_with_any_number_of_labels(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    run = q8trt.finetune(
        task="custom", multi_label=True, label_list=list(LABELS), text_column_names=["text"], train_file=rows,
        validation_file=rows, model_name_or_path=tiny_checkpoint, output_dir=tmp_path / "run", max_seq_length=16,
        per_device_train_batch_size=5, use_cpu=True, max_steps=2, recipe="linear", calibration_samples=8,
    )  # fmt: skip
    assert list(run.scores) == ["fp32", "ptq", "int8"]
    assert list(run.scores["int8"]["dev"]) == ["f1_micro", "f1_macro"]
    assert read_head(str(run.path / "fp32")) == Head(HeadKind.MULTI_LABEL_CLASSIFICATION, LABELS)
    assert config_of_run(run).data.resolved_task.is_multi_label


def test_labels_that_do_not_go_with_a_head(tmp_path: Path, capsys: Any) -> None:
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    options = ["--model_name_or_path", str(model), "--task", "custom", "--label_list", *LABELS, "--text_column_names", "text",
               "--train_file", str(rows), "--validation_file", str(rows), "--output_dir", str(tmp_path / "run")]  # fmt: skip
    from q8trt.cli import calibrate

    with pytest.raises(
        q8trt.Q8TRTError, match=r"answers each label independently .*--multi_label|label \[.* expected one of"
    ):
        calibrate.run(options)
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"text": "a", "labels": ["sad", "angry"]}))
    assert main(["quantize", str(model), "--validation_file", str(dev), "--no_build_engines"]) == 2
    assert "dev.jsonl:1: label 'angry', expected one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@needs_rtx
def test_a_model_of_ones_own_to_engines(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    quantized = q8trt.quantize(model, texts=rows, distill=0.5, runs_dir=tmp_path / "runs", **OPTIONS)
    drift = quantized.run.scores["ptq"]["dev"]
    assert list(drift) == ["label_agreement", "logit_mean", "logit_p99", "logit_worst"]
    labeled = q8trt.benchmark(*quantized.engines, task="custom", multi_label=True, label_list=list(LABELS), validation_file=rows,
                              text_column_names=["text"], warmup=0, iterations=1, shapes="1x16", layer_times=False)  # fmt: skip
    assert "f1_micro" in labeled.to_markdown()
    with pytest.raises(
        ConfigError, match="has the labels sad glad not, really tired, the data sad glad; give --label_list"
    ):
        q8trt.benchmark(*quantized.engines, task="custom", multi_label=True, label_list=["sad", "glad"], validation_file=rows,
                        text_column_names=["text"])  # fmt: skip
    expected = probabilities()
    with q8trt.Engine.load(quantized.engines[0], device="cpu") as engine:
        answers: Any = engine.predict(TEXTS)
        np.testing.assert_allclose([list(each.probabilities.values()) for each in answers], expected, atol=1e-5)
        assert [each.labels for each in answers] == [
            tuple(label for label, value in zip(LABELS, row, strict=True) if value > 0.5) for row in expected
        ]
        middle = float(np.median(expected))
        for replies in (
            engine.predict(TEXTS, threshold=middle),
            asyncio.run(engine.apredict(list(TEXTS), threshold=middle)),
        ):
            assert [list(each.labels) for each in replies] == [  # type: ignore[union-attr]
                [label for label, value in zip(LABELS, row, strict=True) if value > middle] for row in expected
            ]
        with pytest.raises(ConfigError, match=r"threshold 1\.5, expected 0 to 1"):
            engine.predict(TEXTS, threshold=1.5)

    for name in ("out.csv", "out.jsonl"):
        assert main(["predict", "--engine", str(quantized.engines[0]), "--input", str(rows), "--output", str(tmp_path / name),
                     "--device", "cpu", "--text_column_names", "text"]) == 0  # fmt: skip
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    from q8trt.tasks.data.labels import join_labels

    assert [row["predicted_labels"] for row in written] == [join_labels(each.labels) for each in answers]
    assert [float(written[0][f"predicted_probability_{label}"]) for label in LABELS] == pytest.approx(
        expected[0], abs=1e-5
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["predicted_labels"] for line in lines] == [list(each.labels) for each in answers]

    module = install(monkeypatch)
    repository = write_repository(
        quantized.engines[0], tmp_path / "models", TritonConfig(model_name="moods", backend="python")
    )
    assert 'name: "labels"' in (repository.path / "moods" / "config.pbtxt").read_text()
    served = module.TritonPythonModel()
    served.initialize(model_arguments(repository.path / "moods"))
    (response,) = served.execute([request_of(TEXTS)])
    assert [json.loads(text) for (text,) in response.outputs["labels"]] == [list(each.labels) for each in answers]
    np.testing.assert_allclose(response.outputs["probabilities"], expected, atol=1e-5)
    for name, threshold in (("moods", 0.5), ("many", middle), ("all", 0.0), ("none", 1.0)):
        folder = tmp_path / "models" if name == "moods" else tmp_path / name
        if name != "moods":
            words = ["--threshold", str(threshold), "--model_name", name, "--backend", "python"]
            assert main(["triton", str(quantized.engines[0]), "--output_dir", str(folder), *words]) == 0
        served.initialize(model_arguments(folder / name))
        (response,) = served.execute([request_of(TEXTS)])
        assert [json.loads(text) for (text,) in response.outputs["labels"]] == [
            [label for label, value in zip(LABELS, row, strict=True) if value > threshold] for row in expected
        ]
    packed = q8trt.pack(quantized.engines[0], tmp_path / "engine.q8trt")
    assert packed.path.is_file()


def test_an_engine_of_one_label_takes_no_threshold(tmp_path: Path, capsys: Any) -> None:
    from app_fixtures import TASKS, engine_folder

    folder = engine_folder(tmp_path / "engine", TASKS["single"])
    with (
        q8trt.Engine.load(folder, device="cpu") as engine,
        pytest.raises(ConfigError, match="threshold is for a multi-label"),
    ):
        engine.predict(["a"], threshold=0.5)
    rows = write_rows(tmp_path / "rows.jsonl")
    assert main(["predict", "--engine", str(folder), "--input", str(rows), "--output", str(tmp_path / "o.csv"), "--device", "cpu",
                 "--threshold", "0.5"]) == 2  # fmt: skip
    assert "--threshold is for a multi-label classifier" in capsys.readouterr().err
    capsys.readouterr()
    triton = ["triton", str(folder), "--output_dir", str(tmp_path / "models"), "--backend", "python", "--threshold"]
    for threshold, words in (
        ("0.5", "--threshold is for a multi-label classifier, and "),
        ("1.5", "0 to 1"),
        ("nan", "expected a finite number"),
    ):
        assert main([*triton, threshold]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
