"""config.pbtxt of every variant, parsed by tritonclient's own ModelConfig schema; and the options that are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from app_fixtures import PAIRS, REGRESSION, SINGLE
from triton_fakes import parse_config

from q8trt.deployment.triton.config import TritonConfig
from q8trt.deployment.triton.model_config import Served, Tensors, default_name
from q8trt.deployment.triton.pbtxt import Symbol, entries, render
from q8trt.engine.manifest import BackendInfo, FileInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.shapes import ShapeProfile, bucket_profiles
from q8trt.errors import ConfigError
from q8trt.inference.batching import batch_limits
from q8trt.quantization.precision import Precision

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ONE = (ShapeProfile((1, 1), (16, 128), (32, 128)),)
BUCKETS = bucket_profiles((32, 64), 8, 24)


def manifest(task: TaskInfo = REGRESSION, profiles: tuple[ShapeProfile, ...] = ONE) -> Manifest:
    return Manifest(
        task, ModelInfo("tiny", "bert", len(task.labels) or 1, 512, 7, 128), Precision.INT8, None, list(INPUTS), 20,
        profiles=list(profiles), backend=BackendInfo("tensorrt", "10.13.2.6", ["9.0"]),
        files={"model.plan": FileInfo("ab12", 3)},
    )  # fmt: skip


def configs(
    tmp_path: Path, config: TritonConfig, described: Manifest | None = None, max_batch_size: int = 32
) -> tuple[Any, Any]:
    """The parsed configs of the text model and of the encoder."""
    described = described or manifest()
    tensors = Tensors(INPUTS, "TYPE_INT32", "TYPE_FP32", len(described.task.labels) or 1)
    limits = batch_limits(described, config.runs_plan, None, max_batch_size)
    served = Served("sts_b", config, described, tensors, limits)
    messages = [served.text_config(), *([] if config.backend == "python" else [served.encoder_config()])]
    parsed = []
    for message in messages:
        path = tmp_path / f"{message['name']}.pbtxt"
        path.write_text(render(message), encoding="utf-8")
        parsed.append(parse_config(path))
    assert [each.name for each in parsed] == ["sts_b", "sts_b_encoder"][: len(parsed)]
    return parsed[0], parsed[-1]


def kinds(tensors: Any) -> dict[str, tuple[int, list[int]]]:
    return {each.name: (each.data_type, list(each.dims)) for each in tensors}


def graphs(config: Any) -> list[tuple[int, int]]:
    """(batch, length) of each CUDA graph; every input must have the same shape."""
    found = []
    for spec in config.optimization.cuda.graph_spec:
        assert set(spec.input) == set(INPUTS)
        lengths = {tuple(shape.dim) for shape in spec.input.values()}
        assert len(lengths) == 1
        assert not spec.HasField("graph_lower_bound")
        found.append((spec.batch_size, *lengths.pop()))
    return found


def test_a_plan_and_its_text_model(tmp_path: Path) -> None:
    text, encoder = configs(tmp_path, TritonConfig())
    schema = type(encoder).DESCRIPTOR.file
    types, group_kinds = schema.enum_types_by_name["DataType"].values_by_name, type(encoder.instance_group.add())
    assert (encoder.platform, encoder.backend) == ("tensorrt_plan", "tensorrt")
    assert encoder.default_model_filename == "model.plan"
    assert kinds(encoder.input) == {name: (types["TYPE_INT32"].number, [-1]) for name in INPUTS}
    assert kinds(encoder.output) == {"logits": (types["TYPE_FP32"].number, [1])}
    assert encoder.max_batch_size == text.max_batch_size == 32
    group = encoder.instance_group[0]
    assert (group.count, group.kind, list(group.profile)) == (1, group_kinds.KIND_GPU, ["0"])
    assert list(encoder.dynamic_batching.preferred_batch_size) == [16, 32]
    assert encoder.optimization.cuda.graphs
    assert graphs(encoder) == [(batch, length) for length in (16, 32, 64, 128) for batch in (1, 2, 4, 8, 16, 32)]
    warmed = [(each.batch_size, *each.inputs["input_ids"].dims) for each in encoder.model_warmup]
    assert warmed == [(batch, length) for length in (16, 32, 64, 128) for batch in (1, 32)]
    assert all(each.inputs[name].zero_data for each in encoder.model_warmup for name in INPUTS)

    assert (text.backend, text.instance_group[0].count, text.instance_group[0].kind) == (
        "python",
        2,
        group_kinds.KIND_CPU,
    )
    assert kinds(text.input) == {name: (types["TYPE_STRING"].number, [1]) for name in ("text", "text_pair")}
    assert kinds(text.output) == {"score": (types["TYPE_FP32"].number, [1])}
    assert text.dynamic_batching.max_queue_delay_microseconds == 100
    assert list(text.dynamic_batching.preferred_batch_size) == [16, 32]
    assert not text.model_warmup  # the encoder may not be ready yet
    settings = {key: json.loads(value.string_value) for key, value in text.parameters.items()}
    engine = settings.pop("engine")
    assert settings == {
        "encoder": "sts_b_encoder", "inputs": list(INPUTS), "input_type": "TYPE_INT32", "buckets": [16, 32, 64, 128],
        "apart": False, "pad_token_id": 7, "labels": [], "threads": None, "needs_vnni": False,
        "activation": "identity", "threshold": None, "max_length": 128, "truncation_side": "right", "prompt": None,
    }  # fmt: skip
    assert engine["sha256"] == {"model.plan": "ab12"}


def test_profiles_share_an_instance_and_graphs_stay_within_them(tmp_path: Path) -> None:
    text, encoder = configs(tmp_path, TritonConfig(instances=2), manifest(profiles=BUCKETS))
    assert list(encoder.instance_group[0].profile) == ["0", "1"]
    assert (encoder.instance_group[0].count, text.instance_group[0].count) == (2, 3)
    assert encoder.max_batch_size == 24
    assert list(encoder.dynamic_batching.preferred_batch_size) == [8, 24]
    lengths = batch_limits(manifest(profiles=BUCKETS), True, None, 24).buckets
    assert {16, 32, 64} <= set(lengths)
    assert graphs(encoder) == [(batch, length) for length in lengths for batch in (1, 2, 4, 8, 16, 24)]


def test_chosen_gpus_batch_and_queue(tmp_path: Path) -> None:
    config = TritonConfig(gpus=(0, 2), instances=2, max_queue_delay_microseconds=2500, cuda_graphs=False)
    text, encoder = configs(tmp_path, config, max_batch_size=4)
    assert list(encoder.instance_group[0].gpus) == [0, 2]
    assert text.instance_group[0].count == 5
    assert encoder.max_batch_size == text.max_batch_size == 4
    assert list(encoder.dynamic_batching.preferred_batch_size) == [4]
    assert text.dynamic_batching.max_queue_delay_microseconds == 2500
    assert encoder.dynamic_batching.max_queue_delay_microseconds == 0
    assert not encoder.optimization.cuda.graphs
    assert configs(tmp_path, replace(config, text_instances=9))[0].instance_group[0].count == 9


def test_single_rows_are_not_batched(tmp_path: Path) -> None:
    for config in configs(tmp_path, TritonConfig(), max_batch_size=1):
        assert config.max_batch_size == 1
        assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_onnx_file(tmp_path: Path, device: str) -> None:
    config = TritonConfig(backend="onnxruntime", device=device, threads=3 if device == "cpu" else None)
    text, encoder = configs(tmp_path, config)
    assert (encoder.platform, encoder.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert encoder.default_model_filename == "model.onnx"
    group = encoder.instance_group[0]
    assert group.kind == (group.KIND_CPU if device == "cpu" else group.KIND_GPU)
    assert not group.profile  # "specified only for TensorRT backend, otherwise an error will be generated"
    assert not encoder.HasField("optimization")
    assert encoder.parameters["intra_op_thread_count"].string_value == ("3" if device == "cpu" else "")
    assert [(each.batch_size, *each.inputs["input_ids"].dims) for each in encoder.model_warmup] == [(1, 128), (32, 128)]
    assert json.loads(text.parameters["apart"].string_value) == (device == "cpu")


def test_the_python_backend_alone(tmp_path: Path) -> None:
    config = TritonConfig(backend="python", instances=3, threads=2, execution_env_path="/opt/env")
    text, _ = configs(tmp_path, config, manifest(SINGLE))
    assert [each.name for each in text.input] == ["text"]
    assert (text.instance_group[0].count, text.instance_group[0].kind) == (3, text.instance_group[0].KIND_CPU)
    assert json.loads(text.parameters["encoder"].string_value) is None
    assert json.loads(text.parameters["threads"].string_value) == 2
    assert text.parameters["EXECUTION_ENV_PATH"].string_value == "/opt/env"
    assert [each.batch_size for each in text.model_warmup] == [1, 32]
    assert all(each.inputs["text"].input_data_file == "text" for each in text.model_warmup)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "python"])
def test_labels(tmp_path: Path, backend: str) -> None:
    text, encoder = configs(tmp_path, TritonConfig(backend=backend), manifest(PAIRS))
    types = type(text).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert kinds(text.output) == {
        "label": (types["TYPE_STRING"].number, [1]),
        "probabilities": (types["TYPE_FP32"].number, [3]),
    }
    assert json.loads(text.parameters["labels"].string_value) == PAIRS.labels
    if backend != "python":
        assert list(encoder.output[0].dims) == [3]


def test_text_of_any_kind_survives_the_text_format(tmp_path: Path) -> None:
    words = 'über "quoted" \\ back\nline\ttab 東京 \x01'
    path = tmp_path / "config.pbtxt"
    path.write_text(render({"name": words, "parameters": entries({words: {"string_value": words}})}), encoding="utf-8")
    parsed = parse_config(path)
    assert parsed.name == words
    assert parsed.parameters[words].string_value == words


def test_render() -> None:
    message: Mapping[str, Any] = {
        "a": 1,
        "b": [True, False],
        "c": {"d": "x"},
        "e": Symbol("KIND_CPU"),
        "f": None,
        "g": [],
    }
    assert render(message) == 'a: 1\nb: true\nb: false\nc {\n  d: "x"\n}\ne: KIND_CPU\n'


@pytest.mark.parametrize(
    ("name", "expected"), [("STS-B", "sts_b"), ("MNLI", "mnli"), ("custom", "custom"), ("東京", "model")]
)
def test_default_name(name: str, expected: str) -> None:
    assert default_name(manifest(replace(REGRESSION, name=name))) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "unknown --backend 'tensorflow' (did you mean 'tensorrt'?); choose one of tensorrt, "
         "onnxruntime, python"),
        ({"device": "gpu"}, "unknown --device 'gpu'; choose one of cuda, cpu"),
        ({"device": "cpu"}, "--backend tensorrt runs on cuda only; leave --device cpu out"),
        ({"backend": "python", "device": "cuda"}, "--backend python runs on cpu only; leave --device cuda out"),
        ({"model_name": "a/b"}, "--model_name 'a/b' cannot name a folder and a URL: use letters, digits, '_', '-' and '.'"),
        ({"model_name": ""}, "--model_name '' cannot name a folder and a URL: use letters, digits, '_', '-' and '.'"),
        ({"model_name": ".."}, "--model_name '..' cannot name a folder and a URL: use letters, digits, '_', '-' and '.'"),
        ({"max_batch_size": 0}, "--max_batch_size 0, expected 1 or more"),
        ({"instances": 0}, "--instances 0, expected 1 or more"),
        ({"text_instances": -1}, "--text_instances -1, expected 1 or more"),
        ({"backend": "python", "threads": 0}, "--threads 0, expected 1 or more"),
        ({"max_queue_delay_microseconds": -1}, "--max_queue_delay_microseconds -1, expected 0 or more"),
        ({"gpus": (0, 0)}, "--gpus must be different numbers from 0 on; got 0 0"),
        ({"gpus": (-1,)}, "--gpus must be different numbers from 0 on; got -1"),
        ({"backend": "python", "gpus": (0,)}, "--gpus is for an encoder on the GPU; leave it out, or serve on --device cuda"),
        ({"threads": 2}, "--threads is for an encoder on the CPU; leave it out, or serve on --device cpu"),
        ({"vnni": True}, "--vnni is for an encoder on the CPU; leave it out, or serve on --device cpu"),
        ({"backend": "python", "text_instances": 2}, "--text_instances is not for --backend python, which has no other "
         "instances; use --instances"),
    ],
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TritonConfig(**options)
    assert str(error.value) == message
