"""A bias of relative positions, as MPNet adds it to the scores of every layer: in the graph once, and no obstacle to fusion."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_fixtures import SMALL

from q8trt.engine.backend import Backend
from q8trt.engine.builder import build_here
from q8trt.engine.config import BuildConfig
from q8trt.export.onnx import export_onnx
from q8trt.export.positions import position_bias, take_position_biases
from q8trt.lint import lint
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("quick_export")

NAMES = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_batch: Any) -> Path:
    """MPNet with recipe `full`, INT8 and FP16."""
    model, recipe = tiny_model("mpnet"), load_recipe("full")
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [tiny_batch("mpnet", seed=seed) for seed in range(3)])
    return export_onnx(model, tmp_path_factory.mktemp("mpnet") / "model.onnx", Precision.INT8_FP16, NAMES).path


@pytest.mark.parametrize("length", [1, 7, 64, 200, 512])
def test_the_table_of_distances_is_hugging_faces_bias(tiny_model: Callable[..., Any], length: int) -> None:
    encoder = tiny_model("mpnet", max_position_embeddings=514).mpnet.encoder
    expected = encoder.compute_position_bias(torch.zeros(1, length, 32))
    taken = copy.deepcopy(encoder)
    biases = take_position_biases(taken, 514)
    assert torch.equal(position_bias(torch.full((2, length), 5, dtype=torch.int32), biases), expected[0])
    assert taken.compute_position_bias(torch.zeros(1, length, 32)) is None


def test_it_is_added_to_the_mask_once(exported: Path) -> None:
    graph = onnx.load(exported).graph
    producers = {output: node for node in graph.node for output in node.output}
    tables = {tensor.name: tensor for tensor in graph.initializer if tuple(tensor.dims) == (2 * 66 - 1, 2)}
    [lookup] = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    assert tables[lookup.input[0]].data_type == onnx.TensorProto.FLOAT16, "the type of the scores"
    adds = [producers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]
    assert [producers[add.input[0]].op_type for add in adds] == ["MatMul", "MatMul"]
    [masked] = {add.input[1] for add in adds}
    assert producers[masked].op_type == "Add"
    assert [producers[name].op_type for name in producers[masked].input] == ["Mul", "Transpose"]


def test_padding_and_length_change_no_answer(exported: Path, tiny_batch: Callable[..., Any]) -> None:
    from test_export import run

    batch = tiny_batch("mpnet", (1, 9))
    padded = {name: torch.nn.functional.pad(tensor, (0, 7)) for name, tensor in batch.items()}
    np.testing.assert_allclose(run(exported, padded), run(exported, batch), atol=2e-3)


def test_the_linter_takes_it_for_no_embedding(exported: Path) -> None:
    forecast = lint(exported).forecast
    assert (forecast.int8_embeddings, forecast.embeddings, forecast.residual_adds) == (2, 2, 4)
    assert forecast.fusable_attentions == 2


def test_attention_is_one_int8_kernel(rtx: Backend, exported: Path, tmp_path: Path) -> None:
    report = build_here(exported, tmp_path / "m.plan", BuildConfig("rtx", (SMALL,))).report
    assert (report.bmms, report.int8_bmms, report.fused_attentions) == (4, 4, 2)
    assert (report.gemms, report.int8_gemms) == (2 * 6 + 2, 2 * 6)
