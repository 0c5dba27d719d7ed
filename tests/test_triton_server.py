"""A real Triton server over HTTP and gRPC: `make triton` installs it, else these tests say so and are skipped.

One server serves four models: two FP32 ones and an INT8 one on the Python backend alone, and one whose text model calls an
encoder of its own. That server has neither TensorRT's backend nor ONNX Runtime's, so a Python model of the same tensors stands
in for the encoder; what is tested is the call.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixtures import ITEMS, MAX_LENGTH, REGRESSION, TASKS, engine_folder, reference
from triton_local_server import Address, find_installation, free_ports, main, serve
from waiting import PATIENCE

from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.engine.manifest import Manifest, ModelInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.errors import BackendError, Q8TRTError
from q8trt.quantization.precision import Precision

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-triton"
PROTOCOLS = ("http", "grpc")
MODELS = {"regression": "regression", "labels": "single", "calling": "pairs"}
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
STAND_IN = """
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        arrays = {each.name(): each.as_numpy() for each in request.inputs()}
        if len(arrays["input_ids"]) == 7:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no luck"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.session.run(["logits"], arrays)[0])])
"""


def environment() -> Path:
    """The server's environment; skips where there is none."""
    try:
        find_installation(ENVIRONMENT)
    except Q8TRTError as error:
        pytest.skip(f"no Triton server: {error}")
    return ENVIRONMENT


@pytest.fixture(scope="module")
def int8_engine(
    tiny_quantized: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from q8trt.export.onnx import ExportOptions, export_onnx

    folder = tmp_path_factory.mktemp("int8")
    export_onnx(tiny_quantized()[0], folder / "model.onnx", "int8", INPUTS, ExportOptions("torchscript"))
    tiny_tokenizer.save_pretrained(folder)
    info = ModelInfo("tiny", "bert", 1, 64, 0, MAX_LENGTH)
    write_manifest(folder, Manifest(REGRESSION, info, Precision.INT8, None, INPUTS, 20))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, int8_engine: Path) -> Iterator[Address]:
    """The address of a server of all models."""
    installed = environment()
    folder = tmp_path_factory.mktemp("triton")
    models = folder / "models"
    models.mkdir()
    engines = {name: engine_folder(folder / name, TASKS[kind]) for name, kind in MODELS.items()} | {"int8": int8_engine}
    for name, engine in engines.items():
        backend = "onnxruntime" if name == "calling" else "python"
        config = TritonConfig(backend=backend, model_name=name, max_batch_size=8, threads=1)
        written = write_repository(engine, folder / f"{name}-models", config)
        for model in written.models:
            shutil.move(written.path / model, models / model)
    stand_in(models / "calling_encoder")
    with serve(models, installed) as address:
        yield address


def stand_in(model: Path) -> None:
    """Let the Python backend run an encoder that was written for ONNX Runtime's."""
    (model / "1" / "model.py").write_text(STAND_IN)
    config = (model / "config.pbtxt").read_text()
    config = re.sub(r"(platform|default_model_filename): .*\n", "", config).replace(
        'backend: "onnxruntime"', 'backend: "python"'
    )
    (model / "config.pbtxt").write_text(config)


