"""Rerankers, from a cross-encoder's folder to ranked documents; transformers' own model is the reference."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixtures import TASKS, changed, engine_folder
from conftest import make_model, make_tokenizer
from embedding_fixtures import TEXTS
from triton_fakes import install, model_arguments, request_of

import q8trt
from q8trt.cli.main import main
from q8trt.deployment.quantizing import QuantizedModel
from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import BackendError, CheckpointError, ConfigError, InputError
from q8trt.models import read_head
from q8trt.models.checkpoints import load_finetuned
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.tasks.heads import Head, HeadKind

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX, which builds without a GPU, is not installed",
)
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
QUERY = "a man walks in the park"
OPTIONS: dict[str, Any] = {"recipe": "linear", "calibration_samples": 16, "max_seq_length": 32, "target": "cpu"}


def write_reranker(folder: Path, **settings: Any) -> Path:
    """Write the folder of a tiny cross-encoder; `settings` are entries of config.json."""
    make_model("bert", 1).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def reference(documents: Any = TEXTS, query: str = QUERY) -> np.ndarray:
    import torch

    model, tokenizer = make_model("bert", 1), make_tokenizer()
    with torch.inference_mode():
        return np.array(
            [float(model(**tokenizer(query, text, return_tensors="pt")).logits[0, 0]) for text in documents]
        )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": a, "passage": b}) + "\n" for a in TEXTS for b in TEXTS[:6]))
    return path


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, None, ("reranker", "sigmoid")),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, None, ("reranker", "identity")),
        ({"sbert_ce_default_activation_function": IDENTITY}, None, ("reranker", "identity")),
        ({}, "reranker", ("reranker", "sigmoid")),  # CrossEncoder's default of one label
        ({}, None, ("regression", "identity")),
        ({"sbert_ce_default_activation_function": SIGMOID}, "regression", ("regression", "identity")),
    ],
)
def test_the_head_of_a_cross_encoder(settings: Any, kind: str | None, expected: Any, tmp_path: Path) -> None:
    head = read_head(str(write_reranker(tmp_path / "model", **settings)), kind and HeadKind(kind))
    assert (head.kind.value, head.activation) == expected


def test_heads_that_are_none() -> None:
    with pytest.raises(ConfigError, match="has the activation sigmoid, expected identity"):
        Head(HeadKind.REGRESSION, activation="sigmoid")


def test_what_is_no_reranker(tmp_path: Path, tiny_checkpoint_of: Any) -> None:
    with pytest.raises(CheckpointError, match="has 3 outputs, and a reranker has one; leave --head out"):
        read_head(str(tiny_checkpoint_of(num_labels=3)), HeadKind.RERANKER)
    folder = write_reranker(
        tmp_path / "model", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"}
    )
    with pytest.raises(CheckpointError, match=r"for a reranker q8trt supports torch\.nn's Identity or Sigmoid"):
        read_head(str(folder))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> QuantizedModel:
    folder = tmp_path_factory.mktemp("rerank")
    model = write_reranker(folder / "model", sentence_transformers={"activation_fn": SIGMOID})
    return q8trt.quantize(model, texts=pairs, runs_dir=folder / "runs", distill=0.5, **OPTIONS)


@needs_rtx
def test_a_reranker_from_its_folder_to_ranked_documents(quantized: Any, tmp_path: Path, monkeypatch: Any) -> None:
    run, (fp32, int8) = quantized.run, quantized.engines
    assert run.path.name.startswith("reranker-model-")
    data = config_of_run(run).data
    assert (data.head, data.resolved_task.is_pair) == (Head(HeadKind.RERANKER, activation="sigmoid"), True)
    assert json.loads((run.path / "run.json").read_text())["config"]["data"]["head"]["activation"] == "sigmoid"
    drift = run.scores["ptq"]["dev"]
    assert list(drift) == ["rank_spearman", "rank_kendall", "logit_mean", "logit_p99", "logit_worst"]
    assert 0.9 < drift["rank_spearman"] < 1
    assert json.loads((run.path / "fp32" / "config.json").read_text())["sentence_transformers"] == {
        "activation_fn": SIGMOID
    }
    assert run.scores["int8"]["dev"] != drift  # distillation moved the model

    logits = reference()
    order = sorted(range(len(TEXTS)), key=lambda index: -logits[index])
    manifest = load_manifest(fp32)
    assert (manifest.head.activation, manifest.task.activation, manifest.task.is_pair) == ("sigmoid", "sigmoid", True)
    with q8trt.Engine.load(fp32, device="cpu") as engine:
        ranked = engine.rank(QUERY, TEXTS)
        assert [each.index for each in ranked] == order
        assert [each.text for each in ranked] == [TEXTS[index] for index in order]
        np.testing.assert_allclose([each.score for each in ranked], 1 / (1 + np.exp(-logits[order])), atol=1e-5)
        assert engine.rank(QUERY, TEXTS, top_k=3) == ranked[:3]
        again = asyncio.run(engine.arank(QUERY, TEXTS, top_k=4))
        assert [each.index for each in again] == order[:4]
        assert [each.score for each in again] == pytest.approx([each.score for each in ranked[:4]], abs=1e-6)
        assert engine.rank(QUERY, []) == asyncio.run(engine.arank(QUERY, [])) == []
        scores = engine.predict([(QUERY, text) for text in TEXTS])
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-5)
        assert asyncio.run(engine.apredict((QUERY, TEXTS[0]))) == pytest.approx(scores[0], abs=1e-6)
        refused = [
            ((QUERY, TEXTS, 0), ConfigError, "top_k must be 1 or more, got 0"),
            ((" ", TEXTS), InputError, "the query ' ' is not a text, or is empty"),
            ((QUERY, "a text"), InputError, "expected a list of documents, got str"),
            ((QUERY, ["a", ""]), InputError, "item 1: the text is empty"),
        ]
        for arguments, kind, message in refused:
            with pytest.raises(kind, match=message):
                engine.rank(*arguments)
    with q8trt.Engine.load(int8, device="cpu") as engine:
        np.testing.assert_allclose(engine.logits([(QUERY, text) for text in TEXTS])[:, 0], logits, atol=0.3)

    (tmp_path / "rows.csv").write_text("\n".join(["query,document", *(f"{QUERY},{text}" for text in TEXTS)]))
    summary = q8trt.predict(fp32, tmp_path / "rows.csv", tmp_path / "scores.jsonl", device="cpu",
                            text_column_names=["query", "document"])  # fmt: skip
    assert (summary.rows, summary.names) == (len(TEXTS), ("score",))
    written = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(written, scores, atol=1e-6)

    module = install(monkeypatch)
    repository = write_repository(fp32, tmp_path / "models", TritonConfig(model_name="rerank", backend="python"))
    model = module.TritonPythonModel()
    model.initialize(model_arguments(repository.path / "rerank"))
    (response,) = model.execute([request_of([(QUERY, text) for text in TEXTS])])
    np.testing.assert_allclose(response.outputs["score"].reshape(-1), scores, atol=1e-6)
    assert all(compared.agrees for compared in q8trt.parity(fp32, int8, max_eval_samples=8, batch_sizes=[4]))


def test_the_order_is_that_of_logits_where_sigmoids_are_equal(tmp_path: Path, monkeypatch: Any) -> None:
    task = replace(TASKS["regression"], name="reranker", activation="sigmoid")
    folder = changed(engine_folder(tmp_path / "engine", TASKS["regression"]), task=task,
                     head=Head(HeadKind.RERANKER, max_length=16, activation="sigmoid"))  # fmt: skip
    with q8trt.Engine.load(folder, device="cpu") as engine:
        monkeypatch.setattr(engine._model, "logits", lambda tokens: np.float32([[30], [40], [-1], [40]]))
        ranked = engine.rank("a", ["b", "c", "d", "e"])
        assert [each.index for each in ranked] == [1, 3, 0, 2]
        assert [each.score for each in ranked[:3]] == [1, 1, 1]
        assert [each.index for each in asyncio.run(engine.arank("a", ["b", "c", "d", "e"]))] == [1, 3, 0, 2]
        monkeypatch.setattr(engine._model, "logits", lambda tokens: np.float32([[30], [np.nan]]))
        with pytest.raises(BackendError, match="the score of document 1 is NaN or infinite"):
            engine.rank("a", ["b", "c"])


def test_an_engine_of_labels_does_not_rank(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engine", TASKS["single"])
    with q8trt.Engine.load(folder, device="cpu") as engine, pytest.raises(ConfigError, match="rank needs a reranker"):
        engine.rank("a", ["b"])


def test_relevance_is_scored_where_rows_have_it(pairs: Path, tmp_path: Path) -> None:
    folder = write_reranker(tmp_path / "model")
    rows = [f"{a},{b},{number % 2}" for number, (a, b) in enumerate(pairwise(TEXTS))]
    (tmp_path / "dev.csv").write_text("\n".join(["query,document,score", *rows]))
    run = q8trt.quantize(folder, head="reranker", texts=pairs, validation_file=tmp_path / "dev.csv", build_engines=False,
                         runs_dir=tmp_path / "runs", **{**OPTIONS, "max_seq_length": None}).run  # fmt: skip
    assert list(run.scores["ptq"]["dev"]) == ["pearson", "spearman", "corr"]
    data = config_of_run(run).data
    assert data.max_seq_length == 64  # all positions of the tiny model, which are fewer than 512
    labels = np.array([number % 2 for number in range(len(TEXTS) - 1)])
    logits = np.array([float(reference([b], a)[0]) for a, b in pairwise(TEXTS)])
    expected = np.corrcoef(1 / (1 + np.exp(-logits)), labels)[0, 1]
    assert run.scores["fp32"]["dev"]["pearson"] == pytest.approx(expected, abs=1e-4)


def test_runs_and_folders_of_earlier_versions(pairs: Path, tmp_path: Path, capsys: Any) -> None:
    """A head in run.json without an activation is read; one line for texts that are no pairs."""
    folder = write_reranker(tmp_path / "model", sentence_transformers={"activation_fn": IDENTITY})
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    assert main(["quantize", str(folder), "--texts", str(tmp_path / "texts.txt"), "--no_build_engines"]) == 2
    assert "plain text has one text a line, and the model needs pairs" in capsys.readouterr().err
    words = ["quantize", str(folder), "--texts", str(pairs), "--text_column_names", "query", "--no_build_engines"]
    assert main(words) == 2
    assert "reranker has 2 text columns, but --text_column_names has 1" in capsys.readouterr().err
    data = FinetuneConfig.from_dict
    config = json.loads(json.dumps(config_with_head(folder).to_dict()))
    del config["data"]["head"]["activation"]
    assert data(config).data.head == Head(HeadKind.RERANKER)


def config_with_head(folder: Path) -> FinetuneConfig:
    from q8trt.runs.quantize_config import QuantizeConfig
    from q8trt.training.quantizing import quantization_of

    return quantization_of(folder, QuantizeConfig(), print)


def test_a_saved_folder_has_the_same_activation(tmp_path: Path) -> None:
    from q8trt.models.checkpoints import save_checkpoint
    from q8trt.tasks.glue import task_of_head

    folder = write_reranker(tmp_path / "model", sbert_ce_default_activation_function=IDENTITY)
    shutil.copytree(folder, tmp_path / "copy")
    task = task_of_head(read_head(str(folder)), is_pair=True, has_labels=False)
    save_checkpoint(tmp_path / "saved", load_finetuned(folder, task), make_tokenizer())
    assert read_head(str(tmp_path / "saved")) == Head(HeadKind.RERANKER)
