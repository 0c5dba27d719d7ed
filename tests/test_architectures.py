"""Architectures whose sites differ from BERT's, and the table of docs/architectures.md."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import APART
from engine_fixtures import SMALL

from q8trt.engine.backend import Backend
from q8trt.engine.builder import build_here
from q8trt.engine.config import BuildConfig
from q8trt.errors import CheckpointError
from q8trt.export.onnx import export_onnx
from q8trt.export.options import ExportOptions
from q8trt.lint import lint
from q8trt.models import set_dropout
from q8trt.models.config_file import check_config
from q8trt.quantization.architectures import ARCHITECTURES, QUANTIZED_TYPES
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, set_quantization
from q8trt.quantization.recipe import load_recipe
from q8trt.quantization.sites import POSITION_SITES, encoder_sites
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

#: Per layer with `full`, of 2 layers: INT8 GEMMs, tables of positions among them.
GEMMS = {"albert": 6, "camembert": 6, "deberta-v2": 6 + 2, "modernbert": 4}
SHAPES = ((1, 8), (3, 17), (2, 64))


def difference(path: Path, precision: str, model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """|ONNX Runtime's logits - torch's| of each row."""
    with torch.no_grad(), OnnxRuntimeRunner(path, precision, threads=1) as runner:
        logits = runner.infer({name: tensor.numpy() for name, tensor in batch.items()})
        return np.abs(logits - model(**batch).logits.numpy()).max(-1)


def rotations(kind: str) -> dict[str, Any]:
    """Rotary positions of one type in the layers that attend to all tokens."""
    scaled = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    return {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_batch: Any
) -> Callable[..., tuple[Any, Path]]:
    """``build(architecture)``: a model calibrated with recipe `full`, and its exported file."""
    built: dict[str, tuple[Any, Path]] = {}

    def make(architecture: str) -> tuple[Any, Path]:
        if architecture not in built:
            model, recipe = tiny_model(architecture), load_recipe("full").candidates[0]
            insert_quantizers(model, recipe)
            calibrate(model, recipe, [tiny_batch(architecture, seed=seed) for seed in range(3)])
            path = tmp_path_factory.mktemp(architecture) / "model.onnx"
            export_onnx(model, path, "int8", list(tiny_batch(architecture)), ExportOptions("torchscript"))
            built[architecture] = model, path
        return built[architecture]

    return make


@pytest.mark.parametrize("architecture", APART)
@pytest.mark.parametrize("recipe", ["linear", "gpu", "full"])
def test_switched_off_it_is_hugging_faces_to_the_bit(
    architecture: str, recipe: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    original, model, chosen = tiny_model(architecture), tiny_model(architecture), load_recipe(recipe).candidates[0]
    insert_quantizers(model, chosen)
    calibrate(model, chosen, [tiny_batch(architecture)])
    for shape in SHAPES:
        batch = tiny_batch(architecture, shape)
        with torch.no_grad():
            expected = original(**batch).logits
            quantized = model(**batch).logits
            set_quantization(model, False)
            assert torch.equal(model(**batch).logits, expected)
            set_quantization(model, True)
        assert not torch.equal(quantized, expected)
        assert torch.allclose(quantized, expected, atol=0.5)


@pytest.mark.parametrize("architecture", APART)
def test_the_exported_file_computes_the_same(
    architecture: str, build: Any, tiny_model: Any, tiny_batch: Any, tmp_path: Path
) -> None:
    """FP32: for lengths other than that of the trace, padded or not; INT8: but for rows with a value beside a tie."""
    float_model = tiny_model(architecture)
    export_onnx(float_model, tmp_path / "m.onnx", "fp32", list(tiny_batch(architecture)), ExportOptions("torchscript"))
    for shape in SHAPES:
        batch = tiny_batch(architecture, shape, seed=5)
        assert difference(tmp_path / "m.onnx", "fp32", float_model, batch).max() < 1e-5
    model, path = build(architecture)
    errors = np.concatenate(
        [difference(path, "int8", model, tiny_batch(architecture, shape, seed=5)) for shape in SHAPES]
    )
    assert np.median(errors) < 1e-5
    assert errors.max() < 0.1


@pytest.mark.parametrize("architecture", APART)
@pytest.mark.parametrize("precision", ["fp16", "int8+fp16"])
def test_half_precision(
    architecture: str, precision: str, build: Any, tiny_model: Any, tiny_batch: Any, tmp_path: Path
) -> None:
    model = tiny_model(architecture) if precision == "fp16" else build(architecture)[0]
    export_onnx(model, tmp_path / "m.onnx", precision, list(tiny_batch(architecture)), ExportOptions("torchscript"))
    levels = {"error", "warning"} if precision == "fp16" else {"error"}
    assert not [finding for finding in lint(tmp_path / "m.onnx").findings if finding.level in levels]
    for shape in SHAPES:
        errors = difference(tmp_path / "m.onnx", precision, model, tiny_batch(architecture, shape, seed=5))
        assert errors.max() < (0.02 if precision == "fp16" else 0.2)


def test_the_default_exporter_gives_a_file_of_the_same_answers(build: Any, tiny_batch: Any, tmp_path: Path) -> None:
    """ModernBERT's files differ in names of nodes and in biases of zero, and in nothing that is computed."""
    model, path = build("modernbert")
    export_onnx(model, tmp_path / "m.onnx", "int8", list(tiny_batch("modernbert")), ExportOptions("dynamo"))
    for shape in SHAPES:
        batch = {name: tensor.numpy() for name, tensor in tiny_batch("modernbert", shape).items()}
        logits = []
        for each in (path, tmp_path / "m.onnx"):
            with OnnxRuntimeRunner(each, "int8", threads=1) as runner:
                logits.append(runner.infer(batch))
        np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("architecture", APART)
