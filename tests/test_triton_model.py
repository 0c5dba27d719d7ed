"""The model that runs inside the server, beside a fake of the server's Python module; transformers is the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixtures import ITEMS, LONG, MAX_LENGTH, TASKS, changed, engine_folder, reference
from triton_fakes import (
    InferenceRequest,
    InferenceResponse,
    Request,
    Tensor,
    TritonError,
    install,
    model_arguments,
    request_of,
)

from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.engine.manifest_file import load_manifest

BAD = {"regression": Request(text=[" "], text_pair=["x"]), "single": Request(text=[""])}


@pytest.fixture(scope="module", params=TASKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_folder(tmp_path_factory.mktemp("triton") / kind, TASKS[kind])


@pytest.fixture
def start(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``start(backend="python")``: the text model of a repository of `engine`, initialized."""

    def make(**options: Any) -> Any:
        module = install(monkeypatch)
        written = write_repository(engine, tmp_path / "models", TritonConfig(model_name="texts", **options))
        model = module.TritonPythonModel()
        model.initialize(model_arguments(written.path / "texts"))
        return model

    return make


@pytest.fixture
def start_calling(start: Callable[..., Any], engine: Path) -> Callable[..., Any]:
    """The text model that calls an encoder, which ONNX Runtime stands in for; `calls` collects the shapes it was given."""

    def make(calls: list[tuple[int, ...]], **options: Any) -> Any:
        import onnxruntime

        model, session = start(backend="onnxruntime", **options), onnxruntime.InferenceSession(engine / "model.onnx")

        def encoder(arrays: dict[str, np.ndarray]) -> InferenceResponse:
            assert list(arrays) == load_manifest(engine).inputs
            assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
            calls.append(arrays["input_ids"].shape)
            return InferenceResponse([Tensor("logits", session.run(["logits"], arrays)[0])])

        InferenceRequest.models["texts_encoder"] = encoder
        return model

    return make


def check(response: InferenceResponse, items: list[Any], kind: str) -> None:
    """The response must be what transformers answers to `items`."""
    assert not response.has_error(), response.error().message()
    logits, labels = reference(TASKS[kind], items), TASKS[kind].labels
    if not labels:
        assert list(response.outputs) == ["score"]
        np.testing.assert_allclose(response.outputs["score"], logits, rtol=0, atol=2e-5)
        return
    powers = np.exp(logits)
    assert response.outputs["label"].tolist() == [[labels[index]] for index in logits.argmax(1)]
    np.testing.assert_allclose(
        response.outputs["probabilities"], powers / powers.sum(1, keepdims=True), rtol=0, atol=1e-5
    )
    assert response.outputs["probabilities"].dtype == np.float32


def test_answers_are_those_of_transformers(start: Callable[..., Any], kind: str) -> None:
    items = ITEMS[kind]
    [response] = start(backend="python").execute([request_of(items)])
    check(response, items, kind)


def test_requests_of_a_batch_get_their_own_rows(start: Callable[..., Any], kind: str) -> None:
    model, items = start(backend="python"), ITEMS[kind]
    parts = [items[:1], items[1:4], items[4:]]
    for response, part in zip(model.execute([request_of(part) for part in parts]), parts, strict=True):
        check(response, part, kind)


def test_an_encoder_of_its_own_is_called_for_each_bucket(start_calling: Callable[..., Any], kind: str) -> None:
    calls: list[tuple[int, ...]] = []
    model, items = start_calling(calls), ITEMS[kind]
    [response] = model.execute([request_of(items)])
    check(response, items, kind)
    assert {length for _, length in calls} == {8, 16}
    assert sum(rows for rows, _ in calls) == len(items)


def test_on_a_gpu_all_rows_share_a_call(start_calling: Callable[..., Any], kind: str) -> None:
    calls: list[tuple[int, ...]] = []
    model, items = start_calling(calls, device="cuda"), ITEMS[kind]
    [response] = model.execute([request_of(items)])
    check(response, items, kind)
    assert calls == [(len(items), MAX_LENGTH)]
    short = [item for item in items if item in ("x", ("x", "y"))]
    check(model.execute([request_of(short)])[0], short, kind)
    assert calls[1:] == [(1, 8)]


