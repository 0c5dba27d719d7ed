"""Parity: logits against those of the libraries themselves, and planted faults that must be found where they lie."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import APART, ARCHITECTURES, layer_count
from parity_fixtures import ROWS, alter, ignore_mask, make_engine, make_run, scale_weight

from q8trt.cli.main import main, run_command
from q8trt.engine.folder import EngineFolder, find_engines
from q8trt.errors import BackendError, ConfigError, DataError, EngineError
from q8trt.evaluation.data import data_config
from q8trt.evaluation.parity import ParityConfig, check_parity, engines_of, stages
from q8trt.evaluation.parity.check import first_above, places_of, relative_error
from q8trt.evaluation.parity.probed import ProbedOnnxRuntime, ProbedTorch
from q8trt.reporting.formats import error_percent
from q8trt.reporting.parity import EngineParity, Pair, verdict
from q8trt.runs.run import Run
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

pytestmark = pytest.mark.usefixtures("quick_export")

QUICK = ParityConfig(batch_sizes=(1, 8), samples=ROWS)
#: Architecture -> the encoder and its layer, and modules of a layer that a fault is planted in.
LINEARS = {
    "bert": ("bert.encoder.layer.1.", "attention.self.value", "output.dense"),
    "electra": ("electra.encoder.layer.1.", "attention.output.dense", "output.dense"),
    "distilbert": ("distilbert.transformer.layer.1.", "attention.v_lin", "ffn.lin2"),
    "mpnet": ("mpnet.encoder.layer.1.", "attention.attn.v", "output.dense"),
    "albert": ("albert.encoder.albert_layer_groups.0.albert_layers.0.", "attention.value", "ffn_output"),
}
LIKE_ROBERTA = ("roberta.encoder.layer.1.", "attention.self.value", "intermediate.dense")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny_quantized: Callable[..., Any]) -> Callable[[str], Run]:
    """``run_of(architecture)``: a run with the engines engine-fp32, engine-ptq and engine-int8. Do not change it."""

    @functools.cache
    def build(architecture: str) -> Run:
        run = make_run(tmp_path_factory.mktemp(architecture), architecture, tiny_quantized(architecture))
        for stage, precision in (("fp32", "fp32"), ("ptq", "int8"), ("int8", "int8")):
            make_engine(run, stage, precision)
        return run

    return build


@pytest.fixture
def run(run_of: Callable[[str], Run], tmp_path: Path) -> Run:
    """A BERT run of one's own."""
    shutil.copytree(run_of("bert").path, tmp_path / "run")
    return Run(tmp_path / "run")


def check(folder: Path, config: ParityConfig = QUICK) -> EngineParity:
    engines = find_engines([str(folder)], "")
    return check_parity(engines[0], data_config(engines, None), config)


def pair_of(engine: EngineParity, second: str, batch_size: int = 8) -> Pair:
    [pair] = [each for each in engine.pairs if each.second == second and each.batch_size == batch_size]
    return pair


# What is measured


def texts(run: Run) -> tuple[list[str], list[str], np.ndarray]:
    lines = (Path(run.record.config["data"]["data_dir"]) / "dev.tsv").read_text().splitlines()[1:]
    columns = [line.split("\t") for line in lines]
    return [c[1] for c in columns], [c[2] for c in columns], np.array([float(c[3]) for c in columns])


def hf_logits(run: Run, stage: str) -> np.ndarray:
    """Row by row: transformers, and q8trt only for what loads a quantized model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from q8trt.models.checkpoints import load_quantized

    folder = run.path / stage
    model = AutoModelForSequenceClassification.from_pretrained(folder) if stage == "fp32" else load_quantized(folder)[0]
    tokenizer, (first, second, _) = AutoTokenizer.from_pretrained(folder), texts(run)
    with torch.no_grad():
        rows = [model.eval()(**tokenizer(a, b, return_tensors="pt")).logits for a, b in zip(first, second, strict=True)]
    return torch.cat(rows).numpy()


def ort_logits(run: Run, stage: str) -> np.ndarray:
    """Row by row: ONNX Runtime on the file node by node, transformers' tokenizer."""
    import onnxruntime
    from transformers import AutoTokenizer

    options = onnxruntime.SessionOptions()  # fused INT8 kernels saturate on some CPUs
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(run.path / f"engine-{stage}" / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer, (first, second, _) = AutoTokenizer.from_pretrained(run.path / stage), texts(run)
    names = [each.name for each in session.get_inputs()]
    rows = []
    for a, b in zip(first, second, strict=True):
        encoded = tokenizer(a, b, return_tensors="np")
        rows.append(session.run(None, {name: encoded[name].astype(np.int32) for name in names})[0])
    return np.concatenate(rows)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *APART])