def test_dropout_and_gradients_of_a_quantized_model(architecture: str, build: Any, tiny_batch: Any) -> None:
    model, batch = copy.deepcopy(build(architecture)[0]), tiny_batch(architecture)
    with torch.no_grad():
        expected = model(**batch).logits
        set_dropout(model, 0.0)
        model.train()
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=0)
    set_dropout(model, 0.3)
    logits = model(**batch).logits
    assert (logits - expected).abs().max() > 1e-3
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) > 0.9 * len(list(model.named_parameters()))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rotary_positions_are_exported(kind: str, tiny_model: Any, tiny_batch: Any, tmp_path: Path) -> None:
    parameters = rotations(kind)
    if kind == "linear":
        del parameters["full_attention"]["original_max_position_embeddings"]
    model, batch = tiny_model("modernbert", rope_parameters=parameters), tiny_batch("modernbert", (2, 40))
    check_config(json.loads(model.config.to_json_string(use_diff=False)) | {"rope_parameters": parameters}, "DIR")
    with torch.no_grad():
        assert not torch.allclose(model(**batch).logits, tiny_model("modernbert")(**batch).logits, atol=1e-3)
    export_onnx(model, tmp_path / "m.onnx", "fp32", list(batch), ExportOptions("torchscript"))
    assert difference(tmp_path / "m.onnx", "fp32", model, batch).max() < 1e-5


@pytest.mark.parametrize("architecture", GEMMS)
def test_all_products_are_int8_to_the_linter_and_to_the_builder(
    architecture: str, build: Any, rtx: Backend, tmp_path: Path
) -> None:
    path = build(architecture)[1]
    forecast = lint(path).forecast
    assert forecast.layers == forecast.fusable_attentions == 2
    assert (forecast.int8_bmms, forecast.bmms) == (4, 4)
    assert forecast.int8_gemms == 2 * GEMMS[architecture]
    assert (forecast.int8_residual_adds, forecast.residual_adds) == (4, 4)
    assert forecast.int8_embeddings == forecast.embeddings == (3 if architecture in ("albert", "camembert") else 1)
    report = build_here(path, tmp_path / "m.plan", BuildConfig("rtx", (SMALL,))).report
    assert (report.int8_gemms, report.int8_bmms, report.fused_attentions) == (2 * GEMMS[architecture], 4, 2)


