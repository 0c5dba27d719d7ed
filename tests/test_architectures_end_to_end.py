"""`q8trt quantize` on models of the architectures besides BERT, to answers of an engine; transformers is the reference.

TensorRT builds no plan here: ONNX Runtime reads the file of an engine folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import APART, WITH_TOKEN_TYPES, make_model, make_tokenizer
from embedding_fixtures import TEXTS, write_embedding_folder
from token_fixtures import write_token_folder

import q8trt
from q8trt.deployment import engine_folder, quantizing
from q8trt.engine.config import PlanInfo
from q8trt.engine.report import EngineReport
from q8trt.models.checkpoints import load_quantized
from q8trt.runtime.timing.config import TimingConfig

NEW = ("xlm-roberta", "camembert", "albert", "deberta-v2", "modernbert")
QUERY = "a man walks in the park"
OPTIONS: dict[str, Any] = {"recipe": "gpu", "target": "cpu", "calibration_samples": 16, "max_seq_length": 32}


@pytest.fixture(scope="module", autouse=True)
def no_plans(quick_export: None) -> Iterator[None]:
    """Let a build write a file that no runtime reads, and the report time one shape once."""

    def build_plan(onnx: Path, plan: Path, *_: Any) -> PlanInfo:
        plan.write_bytes(b"none")
        return PlanInfo("tensorrt_rtx", "1.0", [], 0.0, 4, "none", None, EngineReport())

    backend = SimpleNamespace(name="tensorrt_rtx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_folder, "build_plan", build_plan)
        patch.setattr(engine_folder, "started_backend", lambda config: backend)
        patch.setattr(quantizing, "find_backend", lambda name: backend)
        patch.setattr(quantizing, "_TIMING", TimingConfig(shapes=((1, 8),), warmup=0, iterations=1))
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"query": a, "passage": b, "text": b}) + "\n" for a in TEXTS[:3] for b in TEXTS))
    return path


@torch.enable_grad()
def quantize(folder: Path, texts: Path, *columns: str, distill: float = 0) -> tuple[q8trt.Engine, q8trt.Engine, Any]:
    """The FP32 and the INT8 engine of the model in `folder`, and the model with quantizers."""
    model = q8trt.quantize(
        folder, texts=texts, text_column_names=columns, distill=distill, output_dir=folder.parent / "run", **OPTIONS
    )
    fp32, int8 = (q8trt.Engine.load(each, device="cpu") for each in model.engines)
    assert int8.manifest.precision.is_quantized
    return fp32, int8, load_quantized(model.run.path / ("int8" if distill else "ptq"))[0]


def near(ours: Any, fake_quant: Any) -> bool:
    """Return whether values are those of fake quantization, but for a value that rounds the other way."""
    differences = np.abs(np.asarray(ours) - np.asarray(fake_quant))
    return bool(np.median(differences) < 1e-4 and differences.max() < 0.1)


def encode(architecture: str, *texts: str) -> dict[str, torch.Tensor]:
    return dict(make_tokenizer(architecture in WITH_TOKEN_TYPES)(*texts, return_tensors="pt"))


@pytest.mark.parametrize("architecture", NEW)
@torch.no_grad()
def test_a_reranker(architecture: str, texts: Path, tmp_path: Path) -> None:
    original = make_model(architecture, 1)
    original.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    original.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")  # it makes token types, and ALBERT alone reads them
    fp32, int8, quantized = quantize(
        tmp_path / "model", texts, "query", "passage", distill=0.5 if architecture in APART else 0
    )
    scores, fake_quant = (
        np.array([float(model(**encode(architecture, QUERY, text)).logits[0, 0]) for text in TEXTS])
        for model in (original, quantized)
    )
    ranked = fp32.rank(QUERY, TEXTS)
    assert [each.index for each in ranked] == list(np.argsort(-scores))
    np.testing.assert_allclose([each.score for each in ranked], np.sort(scores)[::-1], atol=1e-5)
    ranked = int8.rank(QUERY, TEXTS)
    assert near([each.score for each in ranked], [fake_quant[each.index] for each in ranked])
    assert not np.array_equal(scores, fake_quant)


@pytest.mark.parametrize("architecture", NEW)
@torch.no_grad()
def test_a_tagger(architecture: str, texts: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, TokenClassificationPipeline

    folder = write_token_folder(tmp_path / "model", architecture=architecture)
    fp32, int8, quantized = quantize(folder, texts, "text")
    original, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pipeline = TokenClassificationPipeline(
        model=original, tokenizer=tokenizer, aggregation_strategy="simple", device="cpu"
    )
    for ours, theirs in zip(fp32.tag(TEXTS, "simple"), pipeline(list(TEXTS)), strict=True):
        expected = [(each["entity_group"], each["start"], each["end"]) for each in theirs]
        assert [(each.label, each.start, each.end) for each in ours] == expected
    for engine, model in ((fp32, original), (int8, quantized)):
        inputs = encode(architecture, *TEXTS[3:5])
        assert near(engine.run({name: tensor.numpy() for name, tensor in inputs.items()}), model(**inputs).logits)
    assert sum(map(len, int8.tag(TEXTS))) > 0


@pytest.mark.parametrize("architecture", NEW)
@torch.no_grad()
def test_an_embedding_model(architecture: str, texts: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_embedding_folder(tmp_path / "model", architecture)
    fp32, int8, quantized = quantize(folder, texts, "text")
    encoder = AutoModel.from_pretrained(folder).eval()
    pooled = [encoder(**encode(architecture, text)).last_hidden_state[0].mean(0) for text in TEXTS]
    expected = np.stack([(row / row.norm()).numpy() for row in pooled])
    np.testing.assert_allclose(fp32.embed(TEXTS), expected, atol=1e-5)
    vectors = int8.embed(TEXTS)
    assert near(vectors, torch.cat([quantized(**encode(architecture, text)).logits for text in TEXTS]))
    assert 0.9 < (vectors * expected).sum(1).min() < 0.99999
