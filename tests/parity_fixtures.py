"""A run with FP32, PTQ and "QAT" checkpoints of a tiny model, and engine folders of it without a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import WITH_TOKEN_TYPES, make_model, make_tokenizer
from tiny_data import write_sts_b

from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.models.checkpoints import save_checkpoint
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import Run, new_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig

ROWS = 16


def make_run(folder: Path, architecture: str, quantized: tuple[Any, Any]) -> Run:
    """A run whose int8 checkpoint is the ptq one with other weights, as if it had been trained."""
    import torch

    data = DataConfig(task="STS-B", data_dir=str(write_sts_b(folder / "data", dev=ROWS)), max_seq_length=32)
    run = new_run(folder / "run", {}, "STS-B", FinetuneConfig(data, TrainingConfig()).to_dict())
    tokenizer = make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES)
    model, recipe = quantized
    trained = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    for stage, each in (("fp32", make_model(architecture)), ("ptq", model), ("int8", trained)):
        save_checkpoint(run.path / stage, each, tokenizer, None if stage == "fp32" else recipe)
        run.finish_stage(stage, {"checkpoint": stage, "scores": {}})
    return run


def make_engine(run: Run, stage: str, precision: str = "int8") -> Path:
    """The engine folder of a stage, without a plan: all that ONNX Runtime needs."""
    from q8trt.models import load_tokenizer
    from q8trt.models.checkpoints import load_finetuned, load_quantized

    config = FinetuneConfig.from_dict(run.record.config)
    task, checkpoint = config.data.resolved_task, run.path / stage
    model = load_finetuned(checkpoint, task) if stage == "fp32" else load_quantized(checkpoint)[0]
    folder, tokenizer = run.path / f"engine-{stage}", load_tokenizer(str(checkpoint))
    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in tokenizer.model_input_names]
    export_onnx(model, folder / "model.onnx", precision, names, ExportOptions("torchscript"))
    tokenizer.save_pretrained(folder)
    write_manifest(
        folder,
        Manifest(
            task=TaskInfo(task.name, list(task.labels), task.is_regression, task.is_pair, task.main_metric),
            model=ModelInfo("tiny", model.config.model_type, 1, 64, 0, 32),
            precision=Precision(precision),
            recipe={"name": "mine"} if Precision(precision).is_quantized else None,
            inputs=names,
            opset=20,
            stage=stage,
        ),
    )
    return folder


def alter(folder: Path, change: Callable[[Any], object]) -> None:
    """Change model.onnx, and sign the folder again."""
    import onnx

    manifest, path = load_manifest(folder), folder / "model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    write_manifest(folder, manifest)


def scale_weight(module: str, factor: float) -> Callable[[Any], None]:
    """Multiply the scale of the quantized weight of `module`, a dotted path within the model."""
    from onnx import numpy_helper

    def change(model: Any) -> None:
        [product] = [node for node in model.graph.node if node.name == f"{module}/MatMul"]
        [node] = [node for node in model.graph.node if node.output[0] == product.input[1]]
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        tensor = constants[node.input[1]]
        scale = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))

    return change


def ignore_mask(model: Any) -> None:
    """Let the encoder attend to padding: what is added to its scores becomes zero."""
    from onnx import numpy_helper

    [inverse] = [node for node in model.graph.node if node.op_type == "Sub"]
    [product] = [node for node in model.graph.node if inverse.output[0] in node.input]
    [masked] = [tensor for tensor in model.graph.initializer if tensor.name == product.input[1]]
    masked.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(masked) * 0, masked.name))
