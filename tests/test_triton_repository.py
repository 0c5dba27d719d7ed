"""The files that `q8trt triton` writes for each variant, and its errors."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixtures import MAX_LENGTH, REGRESSION, SINGLE, changed, engine_folder
from triton_fakes import install, model_arguments, parse_config

from q8trt.cli.main import main
from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError, ConfigError, EngineError
from q8trt.quantization.precision import Precision

PLAN = b"a plan"
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an engine without a plan. Do not change it."""
    return engine_folder(tmp_path_factory.mktemp("engines") / "plain", REGRESSION)


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """An engine folder of one's own, with a plan of TensorRT."""
    folder = tmp_path / "engine"
    shutil.copytree(built, folder)
    (folder / "model.plan").write_bytes(PLAN)
    profiles = [ShapeProfile((1, 1), (4, MAX_LENGTH), (8, MAX_LENGTH))]
    return changed(folder, profiles=profiles, backend=BackendInfo("tensorrt", "10.13.2.6", ["9.0"]))


@pytest.fixture(scope="module")
def int8(tiny_quantized: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 engine folder without a plan. Do not change it."""
    from q8trt.export.onnx import ExportOptions, export_onnx

    folder = tmp_path_factory.mktemp("int8")
    export_onnx(tiny_quantized()[0], folder / "model.onnx", "int8", INPUTS, ExportOptions("torchscript"))
    tiny_tokenizer.save_pretrained(folder)
    info = ModelInfo("tiny", "bert", 1, 64, 0, MAX_LENGTH)
    write_manifest(folder, Manifest(REGRESSION, info, Precision.INT8, None, INPUTS, 20))
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


TEXT_MODEL = {"sts_b/config.pbtxt", "sts_b/1/model.py", "sts_b/1/encoding.py", "sts_b/1/tokenizer.json"}


@pytest.mark.parametrize(
    ("backend", "more"),
    [
        ("tensorrt", {"sts_b_encoder/config.pbtxt", "sts_b_encoder/1/model.plan"}),
        ("onnxruntime", {"sts_b_encoder/config.pbtxt", "sts_b_encoder/1/model.onnx"}),
        ("python", {"sts_b/1/model.onnx", "sts_b/warmup/text"}),
    ],
)
def test_the_files_of_a_variant(engine: Path, tmp_path: Path, backend: str, more: set[str]) -> None:
    written = write_repository(engine, tmp_path / "models", TritonConfig(backend=backend))
    assert written.path == tmp_path / "models"
    assert files_of(written.path) == TEXT_MODEL | more
    assert set(written.models) == {path.name for path in written.path.iterdir()}
    for name in written.models:  # Triton takes no model whose folder and name differ
        assert parse_config(written.path / name / "config.pbtxt").name == name
    source = Path(__file__).parents[1] / "q8trt" / "deployment" / "triton" / "model.py"
    assert (written.path / "sts_b" / "1" / "model.py").read_bytes() == source.read_bytes()
    if backend == "tensorrt":
        assert (written.path / "sts_b_encoder" / "1" / "model.plan").read_bytes() == PLAN
        assert parse_config(written.path / "sts_b_encoder" / "config.pbtxt").max_batch_size == 8


def test_an_empty_folder_and_a_name_are_taken(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    written = write_repository(engine, tmp_path / "models", TritonConfig(model_name="Texts-2.0"))
    assert written.models == ("Texts-2.0", "Texts-2.0_encoder")


def test_types_are_those_of_the_graph(engine: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(engine / "model.onnx")
    for tensor in model.graph.input:
        tensor.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, engine / "model.onnx")
    changed(engine)
    written = write_repository(engine, tmp_path / "models")
    config = parse_config(written.path / "sts_b_encoder" / "config.pbtxt")
    types = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert {each.data_type for each in config.input} == {types["TYPE_INT64"].number}


def test_the_warmup_text_fills_the_longest_bucket(engine: Path, tmp_path: Path) -> None:
    written = write_repository(engine, tmp_path / "models", TritonConfig(backend="python"))
    data = (written.path / "sts_b" / "warmup" / "text").read_bytes()
    [length] = struct.unpack("<I", data[:4])
    assert length == len(data) - 4
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(written.path / "sts_b" / "1" / "tokenizer.json"))
    assert len(tokenizer.encode(data[4:].decode()).ids) >= MAX_LENGTH


def session(path: Path) -> Any:
    """An ONNX Runtime session as a server has it: default optimizations, whatever the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_an_int8_graph_is_right_on_any_cpu(
    int8: Path, tmp_path: Path, backend: str, tiny_quantized: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    """Torch's fake quantization is the reference; the engine's own file saturates on a CPU without VNNI."""
    import torch

    written = write_repository(int8, tmp_path / "models", TritonConfig(backend=backend))
    batch = tiny_batch(shape=(4, MAX_LENGTH))
    with torch.no_grad():
        expected = tiny_quantized()[0](**batch).logits.numpy()
    arrays = {name: batch[name].numpy().astype(np.int32) for name in INPUTS}
    [logits] = session(written.path / written.models[-1] / "1" / "model.onnx").run(["logits"], arrays)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.02)


def test_for_a_gpu_the_graph_stays_as_it_is(int8: Path, tmp_path: Path) -> None:
    written = write_repository(int8, tmp_path / "models", TritonConfig(backend="onnxruntime", device="cuda"))
    assert (written.path / "sts_b_encoder" / "1" / "model.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()


def test_a_graph_for_vnni_says_so_and_loads_nowhere_else(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_repository(int8, tmp_path / "models", TritonConfig(backend="python", vnni=True))
    write_repository(int8, tmp_path / "other", TritonConfig(backend="python"))
    module = install(monkeypatch)
    arguments = model_arguments(written.path / "sts_b")
    monkeypatch.setattr(module, "_has_vnni", lambda: False)
    with pytest.raises(
        module.pb_utils.TritonModelException, match="for a CPU with VNNI; write the repository without --vnni"
    ):
        module.TritonPythonModel().initialize(arguments)
    monkeypatch.setattr(module, "_has_vnni", lambda: True)
    module.TritonPythonModel().initialize(arguments)
    graphs = [(tmp_path / name / "sts_b" / "1" / "model.onnx").read_bytes() for name in ("models", "other")]
    assert graphs[0] != graphs[1]


# What is refused


def refused(engine: Path, tmp_path: Path, error: type[Exception] = EngineError, **options: Any) -> str:
    """The message with which nothing is written."""
    before = set(tmp_path.iterdir())
    with pytest.raises(error) as raised:
        write_repository(engine, tmp_path / "models", TritonConfig(**options))
    assert set(tmp_path.iterdir()) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_no_engine_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none", tmp_path) == (
        f"engine folder {tmp_path / 'none'} does not exist; build it with `python build_engine.py --int8`"
    )
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json, so it is not an engine folder" in refused(tmp_path / "empty", tmp_path)


def test_a_damaged_manifest(engine: Path, tmp_path: Path) -> None:
    (engine / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in refused(engine, tmp_path)


def test_a_file_that_was_changed(engine: Path, tmp_path: Path) -> None:
    (engine / "model.plan").write_bytes(PLAN[::-1])
    assert "model.plan has SHA-256" in refused(engine, tmp_path)


def test_a_plan_of_tensorrt_rtx(engine: Path, tmp_path: Path) -> None:
    changed(engine, backend=BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.9"]))
    message = refused(engine, tmp_path)
    assert message.startswith(
        f"{engine / 'model.plan'} is a plan of TensorRT-RTX, and Triton's tensorrt backend loads plans of TensorRT only; "
        "rebuild it: `python build_engine.py --fp32 --checkpoint RUN"
    )
    assert f"--output_dir {engine}" in message
    assert "--backend tensorrt`" in message
    assert message.endswith(
        "or serve model.onnx: --backend onnxruntime (in NVIDIA's container) or --backend python (CPU)"
    )
    write_repository(engine, tmp_path / "models", TritonConfig(backend="onnxruntime"))


def test_no_plan(built: Path, tmp_path: Path) -> None:
    assert "has no plan; rebuild it: `python build_engine.py" in refused(built, tmp_path)


def test_a_plan_that_takes_no_single_row(engine: Path, tmp_path: Path) -> None:
    changed(engine, profiles=[ShapeProfile((2, 1), (4, MAX_LENGTH), (8, MAX_LENGTH))])
    assert "accepts 2x1 to 8x16, best at 4x16, but a request may have one row" in refused(engine, tmp_path)


def test_no_graph(engine: Path, tmp_path: Path) -> None:
    (engine / "model.onnx").unlink()
    changed(engine)
    assert f"{engine} has no model.onnx; rebuild it: `python build_engine.py" in refused(
        engine, tmp_path, backend="python"
    )


def test_a_graph_that_cannot_be_read(engine: Path, tmp_path: Path) -> None:
    (engine / "model.onnx").write_bytes(b"no graph")
    changed(engine)
    assert f"{engine / 'model.onnx'} cannot be read: " in refused(engine, tmp_path)


def test_a_graph_with_other_inputs(engine: Path, tmp_path: Path) -> None:
    changed(engine, inputs=["input_ids", "attention_mask"])
    message = refused(engine, tmp_path)
    assert "model.onnx has the tensors input_ids INT32" in message
    assert message.endswith("expected integer input_ids, attention_mask and logits")


def test_a_tokenizer_that_cannot_be_read(engine: Path, tmp_path: Path) -> None:
    (engine / "tokenizer.json").write_text("{}")
    changed(engine)
    assert "tokenizer.json cannot be read" in refused(engine, tmp_path)


def test_a_batch_beyond_the_plan(engine: Path, tmp_path: Path) -> None:
    message = refused(engine, tmp_path, ConfigError, max_batch_size=9)
    assert message == "--max_batch_size 9 exceeds the plan, which accepts 1x1 to 8x16, best at 4x16; give 8 or less"
    written = write_repository(engine, tmp_path / "models", TritonConfig(backend="python", max_batch_size=9))
    assert written.limits.batch_size == 9  # a graph takes any


def test_an_output_that_is_taken(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "kept").write_text("mine")
    message = refused(engine, tmp_path, ConfigError)
    taken = f"--output_dir {tmp_path / 'models'} is not replaced: it contains 'kept'; "
    assert message == f"{taken}give a new folder, or an empty one"
    assert (tmp_path / "models" / "kept").read_text() == "mine"
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").write_text("mine")
    assert "cannot be written: " in refused(engine, tmp_path, ConfigError)


def test_without_onnx(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "pip install onnx" in refused(engine, tmp_path, BackendError)


# The command


def test_the_command_says_what_it_wrote_and_how_to_serve_it(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    assert main(["triton", str(engine), "--output_dir", str(models), "--gpus", "0", "1", "--no_cuda_graphs"]) == 0
    out = capsys.readouterr().out
    assert (
        f"model repository: {models}\n  sts_b  text and text_pair -> score; 8 rows a request at most, 16 tokens\n"
        in out
    )
    assert "sts_b_encoder  token arrays -> logits, tensorrt on cuda" in out
    assert (
        f"docker run --rm --shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 --gpus all -v {models}:/models:ro" in out
    )
    assert "a container with TensorRT 10.13.2.6, which built the plan" in out
    assert list(parse_config(models / "sts_b_encoder" / "config.pbtxt").instance_group[0].gpus) == [0, 1]


def test_a_version_compatible_plan_needs_an_option_of_the_server(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(engine, report={"build": {"options": {"version_compatible": True}}})
    assert main(["triton", str(engine), "--output_dir", str(tmp_path / "models")]) == 0
    assert "--backend-config=tensorrt,version-compatible=true" in capsys.readouterr().out


def test_the_command_for_labels_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, models = engine_folder(tmp_path / "engine", SINGLE), tmp_path / "models"
    assert main(["triton", str(engine), "--output_dir", str(models), "--backend", "python", "--instances", "2"]) == 0
    out = capsys.readouterr().out
    assert "sst_2  text -> label and probabilities; 32 rows a request at most, 16 tokens" in out
    assert "--gpus" not in out
    assert "pip install tokenizers onnxruntime" in out
    assert f"python tests/triton_local_server.py {models}" in out
    assert (
        json.loads(parse_config(models / "sst_2" / "config.pbtxt").parameters["labels"].string_value) == SINGLE.labels
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ENGINE"], "error: the following arguments are required: --output_dir; see q8trt triton --help"),
        (
            ["ENGINE", "--output_dir", "OUT", "--model_name", "a b"],
            "error: --model_name 'a b' cannot name a folder and a URL",
        ),
        (
            ["ENGINE", "--output_dir", "OUT", "--instance", "2"],
            "unknown argument '--instance' (did you mean '--instances'?)",
        ),
        (["NONE", "--output_dir", "OUT"], "does not exist; build it with"),
    ],
)
def test_the_command_refuses_in_one_line(
    engine: Path, tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"ENGINE": str(engine), "OUT": str(tmp_path / "models"), "NONE": str(tmp_path / "none")}
    assert main(["triton", *(paths.get(word, word) for word in argv)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("triton: error: ")
    assert message in told.err
    assert not (tmp_path / "models").exists()
