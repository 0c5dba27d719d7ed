"""Cross-encoders whose configuration applies a sigmoid: the scores are those of sentence-transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
from app_fixtures import ITEMS, MAX_LENGTH, REGRESSION, changed, engine_folder, model_of
from conftest import make_tokenizer

from q8trt import Engine
from q8trt.errors import CheckpointError, ConfigError
from q8trt.models import checkpoints
from q8trt.models.activation import activation_of
from q8trt.tasks.glue import get_task
from q8trt.tasks.metrics import compute_from_logits, sigmoid

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
STS_B, SST_2 = get_task("STS-B"), get_task("SST-2")


def config(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config(), "identity"),
        (config(sentence_transformers={"activation_fn": SIGMOID, "version": "5"}), "sigmoid"),
        (config(sentence_transformers={"activation_fn": IDENTITY}), "identity"),
        (config(sentence_transformers={"version": "5"}), "identity"),
        (config(sbert_ce_default_activation_function=SIGMOID), "sigmoid"),
        (config(sbert_ce_default_activation_function="torch.nn.Sigmoid"), "sigmoid"),
        (config(sbert_ce_default_activation_function=None), "identity"),
        (config(sentence_transformers={"activation_fn": IDENTITY}, sbert_ce_default_activation_function=SIGMOID), "identity"),
    ],
)  # fmt: skip
def test_the_activation_of_a_configuration(given: Any, expected: str) -> None:
    assert activation_of(given, STS_B, "folder") == expected


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.Tanh", "os.system", "evil.Sigmoid", "Sigmoid", 3, ["x"], "torch.nn.Softmax"]
)
def test_other_activations_are_refused(name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"folder has the activation .*Identity or Sigmoid; give another"):
        activation_of(config(sentence_transformers={"activation_fn": name}), STS_B, "folder")


def test_a_classification_takes_no_sigmoid() -> None:
    assert activation_of(config(sentence_transformers={"activation_fn": "torch.nn.Softmax"}), SST_2, "x") == "identity"
    with pytest.raises(CheckpointError, match=r"for SST-2 q8trt supports torch\.nn's Identity or Softmax"):
        activation_of(config(sentence_transformers={"activation_fn": SIGMOID}), SST_2, "x")


@pytest.fixture
def cross_encoder(tmp_path: Path) -> Path:
    """A checkpoint whose configuration applies a sigmoid."""
    model = model_of(REGRESSION)
    model.config.sentence_transformers = {"activation_fn": SIGMOID, "version": "5.0.0"}
    model.save_pretrained(tmp_path / "cross")
    make_tokenizer().save_pretrained(tmp_path / "cross")
    return tmp_path / "cross"


@pytest.mark.parametrize("place", ["config.json", "config_sentence_transformers.json"])
def test_a_checkpoint_keeps_it_from_load_to_build(cross_encoder: Path, tmp_path: Path, place: str) -> None:
    if place != "config.json":
        path = cross_encoder / "config.json"
        path.write_text(
            json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sentence_transformers"})
        )
        (cross_encoder / place).write_text(json.dumps({"model_type": "CrossEncoder", "activation_fn": SIGMOID}))
    model = checkpoints.load_finetuned(cross_encoder, STS_B)
    checkpoints.save_checkpoint(tmp_path / "fp32", model, make_tokenizer())
    again = checkpoints.load_finetuned(tmp_path / "fp32", STS_B)
    assert activation_of(again.config, STS_B, "fp32") == "sigmoid"


def test_a_head_that_is_trained_answers_the_score_itself(cross_encoder: Path) -> None:
    model = checkpoints.load_pretrained(str(cross_encoder), STS_B)
    assert activation_of(model.config, STS_B, "trained") == "identity"


def test_qat_of_a_sigmoid_is_refused(cross_encoder: Path) -> None:
    from q8trt.runs.config import FinetuneConfig
    from q8trt.runs.training_config import TrainingConfig
    from q8trt.tasks.data import DataConfig
    from q8trt.training.finetuning import load_inputs

    data = DataConfig("STS-B", sample=True, max_seq_length=MAX_LENGTH)
    chosen = FinetuneConfig(data=data, training=TrainingConfig(), from_fp32=str(cross_encoder))
    with pytest.raises(ConfigError, match=r"applies a sigmoid to its logit .*; leave QAT out: --no_qat"):
        load_inputs(chosen)


def test_the_sigmoid_is_that_of_torch() -> None:
    import torch

    logits = np.array([-200, -88, -2.5, -0.0, 0, 1e-8, 3, 20, 200], np.float32)
    np.testing.assert_allclose(sigmoid(logits), torch.sigmoid(torch.from_numpy(logits)).numpy(), rtol=2e-7)


def test_scores_are_those_of_sentence_transformers(cross_encoder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    items = [tuple(item) for item in ITEMS["regression"]]
    reference = library.CrossEncoder(str(cross_encoder), device="cpu", max_length=MAX_LENGTH).predict(items)
    folder = engine_folder(tmp_path / "engine", REGRESSION)
    with Engine.load(folder, device="cpu") as engine:
        raw = engine.predict(items)
    with Engine.load(changed(folder, task=replace(REGRESSION, activation="sigmoid")), device="cpu") as engine:
        np.testing.assert_allclose(engine.predict(items), reference, atol=1e-6)
        np.testing.assert_allclose(engine.logits(items)[:, 0], raw, atol=1e-6)
    assert np.abs(np.array(raw) - reference).max() > 0.1


def test_metrics_are_of_the_answers() -> None:
    """A correlation of the logits is not that of their sigmoids."""
    from scipy.stats import pearsonr, spearmanr

    logits, labels = np.array([-4, -1, 0.5, 2, 6], np.float32)[:, None], np.array([0.0, 1, 3, 4, 5])
    metrics = compute_from_logits(STS_B, logits, labels, "sigmoid")
    assert metrics["pearson"] == pytest.approx(pearsonr(1 / (1 + np.exp(-logits[:, 0])), labels)[0], abs=1e-6)
    assert abs(metrics["pearson"] - compute_from_logits(STS_B, logits, labels)["pearson"]) > 0.01
    assert metrics["spearman"] == pytest.approx(spearmanr(logits[:, 0], labels)[0])


def test_a_benchmark_scores_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure of an engine's report is the metric of what `predict` answers."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from q8trt.engine.folder import find_engines
    from q8trt.evaluation.data import Batching
    from q8trt.runtime import open_runner
    from q8trt.tasks.data import DataConfig, load_dev

    folder = engine_folder(tmp_path / "engine", REGRESSION)
    folder = changed(folder, task=replace(REGRESSION, activation="sigmoid"))
    data = DataConfig("STS-B", sample=True, max_eval_samples=32, max_seq_length=MAX_LENGTH)
    rows = load_dev(data)["dev"]
    engine = find_engines([str(folder)], str(tmp_path))[0]
    batching = Batching.of([engine], data, 8, (MAX_LENGTH,))
    with open_runner(folder, "onnxruntime") as runner:
        scored = batching.score(
            runner, batching.tokenized(engine, data)["dev"], engine.manifest.task.activation, "Scoring"
        )
    with Engine.load(folder, device="cpu") as opened:
        answers = opened.predict(list(zip(rows.first, rows.second, strict=True)))
    expected = np.corrcoef(answers, rows.labels)[0, 1]
    assert scored.metrics["pearson"] == pytest.approx(expected, abs=1e-5)
