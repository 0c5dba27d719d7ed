"""Every recipe exports: the file computes what the fake-quantized model does, with Q/DQ where TensorRT wants them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.lint import LintConfig, lint
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.recipe import Recipe, builtin_recipes, load_recipe
from q8trt.quantization.target import Target
from q8trt.runtime.onnxruntime.graph import dequantize_gathered_rows
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

LOW_BITS = {
    "name": "low-bits",
    "activations": {"calibrator": "max"},
    "weights": {"num_bits": 4, "axis": 0, "calibrator": "mse"},
    "sites": {"ffn_output.weight": {}, "gelu_out": {}, "embeddings": {"num_bits": 2}},
}


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> Callable[..., tuple[Any, Path]]:
    """``build(recipe, architecture="bert")``: a calibrated model and its exported file."""

    @functools.cache
    def made(name: str, architecture: str = "bert") -> tuple[Any, Path]:
        recipe = Recipe.from_dict(LOW_BITS) if name == "low-bits" else load_recipe(name)
        model = tiny_model(architecture)
        insert_quantizers(model, recipe)
        calibrate(model, recipe, [tiny_batch(architecture, seed=seed) for seed in range(3)])
        path = tmp_path_factory.mktemp("onnx") / "model.onnx"
        export_onnx(model, path, "int8", list(tiny_batch(architecture)), ExportOptions("torchscript"))
        return model, path

    return made


@pytest.mark.parametrize("recipe", [*builtin_recipes(), "low-bits"])
def test_logits_are_the_fake_quantized_models(
    recipe: str,
    architecture: str,
    build: Callable[..., tuple[Any, Path]],
    tiny_model: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:
    model, path = build(recipe, architecture)
    batch = tiny_batch(architecture, (8, 9), seed=11)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
        effect = np.abs(expected - tiny_model(architecture)(**batch).logits.numpy()).max(-1)
    with OnnxRuntimeRunner(path, "int8", threads=1) as runner:
        difference = np.abs(runner.infer({name: tensor.numpy() for name, tensor in batch.items()}) - expected).max(-1)
    # In some rows a value beside a tie takes the next integer, which is worth a step of one quantizer.
    assert np.mean(difference < 2e-5) >= 0.5
    assert difference.max() < max(effect.max(), 0.02)
    assert np.median(effect) > 1e-4


@pytest.mark.parametrize("recipe", ["gpu", "full"])
def test_the_default_graph_for_a_gpu_warns_of_nothing(
    recipe: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    """INT8+FP16, fused QKV, heads of 16: what stays in floating point there is at most a note."""
    model, chosen = tiny_model(hidden_size=32, num_attention_heads=2), load_recipe(recipe)
    insert_quantizers(model, chosen)
    calibrate(model, chosen, [tiny_batch(seed=seed) for seed in range(3)])
    path, options = tmp_path / "model.onnx", ExportOptions("torchscript").for_target(Target.GPU)
    export_onnx(model, path, Target.GPU.int8, list(tiny_batch()), options)
    report = lint(path, LintConfig(max_shapes=(8, 32)))
    assert [finding for finding in report.findings if finding.level != "info"] == []
    assert report.forecast.fusable_attentions == report.forecast.layers == 2
    adds = [finding for finding in report.findings if finding.rule == "residual-not-int8"]
    assert len(adds) == {"gpu": 4, "full": 0}[recipe]


def _graph(path: Path) -> tuple[onnx.GraphProto, dict[str, onnx.NodeProto], dict[str, np.ndarray]]:
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return graph, {name: node for node in graph.node for name in node.output}, constants


def _is_dequantized(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a tensor comes from a DequantizeLinear, through operations that only move data."""
    node = producers.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def test_full_has_every_gemm_product_and_residual_in_int8(build: Callable[..., tuple[Any, Path]]) -> None:
    graph, producers, _ = _graph(build("full")[1])
    inside = [node for node in graph.node if ".layer." in node.name]
    both = [
        node
        for node in inside
        if node.op_type in ("MatMul", "Gemm") and all(_is_dequantized(name, producers) for name in node.input[:2])
    ]
    assert len(both) == 2 * (6 + 2)
    assert Counter(node.op_type for node in inside)["MatMul"] == len(both)
    adds = [node for node in inside if node.op_type == "Add" and all(_is_dequantized(i, producers) for i in node.input)]
    assert len(adds) == 2 * 2
    # LayerNorm, softmax and the Add of the mask read what was computed, not what was rounded.
    for node in inside:
        if node.op_type in ("LayerNormalization", "Softmax", "Gelu"):
            assert not _is_dequantized(node.input[0], producers), node.name