@pytest.mark.parametrize("architecture", GEMMS)
def test_the_linter_warns_of_nothing(architecture: str, build: Any) -> None:
    """Recipe `full` quantizes the input of a layer twice, with equal scales where its channels are not smoothed."""
    assert [finding for finding in lint(build(architecture)[1]).findings if finding.level != "info"] == []


def test_deberta_quantizes_its_tables_of_positions_as_queries_and_keys(tiny_model: Callable[..., Any]) -> None:
    model, recipe = tiny_model("deberta-v2"), load_recipe("gpu")
    sites = {site.name: site for site in encoder_sites(model) if site.layer == 0}
    for name, like in POSITION_SITES.items():
        assert recipe.spec(sites[name]) == recipe.spec(sites[like]) is not None
        assert load_recipe("linear").spec(sites[name]) is None
    assert {site.name for site in encoder_sites(tiny_model())}.isdisjoint(POSITION_SITES)


@pytest.mark.parametrize(
    ("architecture", "change", "words"),
    [
        (
            "albert",
            {"num_hidden_groups": 2},
            "num_hidden_groups is 2: q8trt supports ALBERT only with one layer's parameters",
        ),
        ("albert", {"inner_group_num": True}, "inner_group_num is True"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size is 3: q8trt does not support the convolution"),
        ("deberta-v2", {"relative_attention": False}, "relative_attention is False"),
        ("deberta-v2", {"position_biased_input": True}, "position_biased_input is True"),
        ("deberta-v2", {"pos_att_type": "p2p"}, "pos_att_type is 'p2p': expected c2p, p2c or both"),
        ("deberta-v2", {"position_buckets": "8"}, "position_buckets is '8'"),
        ("deberta-v2", {"position_buckets": 0}, "position_buckets is 0: expected 2 to 65,536, or -1 for no buckets"),
        ("deberta-v2", {"position_buckets": 1}, "position_buckets is 1: expected 2 to 65,536"),
        ("deberta-v2", {"position_buckets": -2}, "position_buckets is -2: expected 2 to 65,536"),
        ("deberta-v2", {"share_att_key": 1}, "share_att_key is 1"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling is 'max': expected cls or mean"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ("modernbert", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling is {'type': 'dynamic'}"),
        (
            "modernbert",
            {"rope_parameters": rotations("dynamic")},
            "rope_parameters has 'dynamic', expected for each kind of layer a rope_type",
        ),
        ("modernbert", {"rope_parameters": rotations("longrope")}, "rope_parameters has 'longrope'"),
        ("modernbert", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters has 'linear'"),
        ("modernbert", {"rope_parameters": ["linear"]}, "rope_parameters has ['linear']"),
    ],
)
def test_variants_that_q8trt_lacks(
    architecture: str, change: dict[str, Any], words: str, tiny_config: Callable[..., Any]
) -> None:
    data = json.loads(tiny_config(architecture).to_json_string(use_diff=False))
    data = {name: value for name, value in data.items() if value is not None}
    check_config(data, "DIR")
    with pytest.raises(CheckpointError, match=r"^DIR: config\.json: ") as caught:
        check_config(data | change, "DIR")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        *((name, "an encoder-decoder, ") for name in ("t5", "bart", "mbart")),
        *((name, "a decoder that generates text, ") for name in ("gpt2", "llama", "qwen3")),
        *((name, "") for name in ("deberta", "big_bird", "vit", "of no library")),
    ],
)
def test_other_models_are_refused_with_the_list(model_type: str, words: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"^DIR is of type '{model_type}', {words}not BERT-like; q8trt quantizes bert, "
    ) as caught:
        check_config({"model_type": model_type}, "DIR")
    assert all(name in str(caught.value) for name in ARCHITECTURES)


def test_the_table_of_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
    _, *rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert rows == [(name, entry.label) for name, entry in ARCHITECTURES.items()]
    assert not set(QUANTIZED_TYPES) & {name for name, _ in rows}
