"""An embedding engine in an app, in the scoring of files and in Triton; transformers' own model is the reference."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixtures import TASKS, engine_folder
from conftest import make_tokenizer
from embedding_fixtures import TEXTS, embedding_engine, make_embedding_model
from triton_fakes import install, model_arguments, request_of
from waiting import PATIENCE

from q8trt import Engine
from q8trt.cli.main import main
from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.errors import BackendError, ConfigError, InputError

PROMPTS = {"prompts": {"query": "find : ", "document": ""}, "default_prompt_name": "query"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_engine(tmp_path_factory.mktemp("embed") / "engine", **PROMPTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_engine(tmp_path_factory.mktemp("embed") / "plain", pooling=("cls", "mean"))


def reference(texts: Any, **steps: Any) -> np.ndarray:
    import torch

    model, tokenizer = make_embedding_model(**steps), make_tokenizer()
    with torch.inference_mode():
        rows = [
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).logits[0] for text in texts
        ]
    return np.stack([row.numpy() for row in rows])


def test_texts_are_embedded_after_their_prompt(folder: Path) -> None:
    with Engine.load(folder, device="cpu") as engine:
        vectors = engine.embed(TEXTS)
        assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 32), np.float32)
        for options, prompt in (
            ({}, "find : "),
            ({"prompt_name": "document"}, ""),
            ({"prompt": "a dog , "}, "a dog , "),
        ):
            expected = reference([prompt + text for text in TEXTS])
            np.testing.assert_allclose(engine.embed(TEXTS, **options), expected, atol=1e-5)
        with pytest.raises(ConfigError, match="the model has no prompt 'x'; it has 'query', 'document'"):
            engine.embed(TEXTS, prompt_name="x")
        with pytest.raises(ConfigError, match="exclude each other"):
            engine.embed(TEXTS, prompt_name="query", prompt="")
        with pytest.raises(InputError, match="item 1: the text is empty"):
            engine.embed(["a", " "])


def test_requests_of_an_event_loop(plain: Path) -> None:
    with Engine.load(plain, device="cpu") as engine:

        async def ask() -> tuple[Any, Any]:
            return tuple(await asyncio.gather(engine.aembed(TEXTS[0]), engine.aembed(list(TEXTS[1:]))))  # type: ignore[return-value]

        one, others = asyncio.run(ask())
        np.testing.assert_allclose(np.stack([one, *others]), engine.embed(TEXTS), atol=1e-6)
        assert engine.embed(TEXTS).shape == (len(TEXTS), 64)
        assert engine.embed([]).shape == asyncio.run(engine.aembed([])).shape == (0, 64)


def test_each_head_has_its_method(plain: Path, tmp_path: Path) -> None:
    with Engine.load(plain, device="cpu") as engine:
        with pytest.raises(ConfigError, match="has a head for embedding, not for predict; call embed"):
            engine.predict(["a"])
        with pytest.raises(ConfigError, match="call embed"):
            asyncio.run(engine.apredict("a"))
    other = engine_folder(tmp_path / "engine", TASKS["single"])
    message = "has a head for sequence-classification, not for embed; call predict"
    with Engine.load(other, device="cpu") as engine, pytest.raises(ConfigError, match=message):
        engine.embed(["a"])


def test_an_embedding_that_is_not_finite_is_an_error(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(plain, device="cpu") as engine:
        vectors = np.float32([[0, 1], [np.nan, 1]])
        monkeypatch.setattr(engine._model, "logits", lambda tokens: vectors)
        with pytest.raises(BackendError, match="the embedding of text 1 is NaN or infinite"):
            engine.embed(["a", "b"])


def test_no_torch_is_imported(plain: Path) -> None:
    code = (
        "import sys\nfrom q8trt import Engine\nengine = Engine.load(sys.argv[1], device='cpu')\n"
        "print(engine.embed(['a dog']).shape, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, plain], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("(1, 64) False False\n", "")


def write_rows(path: Path) -> Path:
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:4], {"id": 99, "text": " "}, *rows[4:]]))
    return path


def predict(engine: Path, source: Path, output: Path, *options: str) -> int:
    return main(["predict", "--engine", str(engine), "--input", str(source), "--output", str(output), "--device", "cpu",
                 *options])  # fmt: skip


def test_files_of_embeddings(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from pyarrow import parquet

    source, expected = write_rows(tmp_path / "rows.jsonl"), reference([f"find : {text}" for text in TEXTS])
    for name in ("out.npy", "out.parquet", "out.jsonl"):
        assert predict(folder, source, tmp_path / name) == 0
        assert (tmp_path / f"{name}.rejected.csv").read_text().splitlines()[1].startswith("5,column 'text' is empty")
    assert "their rows of the array are NaN" in capsys.readouterr().err
    array = np.load(tmp_path / "out.npy")
    assert (array.dtype, array.shape) == (np.float32, (len(TEXTS) + 1, 32))
    assert np.isnan(array[4]).all()  # row i of the array is row i of the file
    vectors = np.delete(array, 4, axis=0)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "text", "embedding"]
    assert table["text"].to_pylist() == list(TEXTS)
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), vectors)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), vectors)
    assert lines[0]["id"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl", *(name + ending for name in ("out.npy", "out.parquet", "out.jsonl") for ending in ("", ".rejected.csv")),
    }  # fmt: skip


def test_a_prompt_and_a_second_job(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("\n".join(TEXTS))
    assert predict(folder, source, tmp_path / "out.npy", "--prompt_name", "document") == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), reference(TEXTS), atol=1e-5)
    assert predict(folder, source, tmp_path / "out.npy") == 2
    assert "exists already" in capsys.readouterr().err
    assert predict(folder, source, tmp_path / "out.npy", "--overwrite") == 0
    np.save(tmp_path / "mine.npy", np.arange(3))
    assert predict(folder, source, tmp_path / "mine.npy", "--overwrite") == 2
    assert "is not an output of q8trt predict" in capsys.readouterr().err


def test_a_job_that_was_stopped_before_its_last_step_ends_the_same(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from q8trt.inference.files import outputs

    source = write_rows(tmp_path / "rows.jsonl")
    assert predict(folder, source, tmp_path / "whole.npy") == 0

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    for step in ("write_embeddings", "discard"):
        with monkeypatch.context() as patch:
            patch.setattr(*((outputs, step, stop) if step == "write_embeddings" else (outputs.Outputs, step, stop)))
            assert predict(folder, source, tmp_path / f"{step}.npy") != 0
        if step == "discard":  # the rows are gone, the journal is not
            (tmp_path / f"{step}.npy.partial").unlink(missing_ok=True)
        assert predict(folder, source, tmp_path / f"{step}.npy") == 0
        np.testing.assert_array_equal(np.load(tmp_path / f"{step}.npy"), np.load(tmp_path / "whole.npy"))


@pytest.mark.parametrize(("name", "message"), [("out.csv", "an embedding fits no cell"), ("out.tsv", "")])
def test_an_output_that_holds_no_embedding(plain: Path, name: str, message: str, tmp_path: Path, capsys: Any) -> None:
    source = write_rows(tmp_path / "rows.jsonl")
    assert predict(plain, source, tmp_path / name) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_output_that_holds_embeddings_alone(tmp_path: Path, capsys: Any) -> None:
    engine = engine_folder(tmp_path / "engine", TASKS["single"])
    source = write_rows(tmp_path / "rows.jsonl")
    assert predict(engine, source, tmp_path / "out.npy") == 2
    assert "is for embeddings, and the engine answers SST-2" in capsys.readouterr().err


def test_triton_answers_embeddings(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    module = install(monkeypatch)
    written = write_repository(folder, tmp_path / "models", TritonConfig(model_name="texts", backend="python"))
    config = (written.path / "texts" / "config.pbtxt").read_text()
    assert 'name: "embedding"' in config
    model = module.TritonPythonModel()
    model.initialize(model_arguments(written.path / "texts"))
    (response,) = model.execute([request_of(TEXTS)])
    assert list(response.outputs) == ["embedding"]
    np.testing.assert_allclose(
        response.outputs["embedding"], reference([f"find : {text}" for text in TEXTS]), atol=1e-5
    )