def test_attention_scale_is_in_the_projection_of_q(build: Callable[..., tuple[Any, Path]]) -> None:
    model, path = build("full")
    graph, producers, constants = _graph(path)
    quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.name.endswith("bmm_q/QuantizeLinear")]
    assert [producers[node.input[0]].op_type for node in quantizers] == ["Transpose"] * 2
    scores = [n for n in graph.node if n.op_type == "MatMul" and n.name.endswith(".self/MatMul")]
    readers = {name: node for node in graph.node for name in node.input}
    assert [readers[node.output[0]].op_type for node in scores] == ["Add"] * 2  # of the mask, not a Mul
    for number in range(2):
        (bias,) = (n.input[1] for n in graph.node if n.name == f"bert.encoder.layer.{number}.attention.self.query/Add")
        expected = model.bert.encoder.layer[number].attention.self.query.bias.detach().numpy() / 4  # head size 16
        assert np.array_equal(constants[bias], expected)


def test_k_is_transposed_once_and_dequantized_right_before_the_product(build: Callable[..., tuple[Any, Path]]) -> None:
    graph, producers, _ = _graph(build("full")[1])
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.endswith(".self/MatMul"):
            dequantize = producers[node.input[1]]
            transpose = producers[producers[dequantize.input[0]].input[0]]
            assert (dequantize.op_type, transpose.op_type) == ("DequantizeLinear", "Transpose")
            assert list(transpose.attribute[0].ints) == [0, 2, 3, 1]
    assert sum(node.op_type == "Transpose" for node in graph.node) == 2 * 4


def test_softmax_scale_is_one_over_127(build: Callable[..., tuple[Any, Path]]) -> None:
    graph, _, constants = _graph(build("full")[1])
    scales = [
        constants[node.input[1]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.name.endswith("softmax_out/QuantizeLinear")
    ]
    assert scales == [np.float32(1) / np.float32(127)] * 2


def test_embeddings_are_int8_tables_dequantized_before_gather(build: Callable[..., tuple[Any, Path]]) -> None:
    graph, producers, constants = _graph(build("full")[1])
    lookups = [node for node in graph.node if node.op_type == "Gather" and "_embeddings/" in node.name]
    tables = [producers[node.input[0]] for node in lookups if node.input[0] in producers]
    tables = [node for node in tables if node.op_type == "DequantizeLinear"]
    assert len(tables) >= 2
    for table in tables:
        assert constants[table.input[0]].dtype == np.int8
    floats = [name for name, value in constants.items() if value.dtype == np.float32 and value.size > 40 * 32]
    assert floats == []  # the largest float that is left is a bias or a LayerNorm, not a table


def test_low_bits_are_few_values(build: Callable[..., tuple[Any, Path]]) -> None:
    _, _, constants = _graph(build("low-bits")[1])
    tables = {name: value for name, value in constants.items() if value.dtype == np.int8 and value.ndim == 2}
    embeddings = [value for name, value in tables.items() if "embeddings" in name]
    weights = [value for name, value in tables.items() if "embeddings" not in name]
    assert len(embeddings) == 3
    assert len(weights) == 2
    assert all(set(np.unique(value)) <= {-2, -1, 0, 1} for value in embeddings)
    assert all(value.min() >= -8 and value.max() <= 7 and len(np.unique(value)) > 4 for value in weights)


@pytest.mark.parametrize("recipe", ["full", "q8bert"])  # by rows, and as a whole
def test_gathering_before_dequantizing_changes_no_bit(
    recipe: str, build: Callable[..., tuple[Any, Path]], tiny_batch: Callable[..., Any]
) -> None:
    import onnxruntime

    model = onnx.load(build(recipe)[1])
    feed = {name: tensor.numpy().astype(np.int32) for name, tensor in tiny_batch("bert", (5, 13), seed=3).items()}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def logits() -> np.ndarray:
        return onnxruntime.InferenceSession(model.SerializeToString(), options).run(["logits"], feed)[0]

    before = logits()
    assert dequantize_gathered_rows(model) == 3
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(logits(), before)
    assert dequantize_gathered_rows(model) == 0
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    assert not any(node.output[0] in gathered for node in model.graph.node if node.op_type == "DequantizeLinear")


def test_a_table_that_something_else_reads_is_left_alone(build: Callable[..., tuple[Any, Path]]) -> None:
    model = onnx.load(build("full")[1])
    table = next(
        node.input[0] for node in model.graph.node if node.op_type == "Gather" and "word_embeddings" in node.name
    )
    model.graph.node.append(onnx.helper.make_node("Identity", [table], ["raw"]))
    assert dequantize_gathered_rows(model) == 2