def test_every_stage_of_a_calibrated_model_agrees(run_of: Callable[[str], Run], architecture: str) -> None:
    run = run_of(architecture)
    engine = check(run.path / "engine-ptq")
    assert engine.agrees
    assert [(each.stage, each.batch_size, each.rows) for each in engine.stages] == [
        (stage, size, ROWS) for stage in ("torch FP32", "torch fake-quant", "ONNX Runtime") for size in (1, 8)
    ]
    logits = {
        "torch FP32": hf_logits(run, "fp32"), "torch fake-quant": hf_logits(run, "ptq"),
        "ONNX Runtime": ort_logits(run, "ptq"),
    }  # fmt: skip
    scores, before = texts(run)[2], None
    for each in engine.stages:
        if each.batch_size == 1:
            # ONNX Runtime rounds a value between two steps as it pleases, which depends on the CPU.
            near = 0.01 if each.stage == "ONNX Runtime" else 1e-5
            pearson = scipy.stats.pearsonr(logits[each.stage][:, 0], scores).statistic
            assert each.metrics["pearson"] == pytest.approx(pearson, abs=near)
            for measured, other in ((each.before, before), (each.fp32, "torch FP32" if before else None)):
                assert (measured is None) == (other is None)
                if measured and other:
                    apart = np.abs(logits[each.stage] - logits[other])
                    assert measured.largest == pytest.approx(apart.max(), abs=2 * near)
                    assert measured.mean == pytest.approx(apart.mean(), abs=near / 4)
            before = each.stage
    quantization, export = pair_of(engine, "torch fake-quant"), pair_of(engine, "ONNX Runtime")
    layers = [f"layer.{number}" for number in range(layer_count(architecture))]
    assert list(quantization.alone) == ["embeddings", *layers, "head"]
    assert quantization.alone["embeddings"] == quantization.alone["head"] == 0
    assert 0.002 < quantization.alone["layer.0"] == quantization.so_far["layer.0"] < 0.2
    assert layers[1:] == [] or quantization.so_far["layer.1"] > quantization.alone["layer.1"] > 0.002
    assert max(export.alone.values()) < 0.01
    assert quantization.logits.mean > 10 * export.logits.mean