def ask(server: Address, protocol: str, *requests: tuple[str, dict[str, list[str]]]) -> list[dict[str, Any]]:
    """The answers of the server to (model, texts by input), by tritonclient in a process of its environment."""
    work = {"protocol": protocol, "address": getattr(server, protocol),
            "requests": [{"model": model, "inputs": inputs} for model, inputs in requests]}  # fmt: skip
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("triton_client.py")],
        input=json.dumps(work), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def inputs_of(items: list[Any]) -> dict[str, list[str]]:
    if isinstance(items[0], str):
        return {"text": items}
    return {"text": [first for first, _ in items], "text_pair": [second for _, second in items]}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_transformers(server: Address, protocol: str, model: str) -> None:
    kind = MODELS[model]
    items, task = ITEMS[kind], TASKS[kind]
    parts = [items, items[:1], items[1:3]]
    for part, answer in zip(parts, ask(server, protocol, *((model, inputs_of(part)) for part in parts)), strict=True):
        logits, outputs = reference(task, part), answer["outputs"]
        if not task.labels:
            np.testing.assert_allclose(outputs["score"], logits, rtol=0, atol=2e-5)
            continue
        powers = np.exp(logits)
        assert outputs["label"] == [[task.labels[index]] for index in logits.argmax(1)]
        np.testing.assert_allclose(outputs["probabilities"], powers / powers.sum(1, keepdims=True), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_int8_answers_are_those_of_fake_quantization(
    server: Address, protocol: str, tiny_quantized: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    import torch

    items = [tuple(item) for item in ITEMS["regression"]]
    first, second = zip(*items, strict=True)
    encoded = tiny_tokenizer(
        list(first), list(second), truncation="longest_first", max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = tiny_quantized()[0](**encoded).logits.numpy()
    [answer] = ask(server, protocol, ("int8", inputs_of(items)))
    np.testing.assert_allclose(answer["outputs"]["score"], expected, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bad_requests_are_errors_and_the_server_goes_on(server: Address, protocol: str) -> None:
    good = ("regression", {"text": ["x"], "text_pair": ["y"]})
    bad = {
        "text[1] is empty; leave such rows out": ("regression", {"text": ["x", " "], "text_pair": ["y", "z"]}),
        "text[0] is empty": ("labels", {"text": [""]}),
        "expected 2 inputs but got 1": ("regression", {"text": ["x"]}),
        "batch size does not match": ("regression", {"text": ["x"], "text_pair": ["y", "z"]}),
        "batch-size must be <= 8": ("labels", {"text": ["x"] * 9}),
        "expected 1 inputs but got 2": ("labels", {"text": ["x"], "text_pair": ["y"]}),
        "unknown model": ("none", {"text": ["x"]}),
    }
    *answers, last = ask(server, protocol, *bad.values(), good)
    for message, answer in zip(bad, answers, strict=True):
        assert message in answer.get("error", f"no error, but {answer}")
    assert "score" in last["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_encoders_error_reaches_the_client(server: Address, protocol: str) -> None:
    """The stand-in fails for seven rows."""
    refused, answered = ask(server, protocol, *(("calling", inputs_of([("x", "y")] * rows)) for rows in (7, 6)))
    assert refused["error"].endswith("the encoder failed: no luck")
    assert len(answered["outputs"]["label"]) == 6


@pytest.mark.slow
def test_a_model_that_cannot_load_is_an_error_of_one_line(tmp_path: Path) -> None:
    installed = environment()
    written = write_repository(
        engine_folder(tmp_path / "engine", REGRESSION), tmp_path / "models", TritonConfig("python")
    )
    (written.path / "sts_b" / "1" / "tokenizer.json").unlink()
    with pytest.raises(BackendError) as error, serve(written.path, installed, timeout=PATIENCE):
        pass
    assert "tritonserver stopped with exit code 1" in str(error.value)
    assert "No such file" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_no_process_outlives_the_server(tmp_path: Path) -> None:
    installed = environment()
    written = write_repository(
        engine_folder(tmp_path / "engine", REGRESSION), tmp_path / "models", TritonConfig("python")
    )
    with serve(written.path, installed) as address:
        assert ask(address, "http", ("sts_b", {"text": ["x"], "text_pair": ["y"]}))[0]["outputs"]
        assert processes_of(written.path)
    assert not processes_of(written.path)


def processes_of(repository: Path) -> list[str]:
    """Command lines that name the repository: the server's and those of its models."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found += [words] if str(repository) in words else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(tmp_path: Path, stop: signal.Signals) -> None:
    installed = environment()
    written = write_repository(
        engine_folder(tmp_path / "engine", REGRESSION), tmp_path / "models", TritonConfig("python")
    )
    ports = [str(port) for port in free_ports(3)]
    command = [
        sys.executable,
        str(Path(__file__).with_name("triton_local_server.py")),
        str(written.path),
        "--environment",
        str(installed),
    ]
    with subprocess.Popen([*command, "--ports", *ports], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert f"HTTP 127.0.0.1:{ports[0]}, gRPC 127.0.0.1:{ports[1]}" in process.stdout.readline()
        process.send_signal(stop)
        assert process.wait(PATIENCE) == 0
    assert not processes_of(written.path)


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([str(tmp_path), "--environment", str(tmp_path)]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"triton_local_server: error: {tmp_path} holds no nvidia-pytriton")
    assert told.err.count("\n") == 1


def test_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as error:
        find_installation(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds no nvidia-pytriton, whose tritonserver this starts; install it with `make triton`"
    )


def test_without_a_stub_for_the_python_version(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "python3.99" / "site-packages" / "pytriton"
    (package / "tritonserver" / "bin").mkdir(parents=True)
    (package / "tritonserver" / "bin" / "tritonserver").touch()
    with pytest.raises(
        BackendError, match=r"has no tritonserver/python_backend_stubs/3.99/triton_python_backend_stub; install"
    ):
        find_installation(tmp_path)