def test_a_bad_request_does_not_spoil_the_others(start: Callable[..., Any], kind: str) -> None:
    model, items = start(backend="python"), ITEMS[kind]
    bad = BAD.get(kind, BAD["regression"])
    first, second, third = model.execute([request_of(items[:2]), bad, request_of(items[2:])])
    check(first, items[:2], kind)
    check(third, items[2:], kind)
    assert second.error().message() == "text[0] is empty; leave such rows out"
    assert second.error().code == TritonError.INVALID_ARG
    [alone] = model.execute([bad])
    assert alone.has_error()


@pytest.mark.parametrize("kind", ["regression"], indirect=True)
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Request(text=["x", "y"], text_pair=["z"]),
            "expected the same number of texts in each input, got 2 in text and 1 in text_pair",
        ),
        (Request(text=["x"], text_pair=["\t\n"]), "text_pair[0] is empty; leave such rows out"),
        (Request(text=["x", b"\xff"], text_pair=["x", "y"]), "text[1] is not UTF-8"),
    ],
)
def test_requests_that_cannot_be_answered(start: Callable[..., Any], request_: Request, message: str) -> None:
    [response] = start(backend="python").execute([request_])
    assert response.error().message() == message
    assert response.error().code == TritonError.INVALID_ARG


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_the_encoders_error_reaches_the_client(start_calling: Callable[..., Any]) -> None:
    model = start_calling([])
    InferenceRequest.models["texts_encoder"] = lambda _: InferenceResponse(error=TritonError("out of memory"))
    responses = model.execute([Request(text=["x"]), Request(text=[""])])
    assert [each.error().message() for each in responses] == ["the encoder failed: out of memory"] * 2
    assert responses[0].error().code == TritonError.INTERNAL


def test_an_answer_that_is_not_finite_is_an_error_of_its_request(start: Callable[..., Any], kind: str) -> None:
    model, items = start(backend="python"), ITEMS[kind][:3]
    encode = model.encode

    def overflow(arrays: dict[str, np.ndarray]) -> np.ndarray:
        logits = encode(arrays)
        last = model.encoder.encode([tuple([items[2]] if isinstance(items[2], str) else items[2])]).ids[0]
        is_last = [row[: len(last)].tolist() == last for row in arrays["input_ids"]]
        logits[is_last, -1] = np.nan
        return logits

    model.encode = overflow
    good, bad = model.execute([request_of(items[:2]), request_of(items[2:])])
    check(good, items[:2], kind)
    assert bad.error().message().startswith("an answer of the encoder is NaN or infinite")
    assert bad.error().code == TritonError.INTERNAL


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_onnx_runtimes_error_reaches_the_client(start: Callable[..., Any]) -> None:
    model = start(backend="python")
    model.inputs = model.inputs[:1]
    [response] = model.execute([Request(text=["x"])])
    assert response.error().message().startswith("the encoder failed: Required inputs")


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_instances_share_the_cores(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    model = start(backend="python", instances=2)
    assert model.encode.session.get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_given_threads_count(start: Callable[..., Any]) -> None:
    model = start(backend="python", instances=2, threads=5)
    assert model.encode.session.get_session_options().intra_op_num_threads == 5


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_a_text_is_cut_where_training_cut_it(start: Callable[..., Any]) -> None:
    encoded = start(backend="python").encoder.encode([(LONG,)])
    assert len(encoded.ids[0]) == MAX_LENGTH


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx2", False), ("fpu avx_vnni", True), ("avx512_vnni fpu", True)]
)
def test_vnni_is_read_from_cpuinfo(flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert install(monkeypatch)._has_vnni(str(tmp_path / "cpuinfo")) is expected


@pytest.mark.parametrize("kind", ["regression"], indirect=True)
def test_a_sigmoid_is_taken_where_the_manifest_asks_for_it(start: Callable[..., Any], engine: Path) -> None:
    items = ITEMS["regression"]
    changed(engine, task=replace(TASKS["regression"], activation="sigmoid"))
    try:
        [response] = start(backend="python").execute([request_of(items)])
    finally:
        changed(engine, task=TASKS["regression"])
    expected = 1 / (1 + np.exp(-reference(TASKS["regression"], items)))
    np.testing.assert_allclose(response.outputs["score"], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_a_tokenizer_that_fails_is_an_error_of_its_request(start: Callable[..., Any]) -> None:
    model = start(backend="python")

    def fail(rows: list[Any]) -> None:
        raise model.encoding.EncodingError("Onig: Regex search error")

    model.encoder.encode = fail
    [response] = model.execute([request_of(["a text"])])
    assert response.error().message() == "the tokenizer failed: Onig: Regex search error"
