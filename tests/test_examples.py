"""Every example runs: with a tiny engine on the CPU where it can, else against stand-ins for what a GPU machine has."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_fixtures import LABELS, WORDS, real_logits, write_real_engine
from waiting import PATIENCE

from q8trt.cli.main import run_command

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAIRS = [("a cat runs", "a dog"), ("plane", "a plane takes a cat"), ("sleeps", "a b c")]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_real_engine(tmp_path / "engine")


def load(name: str) -> Any:
    """The example as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks names up
    spec.loader.exec_module(module)
    return module


def test_the_table_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w./]+)`", text, flags=re.MULTILINE))
    present = {path.name for path in EXAMPLES.glob("*.py")} | {
        f"{path.parent.name}/" for path in EXAMPLES.glob("*/*.cpp")
    }
    assert named == present


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.[cp][py]*")), ids=lambda path: path.name)
def test_an_example_can_be_read_at_once(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (190 if path.suffix == ".cpp" else 90)
    assert all(len(line) <= 125 for line in lines)


def test_batch_csv_gives_what_the_command_gives(engine: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.csv"
    source.write_text("sentence1,sentence2\n" + "".join(f"{a},{b}\n" for a, b in [*PAIRS, ("", "x")]))
    command = [sys.executable, str(EXAMPLES / "batch_csv.py"), str(engine), str(source)]
    done = subprocess.run(
        [*command, str(tmp_path / "a.csv")], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == f"3 rows -> {tmp_path / 'a.csv'}; 1 rejected, 0 cut\n"
    assert done.stderr.startswith("100%  3 rows, ")
    options = ["--engine", str(engine), "--input", str(source), "--output", str(tmp_path / "b.csv")]
    assert run_command("predict", options) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    again = subprocess.run(
        [*command, str(tmp_path / "a.csv")], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith(f"batch_csv: {tmp_path / 'a.csv'} exists already")


@pytest.fixture
def service(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install fastapi uvicorn")
    pytest.importorskip("httpx2", reason="httpx2, with which FastAPI's test client speaks, is not installed")
    monkeypatch.setenv("Q8TRT_ENGINE", str(engine))
    monkeypatch.setenv("Q8TRT_DEVICE", "cpu")
    return load("fastapi_service")


@pytest.fixture
def client(service: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with TestClient(service.create_app()) as client:
        yield client


def test_service_answers(client: Any) -> None:
    response = client.post("/predict", json={"items": PAIRS})
    assert response.status_code == 200
    found = [answer["score"] for answer in response.json()["answers"]]
    assert found == pytest.approx([float(real_logits(*pair)[0]) for pair in PAIRS], rel=1e-5)
    assert client.get("/health").json() == {"task": "mine", "backend": "onnxruntime", "device": "cpu", "truncated": 0}


@pytest.mark.parametrize("body", [{"items": []}, {"items": [["a", "b"]] * 257}, {"items": "text"}, {"items": [1]}, {}])
def test_service_refuses_what_is_no_list_of_texts(client: Any, body: Any) -> None:
    assert client.post("/predict", json=body).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        '{"items": [NaN]}',
        '{"items": [["a", Infinity]]}',
        '{"items": ["a"',
        "",
        "[" * 100_000,
        '{"items": ["\\ud800"]}',
        "\0",
    ],
)
def test_service_refuses_what_is_no_json_in_one_line(client: Any, body: str) -> None:
    response = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("the body is not what is expected: ")
    assert "\n" not in response.json()["detail"]


def test_service_refuses_a_long_body_before_it_has_read_it(client: Any) -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            sent.append(1)
            yield b"x" * 2**16

    response = client.post("/predict", content=chunks())
    assert response.status_code == 413
    assert response.json()["detail"] == "the body is longer than 1,048,576 bytes; send fewer or shorter items"
    long = {"items": [["a " * 400_000, "b"]]}
    assert client.post("/predict", json=long).status_code == 200
    assert client.get("/health").json()["truncated"] == 1


@pytest.mark.parametrize(("items", "item"), [([["a", "b"], ["a", " "]], 1), (["alone"], 0)])
def test_service_names_the_item_that_cannot_be_answered(client: Any, items: Any, item: int) -> None:
    response = client.post("/predict", json={"items": items})
    assert response.status_code == 422
    assert response.json()["item"] == item
    assert response.json()["detail"].startswith(f"item {item}: ")


def test_service_under_concurrent_requests(service: Any) -> None:
    """Each of 60 requests at once gets its own answers, whatever they share a batch with."""
    import httpx2

    async def all_at_once() -> list[Any]:
        app = service.create_app()
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client,
        ):
            posts = [client.post("/predict", json={"items": [PAIRS[n % 3]] * (n % 4 + 1)}) for n in range(60)]
            return [response.json()["answers"] for response in await asyncio.gather(*posts)]

    for number, answers in enumerate(asyncio.run(all_at_once())):
        expected = float(real_logits(*PAIRS[number % 3])[0])
        assert [answer["score"] for answer in answers] == pytest.approx([expected] * (number % 4 + 1), rel=1e-5)


def test_service_of_a_classifier(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("Q8TRT_ENGINE", str(write_real_engine(tmp_path / "labels", LABELS, is_pair=False)))
    with TestClient(service.create_app()) as client:
        answer = client.post("/predict", json={"items": ["a cat runs"]}).json()["answers"][0]
    assert answer["label"] == LABELS[int(real_logits("a cat runs").argmax())]
    assert answer["score"] == max(answer["probabilities"].values())


def test_service_without_an_engine_says_so(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("Q8TRT_ENGINE")
    with pytest.raises(SystemExit, match="set Q8TRT_ENGINE to an engine folder"):
        service.create_app()


def printed(text: str, names: list[str]) -> list[np.ndarray]:
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == names
    return [np.array(re.findall(r"-?\d+\.\d*(?:e[+-]\d+)?", line), np.float64) for line in lines]


def test_torch_tensors_give_what_numpy_gives(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(sys, "argv", ["torch_and_cupy.py", str(engine), *PAIRS[0]])
    monkeypatch.setattr("q8trt.inference.opening.gpus", list)
    load("torch_and_cupy").main()
    host, torch = printed(capsys.readouterr().out, ["NumPy", "torch"])
    np.testing.assert_allclose(host, real_logits(*PAIRS[0])[:1], rtol=1e-4)
    np.testing.assert_array_equal(host, torch)


class FakeGPU:
    """PyCUDA's modules and an `Engine` that note what is called, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inputs: list[str], error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.arrays: dict[str, np.ndarray] = {}
        gpu, note = self, self.calls.append

        class Context:
            push = staticmethod(lambda: note("push"))
            pop = staticmethod(lambda: note("pop"))

        class Stream:
            synchronize = staticmethod(lambda: note("synchronize"))

        class Engine:
            manifest = types.SimpleNamespace(inputs=inputs)

            @classmethod
            def load(cls, folder: Path, device: str) -> Any:
                note(f"load {device}")
                return cls()

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: object) -> None:
                note("close")

            def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
                note("run")
                if error:
                    raise error
                gpu.arrays = arrays
                return np.array([[1.5]])

        driver = types.ModuleType("pycuda.driver")
        driver.init = lambda: note("init")  # type: ignore[attr-defined]
        driver.Device = lambda number: types.SimpleNamespace(retain_primary_context=Context)  # type: ignore[attr-defined]
        driver.Stream = Stream  # type: ignore[attr-defined]
        arrays = types.ModuleType("pycuda.gpuarray")

        def to_gpu_async(ary: np.ndarray, allocator: Any = None, stream: Any = None) -> np.ndarray:
            note("copy" if isinstance(stream, Stream) else "copy in the default stream")
            return ary

        arrays.to_gpu_async = to_gpu_async  # type: ignore[attr-defined]
        package = types.ModuleType("pycuda")
        package.driver, package.gpuarray = driver, arrays  # type: ignore[attr-defined]
        for module in (package, driver, arrays):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr("q8trt.Engine", Engine, raising=False)


def test_pycuda_waits_for_its_stream_and_leaves_its_context(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = FakeGPU(monkeypatch, ["input_ids", "attention_mask"])
    monkeypatch.setattr(sys, "argv", ["pycuda_arrays.py", "engine", "101", "7", "102"])
    load("pycuda_arrays").main()
    assert gpu.calls == ["init", "push", "load cuda", "copy", "copy", "synchronize", "run", "close", "pop"]
    assert {name: array.tolist() for name, array in gpu.arrays.items()} == {
        "input_ids": [[101, 7, 102]],
        "attention_mask": [[1, 1, 1]],
    }
    assert all(array.dtype == np.int32 for array in gpu.arrays.values())
    assert capsys.readouterr().out == "[[1.5]]\n"


def test_pycuda_leaves_its_context_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, ["input_ids"], RuntimeError("refused"))
    monkeypatch.setattr(sys, "argv", ["pycuda_arrays.py", "engine", "101"])
    with pytest.raises(RuntimeError, match="refused"):
        load("pycuda_arrays").main()
    assert gpu.calls[-2:] == ["close", "pop"]


@pytest.fixture(scope="module")
def gpu_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny engine with a plan for this machine's GPU."""
    from dataclasses import replace

    from q8trt.engine.backend import find_backend
    from q8trt.engine.build_process import build_plan
    from q8trt.engine.config import BuildConfig
    from q8trt.engine.manifest import BackendInfo
    from q8trt.engine.manifest_file import load_manifest, write_manifest
    from q8trt.engine.shapes import bucket_profiles

    folder, profiles = write_real_engine(tmp_path_factory.mktemp("gpu") / "engine"), bucket_profiles((16,), 2, 4)
    plan = build_plan(folder / "model.onnx", folder / "model.plan", BuildConfig(find_backend().name, profiles))
    backend = BackendInfo(plan.backend, plan.version, plan.sm_targets)
    write_manifest(folder, replace(load_manifest(folder, verify=False), profiles=list(profiles), backend=backend))
    return folder


@pytest.mark.gpu
def test_torch_and_cupy_on_a_gpu(gpu_engine: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    command = [sys.executable, str(EXAMPLES / "torch_and_cupy.py"), str(gpu_engine), *PAIRS[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    names = ["NumPy", "torch"] + (["CuPy"] if importlib.util.find_spec("cupy") else [])
    for found in printed(done.stdout, names):
        np.testing.assert_allclose(found, real_logits(*PAIRS[0])[:1], rtol=1e-3)


@pytest.mark.gpu
def test_pycuda_on_a_gpu(gpu_engine: Path) -> None:
    pytest.importorskip("pycuda", reason="PyCUDA is not installed")
    ids = [str(WORDS.index(word)) for word in ("[CLS]", "a", "cat", "runs", "[SEP]")]
    command = [sys.executable, str(EXAMPLES / "pycuda_arrays.py"), str(gpu_engine), *ids]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found = np.array(re.findall(r"-?\d+\.\d*(?:e[+-]\d+)?", done.stdout), np.float64)
    np.testing.assert_allclose(found, real_logits("a cat runs")[:1], rtol=1e-3)