def test_wide_sites_are_named_with_their_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rows of the check, and without a word on agreement."""
    from q8trt.quantization import spreads

    assert check(run.path / "engine-ptq").wide_sites == []
    monkeypatch.setattr(spreads, "WIDE", 1.01)
    engine = check(run.path / "engine-ptq")
    assert engine.agrees
    [gelu] = [line for line in engine.wide_sites if "smooth_gelu in the recipe" in line]
    assert "2 sites have a channel beyond 1.01 times the median channel's range" in gelu
    assert gelu in [phrase.text for phrase in verdict(engine)]
    assert check(run.path / "engine-fp32").wide_sites == []


def test_float_engine_has_no_quantized_stages(run: Run) -> None:
    engine = check(run.path / "engine-fp32")
    assert list(dict.fromkeys(each.stage for each in engine.stages)) == ["torch FP32", "ONNX Runtime"]
    assert pair_of(engine, "ONNX Runtime").tolerance == 0.005
    assert max(pair_of(engine, "ONNX Runtime").so_far.values()) < 1e-5
    assert engine.agrees


def test_engine_with_fp16_is_given_half_precision(run: Run) -> None:
    shutil.rmtree(run.path / "engine-ptq")
    engine = check(make_engine(run, "ptq", "int8+fp16"))
    pair = pair_of(engine, "ONNX Runtime")
    assert pair.tolerance == 0.3
    assert 1e-4 < pair.alone["embeddings"] < 1e-3 < pair.alone["layer.0"] < 0.1
    assert engine.agrees


def test_what_training_moved_is_told_from_what_quantizing_does(run: Run) -> None:
    engine = check(run.path / "engine-int8")
    names = ["torch FP32", "torch, quantizers off", "torch fake-quant", "ONNX Runtime"]
    assert list(dict.fromkeys(each.stage for each in engine.stages)) == names
    training = pair_of(engine, "torch, quantizers off")
    assert (training.kind, training.tolerance, training.parts_at) == ("training", None, None)
    assert training.alone["layer.0"] > pair_of(engine, "torch fake-quant").alone["layer.0"] > 0.002
    assert engine.agrees


def test_batch_1_is_not_padded_and_others_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    infer = ProbedTorch.infer

    def spy(self: ProbedTorch, arrays: Any) -> np.ndarray:
        shapes.append(arrays["input_ids"].shape)
        assert arrays["input_ids"].shape[0] > 1 or arrays["attention_mask"].all()
        return infer(self, arrays)

    monkeypatch.setattr(ProbedTorch, "infer", spy)
    engine = check(run.path / "engine-fp32")
    assert len({length for rows, length in shapes if rows == 1}) > 2
    assert {length for rows, length in shapes if rows > 1} <= {16, 32}
    [padding] = [each for each in engine.pairs if each.first == "torch FP32, batch 1"]
    assert padding.second == "torch FP32, batch 8"
    assert 0 < padding.logits.largest < 1e-5


def test_fewer_rows_run_at_batch_1_unless_a_number_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ROWS_AT_BATCH_1", 5)
    engine = check(run.path / "engine-fp32", ParityConfig((1, 8)))
    assert [each.rows for each in engine.stages] == [5, ROWS] * 2
    assert [each.rows for each in check(run.path / "engine-fp32", ParityConfig((1, 8), 12)).stages] == [12, 12] * 2


# What flows inside


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *APART])
def test_hidden_states_are_transformers_own(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    import torch

    from q8trt.export.onnx import export_onnx

    model, batch = tiny_model(architecture), tiny_batch(architecture, (4, 32))
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    with torch.no_grad():
        expected = [each.numpy() for each in model(**batch, output_hidden_states=True).hidden_states]
        logits = model(**batch).logits.numpy()
    export_onnx(model, tmp_path / "model.onnx", "fp32", tuple(batch))
    with ProbedTorch(model, "fp32") as torch_runner, ProbedOnnxRuntime(tmp_path / "model.onnx", "fp32") as ort_runner:
        modules = torch_runner.modules(arrays)
        ends = [each[-1] for each in places_of(modules).values()]
        ours, theirs = torch_runner.outputs(arrays, modules), ort_runner.outputs(arrays, modules)
    assert len(modules) >= 2 + 7 * layer_count(architecture)
    if layer_count(architecture) == 1:  # a module that runs again shows its last output
        expected = [expected[0], expected[-1]]
    real = arrays["attention_mask"].astype(bool)
    if architecture == "modernbert":  # transformers' last hidden states are behind the last LayerNorm
        ends[-2] = "model.final_norm"
    for end, states in zip(ends, [*expected, logits], strict=True):
        # DeBERTa makes embeddings of padding zero, behind their LayerNorm.
        rows = real if architecture == "deberta-v2" and states.ndim == 3 else slice(None)
        np.testing.assert_array_equal(ours[end][rows], states[rows])
    for module in modules:
        rows = real if ours[module].ndim == 3 else slice(None)
        np.testing.assert_allclose(theirs[module][rows], ours[module][rows], rtol=1e-4, atol=2e-5, err_msg=module)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_layer_runs_on_the_hidden_states_that_it_is_given(
    backend: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    import torch

    from q8trt.export.onnx import export_onnx

    model, batch = tiny_model(), tiny_batch(shape=(2, 9))
    batch["attention_mask"][:] = 1
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    first, second = (f"bert.encoder.layer.{number}.output.LayerNorm" for number in (0, 1))
    given = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = {first: model.bert(**batch, output_hidden_states=True).hidden_states[1]}
        layer = model.bert.encoder.layer[1](given)
        expected[second] = layer[0] if isinstance(layer, tuple) else layer
    runner: ProbedTorch | ProbedOnnxRuntime = ProbedTorch(model, "fp32")
    if backend == "onnxruntime":
        export_onnx(model, tmp_path / "model.onnx", "fp32", tuple(batch))
        runner = ProbedOnnxRuntime(tmp_path / "model.onnx", "fp32")
    plain = runner.infer(arrays)
    found = runner.outputs(arrays, [first, second], {first: given.numpy()})
    for module, states in expected.items():
        np.testing.assert_allclose(found[module], states.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(runner.infer(arrays), plain)


@pytest.mark.parametrize("recipe", ["attention", "full", "q8bert"])
def test_every_recipe_keeps_the_places(
    recipe: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    """However the exporter spells a quantized residual or table, its module is found in the file, and agrees."""
    from q8trt.export.onnx import export_onnx
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    model, chosen = tiny_model(architecture), load_recipe(recipe)
    insert_quantizers(model, chosen)
    calibrate(model, chosen, [tiny_batch(architecture, seed=seed) for seed in range(3)])
    batch = tiny_batch(architecture, (4, 20), seed=9)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    export_onnx(model, tmp_path / "model.onnx", "int8", tuple(batch))
    with ProbedTorch(model, "int8") as first, ProbedOnnxRuntime(tmp_path / "model.onnx", "int8") as second:
        modules = first.modules(arrays)
        ours, theirs = first.outputs(arrays, modules), second.outputs(arrays, modules)
    real = arrays["attention_mask"].astype(bool)
    for module in modules:
        rows = real if ours[module].ndim == 3 else slice(None)
        assert relative_error(ours[module][rows], theirs[module][rows]) < 0.02, module


def test_file_of_another_exporter_is_refused(run: Run) -> None:
    def rename(model: Any) -> None:
        for node in model.graph.node:
            node.name = node.name.replace(".layer.1.", ".block.1.")

    alter(run.path / "engine-ptq", rename)
    with pytest.raises(EngineError, match=r"no node of bert\.encoder\.layer\.1\..*; export it again with build_engine"):
        check(run.path / "engine-ptq")


# Planted faults


@pytest.mark.parametrize("number", [1, 2])
def test_altered_weight_scale_in_the_file_is_found(
    run_of: Callable[[str], Run], tmp_path: Path, architecture: str, number: int
) -> None:
    shutil.copytree(run_of(architecture).path, tmp_path / "run")
    folder, (prefix, *linears) = tmp_path / "run" / "engine-ptq", LINEARS.get(architecture, LIKE_ROBERTA)
    alter(folder, scale_weight(prefix + linears[number - 1], 1.5))
    engine = check(folder)
    assert not engine.agrees
    for size in (1, 8):
        pair = pair_of(engine, "ONNX Runtime", size)
        last = f"layer.{layer_count(architecture) - 1}"
        # In the last run of a layer that runs twice, the first module already reads what the first run altered.
        module = linears[number - 1] if last == "layer.1" else "attention.query"
        assert (pair.parts_at, pair.module) == (last, module)
        assert last == "layer.0" or pair.alone["layer.0"] < 0.01
        assert pair.alone[last] > 0.05
        assert pair.alone["head"] < 0.01 < pair.so_far["head"]
    assert pair_of(engine, "torch fake-quant").parts_at is None
    assert [pair.second for pair in engine.pairs if pair.parts_at] == ["ONNX Runtime"] * 2


def test_fault_of_an_early_layer_is_not_laid_to_later_ones(run: Run) -> None:
    alter(run.path / "engine-ptq", scale_weight("bert.encoder.layer.0.output.dense", 2))
    pair = pair_of(check(run.path / "engine-ptq"), "ONNX Runtime")
    assert (pair.parts_at, pair.module) == ("layer.0", "output.dense")
    assert pair.alone["layer.1"] < 0.01 < 0.05 < pair.so_far["layer.1"]


def test_modules_too_start_from_the_hidden_states_that_they_are_given(run: Run) -> None:
    """Else the small fault of layer 0 would be laid to the first linear of layer 1."""
    folder = run.path / "engine-ptq"
    alter(folder, scale_weight("bert.encoder.layer.0.output.dense", 1.2))
    alter(folder, scale_weight("bert.encoder.layer.1.output.dense", 3))
    tolerance = 1.1 * pair_of(check(folder), "ONNX Runtime").alone["layer.0"]
    pair = pair_of(check(folder, ParityConfig((1, 8), ROWS, tolerance)), "ONNX Runtime")
    assert (pair.parts_at, pair.module) == ("layer.1", "output.dense")


def test_fault_of_the_head_is_found(run: Run) -> None:
    def change(model: Any) -> None:
        from onnx import numpy_helper

        [tensor] = [each for each in model.graph.initializer if each.name == "bert.pooler.dense/MatMul.1"]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.3), tensor.name))

    alter(run.path / "engine-fp32", change)
    pair = pair_of(check(run.path / "engine-fp32"), "ONNX Runtime")
    assert (pair.parts_at, pair.module) == ("head", "bert.pooler.dense")


def test_range_that_is_far_too_small_is_found(run: Run) -> None:
    """A stage against torch FP32: quantization may cost something, not everything."""
    from safetensors.torch import load_file, save_file

    path = run.path / "ptq" / "model.safetensors"
    state = load_file(path)
    state["bert.encoder.layer.1.output.dense.input_quantizer._amax"] /= 1000
    save_file(state, path, {"format": "pt"})
    (run.path / "ptq" / "hashes.json").unlink()
    engine = check(run.path / "engine-ptq")
    pair = pair_of(engine, "torch fake-quant")
    assert (pair.kind, pair.parts_at, pair.module) == ("quantization", "layer.1", "output.dense")
    assert pair_of(engine, "ONNX Runtime").parts_at == "layer.1", "the file has the range that was"


def test_padding_that_is_attended_to_is_found(run: Run) -> None:
    alter(run.path / "engine-fp32", ignore_mask)
    engine = check(run.path / "engine-fp32")
    assert pair_of(engine, "ONNX Runtime", 1).parts_at is None
    pair = pair_of(engine, "ONNX Runtime", 8)
    assert (pair.parts_at, pair.module) == ("layer.0", "attention.output.dense")
    [padding] = [each for each in engine.pairs if each.first == "ONNX Runtime, batch 1"]
    assert (padding.parts_at, padding.module) == ("layer.0", "attention.output.dense")


def test_tolerance_is_the_users(run: Run) -> None:
    alter(run.path / "engine-ptq", scale_weight("bert.encoder.layer.1.output.dense", 1.5))
    assert check(run.path / "engine-ptq", ParityConfig((1, 8), ROWS, tolerance=0.9)).agrees
    pair = pair_of(check(run.path / "engine-fp32", ParityConfig((1, 8), ROWS, tolerance=1e-12)), "ONNX Runtime")
    assert pair.parts_at == "embeddings"
    strict = check(run.path / "engine-int8", ParityConfig((1, 8), ROWS, quantization_tolerance=1e-4))
    assert pair_of(strict, "torch fake-quant").parts_at == "layer.0"


# The engine


def with_plan(folder: Path, smallest: tuple[int, int] = (1, 1)) -> None:
    from dataclasses import replace

    from q8trt.engine.manifest import BackendInfo
    from q8trt.engine.manifest_file import load_manifest, write_manifest
    from q8trt.engine.shapes import ShapeProfile

    (folder / "model.plan").write_bytes(b"plan")
    profile, backend = ShapeProfile(smallest, (8, 32), (8, 32)), BackendInfo("tensorrt_rtx", "1.7.1", [])
    write_manifest(folder, replace(load_manifest(folder), profiles=[profile], backend=backend))


class Twisted(OnnxRuntimeRunner):
    """Stands in for an engine: the logits of ONNX Runtime, times a factor."""

    factor = 1.0

    def infer(self, arrays: Any) -> np.ndarray:
        return super().infer(arrays) * np.float32(self.factor)


@pytest.mark.parametrize(("factor", "parts"), [(1.0, False), (2.0, True)])
def test_engine_is_judged_by_its_logits(run: Run, monkeypatch: pytest.MonkeyPatch, factor: float, parts: bool) -> None:
    folder = run.path / "engine-ptq"
    with_plan(folder)
    monkeypatch.setattr(stages, "open_runner", lambda path, name: Twisted(path / "model.onnx", "int8"))
    monkeypatch.setattr(Twisted, "factor", factor)
    engine = check(folder, ParityConfig((1, 32), ROWS))
    assert engine.agrees != parts
    assert [each.batch_size for each in engine.stages[-2:]] == [1, 8], "cut to the profile"
    pair = pair_of(engine, "TensorRT-RTX")
    assert (pair.kind, pair.alone, pair.module) == ("engine", {}, None)
    assert pair.logits_error == pytest.approx(factor - 1, abs=1e-6)
    assert pair.tolerance == max(0.05, *(pair_of(engine, "torch fake-quant", size).logits_error for size in (1, 8)))
    said = [line for line in engine.to_dict()["verdict"] if "-> TensorRT-RTX" in line]
    assert parts == any("PART at logits" in line and "no layer can be named" in line for line in said)


def test_engine_that_cannot_run_says_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.path / "engine-fp32"
    assert list(check(folder).not_run.items()) == [("TensorRT", f"{folder} has no plan")]
    with_plan(folder, smallest=(4, 16))
    assert "leaves out single short rows; build with --min_shapes 1x1" in check(folder).not_run["TensorRT-RTX"]
    with_plan(folder)

    def refuse(path: Path, name: str) -> Any:
        raise BackendError(f"{name} is not here")

    monkeypatch.setattr(stages, "open_runner", refuse)
    engine = check(folder)
    assert engine.not_run == {"TensorRT-RTX": "tensorrt_rtx is not here"}
    assert engine.stages[-1].stage == "ONNX Runtime"
    assert engine.agrees


# The command


def parity(*argv: str) -> int:
    return main(["parity", *argv, "--samples", str(ROWS), "--batch_sizes", "1", "8"])


def test_command_prints_and_writes_what_was_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity("--engine", str(run.path / "engine-ptq")) == 0
    out = capsys.readouterr().out
    for words in ("PTQ INT8", "torch fake-quant", "ONNX Runtime", "pearson", "layer.1", "head", "so far", "agree"):
        assert words in out
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:7])
    assert list(facts) == ["model", "recipe", "precision", "engine", "data", "device"]
    [engine] = json.loads((run.path / "parity.json").read_text())["engines"]
    assert (facts["model"].strip(), facts["recipe"].strip()) == (engine["model"], engine["recipe"]) == ("tiny", "mine")
    assert facts["data"].strip() == f"STS-B dev, {ROWS} rows, {engine['data_source']}"
    assert facts["device"].strip().endswith(" cores")
    assert {stage["device"] for stage in engine["stages"]} == {"cpu"}
    assert "TensorRT was not run: " in out
    assert "ONNX Runtime, batch 1 -> batch 8, padded: agree" in out
    assert "PART" not in out
    lines = [line.split() for line in out.splitlines()]
    report = json.loads((run.path / "parity.json").read_text())
    assert report["agrees"] is True
    assert report["provenance"]["command"].startswith("q8trt parity --engine ")
    assert not Path(report["engines"][0]["folder"]).is_absolute()
    assert report["engines"][0]["stages"][2]["before"]["mean"] > 0
    [engine] = report["engines"]
    for stage in engine["stages"][2:]:
        apart = [
            f"{stage[name][what]:.2g}" for name in ("before", "fp32") if stage[name] for what in ("largest", "mean")
        ]
        assert [
            *stage["stage"].split(),
            str(stage["batch_size"]),
            str(ROWS),
            f"{100 * stage['metrics']['pearson']:.2f}",
        ] + [
            part for number, figure in enumerate(apart) for part in ([figure, "/"] if number % 2 == 0 else [figure])
        ] in lines
    quantization, export = engine["pairs"][1], engine["pairs"][3]
    for place in quantization["alone"]:
        figures = [error_percent(pair[what][place]) for pair in (quantization, export) for what in ("alone", "so_far")]
        assert [place, figures[0], "/", figures[1], figures[2], "/", figures[3]] in lines
    assert set(report["engines"][0]["pairs"][0]["alone"]) == {"embeddings", "layer.0", "layer.1", "head"}


def test_command_fails_where_stages_part(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alter(run.path / "engine-ptq", scale_weight("bert.encoder.layer.1.attention.self.query", 3))
    path = tmp_path / "figures" / "parity.json"
    assert parity(str(run.path / "engine-ptq"), "--json", str(path)) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "torch fake-quant -> ONNX Runtime, batch 8: PART at layer.1, " in out
    assert "apart, tolerance 5%, first at the output of attention.self.query" in out
    assert json.loads(path.read_text())["agrees"] is False
    assert not (run.path / "parity.json").exists()


def test_engines_are_found_in_a_run_or_in_the_newest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(engines: list[EngineFolder]) -> set[str]:
        return {engine.folder.name for engine in engines}

    everything = {"engine-fp32", "engine-ptq", "engine-int8"}
    assert names(engines_of([str(run.path)], "")) == everything
    assert names(engines_of([], str(run.path.parent))) == everything
    assert names(engines_of([str(run.path / "engine-ptq")], "")) == {"engine-ptq"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batch_sizes", "0"], "--batch_sizes 0, expected numbers of 1 or more"),
        (["--samples", "0"], "--samples 0, expected 1 or more"),
        (["--tolerance", "-1"], "--tolerance -1.0, expected a relative error above 0, such as 0.01"),
        (["--quantization_tolerance", "nan"], "--quantization_tolerance nan, expected a relative error above 0"),
        (["elsewhere"], "engine folder elsewhere does not exist"),
        ([], "no engine under runs/"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("parity", argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("parity: error: ")
    assert words in line


def test_engine_outside_a_run_and_run_without_engine_are_refused(run: Run, tmp_path: Path) -> None:
    data = data_config(find_engines([str(run.path / "engine-ptq")], ""), None)
    shutil.copytree(run.path / "engine-ptq", tmp_path / "copied")
    [engine] = find_engines([str(tmp_path / "copied")], "")
    with pytest.raises(ConfigError, match="copied is in no run folder, so its torch checkpoints are not known"):
        check_parity(engine, data, QUICK)
    for folder in run.path.glob("engine-*"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"run has no engine; build one: python build_engine.py --int8 --checkpoint"):
        engines_of([str(run.path)], "")


def test_stage_that_is_gone_and_rows_without_labels_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from q8trt.tasks.data import load_dev

    def unlabeled(config: Any) -> dict[str, Any]:
        return {split: replace(rows, labels=None) for split, rows in load_dev(config).items()}

    with monkeypatch.context() as patch:
        patch.setattr(stages, "load_dev", unlabeled)
        with pytest.raises(DataError, match="dev has no labels, so nothing can be scored on it"):
            check(run.path / "engine-ptq")
    record = run.record
    run.write(replace(record, stages={name: stage for name, stage in record.stages.items() if name != "fp32"}))
    with pytest.raises(ConfigError, match="has no finished fp32 checkpoint any more"):
        check(run.path / "engine-ptq")


# The arithmetic


def test_relative_error_is_the_ratio_of_norms() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.zeros(2), np.ones(2)) > 1


def test_the_first_above_the_tolerance_is_named() -> None:
    errors = {"embeddings": 0.01, "layer.0": 0.3, "layer.1": 0.9}
    assert first_above(errors, 0.1) == "layer.0"
    assert first_above(errors, 0.5) == "layer.1"
    assert first_above(errors, 0.9) is None
    assert first_above(errors, None) is None
    assert first_above({"layer.0": float("nan")}, 0.1) == "layer.0"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0"), (1e-7, "<0.001%"), (0.0032, "0.32%"), (0.031, "3.1%"), (0.1349, "13%"), (2, "200%")],
)
def test_percent(fraction: float, text: str) -> None:
    assert error_percent(fraction) == text
